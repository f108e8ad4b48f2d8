"""Ask your cameras in a browser: live pictures, answers, and the patches they were read from.

    python samples/camera_qa/app.py --bundle build/demo --source fake://scenes
    python samples/camera_qa/app.py --bundle B --source /dev/video0 --source env:DOOR_CAMERA

Needs the extras serve and, for real cameras, camera: pip install 'tokprune[serve,camera]'. An
address with a password belongs into an environment variable (env:NAME): others see command lines.
"""

import asyncio
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

import tokprune
from tokprune.backends import Asked
from tokprune.budgets import parse_budget
from tokprune.camera.naming.sources import parse_source
from tokprune.errors import BackendUnavailable, RequestInvalid
from tokprune.looking import stream_way
from tokprune.selectors import method_of
from tokprune.serving.running import address_of, bound

if TYPE_CHECKING:
    from camera_page.events import Hello

_NEEDED = ("starlette", "uvicorn", "websockets")


@dataclass(frozen=True)
class CameraPage:
    """Watch cameras with a VLM, and show it in a browser."""

    bundle: Path
    """The folder that tokprune-export wrote."""
    source: tyro.conf.UseAppendAction[tuple[str, ...]]
    """A camera: /dev/video0, csi://0, rtsp://HOST/PATH, http://HOST/video.mjpg, a video file, a
    folder of pictures, fake://scenes, or env:NAME for an address in an environment variable.
    Repeat for several; all share one model."""
    name: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What a camera is called on the page and in the log, in the order of the sources."""
    question: str | None = None
    """What is asked first."""
    mode: Literal["continuous", "on_change", "on_demand"] = "continuous"
    """When to ask: always, when the picture has changed, or when somebody asks."""
    every: float = 0.0
    """Ask a camera at most once in so many seconds."""
    budget: str = "0.5"
    """A share (0.5), a count (128), mass:0.9, ttft:300ms or auto:300ms, at the beginning."""
    selector: str | None = None
    """How vision tokens are chosen; the bundle's default if not given."""
    encode: str = "full"
    """What the vision encoder is shown at the beginning: full, lazy, lazy:2, coarse, coarse:2,
    repeats, repeats:0.02 or auto (`tokprune ask --help` explains them); follow, follow:8: what has
    moved, and every part of the picture at least once in 8 answers."""
    max_new_tokens: int = 64
    """The longest answer, in tokens."""
    window: int = 1
    """Ask about a video of the last so many frames, where the model knows videos."""
    window_fps: float | None = None
    """Frames of the window in a second; as the camera gives them if not given."""
    every_frame: bool = False
    """Ask about every frame of a video file or folder, instead of playing it at its speed."""
    loop: bool = False
    """Begin again where a video file or folder ends."""
    port: int = 8000
    """0 takes one that is free, and prints it."""
    listen: str = "127.0.0.1"
    """The address to listen at. One that other machines reach needs the token that is printed."""
    log: Path | None = None
    """A folder for questions, answers and errors as lines of JSON; not written if not given."""
    keep_frames_mb: float = 0.0
    """Keep the newest asked frames beside the log, so many million bytes of JPEG at most."""
    backend: Asked = "auto"
    """What runs the graphs; auto takes the fastest that can."""
    threads: int | None = None
    """Threads of each graph."""


def main() -> None:
    """Run the page until Ctrl-C."""
    command = tyro.cli(CameraPage)
    try:
        run(command)
    except tokprune.TokpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # before it was ready
        raise SystemExit(130) from None


