"""Pixels of a page."""

import numpy as np
from jaxtyping import Float32

from tokprune.scenes.pages import Form, Page
from tokprune.scenes.painting import fill, tinted
from tokprune.scenes.scene import COLORS
from tokprune.scenes.writing import write_letters
from tokprune.types import Array

RULED_SHARE = 0.5  # of the forms have a line below each field


def draw_page(page: Page, rng: np.random.Generator) -> Float32[Array, "h w 3"]:
    """Draw a page without a camera's noise, RGB, 0 to 255."""
    height, width = page.size_hw
    tone = rng.uniform(30, 70) if page.dark else rng.uniform(195, 240)
    paper = (tone + rng.uniform(-8, 8, 3)).astype(np.float32)
    ink = np.full(3, rng.uniform(225, 250) if page.dark else rng.uniform(5, 40), np.float32)
    shade = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * rng.uniform(-10, 10)
    picture: Array = np.broadcast_to(paper, (height, width, 3)) + shade.astype(np.float32)
    faint = ((paper + ink) / 2).astype(np.float32)
    if isinstance(page, Form):
        ruled = rng.random() < RULED_SHARE
        for field in page.fields:
            y = field.y + round(0.8 * page.height)
            if ruled:
                fill(picture, (y, 6, y + 1, width - 6), faint)
            write_letters(picture, page.key_letters(field), page.style, ink)
            write_letters(picture, page.value_letters(field), page.style, ink)
    else:
        for bar in page.bars:
            left = bar.x - page.bar_width // 2
            box = (bar.top, left, page.base, left + page.bar_width)
            fill(picture, box, tinted(COLORS[bar.color], rng))
            write_letters(picture, page.number_letters(bar), page.style, ink)
        fill(picture, (page.base, 6, page.base + 2, width - 6), faint)
    return picture
