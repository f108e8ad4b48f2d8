"""Draws the two pictures of the camera page that the README shows.

    .venv/bin/python tests/camera_pictures.py build/demo docs/pictures

Needs Chromium and playwright, as the page's own tests.
"""

import sys
import tempfile
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import camera_pages
from PIL import Image

SOURCE = "fake://scenes?seed=53&size=560x420&motion=12&noise=0"
QUESTION = "what color is the star?"
MOST_BYTES = 300_000
VIEWS = {  # name: size of the window, scale
    "camera-page.png": (1440, 922, 1),
    "camera-page-phone.png": (390, 1180, 1.5),
}


def draw(bundle: Path, folder: Path) -> None:
    """Start the page, ask, wait for the answer, and take both pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ("--source", SOURCE, "--name", "workbench", "--question", QUESTION)
    arguments += ("--budget", "0.25", "--every", "0.7")
    with (
        tempfile.TemporaryDirectory() as scratch,
        camera_pages.camera_page(bundle, Path(scratch), *arguments) as page,
        camera_pages.browser() as browser,
    ):
        for name, (width, height, scale) in VIEWS.items():
            view: Any = browser.new_page(
                viewport={"width": width, "height": height},
                device_scale_factor=scale,
                color_scheme="dark",
            )
            view.goto(page.url)
            view.wait_for_selector("#asked[data-layers='1']")
            view.wait_for_selector("#machine li")
            view.wait_for_timeout(1500)
            save(view.screenshot(), folder / name)
            view.close()


def save(png: bytes, target: Path) -> None:
    """Write a picture without what nobody sees: the last bits of each colour."""
    picture = Image.open(BytesIO(png)).convert("RGB")
    for bits in (8, 7, 6, 5):
        coarse = Image.eval(picture, partial(_rounded, 256 >> bits))
        coarse.save(target, optimize=True)
        if target.stat().st_size < MOST_BYTES:
            return
    raise SystemExit(f"{target} has {target.stat().st_size} bytes")


def _rounded(step: int, value: int) -> int:
    return min(255, (value + step // 2) // step * step)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
