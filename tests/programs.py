"""Programs of the tests that need a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import tokprune

_TESTS = Path(__file__).parent
_PACKAGES = Path(tokprune.__file__).parents[1]


def run_program(
    name: str, *arguments: str, before: tuple[str, ...] = (), **environment: str
) -> dict[str, Any]:
    """Run `tests/<name>` and return the JSON object that it prints last."""
    done = run_freely(name, *arguments, before=before, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def run_freely(
    name: str, *arguments: str, before: tuple[str, ...] = (), **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run `tests/<name>`, however it ends."""
    path = os.pathsep.join([*sys.path, str(_PACKAGES)])
    return subprocess.run(
        [*before, sys.executable, str(_TESTS / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **environment},
        timeout=600,
    )
