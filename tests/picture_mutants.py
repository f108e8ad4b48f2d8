"""Broken pictures by the thousand.

Run as a program: `picture_mutants.py CHUNK COUNT` damages small JPEG, PNG and WebP files of many
kinds, reads each in a child with limits, and prints as JSON what happened.
"""

import json
import random
import sys
import zlib
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from mutations import damaged
from PIL import Image, PngImagePlugin
from trials import try_all

from tokprune.errors import PictureInvalid
from tokprune.pictures import load_picture

MAX_PIXELS = 1_000_000  # so that what decodes is small; the cap itself has its own tests


@cache
def originals() -> tuple[bytes, ...]:
    """Return pictures of every kind that is read."""
    chance = np.random.default_rng(0)
    rgb = Image.fromarray(chance.integers(0, 255, (24, 31, 3)).astype(np.uint8))
    smooth = rgb.resize((200, 150))
    grey_16 = Image.fromarray(chance.integers(0, 65535, (24, 31)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 300, zip=True)
    kinds: list[tuple[Image.Image, dict[str, Any]]] = [
        (smooth, {"format": "JPEG", "quality": 80, "exif": exif}),
        (smooth, {"format": "JPEG", "progressive": True, "icc_profile": b"p" * 200}),
        (rgb.convert("CMYK"), {"format": "JPEG"}),
        (rgb.convert("L"), {"format": "JPEG"}),
        (rgb, {"format": "PNG", "pnginfo": text, "exif": exif}),
        (rgb.convert("P"), {"format": "PNG", "transparency": b"\0\x80" * 20}),
        (rgb.convert("RGBA"), {"format": "PNG"}),
        (grey_16, {"format": "PNG"}),
        (rgb.convert("1"), {"format": "PNG"}),
        (rgb, {"format": "PNG", "save_all": True, "append_images": [rgb.rotate(9)]}),
        (smooth, {"format": "WEBP", "exif": exif}),
        (rgb.convert("RGBA"), {"format": "WEBP", "lossless": True}),
        (rgb, {"format": "WEBP", "save_all": True, "append_images": [rgb.rotate(9)]}),
        (rgb, {"format": "GIF"}),
        (rgb, {"format": "TIFF"}),
    ]
    return tuple(_saved(picture, options) for picture, options in kinds)


def trial(case: int) -> str:
    """Damage one picture and read it."""
    chance = random.Random(case)
    data = chance.choice(originals())
    for _ in range(chance.choice([1, 1, 1, 3])):
        data = damaged(data, chance)
    if chance.random() < 0.3:
        data = _with_right_checksums(data)
    try:
        picture = load_picture(data, max_pixels=MAX_PIXELS)
    except PictureInvalid:
        return "refused"
    height, width, channels = picture.shape
    if picture.dtype != np.uint8 or channels != 3 or not 0 < height * width <= MAX_PIXELS:
        raise AssertionError(f"{picture.dtype} {picture.shape}")
    return "read"


def _saved(picture: Image.Image, options: dict[str, Any]) -> bytes:
    data = BytesIO()
    picture.save(data, **options)
    return data.getvalue()


def _with_right_checksums(data: bytes) -> bytes:
    """Mend the checksums of a PNG's chunks, so that damage comes through to the decoder."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    result, at = data[:8], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunk = data[at + 4 : at + 8 + size]
        checksum = zlib.crc32(chunk).to_bytes(4, "big")
        result += data[at : at + 4] + chunk + checksum
        at += 12 + size
    return result


if __name__ == "__main__":
    chunk, count = int(sys.argv[1]), int(sys.argv[2])
    originals()
    outcomes = try_all(trial, range(chunk * count, (chunk + 1) * count))
    sys.stdout.write(json.dumps(vars(outcomes)) + "\n")
