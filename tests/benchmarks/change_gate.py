"""How well the change gate tells what has changed from a camera's noise, and where to set it.

python tests/benchmarks/change_gate.py writes docs/results/change-gate.json, .md and .png.

Drawn pictures, before and after one small thing has happened, are seen through a camera's noise and
flicker, and through H.264. Scores of pairs that show the same are held against those of pairs that
do not. Then the demo VLM answers questions about the frame that a gate would give, and about the
one that it would replace. A quarter of an hour on one core.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import tyro
from change_answers import ask_all
from change_pairs import (
    CHANGES,
    FLICKER,
    HARD,
    SIGMAS,
    SIZES_HW,
    Camera,
    Room,
    changes,
    coded,
    hard_changes,
    make_room,
)
from change_report import markdown, plot
from machine import RESULTS, machine
from rich.console import Console
from rich.progress import track

from tokprune.types import Array
from tokprune.watching.gate import BLOCK_PX, THRESHOLD, block_means, difference

THRESHOLDS = (5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 14.0)
MBITS = (1, 2, 4)
CODED_SIGMAS = (1.0, 2.0, 3.5, 5.0)
CODED_FRAMES = 75  # the first second is the encoder's settling, and not compared
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
Measure = Callable[[Array, Array], float]
Scores = dict[str, dict[str, list[float]]]  # of each measure, by what the pair shows


def by_blocks(block_px: int, flicker: float = 0.03) -> Measure:
    """Return the gate's measure with other settings."""
    return lambda before, now: difference(
        block_means(before, block_px), block_means(now, block_px), flicker
    )


def whole_mean(before: Array, now: Array) -> float:
    """Return the mean change of a pixel, over the whole picture."""
    return float(np.abs(now.astype(np.int16) - before).mean())


def largest_of(weights: Array) -> Measure:
    """Return the largest change of a block, in other weights of RGB."""

    def measure(before: Array, now: Array) -> float:
        one, other = block_means(before), block_means(now)
        gain = np.clip(np.median(other.sum(axis=-1) / one.sum(axis=-1)), 0.97, 1.03)
        return float(np.abs((other - one * np.float32(gain)) @ weights).max())

    return measure


OURS = f"the gate: {BLOCK_PX} px, luma and half of each colour"
MEASURES: dict[str, Measure] = {
    OURS: by_blocks(BLOCK_PX),
    "blocks of 4 px": by_blocks(4),
    "blocks of 5 px": by_blocks(5),
    "blocks of 8 px": by_blocks(8),
    "blocks of 16 px": by_blocks(16),
    "without taking flicker off": by_blocks(BLOCK_PX, 0.0),
    "red, green and blue": largest_of(np.eye(3, dtype=np.float32)),
    "luma, and half of colour without it": largest_of(
        np.stack([LUMA, ([0.5, 0, 0] - LUMA / 2), ([0, 0, 0.5] - LUMA / 2)], axis=1)
    ),
    "luma alone": largest_of(LUMA[:, None]),
    "mean of all pixels": whole_mean,
}


@dataclass(frozen=True)
class Options:
    """Measure the change gate."""

    rooms: int = 40
    """Scenes of each size."""
    pairs: int = 4
    """That show the same, of each scene and noise."""
    questions: int = 300
    """To the demo VLM."""
    bundle: Path | None = Path("build/demo")
    """The demo VLM; None: do not ask."""
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS
    """Folder of the three files."""


def score(found: Scores, kind: str, before: Array, now: Array) -> None:
    """Score a pair by every measure."""
    for name, measure in MEASURES.items():
        found[name][kind].append(round(measure(before, now), 3))


def score_room(found: Scores, room: Room, camera: Camera, chance: Random, pairs: int) -> None:
    """Score what shows the same, and what does not, at every noise."""
    clean = room.picture(room.things)
    happened = [*changes(chance, room), *hard_changes(chance, room)]
    for sigma in SIGMAS:
        for _ in range(pairs):
            shots = camera.shot(clean, sigma), camera.shot(clean, sigma)
            score(found, f"noise {sigma:g}", *shots)
        for what, before, after in happened:
            score(found, what, camera.shot(before, sigma), camera.shot(after, sigma))


