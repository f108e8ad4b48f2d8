"""What all drawn pictures are painted with: backgrounds, noise, and masks in one colour."""

from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw

from tokprune.types import Array

NOISE_PX = 640
BRIGHT = 110  # grey value from which on ink is dark


def draw_background(rng: np.random.Generator, height: int, width: int) -> Float32[Array, "h w 3"]:
    """Draw what stands behind the things."""
    return _distracted(_background(rng, height, width), rng)


def draw_noise(
    picture: Float32[Array, "h w 3"], rng: np.random.Generator, strength: float | None = None
) -> UInt8[Array, "h w 3"]:
    """Add a camera's noise and return bytes. Changes the picture given.

    Args:
        picture: RGB, 0 to 255, at most 640 pixels a side.
        rng: source of all chance.
        strength: standard deviation of the noise; None: drawn between 1 and 7.
    """
    height, width = int(picture.shape[0]), int(picture.shape[1])
    y, x = rng.integers(0, NOISE_PX - height + 1), rng.integers(0, NOISE_PX - width + 1)
    sigma = rng.uniform(1, 7) if strength is None else strength
    picture += _noise()[y : y + height, x : x + width] * np.float32(sigma)
    return picture.clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _noise() -> Float32[Array, "h w 3"]:
    return np.random.default_rng(1).standard_normal((NOISE_PX, NOISE_PX, 3), np.float32)


def _background(rng: np.random.Generator, height: int, width: int) -> Float32[Array, "h w 3"]:
    """A grey tone with slow colour changes, sometimes stripes."""
    tone = (rng.uniform(55, 135) + rng.uniform(-14, 14, 3)).astype(np.float32)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    slow = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    picture = tone + (slow - 127.5) * np.float32(rng.uniform(0.05, 0.25))
    if rng.random() < 0.35:
        angle, pitch = rng.uniform(0, pi), rng.uniform(0.15, 0.7)
        x = np.arange(width, dtype=np.float32) * np.float32(cos(angle) * pitch)
        y = np.arange(height, dtype=np.float32) * np.float32(sin(angle) * pitch)
        waves = np.sin(y[:, None] + x) * np.float32(rng.uniform(4, 14))
        picture += waves[..., None]
    return picture


def _distracted(picture: Float32[Array, "h w 3"], rng: np.random.Generator) -> Array:
    """Sometimes thin lines and dots that no question is about."""
    if rng.random() >= 0.6:
        return picture
    height, width = int(picture.shape[0]), int(picture.shape[1])
    canvas = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 7))):
        red, green, blue = (int(value) for value in rng.integers(20, 235, 3))
        x, y = int(rng.integers(width)), int(rng.integers(height))
        if rng.random() < 0.5:
            dx, dy = (int(value) for value in rng.integers(-50, 50, 2))
            stroke = int(rng.integers(1, 3))
            pen.line([x, y, x + dx, y + dy], fill=(red, green, blue), width=stroke)
        else:
            dot = int(rng.integers(1, 4))
            pen.ellipse([x - dot, y - dot, x + dot, y + dot], fill=(red, green, blue))
    return np.array(canvas, np.float32)


def blend(
    picture: Float32[Array, "h w 3"],
    mask: Float32[Array, "mh mw"],
    x: int,
    y: int,
    color: Float32[Array, "3"],
) -> None:
    """Paint a mask, centred at x, y, into the picture; what sticks out is cut off."""
    top, left = y - mask.shape[0] // 2, x - mask.shape[1] // 2
    bottom, right = top + mask.shape[0], left + mask.shape[1]
    rows = slice(max(top, 0), min(bottom, picture.shape[0]))
    columns = slice(max(left, 0), min(right, picture.shape[1]))
    part = mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    picture[rows, columns] += (color - picture[rows, columns]) * part[..., None]


def fill(
    picture: Float32[Array, "h w 3"],
    box: tuple[int, int, int, int],
    color: Float32[Array, "3"],
) -> None:
    """Paint a rectangle (top, left, bottom, right) into the picture; what sticks out is cut off."""
    top, left, bottom, right = box
    picture[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = color


def ink_on(color: Float32[Array, "3"]) -> Float32[Array, "3"]:
    """Return the ink that is readable on a colour: nearly black or nearly white."""
    grey = float(color @ np.asarray([0.3, 0.59, 0.11], np.float32))
    return np.full(3, 15.0 if grey > BRIGHT else 245.0, np.float32)


def tinted(color: tuple[int, int, int], rng: np.random.Generator) -> Float32[Array, "3"]:
    """Return a colour a little off, as paint and light have it."""
    tint = np.asarray(color, np.float32) + rng.uniform(-13, 13, 3)
    return tint.clip(0, 255).astype(np.float32)
