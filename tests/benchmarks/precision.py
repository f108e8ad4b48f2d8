"""What each precision costs and gives on the CPU: size, speed, and answers.

    python tests/benchmarks/precision.py

Speed and size are of a 0.5B LLM with random weights, in the form that a bundle's CPU runs, on one
thread; answers are those of the demo VLMs. Beside them stands what the export compared: how far
each graph is from the checkpoint's own code. Graphs and bundles are made where they are missing.
Writes docs/results/precision.json and precision.md; parts that are not asked for stay.
"""

import gc
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import msgspec
import numpy as np
import real_size
import tyro
from machine import RESULTS, machine
from precision_tables import BUDGETS, GRAPHS, markdown
from rich.console import Console
from rich.progress import track
from shipped import scorers_of

import tokprune
from tokprune.llm_calls import Call, feeds_of
from tokprune.manifest import LlmForm, Precision
from tokprune.scenes import Sample as Asked
from tokprune.scenes import suite
from tokprune.types import Array
from tokprune_export.parity import carries
from tokprune_runtimes import Graph, load_graph

FORM = "ort"
ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "benchmarks"
CHECKPOINTS = ROOT / "samples" / "scenes" / "checkpoints"
UNHEARD = "bf16"  # ONNX Runtime's CPU has no products in it: its graphs are compared, widened


@dataclass(frozen=True)
class Options:
    """Compare the precisions on the CPU."""

    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int4")
    """The first is what answers are compared with."""
    families: tuple[str, ...] = ("qwen2_vl", "llava_onevision", "vila")
    """Whose demo is asked; of these the graphs in bf16 are compared too."""
    parts: tuple[Literal["speed", "answers"], ...] = ("speed", "answers")
    """What to measure."""
    rounds: int = 5
    """Samples of each figure; rounds are interleaved, figures are medians."""
    rows: int = 769
    """Rows of the prefill: 729 vision tokens and 40 of text."""
    steps: int = 16
    """Tokens decoded after it in a round; the round's figure is their median."""
    scenes: int = 300
    """Test scenes that the demo is asked about."""
    bundles: Path = BUILT / "demo"
    """Where the demo's bundles are, by precision."""
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS
    """Folder of the two files."""


@dataclass(frozen=True)
class Sample:
    """One prefill and the steps after it, in milliseconds; of the processor and on the wall."""

    precision: str
    round: int
    prefill_cpu_ms: float
    prefill_wall_ms: float
    decode_cpu_ms: float
    decode_wall_ms: float


class Llm:
    """The 0.5B LLM in one precision, on one thread."""

    def __init__(self, precision: Precision) -> None:
        self.folder = BUILT / real_size.name(precision)
        if not self.folder.exists():
            Console().print(f"Writing graphs of 0.5B random weights to {self.folder}")
            command = [sys.executable, real_size.__file__, str(self.folder), precision]
            subprocess.run(command, check=True)
        described = (self.folder / "forms.json").read_bytes()
        forms = msgspec.json.decode(described, type=list[LlmForm])
        self.precision = precision
        self.form = next(form for form in forms if form.form == FORM)
        path = self.folder / self.form.graph.file
        self.graph: Graph = load_graph(path, "cpu", threads=1)

    def weight_bytes(self) -> int:
        """Count the files that the form reads, with the table of embeddings."""
        names = [f"llm.{FORM}.onnx", f"llm.{FORM}.onnx.data", "llm.onnx.data"]
        paths = [self.folder / "onnx" / name for name in names]
        paths.append(self.folder / "embed_tokens.npy")
        return sum(path.stat().st_size for path in paths if path.exists())

    def sample(self, options: Options, number: int) -> Sample:
        """Run one prefill and some steps."""
        loop = self.graph.loop(carries(self.form, options.rows + options.steps + 1))
        calls = calls_of(options.rows, options.steps)
        gc.collect()
        figures: list[tuple[float, float]] = []
        for call in calls:
            feeds = feeds_of(self.form, call)
            cpu, wall = time.process_time(), time.perf_counter()
            loop.step(feeds)
            figures.append((time.process_time() - cpu, time.perf_counter() - wall))
        cpu, wall = (median(each[i] for each in figures[1:]) * 1e3 for i in range(2))
        first = (figures[0][0] * 1e3, figures[0][1] * 1e3)
        return Sample(self.precision, number, *first, cpu, wall)


