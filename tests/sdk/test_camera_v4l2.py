"""USB cameras: FFmpeg's V4L2 input on a driver that is answered for, below libc.

There is no camera here, so no real driver was asked.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av", reason="av (PyAV) is not installed")

TESTS = Path(__file__).parents[1]
COMPILER = shutil.which("cc") or shutil.which("gcc")
ROOT = TESTS.parent


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `watched_v4l2.py` told."""
    if COMPILER is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("v4l2")
    library = folder / "fake_v4l2.so"
    source = TESTS / "fake_v4l2.c"
    build = [COMPILER, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
    subprocess.run(build, check=True, capture_output=True)
    places = [str(ROOT / place) for place in ("sdk", "runtimes", "tests")]
    env = os.environ | {
        "LD_PRELOAD": str(library),
        "FAKE_V4L2": str(folder / "switch"),
        "PYTHONPATH": os.pathsep.join(places),
    }
    program = [sys.executable, str(TESTS / "watched_v4l2.py")]
    done = subprocess.run(program, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_pictures_come_as_they_were_asked_for(watched: dict[str, Any]) -> None:
    assert watched["shape"] == [240, 320, 3]
    assert watched["default"] == [240, 320, 3]  # what the driver had before
    assert watched["interval_s"] == pytest.approx(0.01)
    assert watched["refused"] == "/dev/video0: it has no such size, rate or format"


def test_pictures_outlive_the_drivers_memory(watched: dict[str, Any]) -> None:
    """They are made RGB after the camera was closed; FFmpeg hands out the driver's own buffers."""
    levels = [10 * (number % 20) * 255 / 219 for number in range(26)]
    assert watched["levels"] == pytest.approx(levels, abs=1)


def test_a_driver_that_gives_nothing_blocks_nobody(watched: dict[str, Any]) -> None:
    assert watched["silent"] == "/dev/video0: nothing came for 0.4 s"
    assert 0.35 < watched["silent_s"] < 0.8
    assert watched["interrupted"] == "/dev/video0: reading was stopped"
    assert watched["interrupted_s"] < 0.35


def test_an_unplugged_camera_is_found_at_once_and_leaves_nothing_open(
    watched: dict[str, Any],
) -> None:
    assert watched["unplugged"] == "/dev/video0: no such device: is it plugged in?"
    assert watched["unplugged_s"] < 0.5
    assert watched["absent"] == "/dev/video0: no such device: is it plugged in?"
    assert len(watched["held"]) == 50
    assert set(watched["held"]) == {watched["held"][0]}
