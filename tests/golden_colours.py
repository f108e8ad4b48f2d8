"""Frames of known colours in the pixel formats of cameras, made without any converter."""

from typing import Any

import av
import numpy as np

COLOURS = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255),
    (0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 100, 50), (30, 60, 90), (240, 200, 180),
)  # fmt: skip
BAND = 16  # pixels


def yuv(rgb: np.ndarray, *, full: bool) -> np.ndarray:
    """Return BT.601's Y, Cb and Cr, rounded (ITU-R BT.601-7, 2.5; JPEG's in full range)."""
    r, g, b = (rgb[..., channel] / 255 for channel in range(3))
    y = 0.299 * r + 0.587 * g + 0.114 * b
    cb, cr = (b - y) / 1.772, (r - y) / 1.402
    planes = (255 * y, 255 * cb + 128, 255 * cr + 128) if full else (
        219 * y + 16, 224 * cb + 128, 224 * cr + 128)  # fmt: skip
    return np.clip(np.rint(np.stack(planes, -1)), 0, 255).astype(np.uint8)


def rgb(planes: np.ndarray, *, full: bool) -> np.ndarray:
    """Return the colours that rounded Y, Cb and Cr stand for."""
    y, cb, cr = (planes[..., channel].astype(float) for channel in range(3))
    if full:
        y, cb, cr = y / 255, (cb - 128) / 255, (cr - 128) / 255
    else:
        y, cb, cr = (y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    r, b = y + 1.402 * cr, y + 1.772 * cb
    g = (y - 0.299 * r - 0.114 * b) / 0.587
    return np.clip(np.rint(255 * np.stack([r, g, b], -1)), 0, 255).astype(np.uint8)


def drawn(height: int, width: int, shift: int = 0) -> np.ndarray:
    """Return bands of the colours, side by side."""
    picked = (np.arange(width) // BAND + shift) % len(COLOURS)
    return np.broadcast_to(np.array(COLOURS, np.uint8)[picked], (height, width, 3)).copy()


def frame(pixels: np.ndarray, form: str) -> Any:
    """Return an `av.VideoFrame` of a pixel format, its planes filled here."""
    full = form in ("yuvj420p", "yuvj422p", "gray")
    height, width = pixels.shape[:2]
    made = av.VideoFrame(width, height, form)
    y, cb, cr = np.moveaxis(yuv(pixels, full=full), -1, 0)
    across = {"yuv420p": 2, "yuvj420p": 2, "nv12": 2, "yuyv422": 2, "uyvy422": 2, "yuvj422p": 2}
    down = {"yuv420p": 2, "yuvj420p": 2, "nv12": 2}
    cb, cr = (part[:: down.get(form, 1), :: across.get(form, 1)] for part in (cb, cr))
    if form == "gray":
        planes = [y]
    elif form == "nv12":
        planes = [y, np.stack([cb, cr], -1).reshape(len(cb), -1)]
    elif form in ("yuyv422", "uyvy422"):
        even = np.pad(y, ((0, 0), (0, width % 2)), "edge").reshape(height, -1, 2)
        parts = [even[..., 0], cb, even[..., 1], cr]
        order = (0, 1, 2, 3) if form == "yuyv422" else (1, 0, 3, 2)
        planes = [np.stack([parts[index] for index in order], -1).reshape(height, -1)]
    elif form in ("rgb24", "bgr24"):
        planes = [pixels[..., :: 1 if form == "rgb24" else -1].reshape(height, -1)]
    else:
        planes = [y, cb, cr]
    filled: tuple[Any, ...] = made.planes
    for plane, values in zip(filled, planes, strict=True):
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        rows[: values.shape[0], : values.shape[1]] = values
    return made


def expected(pixels: np.ndarray, form: str) -> np.ndarray:
    """Return the right colours of `frame(pixels, form)`."""
    if form in ("rgb24", "bgr24"):
        return pixels
    full = form in ("yuvj420p", "yuvj422p", "gray")
    planes = yuv(pixels, full=full)
    if form == "gray":
        planes[..., 1:] = 128
    return rgb(planes, full=full)


def inner(width: int) -> np.ndarray:
    """Return the columns well inside the bands, where a converter mixes nothing."""
    columns = np.arange(width)
    within = (columns % BAND >= 4) & (columns % BAND < BAND - 4)
    return columns[within]
