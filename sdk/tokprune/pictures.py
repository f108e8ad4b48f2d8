"""Pictures in, RGB arrays out: three file formats, sizes checked before anything is decoded.

JPEG, PNG and WebP are read, told by their first bytes and not by their names; nothing else is
(no BMP, GIF or TIFF: convert to PNG, or pass an array). As in transformers' `load_image`, the
EXIF orientation is applied, alpha is dropped without compositing and ICC profiles are ignored.
16-bit grey keeps its high byte, as Pillow does with 16-bit RGB. No network, no global state of
Pillow is touched (a program that sets `ImageFile.LOAD_TRUNCATED_IMAGES` gets what it asked for).
"""

import os
import stat
from io import BytesIO, FileIO
from pathlib import Path
from typing import NoReturn, TypeAlias, cast

import numpy as np
from PIL import Image as Pillow

from tokprune.device_arrays import CudaArray, DLPack, host_array, is_foreign
from tokprune.errors import PictureInvalid
from tokprune.types import Array, Image

PictureSource: TypeAlias = str | Path | bytes | Pillow.Image | Array | DLPack | CudaArray
MAX_PIXELS = 50_000_000
_MAX_BYTES_A_PIXEL = 8  # 16-bit RGBA, stored without compression
_MAX_JPEG_SCANS = 64  # a progressive JPEG has about 10; each costs a pass over all pixels
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112
_HEAD_BYTES = 192  # that tell a video: an MPEG-TS packet has 188
_FILM_STARTS = (b"\x1aE\xdf\xa3", b"OggS", b"FLV", b"\0\0\x01\xba", b"\0\0\x01\xb3")
_FILM_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # MP4 and MOV, from byte 4
_STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")  # MP4's kin with pictures
_UPRIGHT = {  # EXIF orientation -> what makes it 1
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}