def calls_of(rows: int, steps: int) -> list[Call]:
    """Return a prefill and steps of one row, over random embeddings."""
    total = rows + steps
    random = np.random.default_rng(0)
    embeds = random.normal(0, 0.02, (1, total, real_size.HIDDEN)).astype(np.float32)
    positions: Array = np.broadcast_to(np.arange(total), (3, 1, total)).astype(np.int64)
    ends = np.arange(rows, total + 1)
    starts = [0, *ends[:-1]]
    return [
        Call(embeds[:, s:e], positions[:, :, s:e], np.zeros((1, e), np.float32))
        for s, e in zip(starts, ends, strict=True)
    ]


def measure_speed(options: Options) -> dict[str, Any]:
    """Measure every precision in every round, so that all meet the same machine."""
    llms = [Llm(precision) for precision in options.precisions]
    for llm in llms:  # the first run of each allocates
        llm.sample(options, -1)
    rounds = track(range(options.rounds), description="speed")
    samples = [llm.sample(options, number) for number in rounds for llm in llms]
    rows: list[dict[str, Any]] = []
    for llm in llms:
        mine = [asdict(each) for each in samples if each.precision == llm.precision]
        names = [name for name in mine[0] if name.endswith("_ms")]
        figures = {name: round(median(each[name] for each in mine), 2) for name in names}
        size = round(llm.weight_bytes() / 1e6)
        rows.append({"precision": llm.precision, "llm_megabytes": size, **figures})
    return {
        **machine("onnxruntime", "numpy"),
        "note": options.note,
        "llm": "0.5B parameters, random, one thread, last-position logits only",
        "form": FORM,
        "prefill_rows": options.rows,
        "rows": rows,
        "samples": [asdict(sample) for sample in samples],
    }


def measure_answers(options: Options) -> dict[str, Any]:
    """Ask every demo in every precision, at every budget."""
    samples = list(suite("test", options.scenes))
    demos = {family: ask_demo(options, family, samples) for family in options.families}
    return {
        **machine("onnxruntime", "numpy"),
        "questions": len(samples),
        "compared_with": options.precisions[0],
        "note": options.note,
        "demos": demos,
    }


def ask_demo(options: Options, family: str, samples: Sequence[Asked]) -> dict[str, Any]:
    """Return bytes, parity and answers of one demo by precision."""
    truth = [sample.answer for sample in samples]
    texts: dict[tuple[str, float], list[str]] = {}
    sizes: dict[str, int] = {}
    parity: dict[str, list[dict[str, Any]]] = {}
    for precision in (*options.precisions, UNHEARD):
        folder = demo(options.bundles, family, precision)
        sizes[precision] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        parity[precision] = compared(folder)
        if precision == UNHEARD:
            continue
        with tokprune.load(folder, backend="cpu", threads=1) as vlm:
            for budget in BUDGETS:
                shown = track(samples, description=f"{family} {precision} {budget}")
                texts[precision, budget] = [
                    vlm.ask(list(one.pictures), one.question, budget).text for one in shown
                ]
    first = options.precisions[0]
    rows = [
        {
            "precision": precision,
            "budget": budget,
            "right": equal(found, truth),
            "alike": equal(found, texts[first, budget]),
        }
        for (precision, budget), found in texts.items()
    ]
    return {"bundle_bytes": sizes, "rows": rows, "parity": parity}


def demo(bundles: Path, family: str, precision: str) -> Path:
    """Export a demo with its scorers, unless it was."""
    folder = bundles / f"{family}-{precision}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        code = "from tokprune_export.cli import export_main; export_main()"
        checkpoint = CHECKPOINTS / family
        given = ["--precision", precision, *scorers_of(checkpoint)]
        command = [sys.executable, "-c", code, str(checkpoint), str(folder), *given]
        subprocess.run(command, check=True)
    return folder


def compared(bundle: Path) -> list[dict[str, Any]]:
    """Return the worst of what the export compared of each graph with the float32 checkpoint."""
    report = json.loads((bundle / "reports" / "parity.json").read_bytes())
    found: list[dict[str, Any]] = []
    for graph in GRAPHS:
        mine = [row for row in report["rows"] if row["graph"] == graph]
        found.append(
            {
                "graph": graph,
                "cases": len(mine),
                "cosine": min(row["cosine"] for row in mine),
                "of_largest": max(row["max_abs_diff"] / max(1, row["max_abs"]) for row in mine),
            }
        )
    return found


def equal(found: Sequence[str], others: Sequence[str]) -> float:
    """Return the share that is the same."""
    return sum(a == b for a, b in zip(found, others, strict=True)) / len(found)


def main() -> None:
    """Measure, write."""
    options = tyro.cli(Options)
    path = options.output / "precision.json"
    result: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    for part in options.parts:
        measure = measure_speed if part == "speed" else measure_answers
        result[part] = measure(options)
        path.write_text(json.dumps(result, indent=1) + "\n")
        (options.output / "precision.md").write_text(markdown(result))
    Console().print(markdown(result), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
