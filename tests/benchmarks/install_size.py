"""How much a robot has to install: the wheel and what it depends on, in a fresh environment.

python tests/benchmarks/install_size.py [PYTHON] writes docs/results/install-size.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import RESULTS, machine
from rich.console import Console

ROOT = Path(__file__).parents[2]
LIMIT_MB = 200


def main() -> None:
    """Install, import, measure, write."""
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", f"{folder}/venv"], check=True)
        interpreter = Path(folder, "venv", "bin", "python")
        (packages,) = Path(folder, "venv", "lib").glob("python*/site-packages")
        empty = {entry.name for entry in packages.iterdir()}
        pip = [str(interpreter), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(ROOT)], check=True)
        code = "import tokprune, tokprune.cli, platform; print(platform.python_version())"
        command = [str(interpreter), "-c", code]
        tested = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
        added = [entry for entry in packages.iterdir() if entry.name not in empty]
        parts = {entry.name: millions(entry, code=False) for entry in added}
        code_mb = sum(millions(entry, code=True) for entry in added)
    total = sum(parts.values())
    result = {
        **machine(),
        "python": tested.stdout.strip(),
        "files_mb": round(total, 1),
        "byte_code_mb": round(code_mb, 1),  # what pip makes of them, unless told --no-compile
        "limit_mb": LIMIT_MB,
        "files_below_limit": total < LIMIT_MB,
        "all_below_limit": total + code_mb < LIMIT_MB,
        "largest_files_mb": dict(sorted(parts.items(), key=lambda part: -part[1])[:10]),
    }
    (RESULTS / "install-size.json").write_text(json.dumps(result, indent=1) + "\n")
    Console().print(result)


def millions(entry: Path, *, code: bool) -> float:
    """Return millions of bytes of a file or folder: its byte code, or all else."""
    paths = entry.rglob("*") if entry.is_dir() else [entry]
    files = [path for path in paths if path.is_file() and (path.suffix == ".pyc") == code]
    return round(sum(path.stat().st_size for path in files) / 1e6, 2)


if __name__ == "__main__":
    main()
