"""Pixels of a scene: background with noise, stripes and distractors, then the things."""

from functools import lru_cache
from math import cos, pi, radians, sin

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw

from tokprune.scenes.glyphs import STYLES, glyph
from tokprune.scenes.scene import COLORS, DIGIT_SHARE, Scene, Thing
from tokprune.types import Array

OVERSAMPLING = 4
NOISE_PX = 640


def draw(scene: Scene) -> UInt8[Array, "h w 3"]:
    """Draw a scene as RGB. The same scene gives the same pixels."""
    rng = np.random.default_rng(scene.seed)
    picture = draw_background(rng, *scene.size_hw)
    for thing in scene.things:
        draw_thing(picture, thing, rng)
    return draw_noise(picture, rng)


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


def draw_thing(picture: Float32[Array, "h w 3"], thing: Thing, rng: np.random.Generator) -> None:
    """Paint one shape, with its digit, into the picture given."""
    tint = np.asarray(COLORS[thing.color], np.float32) + rng.uniform(-13, 13, 3)
    color = tint.clip(0, 255).astype(np.float32)
    mask = shape_mask(thing.shape, thing.radius, thing.rotation)
    _blend(picture, mask, thing.x, thing.y, color)
    if thing.digit is not None:
        size = round(thing.radius * DIGIT_SHARE * rng.uniform(0.95, 1.05))
        down = round(thing.radius * 0.12) if thing.shape == "triangle" else 0
        ink = 15.0 if color @ np.asarray([0.3, 0.59, 0.11], np.float32) > 110 else 245.0
        letter = glyph(thing.digit, STYLES[int(rng.integers(len(STYLES)))], size)
        dx, dy = (int(value) for value in rng.integers(-1, 2, 2))
        _blend(picture, letter, thing.x + dx, thing.y + down + dy, np.full(3, ink, np.float32))


def _blend(
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


@lru_cache(maxsize=4096)
def shape_mask(shape: str, radius: int, rotation: int) -> Float32[Array, "m m"]:
    """Coverage 0..1 of a shape, anti-aliased."""
    side = 2 * radius + 3
    canvas = Image.new("L", (side * OVERSAMPLING, side * OVERSAMPLING), 0)
    pen = ImageDraw.Draw(canvas)
    centre, unit, angle = side * OVERSAMPLING / 2, radius * OVERSAMPLING, radians(rotation)
    if shape == "circle":
        reach = 0.95 * unit
        pen.ellipse([centre - reach, centre - reach, centre + reach, centre + reach], fill=255)
    for outline in _outlines(shape):
        turned = [
            (
                centre + unit * (x * cos(angle) - y * sin(angle)),
                centre + unit * (x * sin(angle) + y * cos(angle)),
            )
            for x, y in outline
        ]
        pen.polygon(turned, fill=255)
    small = canvas.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / np.float32(255)


def _outlines(shape: str) -> list[list[tuple[float, float]]]:
    """Polygons of a shape of radius 1."""
    match shape:
        case "square":
            return [[(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]]
        case "diamond":
            return [[(0.0, -1.04), (0.83, 0.0), (0.0, 1.04), (-0.83, 0.0)]]
        case "triangle":
            return [[(0.0, -1.05), (1.0, 0.82), (-1.0, 0.82)]]
        case "cross":
            bar = [(-1.0, -0.34), (1.0, -0.34), (1.0, 0.34), (-1.0, 0.34)]
            return [bar, [(y, x) for x, y in bar]]
        case "star":
            reach = (1.08, 0.46)
            turns = [-pi / 2 + point * pi / 5 for point in range(10)]
            return [
                [
                    (reach[i % 2] * cos(turn), reach[i % 2] * sin(turn))
                    for i, turn in enumerate(turns)
                ]
            ]
        case _:
            return []
