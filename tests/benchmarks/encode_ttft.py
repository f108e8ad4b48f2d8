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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import real_checkpoints
import tyro
from encode_ttft_tables import (
    FOLLOW,
    WITHIN,
    Sample,
    crops_summary,
    followed,
    markdown,
    summary,
)
from jaxtyping import UInt8
from machine import RESULTS, machine
from rich.console import Console

import tokprune
from tokprune.budgets import KeepCount
from tokprune.looking import Lazy
from tokprune.scenes import slowly
from tokprune.types import Array

BUILT = Path(__file__).parents[2] / "build" / "benchmarks"
QUESTION = "What stands in the way between the two tables on the left side of the room?"


class Model(NamedTuple):
    """A checkpoint, a picture, and what is asked of it."""

    make: Callable[[Path], None]
    size_hw: tuple[int, int]
    kept: tuple[int, ...]
    ways: tuple[str, ...]
    goals: dict[tuple[str, int], float]  # of a way and a number of kept tokens
    frames: int  # of the stream, of which every fourth is looked at in full too
    # So many crops whatever is expected of them, against so many kept tokens.
    crops: tuple[int, ...] = ()
    crops_kept: tuple[int, ...] = ()


MODELS: dict[str, Model] = {
    "LLaVA-OneVision-0.5B": Model(
        real_checkpoints.write_llava_onevision,
        (1152, 1152),  # nine crops, and the whole
        (364, 729, 1458, 1841),
        # How many crops "lazy" takes is up to the relevance, and random weights have none.
        ("full", "lazy:1", "lazy:2", "lazy:3"),
        {("lazy:1", 364): 4.0, ("lazy:2", 1841): 2.0},
        9,
        crops=(1, 2, 3, 5),
        crops_kept=(364, 729, 1458),
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
    """How often each is asked; 0: none of them."""
    crops_rounds: int = 1
    """The same with fixed numbers of crops."""
    stream: bool = True
    """Whether a stream is followed."""
    bundles: Path = BUILT
    """Where bundles are made, once each: 4 and 10 GiB."""
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS


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
            looks = {
                "rows": summary(samples, MODELS[name].kept, MODELS[name].goals),
                "samples": list(map(asdict, samples)),
            }
            known[name] = {**known.get(name, {}), **told, **looks}
        if options.crops_rounds and MODELS[name].crops:
            samples = list(by_crops(name, bundle, options.crops_rounds))
            table = {**told, "rows": crops_summary(samples), "samples": list(map(asdict, samples))}
            known[name] = {**known.get(name, told), "crops": table}
        if options.stream:
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


def by_crops(name: str, bundle: Path, rounds: int) -> Iterator[Sample]:
    """Yield answers from so many crops each, beside those from all of them."""
    model = MODELS[name]
    picture = np.random.default_rng(0).integers(0, 256, (*model.size_hw, 3), np.uint8)
    with loaded(bundle) as vlm:
        for number in range(rounds):
            for kept in model.crops_kept:
                yield asked(vlm, picture, Sample(name, "full", kept, number), "full")
                for crops in model.crops:
                    with patch.object(Lazy, "_count", lambda *_, crops=crops: crops):
                        sample = Sample(name, f"{crops} crops", kept, number)
                        yield asked(vlm, picture, sample, "lazy")


def follow(name: str, bundle: Path) -> Iterator[Sample]:
    """Yield answers about the frames of a stream, a quarter of the vision tokens kept.

    Every fourth frame is looked at in full as well: it costs the same whatever has changed.
    """
    model = MODELS[name]
    kept, following = max(model.kept), tokprune.Following(WITHIN)
    with loaded(bundle) as vlm:
        for number, frame in enumerate(frames_of(model)):
            yield asked(vlm, frame, Sample(name, FOLLOW, kept, number), following)
            if number % 4 == 1:
                yield asked(vlm, frame, Sample(name, "full", kept, number), "full")


def frames_of(model: Model) -> Iterator[UInt8[Array, "h w 3"]]:
    """Yield frames of noise, before which a square moves that is noise as well."""
    random = np.random.default_rng(0)
    scene = random.integers(0, 256, (*model.size_hw, 3), np.uint8)
    yield from islice(slowly(scene, random), model.frames)


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


if __name__ == "__main__":
    main()
