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
        empty = sizes(packages)
        pip = [str(interpreter), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(ROOT)], check=True)
        code = "import tokprune, tokprune.cli, platform; print(platform.python_version())"
        command = [str(interpreter), "-c", code]
        tested = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
        parts = {name: size for name, size in sizes(packages).items() if name not in empty}
    total = round(sum(parts.values()), 1)
    largest = dict(sorted(parts.items(), key=lambda part: -part[1])[:10])
    result = {
        **machine(),
        "python": tested.stdout.strip(),
        "total_mb": total,
        "limit_mb": LIMIT_MB,
        "largest_mb": largest,
    }
    (RESULTS / "install-size.json").write_text(json.dumps(result, indent=1) + "\n")
    Console().print(result)
    sys.exit(total >= LIMIT_MB)


def sizes(folder: Path) -> dict[str, float]:
    """Return millions of bytes of each entry of a folder, with the byte code that pip makes."""
    return {
        entry.name: round(
            sum(
                path.stat().st_size
                for path in (entry.rglob("*") if entry.is_dir() else [entry])
                if path.is_file()
            )
            / 1e6,
            2,
        )
        for entry in folder.iterdir()
    }


if __name__ == "__main__":
    main()
