"""Runs tests/memory_growth.py and judges what it found."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from counts import PARTS

PROGRAM = Path(__file__).parent / "memory_growth.py"
LARGEST_SHARE, LARGEST_BYTES = 0.01, 8_000_000


def counts(promised: int) -> list[Any]:
    """All in one process, or a twentieth."""
    return [promised // PARTS, pytest.param(promised, marks=pytest.mark.soak)]


def measured(bundle: str, requests: int, *fault: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), bundle, str(requests), "0", *fault],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def faults(found: dict[str, Any]) -> set[str]:
    """Return what has grown."""
    grown = {
        "memory": found["share"] >= LARGEST_SHARE or found["growth"] >= LARGEST_BYTES,
        "threads": len(set(found["threads"])) > 1,
        "files": len(set(found["files"])) > 1,
    }
    return {name for name, has in grown.items() if has}
