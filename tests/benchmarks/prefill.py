"""What pruning buys and costs at real scale: prefill time by kept share, one thread, one runtime.

python tests/benchmarks/prefill.py writes docs/results/prefill.json and prefill.md.
"""

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

import real_size
import tyro
from machine import RESULTS, machine
from rich.console import Console
from rich.progress import track

from tokprune.budgets import KeepRatio
from tokprune.llm import Generation
from tokprune.selection import keep_all, select
from tokprune.selectors import SELECTORS, Inputs
from tokprune.types import Prompt, Selection, VisionTokens

T = TypeVar("T")
KEEP = (1.0, 0.5, 0.25, 0.1)
TOLERANCE = {0.5: 0.05, 0.25: 0.05, 0.1: 0.10}  # of the ratio of FLOPs
OVERHEAD = 0.003  # of the unpruned prefill
STAGES = ("first_layer", "scorer", "select", "gather")
SELECTOR = "relevance-spread"
BUILT = Path(__file__).parents[2] / "build" / "benchmarks" / f"real_size-{real_size.sources()}"


@dataclass(frozen=True)
class Options:
    """Measure prefill with all and some vision tokens of a 0.5B LLM with random weights."""

    rounds: int = 7
    """Samples of each cell; rounds are interleaved, figures are medians."""
    tokens: tuple[int, ...] = (729, 1458)
    """Vision tokens of the picture."""
    forms: tuple[Literal["ort", "portable"], ...] = ("ort", "portable")
    """Forms of the LLM graph."""
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS
    """Folder of the two files."""


@dataclass(frozen=True)
class Sample:
    """One prefill, and the pruning before it, in milliseconds. Stages are wall time."""

    form: str
    total: int
    keep: float
    kept: int
    round: int
    wall_ms: float
    cpu_ms: float
    stages_ms: dict[str, float]
    stages_cpu_ms: dict[str, float]


class Clock:
    """Wall and processor time of one call after another."""

    def __init__(self) -> None:
        self.wall_ms: dict[str, float] = {}
        self.cpu_ms: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.cpu_ms[name] = (time.process_time() - cpu) * 1e3
        self.wall_ms[name] = (time.perf_counter() - wall) * 1e3
        return result


def main() -> None:
    """Build what is missing, measure, write."""
    options = tyro.cli(Options)
    if not BUILT.exists():
        Console().print(f"Writing graphs of 0.5B random weights to {BUILT} (once, 2.6 GB)")
        subprocess.run([sys.executable, real_size.__file__, str(BUILT)], check=True)
    samples: list[Sample] = []
    for form in options.forms:
        samples += measure(form, options)
        write(samples, options)  # what took long is kept if the next form fails


