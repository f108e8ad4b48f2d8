"""Words in pictures: where each letter stands, and its pixels."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float32

from tokprune.scenes.glyphs import glyph
from tokprune.scenes.painting import blend
from tokprune.types import Array

GAP = 0.2  # between letters, of their height


class Letter(NamedTuple):
    """One character in a picture."""

    character: str
    x: int  # centre, pixels
    y: int
    height: int  # pixels, as those that follow
    width: int


def text_width(text: str, style: str, height: int) -> int:
    """Return how wide a text stands, in pixels."""
    widths = [int(glyph(character, style, height).shape[1]) for character in text]
    return sum(widths) + _gap(height) * (len(text) - 1)


def letters(text: str, style: str, height: int, left: int, y: int) -> tuple[Letter, ...]:
    """Set a text.

    Args:
        text: capital letters and digits.
        style: of glyphs.STYLES.
        height: of the letters, pixels.
        left: where it begins, pixels.
        y: its centre line, pixels.
    """
    found: list[Letter] = []
    for character in text:
        width = int(glyph(character, style, height).shape[1])
        found.append(Letter(character, left + width // 2, y, height, width))
        left += width + _gap(height)
    return tuple(found)


def _gap(height: int) -> int:
    return max(2, round(GAP * height))


def write_letters(
    picture: Float32[Array, "h w 3"],
    text: Sequence[Letter],
    style: str,
    ink: Float32[Array, "3"],
) -> None:
    """Write a text into the picture given."""
    for letter in text:
        blend(picture, glyph(letter.character, style, letter.height), letter.x, letter.y, ink)
