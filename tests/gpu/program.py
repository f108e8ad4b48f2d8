"""Everything that needs an NVIDIA GPU, in one run, into one file.

Exports the demo checkpoints in every precision, builds their engines, holds their answers against
those of the CPU, sweeps the number of kept tokens, watches the memory of the KV cache, fills the
GPU and sees who survives, and times slices of a 7B-size LLM at 100, 50, 25 and 10 % of 1,482 vision
tokens, beside transformers. Writes tests/gpu/results/GPU-DATE.json after every part; a part that
could not run says why. With --engines cpu --slice tiny it tries itself where there is no GPU.
"""

import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from agreement import agreement, sweep
from machine import machine
from memory import cache_in_place, full_gpu
from rich.console import Console
from setting import Setting, Skipped, gpu_facts, prepare
from slices import SLICES, slices

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """Run what needs a GPU."""

    engines: tuple[str, ...] = ("tensorrt", "tensorrt-rtx", "cuda")
    """Backends to try; what is not installed is skipped, with its reason."""
    precisions: tuple[str, ...] = ("fp32", "fp16", "int4")
    parts: tuple[str, ...] = ("agreement", "sweep", "cache_in_place", "full_gpu", "slices")
    questions: int = 100
    """About drawn scenes, for each bundle, engine and budget."""
    slice: str = "7B"
    """Size of the random LLM whose slices are timed: 7B, 2B or tiny."""
    rounds: int = 15
    """Timed answers of each budget, interleaved."""
    work: Path = Path("build/gpu")
    """Where bundles are kept; what is there is not exported again, and may be brought along."""
    out: Path = RESULTS
    wheels: Path | None = None
    """Install from this folder into a venv in the work folder, and run there (offline.py)."""
    note: str = ""
    """What else the machine was doing."""


class Part(NamedTuple):
    """One thing to find out, once for every engine."""

    name: str
    run: Callable[[Setting], Iterator[dict[str, Any]]]


PARTS = (
    Part("agreement", agreement),
    Part("sweep", sweep),
    Part("cache_in_place", cache_in_place),
    Part("full_gpu", full_gpu),
    Part("slices", slices),
)


def main() -> None:
    """Run every part on every engine."""
    options = tyro.cli(Options)
    known = {part.name for part in PARTS}
    if unknown := set(options.parts) - known:
        raise SystemExit(f"Unknown parts {sorted(unknown)}; known: {', '.join(sorted(known))}")
    if options.slice not in SLICES:
        raise SystemExit(f"Unknown slice {options.slice!r}; known: {', '.join(SLICES)}")
    console = Console()
    facts = {**machine("numpy", "onnx"), **gpu_facts(), "note": options.note}
    result: dict[str, Any] = {**facts, "parts": []}
    target = options.out / f"{facts['gpu'].replace(' ', '-')}-{facts['date']}.json"
    options.out.mkdir(parents=True, exist_ok=True)
    for engine in options.engines:
        for part in PARTS:
            if part.name in options.parts:
                console.print(f"[bold]{engine}: {part.name}")
                result["parts"].append(_ran(part, engine, options))
                console.print_json(data=result["parts"][-1])
                text = json.dumps(result, indent=1, sort_keys=False)
                target.write_text(text + "\n", encoding="utf-8")
    console.print(f"Written: {target}")
    failed = [each for each in result["parts"] if each["state"] == "failed"]
    raise SystemExit(1 if failed else 0)


def _ran(part: Part, engine: str, options: Options) -> dict[str, Any]:
    """Run a part, and say how that went; no part stops the others."""
    rows: list[dict[str, Any]] = []
    about = {"engine": engine, "part": part.name}
    try:
        setting = prepare(
            engine,
            options.precisions,
            options.work,
            questions=options.questions,
            rounds=options.rounds,
            size=options.slice,
        )
        rows.extend(part.run(setting))
    except Skipped as reason:
        return {**about, "state": "skipped", "reason": str(reason), "rows": rows}
    except Exception as error:  # whatever it was, the others are to run
        reason = "".join(traceback.format_exception(error))
        return {**about, "state": "failed", "reason": reason, "rows": rows}
    if rows and all("skipped" in row for row in rows):
        reasons = "; ".join(dict.fromkeys(str(row["skipped"]) for row in rows))
        return {**about, "state": "skipped", "reason": reasons, "rows": rows}
    wrong = [row for row in rows if row.get("ok") is False]
    return {**about, "state": "failed" if wrong else "ran", "rows": rows}