def write(samples: list[Sample], options: Options) -> None:
    """Write the samples and what they amount to."""
    forms = dict.fromkeys(each.form for each in samples)
    cells = [(form, total, keep) for form in forms for total in options.tokens for keep in KEEP]
    result = {
        **machine("onnxruntime", "numpy"),
        "note": options.note,
        "llm": "0.5B parameters, random, fp32, one thread, last-position logits only",
        "text_tokens": real_size.TEXT_BEFORE + real_size.TEXT_AFTER,
        "selector": SELECTOR,
        "rows": [row(samples, *cell) for cell in cells],
        "samples": [asdict(sample) for sample in samples],
    }
    (options.output / "prefill.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.output / "prefill.md").write_text(markdown(result))
    Console().print(markdown(result), markup=False, soft_wrap=True)


def measure(form: str, options: Options) -> list[Sample]:
    """Measure every share in every round, so that all meet the same machine."""
    model = real_size.load(BUILT, form)
    cells = [(total, keep) for total in options.tokens for keep in KEEP]
    questions = {total: real_size.question_about(total) for total in options.tokens}
    for total, keep in cells:  # the first run of each size allocates
        sample(model, *questions[total], keep, form, -1)
    rounds = range(options.rounds)
    return [
        sample(model, *questions[total], keep, form, number)
        for number in track(rounds, description=form)
        for total, keep in cells
    ]


def sample(
    model: real_size.RealSize,
    prompt: Prompt,
    vision: VisionTokens,
    keep: float,
    form: str,
    number: int,
) -> Sample:
    """Choose tokens as the product does, and run the prefill."""
    clock = Clock()
    selection = _select(model, prompt, vision, keep, clock)
    clock("gather", lambda: model.llm.rows(prompt, vision, selection))
    gc.collect()
    steps = model.llm.generate(prompt, vision, selection, Generation(max_new_tokens=1))
    clock("prefill", lambda: next(steps))
    return Sample(
        form=form,
        total=len(vision.embeds),
        keep=keep,
        kept=selection.kept,
        round=number,
        wall_ms=clock.wall_ms.pop("prefill"),
        cpu_ms=clock.cpu_ms.pop("prefill"),
        stages_ms=clock.wall_ms,
        stages_cpu_ms=clock.cpu_ms,
    )


def _select(
    model: real_size.RealSize, prompt: Prompt, vision: VisionTokens, keep: float, clock: Clock
) -> Selection:
    if keep == 1.0:
        return select(keep_all(len(vision.embeds)), vision, KeepRatio(1.0))
    first = clock("first_layer", lambda: model.first_layer.run(prompt, vision))
    scores = clock("scorer", lambda: model.scorer(vision, first))
    selector = SELECTORS[SELECTOR].make(Inputs(lambda _, __: scores, model.llm.embed))

    def choose() -> Selection:
        return select(selector(prompt, vision, lambda: first), vision, KeepRatio(keep))

    return clock("select", choose)


def row(samples: list[Sample], form: str, total: int, keep: float) -> dict[str, Any]:
    """Sum up one cell of the table."""
    cell = [s for s in samples if (s.form, s.total, s.keep) == (form, total, keep)]
    full = [s for s in samples if (s.form, s.total, s.keep) == (form, total, 1.0)]
    text = real_size.TEXT_BEFORE + real_size.TEXT_AFTER
    flops = real_size.prefill_flops(cell[0].kept + text)
    ratio = real_size.prefill_flops(total + text) / flops
    wall, cpu = median(s.wall_ms for s in cell), median(s.cpu_ms for s in cell)
    full_wall, full_cpu = median(s.wall_ms for s in full), median(s.cpu_ms for s in full)
    result: dict[str, Any] = {
        "form": form,
        "vision_tokens": total,
        "keep": keep,
        "kept": cell[0].kept,
        "gflop": round(flops / 1e9, 1),
        "flop_ratio": round(ratio, 3),
        "prefill_wall_ms": round(wall, 1),
        "prefill_cpu_ms": round(cpu, 1),
        "speedup_wall": round(full_wall / wall, 3),
        "speedup_cpu": round(full_cpu / cpu, 3),
    }
    if keep == 1.0:
        return result
    stages = {name: round(median(s.stages_ms[name] for s in cell), 3) for name in STAGES}
    cost = median(sum(s.stages_ms.values()) for s in cell)
    cost_cpu = median(sum(s.stages_cpu_ms.values()) for s in cell)
    return {
        **result,
        "stages_wall_ms": stages,
        "overhead": round(cost / full_wall, 5),
        "overhead_cpu": round(cost_cpu / full_cpu, 5),
        "reached": bool(full_cpu / cpu >= ratio * (1 - TOLERANCE[keep])),
        "overhead_reached": bool(cost_cpu / full_cpu <= OVERHEAD),
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the table that docs show."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        "# Prefill by kept share",
        "",
        f"{result['llm']}; {result['text_tokens']} text tokens. "
        f"{result['processor']}, {result['date']}, {versions}. {result['note']}".strip(),
        "Medians of interleaved rounds; every sample is in `prefill.json`. Pruning is first layer, "
        f"scorer, selection (`{result['selector']}`) and gather, as a share of the unpruned "
        "prefill. Speed-up and pruning by processor time, wall time in brackets. The goal is a "
        "speed-up no more than 5 % (at 10 %: 10 %) below the ratio of FLOPs, and pruning at most "
        "0.3 %.",
        "",
        "| form | vision tokens | kept | prefill ms | FLOP ratio | speed-up | pruning | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [row["form"], row["vision_tokens"], f"{row['kept']} ({row['keep']:.0%})"]
        cells += [f"{row['prefill_cpu_ms']:.0f} ({row['prefill_wall_ms']:.0f})"]
        if row["keep"] == 1.0:
            cells += ["1", "1", "", ""]
        else:
            met = "reached" if row["reached"] and row["overhead_reached"] else "missed"
            cells += [f"{row['flop_ratio']:.2f}"]
            cells += [f"{row['speedup_cpu']:.2f} ({row['speedup_wall']:.2f})"]
            cells += [f"{row['overhead_cpu']:.2%} ({row['overhead']:.2%})", met]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
