"""From a source's name to a camera."""

from pathlib import Path

from tokprune.camera.camera import Camera
from tokprune.camera.capture import DEVICE_RETRIES_S, NETWORK_RETRIES_S, Capture, Plan
from tokprune.camera.health import FROZEN_AFTER_S
from tokprune.camera.naming.sources import parse_source
from tokprune.camera.reading.opening import OPEN_TIMEOUT_S, READ_TIMEOUT_S, opener_of
from tokprune.camera.reading.pushed import PushedFrames
from tokprune.errors import RequestInvalid

HANGS_AFTER_S = 10.0  # beyond its own timeouts


def open_camera(
    source: str | Path | PushedFrames,
    *,
    name: str | None = None,
    live: bool | None = None,
    loop: bool = False,
    max_frame_age_s: float | None = None,
    frozen_after_s: float | None = FROZEN_AFTER_S,
    open_timeout_s: float = OPEN_TIMEOUT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> Camera:
    """Open a camera, a stream, a file or a folder of pictures.

    Returns at once; the camera connects by itself, and again whenever it was lost.

    Args:
        source: such as "/dev/video0", "csi://0", "rtsp://USER:PASSWORD@HOST/PATH", "kitchen.mp4",
            "frames/*.png", "fake://scenes" (drawn; needs no camera) or "env:NAME" (the address in
            that environment variable). docs/cameras.md has all. Or `PushedFrames`.
        name: what it is called in answers and logs; None: made of the source, without secrets.
        live: of files: False (None means that) gives every frame, when it is asked for; True plays
            them at their own speed, the newest frame wins. All else is live.
        loop: a file begins again at its end.
        max_frame_age_s: older frames are not given for questions; None: 1 s or three times the
            usual time between frames, whichever is longer.
        frozen_after_s: a camera that repeats one picture for longer is FROZEN; None: never.
        open_timeout_s: after which an attempt to connect has failed.
        read_timeout_s: after which a network camera that sends nothing is lost.

    Raises:
        RequestInvalid: the source means nothing, or there is no such file.
        BackendUnavailable: the library that reads it is not installed.
    """
    _check_time("open_timeout_s", open_timeout_s)
    _check_time("read_timeout_s", read_timeout_s)
    if isinstance(source, PushedFrames):
        _check_live("Pushed frames are", live=live, loop=loop)
        plan = Plan(
            opener=source.open,
            name=name or "pushed",
            shown="pushed",
            live=True,
            give_up_s=None,  # nothing may be pushed for long
            max_frame_age_s=max_frame_age_s,
            frozen_after_s=frozen_after_s,
        )
        return Camera(Capture(plan))
    parsed = parse_source(source)
    if parsed.live:
        _check_live(f"The source {parsed.shown} is", live=live, loop=loop)
    plan = Plan(
        opener=opener_of(parsed, open_timeout_s=open_timeout_s, read_timeout_s=read_timeout_s),
        name=name or parsed.name,
        shown=parsed.shown,
        live=parsed.live or bool(live),
        loop=loop,
        paced=not parsed.live and bool(live),
        retries_s=NETWORK_RETRIES_S if parsed.kind == "network" else DEVICE_RETRIES_S,
        give_up_s=open_timeout_s + read_timeout_s + HANGS_AFTER_S,
        max_frame_age_s=max_frame_age_s,
        frozen_after_s=frozen_after_s if parsed.live else None,
    )
    return Camera(Capture(plan))


def _check_live(what: str, *, live: bool | None, loop: bool) -> None:
    if live is False or loop:
        given = "loop=True" if loop else "live=False"
        raise RequestInvalid(f"{what} live: {given} is for files and folders of pictures")


def _check_time(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise RequestInvalid(f"{name} must be above 0 seconds, got {value}")
