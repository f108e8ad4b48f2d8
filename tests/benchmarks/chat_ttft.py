"""Time to the first token of later turns, on a bundle of LLaVA-OneVision-0.5B's size.

Every conversation has a picture of its own, so that its first turn runs the vision encoder.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

import tokprune
from tokprune.types import Answer, Array

BUDGET = 0.5
GOAL = 0.35  # time to the first token of a later turn, as a share of the first turn's
SIZE_HW = (480, 640)
ANSWER_TOKENS = 8  # of each turn, which the next one has in its history
QUESTIONS = (
    "What stands in the way between the two tables on the left side of the room?",
    "Is the door behind the box open wide enough for a robot to pass through it?",
    "How many people are in the picture, and is any of them moving towards the camera?",
    "What is written on the sign above the shelf, and what colour are its letters?",
    "Where could the parcel be put down so that nobody would stumble over it?",
)


@dataclass(frozen=True)
class Sample:
    """One turn up to its first token: wall time, and processor time of the whole process."""

    way: str
    round: int
    turn: int  # from 1
    ttft_ms: float
    cpu_ms: float
    kept: int
    total: int
    prompt_tokens: int
    reused: int
    encoder_runs: int
    encoder_hits: int
    stages_ms: dict[str, float]


Picture: TypeAlias = UInt8[Array, "h w 3"]
Way: TypeAlias = Callable[[tokprune.VLM, Picture, int], Iterator[tuple[Answer, float]]]


def chat(
    vlm: tokprune.VLM, picture: Picture, turns: int, *, budget: float = BUDGET, pin: bool = False
) -> Iterator[tuple[Answer, float]]:
    """Ask each question twice: up to the first token, which is timed; then, taken back, in full."""
    talk = vlm.chat(budget=budget, pin=pin)
    for turn in range(turns):
        shown = () if turn else picture
        began = time.process_time()
        answer = talk.ask(QUESTIONS[turn], shown, max_new_tokens=1)
        yield answer, time.process_time() - began
        if turn + 1 < turns:
            talk.undo()
            talk.ask(QUESTIONS[turn], shown, max_new_tokens=ANSWER_TOKENS)


def single(vlm: tokprune.VLM, picture: Picture, turns: int) -> Iterator[tuple[Answer, float]]:
    """Ask about the same pixels again, without history."""
    for question in QUESTIONS[:turns]:
        began = time.process_time()
        answer = vlm.ask(picture, question, BUDGET, max_new_tokens=1)
        yield answer, time.process_time() - began


RESELECTED = "chat, chosen again for every question"
WAYS: dict[str, Way] = {
    RESELECTED: chat,
    "chat, pinned by spread": partial(chat, pin=True),
    "chat, unpruned": partial(chat, budget=1.0),
    "single questions, the same pixels": single,
}


def make_bundle(path: Path) -> None:
    """Export a checkpoint of the published size with random weights."""
    import real_checkpoints

    Console().print(f"Exporting LLaVA-OneVision-0.5B's size to {path} (once, 3.9 GiB)")
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = Path(tempfile.mkdtemp(dir=path.parent))
    try:
        real_checkpoints.write_llava_onevision(checkpoint)
        code = "from tokprune_export.cli import export_main; export_main()"
        subprocess.run([sys.executable, "-c", code, str(checkpoint), str(path)], check=True)
    finally:
        shutil.rmtree(checkpoint)


def measure(bundle: Path, rounds: int, turns: int, ways: Sequence[str]) -> Iterator[Sample]:
    """Yield turn after turn, the ways interleaved, on one thread."""
    with tokprune.load(bundle, backend="cpu", threads=1) as vlm:
        for number in range(rounds):
            for place, way in enumerate(ways):
                random = np.random.default_rng((number, place))
                picture = random.integers(0, 256, (*SIZE_HW, 3), np.uint8)
                for turn, (answer, cpu_s) in enumerate(WAYS[way](vlm, picture, turns)):
                    yield checked(_sample(way, number, turn + 1, answer, cpu_s))


def _sample(way: str, number: int, turn: int, answer: Answer, cpu_s: float) -> Sample:
    return Sample(
        way=way,
        round=number,
        turn=turn,
        ttft_ms=round(answer.ttft_ms, 1),
        cpu_ms=round(1e3 * cpu_s, 1),
        kept=answer.kept,
        total=answer.total,
        prompt_tokens=answer.prompt_tokens,
        reused=answer.reused,
        encoder_runs=answer.encoder_runs,
        encoder_hits=answer.encoder_hits,
        stages_ms={stage: round(ms, 1) for stage, ms in answer.timings_ms.items()},
    )


def checked(sample: Sample) -> Sample:
    """See that the first turn encodes and the later ones do not, or the figures mean nothing."""
    if (sample.encoder_runs > 0) != (sample.turn == 1):
        raise RuntimeError(f"The vision encoder ran {sample.encoder_runs} times: {sample}")
    return sample


def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return medians of first and later turns, by way."""
    ways = {way: _way([s for s in samples if s.way == way]) for way in WAYS}
    ways = {way: found for way, found in ways.items() if found}
    return {
        "rounds": 1 + max(sample.round for sample in samples),
        "turns": max(sample.turn for sample in samples),
        "vision_tokens": samples[0].total,
        "ways": ways,
        "goal": GOAL,
        "reached": RESELECTED in ways and ways[RESELECTED]["ratio_cpu"] <= GOAL,
        "samples": [asdict(sample) for sample in samples],
    }


def _way(samples: Sequence[Sample]) -> dict[str, Any]:
    first = [sample for sample in samples if sample.turn == 1]
    later = [sample for sample in samples if sample.turn > 1]
    if not first or not later:
        return {}
    times = {
        f"{name}_{clock}_ms": round(median(getattr(s, f"{clock}_ms") for s in some), 1)
        for name, some in (("first", first), ("later", later))
        for clock in ("ttft", "cpu")
    }
    return {
        **times,
        "ratio_wall": round(times["later_ttft_ms"] / times["first_ttft_ms"], 4),
        "ratio_cpu": round(times["later_cpu_ms"] / times["first_cpu_ms"], 4),
        "kept": first[0].kept,
        "rows_run_first": round(median(s.prompt_tokens - s.reused for s in first)),
        "rows_run_later": round(median(s.prompt_tokens - s.reused for s in later)),
        "first_stages_ms": _stages(first),
        "later_stages_ms": _stages(later),
    }


def _stages(samples: Sequence[Sample]) -> dict[str, float]:
    names = samples[0].stages_ms
    return {name: round(median(s.stages_ms[name] for s in samples), 1) for name in names}
