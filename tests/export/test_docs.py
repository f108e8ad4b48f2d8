"""Programs that the documents tell users to run, run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.torch, pytest.mark.demo]
DOCS = Path(__file__).parents[2] / "docs"


def program(document: str, heading: str) -> str:
    """Return the first Python program below a heading."""
    below = (DOCS / document).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    return below.partition("```python\n")[2].partition("```")[0]


def test_calibration_data_for_fp8_are_what_the_encoder_is_fed(
    demo_bundles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [tmp_path / f"{number}.png" for number in range(2)]
    for path in pictures:
        Image.new("RGB", (300, 200), "teal").save(path)
    monkeypatch.chdir(tmp_path)
    text = program("install.md", "fp8, by hand")
    bundle = str(demo_bundles("llava_onevision"))
    exec(text.replace("BUNDLE", bundle), {"PICTURES": pictures})
    with np.load("calibration.npz") as data:
        tiles = data["pixel_values"]
    assert tiles.dtype == np.float32
    assert tiles.shape[1] == 3
    assert tiles.shape[0] >= 4  # both pictures, and each with crops
