"""Names of picture sources: what a text means, and what of it may be shown."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias
from urllib.parse import unquote

from tokprune.camera.naming.addresses import read_address
from tokprune.camera.naming.options import NO_OPTIONS, CameraOptions, read_options
from tokprune.camera.naming.redaction import HIDDEN, Secret
from tokprune.errors import RequestInvalid, unknown

Kind: TypeAlias = Literal["device", "csi", "network", "file", "pictures", "fake"]

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_FORMS = (
    "Sources are: /dev/video0, /dev/v4l/by-id/NAME, v4l2:///dev/video0?width=1280&height=720, "
    "csi://0, rtsp://HOST/PATH, http://HOST/PATH, a video file, a folder or pattern of pictures, "
    "fake://scenes, env:NAME"
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TELLING = re.compile(r"[@?=&:#;%]|pass|pwd|token|secret|key", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """Where pictures come from. Everything but `address` may be shown."""

    kind: Kind
    name: str  # a short name, unless the user gives one
    shown: str  # "rtsp://10.0.0.5:554", "/dev/video0", "file kitchen.mp4"
    address: Secret = field(repr=False)  # for whoever opens it: device, number, URL or path
    live: bool  # its pictures come when they come; else they wait to be asked for
    options: CameraOptions = NO_OPTIONS  # of local cameras


def parse_source(text: object) -> Source:
    """Return what a text or path means. People give numbers as well, which are refused.

    Texts: `/dev/video0`, `/dev/v4l/by-id/NAME`, `v4l2:///dev/video0?width=1280&height=720&fps=30&
    format=MJPG`, `csi://0?width=&height=&fps=&flip=`, `rtsp://`, `rtsps://`, `http://` and
    `https://` addresses, `file://PATH` or a path of a video, a folder or pattern of pictures,
    `fake://scenes?...`, and `env:NAME`, which takes the text from an environment variable.

    Raises:
        RequestInvalid: it means nothing, or there is no such file. Shows nothing of an address
            that could be a password.
    """
    if not isinstance(text, (str, Path)):
        _refuse_type(text)
    path = isinstance(text, Path)
    secret = Secret(str(text))
    del text  # tracebacks that show local variables do not show it
    try:
        return _of_path(secret.reveal()) if path else _of_text(secret.reveal().strip())
    except RequestInvalid as refused:
        message = str(refused)
    raise RequestInvalid(message)


def _refuse_type(given: object) -> NoReturn:
    if isinstance(given, int):
        _refuse_number(given)
    raise RequestInvalid(
        f"A camera source is a text or a path, got {type(given).__name__}. {_FORMS}"
    )


def _refuse_number(number: object) -> NoReturn:
    raise RequestInvalid(
        f"The source {number} may mean two cameras: write '/dev/video{number}' for USB (V4L2), or "
        f"'csi://{number}' for a camera on the CSI connector"
    )


def _of_text(text: str) -> Source:
    if not text:
        raise RequestInvalid(f"The source is empty. {_FORMS}")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise RequestInvalid("The source has control characters (a line break?): take them out")
    if re.fullmatch(r"-?[0-9]{1,4}", text):
        _refuse_number(text)
    if text.startswith("env:"):
        return _of_variable(text[4:])
    found = _SCHEME.fullmatch(text)
    if found:
        scheme = found[1].lower()
        if scheme not in _SCHEMES:
            raise RequestInvalid(unknown("kind of source", f"{scheme}://", [*_SHOWN]))
        return _SCHEMES[scheme](scheme, found[2])
    before = text.partition(":")[0].lower()
    if ":" in text and before in _SCHEMES:
        raise RequestInvalid(f"The source begins with '{before}:', expected '{before}://'")
    return _of_path(text)


def _of_variable(name: str) -> Source:
    if not _VARIABLE.fullmatch(name):
        raise RequestInvalid(
            "After 'env:' the name of an environment variable is expected (letters, digits, _), "
            "such as env:KITCHEN_CAMERA; its value is the source"
        )
    value = os.environ.get(name, "").strip()
    if not value:
        raise RequestInvalid(
            f"The environment variable {name} is not set, or empty: export {name}='rtsp://...'"
        )
    if value.startswith("env:"):
        raise RequestInvalid(f"The environment variable {name} names another one: give the source")
    return _of_text(value)


def _of_network(scheme: str, rest: str) -> Source:
    address = read_address(scheme, rest)
    return Source("network", address.host, address.shown, Secret(address.wire), live=True)


def _of_v4l2(scheme: str, rest: str) -> Source:
    device, _, query = rest.partition("?")
    if re.fullmatch(r"[0-9]{1,4}", device):
        raise RequestInvalid(f"Write v4l2:///dev/video{device}: after v4l2:// stands a path")
    if not device.startswith("/dev/") or "@" in rest:
        raise RequestInvalid(
            f"After v4l2:// the path of a device is expected, as in v4l2:///dev/video0, got "
            f"{scheme}://{HIDDEN}"
        )
    return _device(device, read_options("v4l2", query))


def _device(path: str, options: CameraOptions = NO_OPTIONS) -> Source:
    if "?" in path:
        raise RequestInvalid(
            "A device's path takes no options: write v4l2:///dev/video0?width=1280&height=720"
        )
    if path.endswith("/") or Path(path).is_dir():
        raise RequestInvalid(f"{path!r} is a folder, expected a camera such as /dev/video0")
    return Source("device", Path(path).name, path, Secret(path), live=True, options=options)


def _of_csi(scheme: str, rest: str) -> Source:
    number, _, query = rest.partition("?")
    if not re.fullmatch(r"[0-9]{1,2}", number):
        raise RequestInvalid(
            f"After {scheme}:// the camera's number is expected, as in csi://0 or "
            f"csi://0?width=1280&height=720, got {scheme}://{HIDDEN}"
        )
    options = read_options("csi", query)
    shown = f"csi://{int(number)}"
    return Source(
        "csi", f"csi{int(number)}", shown, Secret(str(int(number))), live=True, options=options
    )


def _of_fake(scheme: str, rest: str) -> Source:
    kind, _, query = rest.partition("?")
    if kind.strip("/") not in ("", "scenes"):
        raise RequestInvalid(
            f"After {scheme}:// expected 'scenes', as in fake://scenes?seed=1, got "
            f"{scheme}://{HIDDEN}"
        )
    whole = "fake://scenes" + (f"?{query}" if query else "")
    return Source("fake", "fake", "fake://scenes", Secret(whole), live=True)


def _of_file(scheme: str, rest: str) -> Source:
    del scheme
    decoded = unquote(rest)
    return _of_path(rest if decoded == rest or Path(rest).exists() else decoded)


def _of_path(text: str) -> Source:
    path = Path(text)
    if path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm"):
        return _device(text)
    try:
        if path.is_dir() or (path.is_file() and path.suffix.lower() in PICTURES):
            return _pictures(path, text)
        if path.is_file():
            return Source("file", path.stem, f"file {path.name}", Secret(text), live=False)
        if has_magic(text) and glob(text):  # noqa: PTH207 - absolute ones too
            return _pictures(path, text)
        exists = path.exists()
    except (OSError, ValueError):  # too long, surrogates
        exists = False
    if exists:
        raise RequestInvalid(f"{_quoted(text)} is a pipe, a socket or a device: pass a file")
    raise RequestInvalid(_missing(text))


def _pictures(path: Path, text: str) -> Source:
    if not path.exists():
        return Source("pictures", "pictures", f"pictures {path.name}", Secret(text), live=False)
    name = path.resolve().name or "pictures"
    return Source("pictures", Path(name).stem, f"pictures {name}", Secret(text), live=False)


def _missing(text: str) -> str:
    """Return why a path is none, without showing what could be an address."""
    if text.startswith("~"):
        return (
            f"'~' is not expanded here: write the whole path, or Path({_quoted(text)}).expanduser()"
        )
    if re.fullmatch(r"video[0-9]+", text):
        return f"There is no file {text!r}. Did you mean '/dev/{text}'?"
    what = "matches no file" if has_magic(text) else "is no file or folder that exists"
    return f"{_quoted(text)} {what}. {_FORMS}"


def _quoted(text: str) -> str:
    """Return a path to show, or words for it where it could be an address with a password."""
    if _TELLING.search(text):
        return "The source (not shown, as it may hold a password)"
    return f"{text!r:.300}"


_SCHEMES: dict[str, Callable[[str, str], Source]] = {
    "v4l2": _of_v4l2,
    "csi": _of_csi,
    "rtsp": _of_network,
    "rtsps": _of_network,
    "http": _of_network,
    "https": _of_network,
    "file": _of_file,
    "fake": _of_fake,
}
_SHOWN = tuple(f"{scheme}://" for scheme in _SCHEMES)
