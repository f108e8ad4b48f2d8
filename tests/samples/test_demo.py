"""The demo, as `make demo` runs it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.torch, pytest.mark.demo]


def test_the_demo_asks_at_three_budgets_and_draws_what_was_kept(
    demo_bundle: Path, tmp_path: Path
) -> None:
    program = Path(__file__).parents[2] / "samples" / "demo.py"
    target = tmp_path / "overlay.png"
    command = [sys.executable, str(program), str(demo_bundle), str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for kept in ("196/196", "98/196", "49/196", "144/144", "72/144", "36/144"):
        assert kept in result.stdout
    assert result.stdout.count("drawn answer: ") == 2
    drawn = np.asarray(Image.open(target), np.float32)
    assert drawn.shape == (784, 784, 3)
    assert drawn[: 784 // 14].std() > 0
    sheet = np.asarray(Image.open(tmp_path / "overlay-video.png"), np.float32)
    side = 2 * 168  # four pairs of frames, two by two
    assert sheet.shape == (2 * side + 8, 2 * side + 8, 3)
    assert all(part.std() > 0 for part in (sheet[:side], sheet[-side:]))
