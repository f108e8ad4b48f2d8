"""From a source's name to a camera."""

from pathlib import Path

from tokprune.camera.camera import Camera
from tokprune.camera.capture import DEVICE_RETRIES_S, Capture, Plan
from tokprune.camera.fake import PREFIX, fake_opener, fake_settings
from tokprune.camera.health import FROZEN_AFTER_S
from tokprune.camera.pushed import PushedFrames
from tokprune.errors import RequestInvalid


def open_camera(
    source: str | Path | PushedFrames,
    *,
    name: str | None = None,
    live: bool | None = None,
    loop: bool = False,
    max_frame_age_s: float | None = None,
    frozen_after_s: float | None = FROZEN_AFTER_S,
    open_timeout_s: float = 5.0,
    read_timeout_s: float = 5.0,
) -> Camera:
    """Open a camera. Returns at once; it connects, and connects again, by itself."""
    if isinstance(source, PushedFrames):
        opener, shown, give_up_s = source.open, "pushed", None
    elif str(source).startswith(PREFIX):
        opener, shown, give_up_s = fake_opener(fake_settings(str(source))), "fake://scenes", 20.0
    else:
        raise RequestInvalid(f"Unknown source {source!r}")
    plan = Plan(
        opener=opener,
        name=name or shown,
        shown=shown,
        live=True,
        loop=loop,
        retries_s=DEVICE_RETRIES_S,
        give_up_s=give_up_s,
        max_frame_age_s=max_frame_age_s,
        frozen_after_s=frozen_after_s,
    )
    return Camera(Capture(plan))
