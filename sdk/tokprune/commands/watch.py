"""`tokprune watch`: one question about a camera, again and again."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from tokprune.backends import Asked as Backend
from tokprune.budgets import parse_budget
from tokprune.camera.connecting import open_camera
from tokprune.commands.ask import as_json, encoded
from tokprune.errors import RequestInvalid, TokpruneError
from tokprune.loading import load
from tokprune.looking import stream_way
from tokprune.running.request import AskOptions
from tokprune.selectors import method_of
from tokprune.watching import Answered, Failed, Observation, StateChanged, Watcher, WatchEvent
from tokprune.watching.settings import Mode


@dataclass(frozen=True)
class Watch:
    """Ask the same question about a camera, again and again. Ctrl-C ends."""

    bundle: tyro.conf.Positional[Path]
    """The folder that tokprune-export wrote."""
    source: str
    """/dev/video0, csi://0, rtsp://HOST/PATH, http://HOST/PATH, a video file, a folder of pictures,
    fake://scenes (drawn, no camera needed), or env:NAME for an address in an environment
    variable, which no list of processes shows."""
    question: str
    """What to ask."""
    mode: Mode = "continuous"
    """continuous: about the newest frame as soon as the last answer is there; on_change: when the
    picture has changed."""
    every_s: float = 0.0
    """At most one question in so many seconds."""
    count: int | None = None
    """End after so many answers."""
    window: int = 1
    """Ask about the last so many frames, as a video; only new ones are encoded."""
    window_fps: float | None = None
    """Frames of the window a second; the camera's own rate if not given."""
    name: str | None = None
    """What the camera is called in the output."""
    max_frame_age_s: float | None = None
    """No answer is given about an older frame. Default: 1 s, or three frame intervals."""
    loop: bool = False
    """A file begins again at its end."""
    live: bool = False
    """Play a file at its own speed, the newest frame first; else every frame is asked about."""
    budget: str = "0.5"
    """Vision tokens that may enter the LLM, as in `tokprune ask`."""
    selector: str | None = None
    """How tokens are chosen; the bundle's default if not given."""
    encode: str = "full"
    """What the vision encoder is shown, as in `tokprune ask`; or follow, follow:8: what has moved,
    and every part of the picture at least once in 8 answers."""
    max_new_tokens: int = 64
    """Bound of an answer's length."""
    choice: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A possible answer; repeat for all. The likeliest is given."""
    deadline_s: float | None = None
    """Seconds after which an answer ends as it is then."""
    json: bool = False
    """Print one JSON object a line: answers, failures, and states of the camera."""
    backend: Backend = "auto"
    """What runs the graphs; auto takes the fastest that can."""
    threads: int | None = None
    """Threads of each graph."""


def run_watch(command: Watch) -> int:
    """Run `tokprune watch`."""
    budget = parse_budget(command.budget)
    if command.selector is not None:
        method_of(command.selector)
    encode = stream_way(command.encode)
    if command.mode == "on_demand":
        raise RequestInvalid("Nobody would ask: give --mode continuous or --mode on_change")
    if command.count is not None and command.count < 1:
        raise RequestInvalid(f"--count must be 1 or more, got {command.count}")
    options = AskOptions(
        max_new_tokens=command.max_new_tokens,
        choices=command.choice or None,
        deadline_s=command.deadline_s,
        encode=encode,
    )
    with ExitStack() as stack:
        camera = stack.enter_context(
            open_camera(
                command.source,
                name=command.name,
                live=command.live or None,
                loop=command.loop,
                max_frame_age_s=command.max_frame_age_s,
            )
        )
        vlm = stack.enter_context(
            load(command.bundle, backend=command.backend, threads=command.threads)
        )
        watcher = Watcher(
            vlm,
            camera,
            command.question,
            mode=command.mode,
            budget=budget,
            selector=command.selector,
            window=command.window,
            window_fps=command.window_fps,
            every_s=command.every_s,
            listener=_print_line if command.json else _print_text,
            **options,
        )
        stack.enter_context(watcher)
        for seen in watcher:
            if command.count is not None and seen.number + 1 >= command.count:
                break
    return 0


def _print_line(event: WatchEvent) -> None:
    """Print an event as one JSON object."""
    shown = as_line(event)
    if shown is not None:
        print(json.dumps(shown), flush=True)


def as_line(event: WatchEvent) -> dict[str, Any] | None:
    """Return an event as `--json` prints it; None: nothing. Keys are only ever added."""
    match event:
        case Answered(seen):
            return {"event": "answer", **_seen(seen), **as_json(seen.answer, ())}
        case Failed(error, frame):
            code = error.code if isinstance(error, TokpruneError) else "internal"
            number = None if frame is None else frame.number
            return {"event": "failure", "code": code, "message": str(error), "frame": number}
        case StateChanged(status):
            return {
                "event": "state",
                "camera": status.name,
                "source": status.source,
                "state": status.state,
                "error": status.error,
            }
        case _:
            return None


def _seen(seen: Observation) -> dict[str, Any]:
    return {
        "number": seen.number,
        "camera": seen.frame.source,
        "frame": seen.frame.number,
        "captured_s": seen.frame.captured_s,
        "wall_s": seen.frame.wall_s,
        "media_s": seen.frame.media_s,
        "age_s": seen.age_s,
        "drops": seen.drops,
        "unchanged": seen.unchanged,
        "question": seen.question,
    }


def _print_text(event: WatchEvent) -> None:
    """Print an event for people: answers on stdout, all else on stderr."""
    match event:
        case Answered(seen):
            answer = seen.answer
            when = datetime.fromtimestamp(seen.frame.wall_s, timezone.utc).astimezone()
            place = (
                f"{when:%H:%M:%S}" if seen.frame.media_s is None else f"{seen.frame.media_s:.2f} s"
            )
            work = encoded(answer) if answer.encoder_runs else ", encoder not run"
            print(
                f"{place}  {answer.text}  [frame {seen.frame.number}, {seen.age_s:.2f} s old, kept "
                f"{answer.kept} of {answer.total}{work}]",
                flush=True,
            )
        case Failed(error, _):
            code = error.code if isinstance(error, TokpruneError) else "internal"
            _errors().print(f"no answer [{code}]: {error}", style="yellow", markup=False)
        case StateChanged(status):
            reason = f": {status.error}" if status.error else ""
            text = f"camera {status.name} is {status.state}{reason}"
            _errors().print(text, style="dim", highlight=False, markup=False)
        case _:
            pass


def _errors() -> Console:
    return Console(stderr=True)
