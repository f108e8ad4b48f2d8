"""Options of local cameras: what stands after the `?` of `v4l2://` and `csi://`."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from tokprune.errors import RequestInvalid, unknown

FLIPS: Final = (  # in the order of nvvidconv's flip-method
    "none", "counterclockwise", "rotate-180", "clockwise",
    "horizontal", "upper-right-diagonal", "vertical", "upper-left-diagonal",
)  # fmt: skip
_KNOWN: Final = {"v4l2": ("width", "height", "fps", "format"),
                 "csi": ("width", "height", "fps", "flip")}  # fmt: skip
_FOURCC: Final = {  # as `v4l2-ctl` shows them -> as FFmpeg calls them
    "mjpg": "mjpeg", "jpeg": "mjpeg", "yuyv": "yuyv422", "uyvy": "uyvy422", "grey": "gray",
    "yu12": "yuv420p", "rgb3": "rgb24", "bgr3": "bgr24", "hevc": "hevc", "h265": "hevc",
}  # fmt: skip
_FORMATS: Final = (
    "mjpeg", "yuyv422", "uyvy422", "nv12", "yuv420p", "gray", "rgb24", "bgr24", "h264", "hevc",
)  # fmt: skip
_MOST_PX, _MOST_FPS = 16384, 1000


@dataclass(frozen=True)
class CameraOptions:
    """What a local camera is asked for; None: as it comes."""

    width: int | None = None
    height: int | None = None
    fps: float | None = None
    format: str | None = None  # FFmpeg's name of a V4L2 pixel format or codec
    flip: int = 0  # nvvidconv's flip-method


NO_OPTIONS: Final = CameraOptions()


def read_options(scheme: str, query: str) -> CameraOptions:
    """Return the options of a query.

    Raises:
        RequestInvalid: one is unknown, given twice, or has no sense.
    """
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _KNOWN[scheme]:
            raise RequestInvalid(
                unknown(f"option of {scheme}://", f"{name:.40}", [*_KNOWN[scheme]])
            )
        if name in found:
            raise RequestInvalid(f"The option {name} of {scheme}:// is given twice: give one")
        found[name] = value
    if ("width" in found) != ("height" in found):
        raise RequestInvalid(f"{scheme}:// takes width and height together, got one of them")
    return CameraOptions(
        width=_size(found, "width"),
        height=_size(found, "height"),
        fps=_fps(found),
        format=_format(found),
        flip=_flip(found),
    )


def _size(found: dict[str, str], name: str) -> int | None:
    value = found.get(name)
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", value) or int(value) not in range(1, _MOST_PX + 1):
        raise RequestInvalid(f"{name}={value:.20} is no number of pixels from 1 to {_MOST_PX}")
    return int(value)


def _fps(found: dict[str, str]) -> float | None:
    value = found.get("fps")
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,6})?", value) or not 0 < float(value) <= _MOST_FPS:
        raise RequestInvalid(f"fps={value:.20} is no rate above 0, up to {_MOST_FPS}")
    return float(value)


def _format(found: dict[str, str]) -> str | None:
    value = found.get("format")
    if value is None:
        return None
    name = _FOURCC.get(value.lower(), value.lower())
    if name not in _FORMATS:
        raise RequestInvalid(unknown("format", f"{value:.20}", [*_FORMATS]))
    return name


def _flip(found: dict[str, str]) -> int:
    value = found.get("flip", "none").lower()
    if re.fullmatch(r"[0-7]", value):
        return int(value)
    if value not in FLIPS:
        raise RequestInvalid(unknown("flip", f"{value:.20}", [*FLIPS]))
    return FLIPS.index(value)
