"""An environment from a folder of wheels: no network, and nothing but Python to begin with.

Only the standard library is imported here, as there may be nothing else yet.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[2]
SOURCES = ("sdk", "runtimes", "export", "tests/benchmarks")  # run as they are, not installed
WORK = Path("build/gpu")
BESIDE = "import site; site.addsitedir({folder!r})\n"  # addsitedir, as that reads its .pth files


class Request(NamedTuple):
    """What was asked for: wheels from where, an environment below which folder, and the rest."""

    wheels: Path
    work: Path
    rest: tuple[str, ...]


def request_of(words: Sequence[str]) -> Request | None:
    """Find `--wheels` among a command line's words; None where it is not there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--work", type=Path, default=WORK)
    given, rest = parser.parse_known_args(list(words))
    if given.wheels is None:
        return None
    return Request(given.wheels, given.work, (*rest, "--work", str(given.work)))


def run_again(request: Request, program: Path) -> int:
    """Install the wheels into an environment of their own, run there, and return the exit status.

    Raises:
        SystemExit: there are no wheels, or the environment cannot be made of them.
    """
    names = wheel_names(request.wheels)
    if not names:
        raise SystemExit(f"There are no wheels in {request.wheels}")
    python = make_environment(request.work / "venv")
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--no-index")
    _done([*pip, "--find-links", request.wheels, *names], f"pip takes not all of {request.wheels}")
    paths = [str(CHECKOUT / folder) for folder in SOURCES]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    again = [python, program, *request.rest]
    return subprocess.run(again, env=environment, check=False).returncode


def wheel_names(wheels: Path) -> list[str]:
    """Return what to install: not tokprune, as the checkout is run, nor two ONNX Runtimes.

    onnxruntime and onnxruntime-gpu have the same files, and the one without CUDA might win.
    """
    found = {path.name.split("-")[0].replace("_", "-").lower() for path in wheels.glob("*.whl")}
    if "onnxruntime-gpu" in found:
        found.discard("onnxruntime")
    return sorted(found - {"tokprune"})


def make_environment(venv: Path) -> Path:
    """Make an environment that sees what this Python sees, behind its own; return its Python.

    JetPack's TensorRT is a package of the system's Python. Where this Python is an environment
    itself, `--system-site-packages` shows what lies below it and not that environment: a .pth does.

    Raises:
        SystemExit: venv or pip's own wheel is missing (Debian's python3-venv).
    """
    make = [sys.executable, "-m", "venv", "--system-site-packages", venv]
    _done(make, "No environment can be made (Debian and Ubuntu: apt-get install python3-venv)")
    python = venv.absolute() / "bin" / "python"
    if sys.prefix != sys.base_prefix:
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        told = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
        beside = Path(told.stdout.strip()) / "beside.pth"
        beside.write_text(BESIDE.format(folder=sysconfig.get_path("purelib")), encoding="utf-8")
    return python


def _done(command: Sequence[str | Path], otherwise: str) -> None:
    """Run a command that says for itself what is wrong."""
    status = subprocess.run(command, check=False).returncode
    if status:
        version = ".".join(map(str, sys.version_info[:2]))
        platform = sysconfig.get_platform()
        raise SystemExit(f"{otherwise}. This is Python {version} on {platform}")
