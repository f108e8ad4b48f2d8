"""What `make gpu` does once its environment is there (run.py begins it).

Exports the demo checkpoints in every precision and builds their engines; holds every graph and all
answers against those of the CPU; sweeps the number of kept tokens; watches what decoding copies and
the memory of the KV cache; fills the GPU and sees who survives; and times slices of a 7B-size LLM
at 100, 50, 25 and 10 % of 1,521 vision tokens, beside transformers.

Writes tests/gpu/results/GPU-DATE.json after every part. A part or case is skipped where an engine's
library or the GPU is absent, and says so; whatever else goes wrong has failed, and the exit status
is 1. Targets are met or missed, which is told and fails nothing. With --engines cpu --slice tiny it
tries itself where there is no GPU.
"""

import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from agreement import LEAST, agreement, sweep
from copies import host_copies
from machine import machine
from memory import cache_in_place, full_gpu
from parity import graph_parity
from rich.console import Console
from rich.markup import escape
from setting import Row, Setting, Skipped, gpu_facts, prepare
from slice_checkpoint import SLICES
from slices import slices
from targets import judged, told

from tokprune_runtimes import BACKENDS

RESULTS = Path(__file__).parent / "results"
PACKAGES = (  # whose versions matter, where they are installed
    *("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx"),
    *("cuda-bindings", "torch", "transformers"),
)


class Part(NamedTuple):
    """One thing to find out, once for every engine."""

    name: str
    run: Callable[[Setting], Iterator[Row]]


PARTS = (
    Part("graph_parity", graph_parity),
    Part("agreement", agreement),
    Part("sweep", sweep),
    Part("host_copies", host_copies),
    Part("cache_in_place", cache_in_place),
    Part("full_gpu", full_gpu),
    Part("slices", slices),
)


@dataclass(frozen=True)
class Options:
    """Run what needs a GPU."""

    engines: tuple[str, ...] = ("tensorrt", "tensorrt-rtx", "cuda")
    """Backends to try; what is not installed is skipped, with its reason."""
    precisions: tuple[str, ...] = ("fp32", "fp16", "int4")
    """Of fp32, fp16, bf16 and int4."""
    parts: tuple[str, ...] = tuple(part.name for part in PARTS)
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


def main() -> None:
    """Run every part on every engine; exit with 1 where one has failed."""
    options = tyro.cli(Options)
    check(options)
    console = Console()
    facts = {**machine(*_installed()), **gpu_facts(), "note": options.note}
    result: dict[str, Any] = {**facts, "summary": [], "targets": [], "parts": []}
    name = "-".join(facts["gpu"].replace("/", " ").split())
    target = options.out / f"{name}-{facts['date']}.json"
    options.out.mkdir(parents=True, exist_ok=True)
    for engine in options.engines:
        for part in PARTS:
            if part.name in options.parts:
                console.print(f"[bold]{engine}: {part.name}")
                result["parts"].append(ran(part, engine, options))
                console.print_json(data=result["parts"][-1])
                result["targets"] = judged(result["parts"])
                result["summary"] = summary(result["parts"], result["targets"])
                text = json.dumps(result, indent=1, sort_keys=False)
                target.write_text(text + "\n", encoding="utf-8")
    for line in result["summary"]:
        console.print(escape(line))
    console.print(f"Written: {target}")
    raise SystemExit(1 if any(each["state"] == "failed" for each in result["parts"]) else 0)


def check(options: Options) -> None:
    """Refuse names that nobody knows.

    Raises:
        SystemExit: with those that are known.
    """
    for kind, given, known in (
        ("part", options.parts, [part.name for part in PARTS]),
        ("precision", options.precisions, list(LEAST)),
        ("engine", options.engines, list(BACKENDS)),
        ("slice", (options.slice,), list(SLICES)),
    ):
        for name in given:
            if name not in known:
                raise SystemExit(f"Unknown {kind} {name!r}; known: {', '.join(known)}")


def ran(part: Part, engine: str, options: Options) -> Row:
    """Run a part, and say how that went; no part stops the others."""
    rows: list[Row] = []
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
        for row in part.run(setting):
            rows.append(row)  # noqa: PERF402 (those before an error are kept)
    except Skipped as reason:
        return {**about, "state": "skipped", "reason": str(reason), "rows": rows}
    except Exception as error:  # whatever it was, the others are to run
        reason = "".join(traceback.format_exception(error))
        return {**about, "state": "failed", "reason": reason, "rows": rows}
    return {**about, **_state(rows), "rows": rows}


def _state(rows: Sequence[Row]) -> Row:
    """Say what rows amount to: failed where one is not ok, skipped where all are."""
    skipped = list(dict.fromkeys(str(row["skipped"]) for row in rows if "skipped" in row))
    told_of = {"reason": "; ".join(skipped)} if skipped else {}
    if any(row.get("ok") is False for row in rows):
        return {"state": "failed", **told_of}
    if not rows or all("skipped" in row for row in rows):
        return {"state": "skipped", "reason": told_of.get("reason", "There was nothing to try")}
    return {"state": "ran", **told_of}


def summary(parts: Sequence[Mapping[str, Any]], targets: Sequence[Row]) -> list[str]:
    """Return a line for each part, for what of it was skipped, and for each target."""
    lines: list[str] = []
    for part in parts:
        head = f"{part['engine']}: {part['part']}: {part['state']}"
        wrong = sum(row.get("ok") is False for row in part["rows"])
        skipped = sum("skipped" in row for row in part["rows"])
        if wrong:
            head += f", {wrong} of {len(part['rows'])} rows are not as they should be"
        if skipped and part["state"] != "skipped":
            head += f", {skipped} of {len(part['rows'])} rows skipped"
        errors = [str(row["failed"]) for row in part["rows"] if "failed" in row]
        reasons = [_last_line(each) for each in (*errors[:1], part.get("reason", ""))]
        lines.append(": ".join([head, *filter(None, reasons)]))
        if part["part"] == "slices" and not any("target" in row for row in part["rows"]):
            lines.append(f"{part['engine']}: its targets were not judged")
    return [*lines, *map(told, targets)]


def _last_line(text: str) -> str:
    """Return what a traceback ends with."""
    return (text.strip().splitlines() or [""])[-1]


def _installed() -> list[str]:
    found: list[str] = []
    for package in PACKAGES:
        try:
            version(package)
        except PackageNotFoundError:
            continue
        found.append(package)
    return found