def load_picture(source: PictureSource, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Return a picture as RGB.

    Args:
        source: a path; the bytes of a JPEG, PNG or WebP file; a Pillow image; or a uint8 array
            [h, w, 3] in RGB, which is not copied: numpy's, or one with `__dlpack__` or
            `__cuda_array_interface__` (on a GPU: copied to the host).
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        PictureInvalid: it cannot or must not be decoded.
        BackendUnavailable: it lies on a GPU, and cuda-bindings is not installed.
    """
    if isinstance(source, np.ndarray):
        return _from_array(cast(Array, source), max_pixels)
    if isinstance(source, Pillow.Image):
        return _from_pillow(source, max_pixels, "The Pillow image")
    if isinstance(source, bytes):
        return _from_bytes(source, max_pixels, f"The picture of {len(source)} bytes")
    if isinstance(source, (str, Path)):
        data = _read(source, max_pixels * _MAX_BYTES_A_PIXEL + (1 << 20))
        return _from_bytes(data, max_pixels, f"{str(source)!r:.300}")
    if is_foreign(source):
        return _from_array(host_array(source), max_pixels)
    raise PictureInvalid(
        f"A picture cannot be read from {type(source).__name__}: pass a path, the bytes of a "
        "JPEG, PNG or WebP file, a Pillow image, or a uint8 array [h, w, 3] in RGB (numpy's, or "
        "one with __dlpack__ or __cuda_array_interface__)"
    )


def _from_array(array: Array, max_pixels: int) -> Image:
    expected = "expected a uint8 array [h, w, 3] in RGB"
    if np.issubdtype(array.dtype, np.floating):
        _refuse(f"The array is {array.dtype}, {expected}: (array * 255).astype(np.uint8) if 0..1")
    if array.dtype != np.uint8:
        _refuse(f"The array is {array.dtype}, {expected}: scale it to 0..255 and convert it")
    if array.ndim == 2:
        _refuse(f"The array is grey {array.shape}, {expected}: np.stack([array] * 3, axis=-1)")
    if array.ndim == 3 and array.shape[2] == 4:
        _refuse(f"The array {array.shape} has four channels, {expected}: array[..., :3]")
    if array.ndim == 3 and array.shape[0] == 3 != array.shape[2]:
        _refuse(f"The array {array.shape} is channels first, {expected}: array.transpose(1, 2, 0)")
    if array.ndim != 3 or array.shape[2] != 3:
        _refuse(f"The array has the shape {array.shape}, {expected}")
    _check_size(array.shape[1], array.shape[0], max_pixels, "The array")
    return np.ascontiguousarray(array)


def _from_pillow(picture: Pillow.Image, max_pixels: int, name: str) -> Image:
    """Decode a Pillow image whose size is known and return it upright."""
    _check_size(*picture.size, max_pixels, name)
    if picture.mode in ("I", "F"):
        _refuse(f"{name} has 32-bit pixels (mode {picture.mode!r}): scale it and convert it to 'L'")
    try:
        upright = _UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1))
        rgb = _rgb(picture)
        return np.asarray(rgb if upright is None else rgb.transpose(upright))
    except Exception as error:  # Pillow raises almost anything on a broken file
        _refuse(f"{name} cannot be decoded ({_reason(error)}): it is truncated or damaged")


def _rgb(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode in _GREY_16:
        high = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
        return Pillow.fromarray(high).convert("RGB")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # straight to RGB is the same, with a warning
    return picture.convert("RGB")


def _from_bytes(data: bytes, max_pixels: int, name: str) -> Image:
    _refuse_video(data, name)
    kind = _sniff(data)
    if kind is None:
        _refuse(f"{name} is no JPEG, PNG or WebP (first bytes {data[:8]!r}): convert it to PNG")
    if kind == "WEBP":  # Pillow's plugin makes room for two frames when it opens the file
        _check_size(*_webp_size(data), max_pixels, name)
    if kind == "JPEG" and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        _refuse(f"{name} has more than {_MAX_JPEG_SCANS} JPEG scans: save it again as baseline")
    try:
        picture = Pillow.open(BytesIO(data), formats=(kind,))
        _check_size(*picture.size, max_pixels, name)
        frames = getattr(picture, "n_frames", 1)
    except PictureInvalid:
        raise
    except Exception as error:  # Pillow raises almost anything on a broken file, bombs included
        _refuse(f"{name} cannot be opened ({_reason(error)}): it is damaged, or far too large")
    if frames != 1 and picture.format != "MPO":  # an MPO is a JPEG with other views behind it
        _refuse(f"{name} is an animation of {frames} frames: pass one frame")
    with picture:
        return _from_pillow(picture, max_pixels, name)


def _sniff(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _refuse_video(data: bytes, name: str) -> None:
    film = data.startswith(_FILM_STARTS) or (data[:4] == b"RIFF" and data[8:12] == b"AVI ")
    film |= data[4:8] in _FILM_BOXES and data[8:12] not in _STILL_BRANDS
    film |= data[:1] == b"G" == data[188:189]
    if film:
        _refuse(
            f"{name} is a video, expected a picture: `tokprune.load_video(FILE)` takes its frames, "
            "`tokprune ask --video FILE` asks about them"
        )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height from the first chunk. Follows RFC 9649, sections 2.5 to 2.7."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return width, height


def _read(source: str | Path, limit_bytes: int) -> bytes:
    name = f"{str(source)!r:.300}"
    with open_plain(source, "picture") as stream:
        try:
            data = stream.read(_HEAD_BYTES)
            _refuse_video(data, name)  # before gigabytes are read
            data += stream.read(limit_bytes + 1 - len(data))
        except OSError as error:
            _refuse(f"{name} cannot be read ({_reason(error)}): pass the path of a picture")
    if len(data) > limit_bytes:
        _refuse(f"{name} has more than {limit_bytes} bytes: no picture within the limit needs that")
    return data


def open_plain(source: str | Path, kind: str) -> FileIO:
    """Open a plain file to read; a pipe or device would block or never end.

    Args:
        source: a path. Addresses are refused: nothing is fetched.
        kind: what the file should hold, for the messages.

    Raises:
        PictureInvalid: there is no such file, or it is no plain file.
    """
    name = f"{str(source)!r:.300}"
    if isinstance(source, str) and ("://" in source or source.startswith("data:")):
        _refuse(f"{name} is a URL; nothing is fetched here: download it and pass path or bytes")
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        hint = "; '~' is not expanded here" if str(source).startswith("~") else ""
        _refuse(f"{name} cannot be read ({_reason(error)}{hint}): pass the path of a {kind}")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        _refuse(f"{name} is a folder, a pipe or a device: pass the path of a file")
    return FileIO(descriptor)


def _check_size(width: int, height: int, max_pixels: int, name: str) -> None:
    if width < 1 or height < 1:
        _refuse(f"{name} is empty: {width} x {height} pixels")
    if width * height > max_pixels:
        _refuse(
            f"{name} has {width} x {height} pixels, more than max_pixels={max_pixels}: make it "
            "smaller, or raise the limit if you trust it"
        )


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{text or type(error).__name__:.200}"


def _refuse(message: str) -> NoReturn:
    raise PictureInvalid(message) from None
