"""Pixels of what was made up: shapes and signs on a background, or a page."""

from functools import lru_cache
from math import cos, pi, radians, sin

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw

from tokprune.scenes.glyphs import STYLES, glyph
from tokprune.scenes.page_drawing import draw_page
from tokprune.scenes.pages import Page
from tokprune.scenes.painting import blend, draw_background, draw_noise, fill, ink_on, tinted
from tokprune.scenes.scene import COLORS, DIGIT_SHARE, Scene, Thing
from tokprune.scenes.signs import Sign
from tokprune.scenes.writing import write_letters
from tokprune.types import Array

OVERSAMPLING = 4


def draw(shown: Scene | Page) -> UInt8[Array, "h w 3"]:
    """Draw a scene or a page as RGB. The same one gives the same pixels."""
    rng = np.random.default_rng(shown.seed)
    if isinstance(shown, Page):
        return draw_noise(draw_page(shown, rng), rng)
    picture = draw_background(rng, *shown.size_hw)
    for thing in shown.things:
        draw_thing(picture, thing, rng)
    for sign in shown.signs:
        draw_sign(picture, sign, rng)
    return draw_noise(picture, rng)


def draw_sign(picture: Float32[Array, "h w 3"], sign: Sign, rng: np.random.Generator) -> None:
    """Paint one sign, with its text, into the picture given."""
    color = tinted(COLORS[sign.color], rng)
    fill(picture, sign.box, color)
    write_letters(picture, sign.letters, sign.style, ink_on(color))


def draw_thing(picture: Float32[Array, "h w 3"], thing: Thing, rng: np.random.Generator) -> None:
    """Paint one shape, with its digit, into the picture given."""
    color = tinted(COLORS[thing.color], rng)
    mask = shape_mask(thing.shape, thing.radius, thing.rotation)
    blend(picture, mask, thing.x, thing.y, color)
    if thing.digit is not None:
        size = round(thing.radius * DIGIT_SHARE * rng.uniform(0.95, 1.05))
        down = round(thing.radius * 0.12) if thing.shape == "triangle" else 0
        letter = glyph(thing.digit, STYLES[int(rng.integers(len(STYLES)))], size)
        dx, dy = (int(value) for value in rng.integers(-1, 2, 2))
        blend(picture, letter, thing.x + dx, thing.y + down + dy, ink_on(color))


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