def score_coded(found: Scores, room: Room, camera: Camera) -> None:
    """Score frames of a stream that shows the same all the time."""
    clean = room.picture(room.things)
    for sigma in CODED_SIGMAS:
        for mbit in MBITS:
            shots = [camera.shot(clean, sigma, flicker=0) for _ in range(CODED_FRAMES)]
            settled = coded(shots, mbit * 1_000_000)[30::11]
            for before, now in combinations(settled, 2):
                score(found, f"H.264, noise {sigma:g}", before, now)


def cost_ms(action: Callable[[Array, Array], object], size_hw: tuple[int, int]) -> float:
    """Return what something takes with two pictures."""
    rng = np.random.default_rng(0)
    before, now = (rng.integers(0, 256, (*size_hw, 3)).astype(np.uint8) for _ in range(2))
    took: list[float] = []
    for _ in range(40):
        began = perf_counter()
        action(before, now)
        took.append((perf_counter() - began) * 1000)
    return round(median(took), 2)


def gate_ms(size_hw: tuple[int, int]) -> float:
    """Return what the gate adds to a frame: the one before is averaged already."""
    means = block_means(np.zeros((*size_hw, 3), np.uint8))
    return cost_ms(lambda _, now: difference(means, block_means(now)), size_hw)


def rate(scores: Sequence[float], threshold: float, *, above: bool) -> float:
    """Return the share of scores on one side of a threshold."""
    return sum((each > threshold) is above for each in scores) / len(scores)


def together(found: Scores, name: str, kinds: Sequence[str]) -> list[float]:
    """Return the scores of several kinds of pairs."""
    return [each for kind in kinds for each in found[name][kind]]


def compared(found: Scores) -> list[dict[str, Any]]:
    """Return how each measure does where it misses no change."""
    raw = [f"noise {sigma:g}" for sigma in SIGMAS]
    streams = [f"H.264, noise {sigma:g}" for sigma in CODED_SIGMAS]
    rows: list[dict[str, Any]] = []
    for name in MEASURES:
        least = min(together(found, name, CHANGES))
        rows.append(
            {
                "measure": name,
                "least_change": least,
                "most_noise": max(together(found, name, raw)),
                "most_h264": max(together(found, name, streams)),
                "ms": cost_ms(MEASURES[name], (720, 1280)),
                "false_changed": rate(together(found, name, raw), least, above=True),
                "false_changed_h264": rate(together(found, name, streams), least, above=True),
            }
        )
    return rows


def measured(options: Options) -> tuple[Scores, dict[str, Any]]:
    """Draw and score."""
    found: Scores = {name: defaultdict(list) for name in MEASURES}
    chance, camera = Random("change gate"), Camera(1)
    for size_hw in SIZES_HW:
        for number in track(range(options.rooms), description=f"{size_hw[1]} x {size_hw[0]}"):
            room = make_room(chance, size_hw)
            score_room(found, room, camera, chance, options.pairs)
            if number < max(options.rooms // 10, 1):
                score_coded(found, room, camera)
    ours = found[OURS]
    return found, {
        **machine("numpy", "av"),
        "note": options.note,
        "threshold": THRESHOLD,
        "block_px": BLOCK_PX,
        "flicker": FLICKER,
        "rooms": options.rooms * len(SIZES_HW),
        "cost_ms": {f"{w} x {h}": gate_ms((h, w)) for h, w in SIZES_HW},
        "pairs": {kind: len(scores) for kind, scores in ours.items()},
        "false_changed": {
            kind: {f"{t:g}": rate(scores, t, above=True) for t in THRESHOLDS}
            for kind, scores in ours.items()
            if "noise" in kind
        },
        "false_unchanged": {
            kind: {f"{t:g}": rate(ours[kind], t, above=False) for t in THRESHOLDS}
            for kind in (*CHANGES, *HARD)
        },
        "least": {kind: min(ours[kind]) for kind in (*CHANGES, *HARD)},
        "most": {kind: max(scores) for kind, scores in ours.items() if "noise" in kind},
        "measures": compared(found),
    }


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options)
    found, result = measured(options)
    if options.bundle is not None:
        result["answers"] = ask_all(options.bundle, options.questions)
    result["scores"] = {kind: sorted(scores) for kind, scores in found[OURS].items()}
    text = json.dumps(result, separators=(",", ":")).replace('],"', '],\n"')
    (options.output / "change-gate.json").write_text(text + "\n")
    (options.output / "change-gate.md").write_text(markdown(result))
    plot(result, options.output / "change-gate.png")
    Console().print(markdown(result), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
