"""Our own glyphs, from the atlas that samples/scenes/make_glyphs.py draws."""

from functools import lru_cache
from importlib.resources import files
from io import BytesIO

import numpy as np
from jaxtyping import Float32
from PIL import Image

from tokprune.types import Array

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
STYLES = ("plain", "bold", "slanted")
CELL_HW = (64, 56)  # of the atlas, pixels


@lru_cache(maxsize=1)
def _atlas() -> Image.Image:
    data = files("tokprune.scenes").joinpath("glyphs.png").read_bytes()
    return Image.open(BytesIO(data)).convert("L")


@lru_cache(maxsize=2048)
def glyph(character: str, style: str, height: int) -> Float32[Array, "gh gw"]:
    """Coverage 0..1 of a character, `height` pixels high with its stroke."""
    row, column = STYLES.index(style), CHARACTERS.index(character)
    cell_height, cell_width = CELL_HW
    left, top = column * cell_width, row * cell_height
    cell = _atlas().crop((left, top, left + cell_width, top + cell_height))
    tight = cell.crop(cell.getbbox())
    width = max(1, round(tight.width * height / tight.height))
    small = tight.resize((width, height), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / np.float32(255)