def run(command: CameraPage) -> None:
    """Open everything, serve, close everything."""
    check(command)
    from camera_page.event_log import EventLog
    from camera_page.hub import Hub
    from camera_page.presets import first_question
    from camera_page.server import run as serve
    from camera_page.station import Beginning

    token = None if is_local(command.listen) else secrets.token_urlsafe(24)
    drawn = shows_drawn(command)
    beginning = Beginning(
        question=command.question or first_question(drawn=drawn),
        budget=command.budget,
        selector=command.selector,
        encode=command.encode,
        mode=command.mode,
        max_new_tokens=command.max_new_tokens,
        every_s=command.every,
        window=command.window,
        window_fps=command.window_fps,
    )
    with ExitStack() as stack:
        address = address_of(command.listen, allow_remote=True)
        sock = stack.enter_context(bound(address, command.port))
        log = command.log and EventLog(command.log, keep_frames_mb=command.keep_frames_mb)
        cameras = [stack.enter_context(camera) for camera in opened(command)]
        print(f"loading {command.bundle.name}", file=sys.stderr, flush=True)
        vlm = stack.enter_context(loaded(command))
        hello = greeting(vlm, command, drawn=drawn)

        def ready() -> None:
            sock.listen()
            print(f"ready: {url_of(sock, token)} (Ctrl-C ends it)", file=sys.stderr, flush=True)

        def hub() -> Hub:
            return Hub(vlm, hello, beginning, log or None)

        asyncio.run(serve(sock, hub, cameras, token=token, ready=ready))


def check(command: CameraPage) -> None:
    """Refuse what needs neither bundle nor camera to be refused."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise BackendUnavailable(
            f"The page needs {' and '.join(missing)}: pip install 'tokprune[serve]'"
        )
    if not command.source:
        raise RequestInvalid("Give --source; fake://scenes needs no camera")
    if len(command.name) > len(command.source):
        raise RequestInvalid(
            f"There are {len(command.name)} names for {len(command.source)} sources"
        )
    if command.keep_frames_mb and command.log is None:
        raise RequestInvalid("--keep-frames-mb keeps frames beside the log: give --log FOLDER too")
    if not (0 <= command.keep_frames_mb < float("inf")):
        raise RequestInvalid(f"--keep-frames-mb must be 0 or more, got {command.keep_frames_mb}")
    if command.selector is not None:
        method_of(command.selector)
    stream_way(command.encode)
    parse_budget(command.budget)


def is_local(listen: str) -> bool:
    """Tell whether only this machine reaches an address. What is none `address_of` refuses."""
    try:
        return listen == "localhost" or ip_address(listen).is_loopback
    except ValueError:
        return True


def shows_drawn(command: CameraPage) -> bool:
    """Tell whether a camera shows drawn scenes."""
    return any(source.startswith("fake:") for source in command.source)


def opened(command: CameraPage) -> Iterator[tokprune.Camera]:
    """Open the cameras one by one; they connect by themselves."""
    for index, source in enumerate(command.source):
        name = command.name[index] if index < len(command.name) else None
        file = not parse_source(source).live
        played = True if file and not command.every_frame else None
        loop = file and command.loop
        yield tokprune.open_camera(source, name=name, live=played, loop=loop)


def loaded(command: CameraPage) -> tokprune.VLM:
    """Load the bundle and try the first budget once."""
    return tokprune.load(
        command.bundle,
        backend=command.backend,
        threads=command.threads,
        kv_slots=1,
        warmup=[command.budget],
    )


def greeting(vlm: tokprune.VLM, command: CameraPage, *, drawn: bool) -> "Hello":
    """Say what this bundle is and can."""
    from camera_page.events import Hello
    from camera_page.messages import LONGEST_ANSWER
    from camera_page.presets import presets

    manifest, ways = vlm.bundle.manifest, vlm.model.processor.ways
    follow = ("follow",) if ways.follows and command.window == 1 else ()
    written = "No event log is written."
    if command.log is not None:
        frames = f", with {command.keep_frames_mb:g} MB of frames" if command.keep_frames_mb else ""
        written = f"The event log is written{frames}."
    return Hello(
        bundle=vlm.bundle.path.name,
        family=manifest.family,
        backend=vlm.backend,
        selectors=vlm.model.selectors,
        default_selector=manifest.default_selector,
        encodes=(*ways.names, *follow),
        presets=presets(drawn=drawn),
        longest=LONGEST_ANSWER,
        logging=written,
    )


def url_of(sock: socket.socket, token: str | None) -> str:
    """Return the address to open."""
    host, port = sock.getsockname()[:2]
    if ip_address(host).is_unspecified:
        host = socket.gethostname()
    named = f"[{host}]" if ":" in host else host
    return f"http://{named}:{port}/" + (f"?token={token}" if token else "")


if __name__ == "__main__":
    main()
