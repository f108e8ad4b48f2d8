"""`tokprune chat`: a conversation in the terminal."""

import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console

from tokprune.backends import Asked
from tokprune.budgets import BudgetLike, parse_budget
from tokprune.chat import Chat
from tokprune.commands.ask import summary
from tokprune.control import CancelToken
from tokprune.errors import RequestInvalid, TokpruneError, unknown
from tokprune.loading import load
from tokprune.looking import way_of
from tokprune.pictures import load_picture
from tokprune.running.request import AskOptions
from tokprune.selectors import method_of
from tokprune.types import Medium
from tokprune.video import load_video

_HELP = """\
/image FILE    show a picture with the next question
/video FILE    show a video with the next question
/budget 0.25   vision tokens that may enter the LLM from now on: 0.25, 128, mass:0.9, ttft:300ms
/undo          take the last turn back
/help          this
/quit          end; so does the end of the input
Ctrl-C stops an answer, and keeps what was written of it."""


@dataclass(frozen=True)
class ChatCommand:
    """Talk about pictures and videos, in several turns. /help lists what else can be typed."""

    bundle: tyro.conf.Positional[Path]
    """The folder that tokprune-export wrote."""
    image: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A picture to show with the first question; repeat for several."""
    video: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A video to show with the first question; repeat for several."""
    budget: str = "0.5"
    """Vision tokens of all pictures so far that may enter the LLM; with --pin, of each picture."""
    selector: str | None = None
    """How tokens are chosen; the bundle's default if not given."""
    encode: str = "full"
    """What the vision encoder is shown, as in `tokprune ask`."""
    pin: bool = False
    """Choose the tokens of a picture once, when it is shown: later answers come sooner."""
    system: str | None = None
    """A system message."""
    max_new_tokens: int = 256
    """Bound of an answer's length."""
    backend: Asked = "auto"
    """What runs the graphs; auto takes the fastest that can."""
    threads: int | None = None
    """Threads of each graph."""


@dataclass
class _Talk:
    """What the next question will have."""

    chat: Chat
    budget: BudgetLike
    options: AskOptions
    console: Console
    media: list[Medium] = field(default_factory=list[Medium])


def run_chat(command: ChatCommand) -> int:
    """Run `tokprune chat`."""
    budget = parse_budget(command.budget)
    if command.selector is not None:
        method_of(command.selector)
    way_of(command.encode)
    options = AskOptions(max_new_tokens=command.max_new_tokens, encode=command.encode)
    media: list[Medium] = [load_picture(path) for path in command.image]
    media += [load_video(path) for path in command.video]
    console = Console(stderr=True, highlight=False)
    with load(command.bundle, backend=command.backend, threads=command.threads) as vlm:
        vlm.model.check_encode(command.encode, command.selector)
        chat = vlm.chat(
            system=command.system, budget=budget, selector=command.selector, pin=command.pin
        )
        talk = _Talk(chat, budget, options, console, media)
        for line in _lines():
            try:
                if not _said(talk, line):
                    break
            except (TokpruneError, OSError) as error:
                code = error.code if isinstance(error, TokpruneError) else "os"
                console.print(f"error [{code}]: {error}", markup=False, soft_wrap=True)
    return 0


def _lines() -> Iterator[str]:
    """Yield what is typed or piped in, until its end."""
    typed = sys.stdin.isatty()
    while True:
        try:
            line = input("> ") if typed else sys.stdin.readline()
        except EOFError:
            print()
            return
        if not typed and not line:
            return
        if line.strip():
            yield line.strip()


def _said(talk: _Talk, line: str) -> bool:
    """Do what a line says. False ends the conversation."""
    if line.startswith("/"):
        name, _, rest = line[1:].partition(" ")
        return _told(talk, name, rest.strip())
    token, options = CancelToken(), talk.options.copy()
    options["cancel"] = token
    with _interrupting(token.cancel):
        stream = talk.chat.stream(line, talk.media, talk.budget, **options)
        for piece in stream:
            print(piece, end="", flush=True)
    print()
    talk.media = []
    talk.console.print(summary(stream.answer), markup=False, style="dim", soft_wrap=True)
    return True


def _told(talk: _Talk, name: str, rest: str) -> bool:
    """Obey a line that begins with a slash."""
    match name:
        case "image":
            talk.media.append(load_picture(_path(name, rest)))
        case "video":
            talk.media.append(load_video(_path(name, rest)))
        case "budget":
            talk.budget = parse_budget(rest)
        case "undo":
            talk.chat.undo()
        case "help":
            talk.console.print(_HELP, markup=False)
        case "quit" | "exit":
            return False
        case _:
            names = ["image", "video", "budget", "undo", "help", "quit"]
            raise RequestInvalid(unknown("command", name, names))
    return True


def _path(name: str, rest: str) -> Path:
    if not rest:
        raise RequestInvalid(f"/{name} needs a file: /{name} FILE")
    return Path(rest).expanduser()


@contextmanager
def _interrupting(action: Callable[[], None]) -> Generator[None]:
    """Let Ctrl-C stop the answer instead of the program."""

    def handle(number: int, frame: object) -> None:
        del number, frame
        action()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
