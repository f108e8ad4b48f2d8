"""Time to the first token where the vision encoder is shown only what the question needs.

    python tests/benchmarks/encode_ttft.py

writes docs/results/encode-ttft.json and encode-ttft.md: checkpoints of the published sizes with
random weights, on one thread, the ways to look interleaved, and a stream that is followed. Times
to the first token are the process's processor time, which other programs change little; those of
stages are wall time. Accuracy is no part of it: docs/encode.md has that of the demo VLMs, from
scenes.py and encode_stream.py.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
import real_checkpoints
import tyro
from jaxtyping import UInt8
from machine import RESULTS, machine
from rich.console import Console

import tokprune
from tokprune.budgets import KeepCount
from tokprune.types import Array

BUILT = Path(__file__).parents[2] / "build" / "benchmarks"
FOLLOW = "follow"
WITHIN = 8  # looks
NOISE = 2.0  # standard deviation of a pixel, in grey levels
QUESTION = "What stands in the way between the two tables on the left side of the room?"


class Model(NamedTuple):
    """A checkpoint, a picture, and what is asked of it."""

    make: Callable[[Path], None]
    size_hw: tuple[int, int]
    kept: tuple[int, ...]
    ways: tuple[str, ...]
    goals: dict[tuple[str, int], float]  # of a way and a number of kept tokens
    frames: int  # of the stream, of which every fourth is looked at in full too


MODELS: dict[str, Model] = {
    "LLaVA-OneVision-0.5B": Model(
        real_checkpoints.write_llava_onevision,
        (1152, 1152),  # nine crops, and the whole
        (364, 729, 1458, 1841),
        ("full", "lazy:1", "lazy:2", "lazy"),
        {("lazy:1", 364): 4.0, ("lazy", 1841): 2.0},
        9,
    ),
    "Qwen2-VL-2B": Model(
        real_checkpoints.write_qwen2_vl,
        (1064, 1092),  # 38 x 39 vision tokens
        (371,),
        ("full", "coarse:2", "coarse"),
        {("coarse", 371): 2.0},
        9,
    ),
}


@dataclass(frozen=True)
class Options:
    """Measure the first token by way to look and number of kept tokens."""

    models: tuple[str, ...] = tuple(MODELS)
    """Which of them."""
    rounds: int = 2
    """How often each is asked; 0: the stream alone."""
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
    round: int  # or the frame of a stream
    cpu_ms: float = 0.0
    ttft_ms: float = 0.0
    kept: int = 0
    encoded: int = 0
    total: int = 0
    encoder_runs: int = 0
    stages_ms: dict[str, float] = field(default_factory=dict[str, float])


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options)
    path = options.output / "encode-ttft.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in options.models:
        bundle = options.bundles / f"{name}-bundle"
        if not bundle.exists():
            make_bundle(MODELS[name], bundle)
        told = {**machine(), "note": options.note}
        if options.rounds:
            samples = list(measure(name, bundle, options.rounds))
            looks = {"rows": summary(name, samples), "samples": list(map(asdict, samples))}
            known[name] = {**known.get(name, {}), **told, **looks}
        frames = list(follow(name, bundle))
        stream = {**followed(frames), "samples": list(map(asdict, frames))}
        known[name] = {**known.get(name, told), "stream": {**told, **stream}}
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
    with loaded(bundle) as vlm:
        for number in range(rounds):
            for kept in model.kept:
                for way in model.ways:
                    yield asked(vlm, picture, Sample(name, way, kept, number), way)


def follow(name: str, bundle: Path) -> Iterator[Sample]:
    """Yield answers about the frames of a stream, a quarter of the vision tokens kept.

    Every fourth frame is looked at in full as well: it costs the same whatever has changed.
    """
    model = MODELS[name]
    kept, following = max(model.kept), tokprune.Following(WITHIN)
    with loaded(bundle) as vlm:
        for number, frame in enumerate(slowly(model)):
            yield asked(vlm, frame, Sample(name, FOLLOW, kept, number), following)
            if number % 4 == 1:
                yield asked(vlm, frame, Sample(name, "full", kept, number), "full")


def slowly(model: Model) -> Iterator[UInt8[Array, "h w 3"]]:
    """Yield frames with a camera's noise, through which a square of 3 % of the picture moves."""
    random = np.random.default_rng(0)
    height, width = model.size_hw
    scene = random.integers(0, 256, (height, width, 3), np.uint8)
    thing = random.integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    for number in range(model.frames):
        frame = scene.astype(np.float32)
        left = 4 * number  # px a frame: a ninth to a tenth of the width in a second of 10 fps
        frame[height // 3 :][: height // 6, left : left + width // 6] = thing
        frame += random.normal(0, NOISE, frame.shape)
        yield np.clip(np.rint(frame), 0, 255).astype(np.uint8)


def loaded(bundle: Path) -> tokprune.VLM:
    """Return a model on one thread that encodes whatever it is asked about."""
    return tokprune.load(bundle, backend="cpu", threads=1, vision_cache_bytes=0)


def asked(
    vlm: tokprune.VLM,
    picture: UInt8[Array, "h w 3"],
    sample: Sample,
    encode: str | tokprune.Following,
) -> Sample:
    """Ask, and return what it took."""
    began = time.process_time()
    answer = vlm.ask(picture, QUESTION, KeepCount(sample.budget), encode=encode, max_new_tokens=1)
    cpu_ms = 1e3 * (time.process_time() - began)
    made = replace(
        sample,
        cpu_ms=round(cpu_ms, 1),
        ttft_ms=round(answer.ttft_ms, 1),
        kept=answer.kept,
        encoded=answer.encoded,
        total=answer.total,
        encoder_runs=answer.encoder_runs,
        stages_ms={stage: round(ms, 1) for stage, ms in answer.timings_ms.items()},
    )
    Console(stderr=True).print(f"{made}", soft_wrap=True)
    return made


def followed(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return what the frames of the stream took after the first, beside a full look at them."""
    whole = [sample for sample in samples if sample.way == "full"]
    later = [sample for sample in samples if sample.way == FOLLOW and sample.round > 0]
    means = {
        way: {
            "cpu_ms": round(mean(sample.cpu_ms for sample in some), 1),
            "vision_ms": round(mean(sample.stages_ms["vision"] for sample in some), 1),
            "prefill_ms": round(mean(sample.stages_ms["prefill"] for sample in some), 1),
            "encoded": round(mean(sample.encoded / sample.total for sample in some), 4),
        }
        for way, some in (("full", whole), (FOLLOW, later))
    }
    total, kept = whole[0].total, whole[0].kept
    faster = means["full"]["cpu_ms"] / means[FOLLOW]["cpu_ms"]
    return {"frames": len(later), "kept": kept, "total": total, "faster": faster, "ways": means}


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
        "Random weights of the published sizes, ONNX Runtime, float32, one thread; medians, the "
        "ways interleaved. `first token` is the process's processor time, from the picture to the "
        "first token; `faster` compares it with that of the full look with as many kept tokens. "
        "The stages are wall time, which what ran beside it lengthens, so that one may be longer "
        "than the first token. `attention-spread` says where to look, since random weights have "
        "no trained scorer.",
    ]
    for name, found in results.items():
        if "rows" not in found:
            continue
        told = f"{found['processor']}, {found['cores']} cores, {found['date']}. {found['note']}"
        lines += ["", f"## {name}", "", told]
        lines += [
            "",
            "| encode | kept | encoded | of | encoder runs | first token, s of processor | "
            "vision, s of wall | first layer, s of wall | prefill, s of wall | faster | goal |",
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
    return "\n".join([*lines, *streams(results)]) + "\n"


def streams(results: dict[str, Any]) -> Iterator[str]:
    """Yield the table of streams."""
    yield from (
        "",
        "## A stream that changes slowly",
        "",
        "Frames with a camera's noise, through which a square of 3 % of the picture moves by 4 px "
        f"a frame; `Following(within={WITHIN})`, means of the frames after the first, which is "
        "encoded as a whole. `faster`: against a full look at the same frames, in processor time. "
        "The goal is 3x.",
        "",
        "| model | frames | kept | of | encoded | first token, s of processor: full | followed | "
        "vision, s of wall: full | followed | prefill, s of wall | faster | measured |",
        "| --- |" + " ---: |" * 10 + " --- |",
    )
    for name, found in results.items():
        if "stream" not in found:
            continue
        stream = found["stream"]
        full, mine = stream["ways"]["full"], stream["ways"][FOLLOW]
        yield (
            f"| {name} | {stream['frames']} | {stream['kept']} | {stream['total']} "
            f"| {mine['encoded']:.1%} | {full['cpu_ms'] / 1e3:.1f} | {mine['cpu_ms'] / 1e3:.1f} "
            f"| {full['vision_ms'] / 1e3:.1f} | {mine['vision_ms'] / 1e3:.1f} "
            f"| {mine['prefill_ms'] / 1e3:.1f} | {stream['faster']:.2f}x "
            f"| {stream['processor']}, {stream['date']}. {stream['note']} |"
        )


if __name__ == "__main__":
    main()
