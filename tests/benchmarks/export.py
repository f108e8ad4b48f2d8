"""Time and memory of exporting models of real size, and of the first answer of their bundles.

python tests/benchmarks/export.py writes docs/results/export.json and export.md. It needs 60 GB of
disk and 24 GB of memory, and about an hour. Models that are not asked for keep their figures.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from machine import RESULTS, machine
from PIL import Image
from real_checkpoints import MODELS
from rich.console import Console

FLOAT_BYTES = 4
GIB = 2**30
MOST_WEIGHTS, MOST_BESIDE = 1.4, 1.0  # the bound: times the float32 weights, plus GiB
SIZE_HW = (480, 640)  # of the picture that is asked about
NEW_TOKENS = 8


@dataclass(frozen=True)
class Options:
    """Export random checkpoints of published sizes and ask each bundle one question."""

    models: tuple[str, ...] = tuple(MODELS)
    """Which of them."""
    folder: Path | None = None
    """Where to work; a temporary folder otherwise."""
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS
    """Folder of the two files."""


class Ran(NamedTuple):
    """One process."""

    seconds: float
    peak_gib: float
    said: str


def run(*command: str) -> Ran:
    """Run a program in a process whose only child it is, so that the peak is its own."""
    program = (
        "import json, resource, subprocess, sys, time\n"
        "began = time.monotonic()\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024\n"
        "print(json.dumps([time.monotonic() - began, peak, done.returncode, done.stdout, "
        "done.stderr]))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, check=True
    )
    seconds, peak, code, said, errors = json.loads(found.stdout)
    if code:
        raise RuntimeError(f"{' '.join(command)} failed:\n{said}\n{errors}")
    return Ran(seconds, peak / GIB, said)


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Write one checkpoint, export it, and ask its bundle."""
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    for path in (checkpoint, bundle):
        shutil.rmtree(path, ignore_errors=True)
    MODELS[name](checkpoint)
    files = checkpoint.rglob("*.safetensors")
    weights = sum(path.stat().st_size for path in files) * FLOAT_BYTES / 2 / GIB  # from bfloat16
    tools = Path(sys.executable).parent
    exported = run(f"{tools}/tokprune-export", str(checkpoint), str(bundle))
    shutil.rmtree(checkpoint)
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8)
    picture = folder / "picture.png"
    Image.fromarray(noise).save(picture)
    asked = run(
        f"{tools}/tokprune",
        *("ask", str(bundle), "--question", "What is in the way?", "--json"),
        *("--image", str(picture)),
        *("--budget", "0.25", "--max-new-tokens", str(NEW_TOKENS)),
    )
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) / GIB
    shutil.rmtree(bundle)
    bound = MOST_WEIGHTS * weights + MOST_BESIDE
    return {
        "model": name,
        "date": machine()["date"],
        "weights_gib": round(weights, 2),
        "export_minutes": round(exported.seconds / 60, 1),
        "export_peak_gib": round(exported.peak_gib, 2),
        "bound_gib": round(bound, 2),
        "reached": exported.peak_gib <= bound,
        "bundle_gib": round(size, 2),
        "ask_seconds": round(asked.seconds, 1),
        "ask_peak_gib": round(asked.peak_gib, 2),
        **answered(json.loads(asked.said)),
    }


def answered(said: dict[str, Any]) -> dict[str, Any]:
    """What counts of the answer; the text of random weights means nothing."""
    return {
        "vision_tokens": said["total"],
        "kept": said["kept"],
        "ttft_ms": round(said["ttft_ms"]),
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the table that docs show."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        "# Export of models of real size",
        "",
        "Published configurations with random bfloat16 weights, exported to float32 with all "
        f"checks on, on a CPU. {result['processor']}, {result['cores']} cores, "
        f"{result['memory_gib']} GiB, {result['date']}, {versions}. {result['note']}".strip(),
        "Peak is the largest resident memory of the process, mapped files included. The goal is "
        "1.4 times the float32 weights and 1 GiB at most. The question is about one picture of "
        "640 x 480 pixels, with a quarter of the vision tokens kept, in a fresh process.",
        "",
        "| model | date | weights GiB | export min | export peak GiB | goal GiB | bundle GiB | "
        "ask s | ask peak GiB | vision tokens (kept) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        met = "reached" if row["reached"] else "missed"
        cells = [row["model"], row["date"], row["weights_gib"], row["export_minutes"]]
        cells += [row["export_peak_gib"]]
        cells += [f"{row['bound_gib']} {met}", row["bundle_gib"], row["ask_seconds"]]
        cells += [row["ask_peak_gib"], f"{row['vision_tokens']} ({row['kept']})"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write down after every model."""
    options = tyro.cli(Options)
    if unknown := set(options.models) - set(MODELS):
        raise SystemExit(f"Unknown models {sorted(unknown)}; known: {', '.join(MODELS)}")
    console = Console()
    target = options.output / "export.json"
    before = json.loads(target.read_text(encoding="utf-8"))["rows"] if target.exists() else []
    rows = {row["model"]: row for row in before}
    facts = machine("torch", "transformers", "onnxruntime", "numpy")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in options.models:
            console.print(f"{name} ...")
            rows[name] = measure(name, Path(folder))
            console.print_json(data=rows[name])
            measured = [rows[each] for each in MODELS if each in rows]
            result = {**facts, "note": options.note, "rows": measured}
            target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            (options.output / "export.md").write_text(markdown(result), encoding="utf-8")


if __name__ == "__main__":
    main()
