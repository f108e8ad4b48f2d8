"""Whether `Deadline` keeps its word: time to the first token against targets, on a busy machine.

python tests/benchmarks/deadline.py writes docs/results/deadline.json and deadline.md.

A random VLM of 60 million parameters is calibrated, then asked about pictures of three sizes with
three targets in turn: while other programs come and go, and with graphs that take twice as long
now and then. Beside it, fewer requests with the calibration alone, nothing learnt: what the online
correction is worth. Five minutes on two cores. The default targets are for two cores that have
nothing else to do but the load.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from time import monotonic
from typing import Any

import numpy as np
import sixty_million
import tyro
from busy import Load, Slowdown, Slowed
from machine import RESULTS, machine
from rich.console import Console
from rich.progress import track

import tokprune
from tokprune.budgets import Deadline
from tokprune.calibrating import calibrate, plan_calibration
from tokprune.errors import BudgetImpossible
from tokprune.graphs import FirstLayerGraph
from tokprune.model import Model
from tokprune.timing.latency import Latency
from tokprune.timing.request_sizes import Sizes
from tokprune.types import Array
from tokprune.vlm import VLM

GOAL = 1.1  # of the target, at p95
SIDES_PX = (560, 672, 784)  # 400, 576 and 784 vision tokens
QUESTIONS = ("What is in front of the robot?", "Is the way clear?", "How many cups are there?")
LEARNT, STATIC = "corrected", "calibration alone"
LOADED, SLOWED = "a load comes and goes", "graphs take twice as long now and then"
STATIC_EVERY = 3  # requests of which one is also asked without correction
FITS = ("deadline", "all")  # reasons of what time allowed; "floor" is the fewest, time or not


@dataclass(frozen=True)
class Options:
    """Ask with deadlines."""

    requests: int = 100
    """For each target."""
    targets_ms: tuple[float, ...] = (300.0, 450.0, 600.0)
    """Times to the first token."""
    calibration_s: float = 40.0
    """How long to calibrate."""
    load_processes: int = os.cpu_count() or 1
    """Of the competing load."""
    bundle: Path = sixty_million.BUILT
    """What to ask; made where it is missing."""
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS
    """Folder of the two files."""


@dataclass(frozen=True)
class Sample:
    """One request."""

    case: str
    arm: str
    target_ms: float
    busy: bool  # the load was there, or the graphs were slowed, when it began
    total: int
    kept: int
    reason: str  # "impossible": refused
    ttft_ms: float
    timings_ms: Mapping[str, float]


def slowable(model: Model) -> Model:
    """Wrap every graph."""
    llm = replace(model.llm, graph=Slowed(model.llm.graph))
    return replace(
        model,
        vision=replace(model.vision, graph=Slowed(model.vision.graph)),
        first_layer=FirstLayerGraph(Slowed(model.first_layer.graph), llm),
        scorer=replace(model.scorer, graph=Slowed(model.scorer.graph)),
        llm=llm,
    )


class Unlearning(Latency):
    """What was calibrated, and nothing else."""

    def learn(self, sizes: Sizes, kept: int, timings_ms: Mapping[str, float]) -> None:
        """Learn nothing."""


@cache
def picture(side_px: int) -> Array:
    """Return a picture of noise."""
    noise = np.random.default_rng(side_px).integers(0, 256, (side_px, side_px, 3))
    return noise.astype(np.uint8)


def ask(vlm: VLM, number: int, target_ms: float) -> dict[str, Any]:
    """Ask for the first token."""
    shown = picture(SIDES_PX[number // 3 % 3])
    question = QUESTIONS[number % len(QUESTIONS)]
    began = monotonic()
    try:
        answer = vlm.ask(shown, question, Deadline(target_ms), max_new_tokens=1)
    except BudgetImpossible:
        took_ms = (monotonic() - began) * 1000
        return {"total": 0, "kept": 0, "reason": "impossible", "ttft_ms": took_ms, "timings_ms": {}}
    return {
        "total": answer.total,
        "kept": answer.kept,
        "reason": answer.selection.reason,
        "ttft_ms": round(answer.ttft_ms, 2),
        "timings_ms": {stage: round(ms, 2) for stage, ms in answer.timings_ms.items()},
    }


def measure(arms: Mapping[str, VLM], case: str, options: Options) -> list[Sample]:
    """Ask with all targets in turn."""
    found: list[Sample] = []
    busy = Load(options.load_processes) if case == LOADED else Slowdown(seed=2)
    with busy:
        for number in track(range(options.requests * len(options.targets_ms)), description=case):
            target = options.targets_ms[number % len(options.targets_ms)]
            also = number // len(options.targets_ms) % STATIC_EVERY == 0
            for arm in (LEARNT, STATIC) if also else (LEARNT,):
                on = busy.on
                answered = ask(arms[arm], number, target)
                found.append(Sample(case, arm, target, on, **answered))
    return found


def row(samples: Sequence[Sample], case: str, arm: str, target_ms: float) -> dict[str, Any]:
    """Sum up the requests of one target."""
    cell = [s for s in samples if (s.case, s.arm, s.target_ms) == (case, arm, target_ms)]
    fitting = [s for s in cell if s.reason in FITS]
    ratios = [s.ttft_ms / target_ms for s in fitting]
    kept = {
        name: round(mean([s.kept for s in fitting if s.busy is busy] or [0]), 1)
        for name, busy in (("quiet", False), ("busy", True))
    }
    return {
        "case": case,
        "arm": arm,
        "target_ms": target_ms,
        "requests": len(cell),
        "floor": sum(s.reason == "floor" for s in cell),
        "impossible": sum(s.reason == "impossible" for s in cell),
        "fitting": len(fitting),
        "p50_of_target": round(float(np.percentile(ratios, 50)), 3) if ratios else None,
        "p95_of_target": round(float(np.percentile(ratios, 95)), 3) if ratios else None,
        "late": round(mean(ratio > 1 for ratio in ratios), 4) if ratios else None,
        "mean_kept": round(mean([s.kept for s in fitting] or [0]), 1),
        "mean_kept_by_load": kept,
        "reached": bool(np.percentile(ratios, 95) <= GOAL) if ratios else None,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables that docs show."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        "# Deadlines on a busy machine",
        "",
        f"{result['llm']}; pictures of 400, 576 and 784 vision tokens in turn. "
        f"{result['processor']}, {result['cores']} cores, {result['date']}, {versions}. "
        f"{result['note']}".rstrip(),
        "",
        f"Calibrated once, in {result['calibration_s']:.0f} s. Time to the first token as a share "
        "of its target, of requests for which time allowed more than the floor (16 tokens); those "
        "that could be given no more than the floor, and those that were refused as impossible, "
        f"are counted beside. The goal is a p95 of at most {GOAL:g}. `{STATIC}`: nothing is learnt "
        "from answers.",
        "",
    ]
    for case in (LOADED, SLOWED):
        lines += [
            f"## While {case}",
            "",
            "| target | | asked | refused | floor | p50 | p95 | late | kept quiet / busy | goal |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [line(each) for each in result["rows"] if each["case"] == case]
        lines.append("")
    return "\n".join(lines)


def line(row: Mapping[str, Any]) -> str:
    """Return one line of a table."""
    kept = row["mean_kept_by_load"]
    goal = {True: "reached", False: "missed", None: "none fits"}[row["reached"]]
    p50, p95, late = (row[name] for name in ("p50_of_target", "p95_of_target", "late"))
    cells = [
        f"{row['target_ms']:.0f} ms",
        row["arm"],
        row["requests"],
        row["impossible"],
        row["floor"],
        "" if p50 is None else f"{p50:.2f}",
        "" if p95 is None else f"{p95:.2f}",
        "" if late is None else f"{late:.1%}",
        f"{row['mean_kept']:.0f} ({kept['quiet']:.0f} / {kept['busy']:.0f})",
        "" if row["arm"] == STATIC else goal,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Build what is missing, calibrate, measure, write."""
    options = tyro.cli(Options)
    if not options.bundle.exists():
        sixty_million.write(options.bundle)
    model = slowable(tokprune.load(options.bundle, backend="cpu", threads=1).model)
    plan = plan_calibration(model, seconds=options.calibration_s)
    Console().print(str(plan), soft_wrap=True)
    calibration = calibrate(model, plan, threads=1)
    samples: list[Sample] = []
    for case in (LOADED, SLOWED):
        arms = {  # the vision cache is off: each request is a whole one
            LEARNT: VLM(model, latency=Latency(calibration), vision_cache_bytes=0),
            STATIC: VLM(model, latency=Unlearning(calibration), vision_cache_bytes=0),
        }
        samples += measure(arms, case, options)
    rows = [
        row(samples, case, arm, target)
        for case in (LOADED, SLOWED)
        for target in options.targets_ms
        for arm in (LEARNT, STATIC)
    ]
    result = {
        **machine("onnxruntime", "numpy"),
        "note": options.note,
        "llm": "60 million random parameters, fp32, one thread",
        "selector": model.bundle.manifest.default_selector,
        "load_processes": options.load_processes,
        "calibration_s": calibration.seconds,
        "curves": {
            stage: {"a": c.a, "b": c.b, "c": c.c, "p95": c.spread}
            for stage, c in calibration.stages.items()
        },
        "rows": rows,
        "samples": [asdict(sample) for sample in samples],
    }
    text = json.dumps(result, indent=None, separators=(",", ":")).replace('{"case"', '\n{"case"')
    (options.output / "deadline.json").write_text(text + "\n")
    (options.output / "deadline.md").write_text(markdown(result))
    Console().print(markdown(result), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
