"""Time to the first token where the vision encoder is shown only what the question needs.

    python tests/benchmarks/encode_ttft.py

writes docs/results/encode-ttft.json and encode-ttft.md: checkpoints of the published sizes with
random weights, on one thread, the ways to look interleaved. Times are the process's processor time,
which other programs change little. Accuracy is no part of it: docs/encode.md has that of the demo
VLMs, from scenes.py.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import real_checkpoints
import tyro
from machine import RESULTS, machine
from rich.console import Console

import tokprune
from tokprune.budgets import KeepCount

BUILT = Path(__file__).parents[2] / "build" / "benchmarks"
QUESTION = "What stands in the way between the two tables on the left side of the room?"


class Model(NamedTuple):
    """A checkpoint, a picture, and what is asked of it."""

    make: Callable[[Path], None]
    size_hw: tuple[int, int]
    kept: tuple[int, ...]
    ways: tuple[str, ...]
    goals: dict[tuple[str, int], float]  # of a way and a number of kept tokens


MODELS: dict[str, Model] = {
    "LLaVA-OneVision-0.5B": Model(
        real_checkpoints.write_llava_onevision,
        (1152, 1152),  # nine crops, and the whole
        (364, 729, 1458, 1841),
        ("full", "lazy:1", "lazy:2", "lazy"),
        {("lazy:1", 364): 4.0, ("lazy", 1841): 2.0},
    ),
    "Qwen2-VL-2B": Model(
        real_checkpoints.write_qwen2_vl,
        (1064, 1092),  # 38 x 39 vision tokens
        (371,),
        ("full", "coarse:1", "coarse"),
        {("coarse", 371): 2.0},
    ),
}


@dataclass(frozen=True)
class Options:
    """Measure the first token by way to look and number of kept tokens."""

    models: tuple[str, ...] = tuple(MODELS)
    """Which of them."""
    rounds: int = 2
    """How often each is asked."""
    bundles: Path = BUILT
    """Where bundles are made, once each: 4 and 10 GiB."""
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS


@dataclass(frozen=True)
class Sample:
    """One answer's first token."""

    model: str
    way: str
    budget: int
    round: int
    cpu_ms: float
    ttft_ms: float
    kept: int
    encoded: int
    total: int
    encoder_runs: int
    stages_ms: dict[str, float]


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options)
    path = options.output / "encode-ttft.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in options.models:
        bundle = options.bundles / f"{name}-bundle"
        if not bundle.exists():
            make_bundle(MODELS[name], bundle)
        samples = list(measure(name, bundle, options.rounds))
        found = {**machine(), "note": options.note, "rows": summary(name, samples)}
        known[name] = {**found, "samples": [asdict(sample) for sample in samples]}
        path.write_text(json.dumps(known, indent=1) + "\n")
    text = markdown(known)
    (options.output / "encode-ttft.md").write_text(text)
    Console().print(text, markup=False, soft_wrap=True)


def make_bundle(model: Model, path: Path) -> None:
    """Export random weights of the published size, without a trained scorer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = Path(tempfile.mkdtemp(dir=path.parent))
    try:
        model.make(checkpoint)
        code = "from tokprune_export.cli import export_main; export_main()"
        limits = ("--max-input-len", "8192", "--max-kv-len", "8320")
        command = [sys.executable, "-c", code, str(checkpoint), str(path), *limits]
        subprocess.run(command, check=True)
    finally:
        shutil.rmtree(checkpoint)


def measure(name: str, bundle: Path, rounds: int) -> Iterator[Sample]:
    """Yield answers, ways and budgets taking turns; every one encodes for itself."""
    model = MODELS[name]
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (*model.size_hw, 3), np.uint8)
    with tokprune.load(bundle, backend="cpu", threads=1, vision_cache_bytes=0) as vlm:
        for number in range(rounds):
            for kept in model.kept:
                for way in model.ways:
                    began = time.process_time()
                    answer = vlm.ask(
                        picture, QUESTION, KeepCount(kept), encode=way, max_new_tokens=1
                    )
                    cpu_ms = 1e3 * (time.process_time() - began)
                    sample = Sample(
                        name,
                        way,
                        kept,
                        number,
                        round(cpu_ms, 1),
                        round(answer.ttft_ms, 1),
                        answer.kept,
                        answer.encoded,
                        answer.total,
                        answer.encoder_runs,
                        {stage: round(ms, 1) for stage, ms in answer.timings_ms.items()},
                    )
                    Console(stderr=True).print(f"{sample}", soft_wrap=True)
                    yield sample


def summary(name: str, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return medians by way and budget, beside the full look with as many kept tokens."""
    rows: list[dict[str, Any]] = []
    for kept in MODELS[name].kept:
        mine = {
            way: [s for s in samples if (s.way, s.budget) == (way, kept)]
            for way in MODELS[name].ways
        }
        whole = median(sample.cpu_ms for sample in mine["full"])
        for way, found in mine.items():
            cpu_ms = median(sample.cpu_ms for sample in found)
            rows.append(
                {
                    "way": way,
                    "budget": kept,
                    "kept": found[0].kept,
                    "encoded": found[0].encoded,
                    "total": found[0].total,
                    "encoder_runs": found[0].encoder_runs,
                    "cpu_ms": round(cpu_ms, 1),
                    "faster": round(whole / cpu_ms, 3),
                    "goal": MODELS[name].goals.get((way, kept)),
                    "stages_ms": {
                        stage: round(median(s.stages_ms[stage] for s in found), 1)
                        for stage in found[0].stages_ms
                    },
                }
            )
    return rows


def markdown(results: dict[str, Any]) -> str:
    """Return the tables."""
    lines = ["# First token by what the vision encoder is shown", ""]
    lines += [
        "Random weights of the published sizes, ONNX Runtime, float32, one thread; medians of the "
        "process's processor time, from the picture to the first token, the ways interleaved. "
        "`faster`: against the full look with as many kept tokens. `attention-spread` says where "
        "to look, since random weights have no trained scorer.",
    ]
    for name, found in results.items():
        told = f"{found['processor']}, {found['cores']} cores, {found['date']}. {found['note']}"
        lines += ["", f"## {name}", "", told]
        lines += [
            "",
            "| encode | kept | encoded | of | encoder runs | first token, s | vision, s | first "
            "layer, s | prefill, s | faster | goal |",
            "| --- |" + " ---: |" * 10,
        ]
        for row in found["rows"]:
            stages = row["stages_ms"]
            times = [stages[stage] / 1e3 for stage in ("vision", "first_layer", "prefill")]
            goal = "" if row["goal"] is None else f"{row['goal']:g}x"
            lines.append(
                f"| {row['way']} | {row['kept']} | {row['encoded']} | {row['total']} "
                f"| {row['encoder_runs']} | {row['cpu_ms'] / 1e3:.2f} | "
                + " | ".join(f"{value:.2f}" for value in times)
                + f" | {row['faster']:.2f}x | {goal} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
