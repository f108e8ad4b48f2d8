"""Measure what each stage costs on this device, with drawn noise and the loaded graphs."""

import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from math import ceil
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from tokprune.budgets import KeepCount
from tokprune.bundle import MANIFEST
from tokprune.errors import EngineTooSmall
from tokprune.files import sha256_file
from tokprune.llm import Generation, LanguageModel
from tokprune.model import Model
from tokprune.selection import select
from tokprune.selectors import SELECTORS, Inputs
from tokprune.timing.calibrations import (
    SCHEMA,
    STAGES,
    Calibration,
    Curve,
    Samples,
    Stage,
    cores,
    device_name,
    fit,
)
from tokprune.timing.request_sizes import Sizes, sizes_of, stage_size
from tokprune.trial_parts import trial_parts
from tokprune.trial_requests import trial_requests
from tokprune.types import Prepared, Prompt, Selection, VisionTokens
from tokprune_runtimes import Backend

SECONDS = 30.0  # that measuring takes if the largest picture is cheap enough
MOST_REQUESTS = 6
LEAST_ROUNDS, MOST_ROUNDS = 5, 40
LEAST_KEPT = 8
SHARE_OF_ONE = 1 / 8  # of the seconds that one request may take, but see below
TIMES_SMALLEST = 20  # as long as the smallest, or longer, where the model is large


class Cell(NamedTuple):
    """One stage at one size."""

    stage: Stage
    sizes: tuple[float, ...]
    run: Callable[[], object]
    part: bool = False  # of a picture: these have a curve of their own


class Step(NamedTuple):
    """How far measuring is."""

    done: int
    of: int
    what: str


Progress = Callable[[Step], None]


@dataclass(frozen=True)
class Plan:
    """What will be measured, after a trial run of everything."""

    cells: tuple[Cell, ...]
    rounds: int
    seconds: float  # expected
    vision_tokens: tuple[int, ...]  # of the pictures
    kept: tuple[int, ...]  # vision tokens at prefill

    def __str__(self) -> str:
        """Say it in a line."""
        tokens, kept = (", ".join(map(str, each)) for each in (self.vision_tokens, self.kept))
        count = sum(cell.part for cell in self.cells)
        parts = f" and {count} parts of such" if count else ""
        return (
            f"{self.rounds} rounds of {len(self.cells)} measurements, about {self.seconds:.0f} s: "
            f"pictures of {tokens} vision tokens{parts}, prefill with {kept} of them"
        )


def silent(step: Step) -> None:
    """Show nothing."""
    del step


def plan_calibration(
    loaded: Model, *, seconds: float | int = SECONDS, progress: Progress = silent
) -> Plan:
    """Run everything once or twice, and decide how large pictures may be and how many rounds fit.

    Args:
        loaded: the graphs.
        seconds: to be spent. Large models take longer: no fewer than five rounds are measured.
        progress: is told how far it is.

    Raises:
        NotCalibrated: no drawn picture is one that the bundle takes.
        EngineTooSmall: even the smallest is too large for the engines.
    """
    candidates = trial_requests(loaded, MOST_REQUESTS)
    cells: list[Cell] = []
    tokens: list[int] = []
    longest = 0.0
    for done, (prompt, media) in enumerate(candidates):
        progress(Step(done, len(candidates), f"trial, {len(prompt.slots)} vision tokens"))
        began = perf_counter()
        try:
            found = _cells(loaded, prompt, media)
        except EngineTooSmall:  # not the encoder, which was asked, but what comes after it
            if not cells:
                raise
            break
        took = perf_counter() - began
        longest = longest or max(seconds * SHARE_OF_ONE, took * TIMES_SMALLEST)
        if cells and took > longest:
            break
        cells += found
        tokens.append(len(prompt.slots))
    measured = candidates[: len(tokens)]
    cells += [_part(loaded, shown) for shown in trial_parts(loaded, [m for _, m in measured])]
    prompt, media = measured[-1]
    prefills = _prefills(loaded, prompt, media)
    cells += prefills
    progress(Step(len(tokens), len(candidates), "trial of all"))
    _round(cells)
    one = _round(cells)
    rounds = min(max(ceil(seconds / one), LEAST_ROUNDS), MOST_ROUNDS)
    kept = tuple(int(cell.sizes[0]) - _text_rows(prompt) for cell in prefills)
    return Plan(tuple(cells), rounds, rounds * one, tuple(tokens), kept)


def _round(cells: Sequence[Cell]) -> float:
    """Run everything once; return how many seconds that took."""
    began = perf_counter()
    for cell in cells:
        cell.run()
    return perf_counter() - began


def calibrate(
    loaded: Model, plan: Plan, *, threads: int | None, progress: Progress = silent
) -> Calibration:
    """Measure in rounds, so that all sizes meet the same machine, and fit the curves.

    Args:
        loaded: the graphs.
        plan: what to measure.
        threads: as the graphs were loaded with.
        progress: is told how far it is.
    """
    began = perf_counter()
    times: list[list[float]] = [[] for _ in plan.cells]
    for number in range(plan.rounds):
        progress(Step(number, plan.rounds, "rounds"))
        for cell, taken in zip(plan.cells, times, strict=True):
            start = perf_counter()
            cell.run()
            taken.append((perf_counter() - start) * 1000)
    progress(Step(plan.rounds, plan.rounds, "rounds"))

    measured = list(zip(plan.cells, times, strict=True))
    curves: dict[Stage, Curve] = {stage: fit(_samples(measured, stage)) for stage in STAGES}
    parts = _samples(measured, "vision", part=True)
    return Calibration(
        schema=SCHEMA,
        manifest_sha256=sha256_file(loaded.bundle.path / MANIFEST),
        backend=loaded.backend,
        device=device_name(loaded.backend),
        threads=threads,
        selector=loaded.bundle.manifest.default_selector,
        stages=curves,
        system=f"{platform.system()} {platform.machine()}",
        cores=cores(),
        versions=_versions(loaded.backend),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(perf_counter() - began, 1),
        parts=fit(parts) if parts else None,
    )


def _samples(
    measured: Sequence[tuple[Cell, list[float]]], stage: Stage, *, part: bool = False
) -> Samples:
    """Return what was measured of a stage: of whole pictures, or of parts."""
    found = [(cell, taken) for cell, taken in measured if cell.stage == stage]
    return [(cell.sizes, taken) for cell, taken in found if cell.part is part]


def _cells(loaded: Model, prompt: Prompt, media: tuple[Prepared, ...]) -> list[Cell]:
    """Return the stages before prefill at the sizes of one request; each has run once."""
    sizes = sizes_of(prompt, media)
    vision = loaded.vision(media)
    first = loaded.first_layer.run(prompt, vision)
    scores = loaded.scorer(vision, first)
    given = Inputs(lambda _, __: scores, loaded.llm.embed)
    selector = SELECTORS[loaded.bundle.manifest.default_selector].make(given)

    def choose(kept: int) -> Selection:
        return select(selector(prompt, vision, lambda: first), vision, KeepCount(kept))

    def cell(stage: Stage, run: Callable[[], object], kept: int = 0) -> Cell:
        return Cell(stage, (stage_size(stage, sizes, kept),), run)

    return [
        Cell("vision", tuple(map(float, sizes.patches)), lambda: loaded.vision(media)),
        cell("first_layer", lambda: loaded.first_layer.run(prompt, vision)),
        cell("scorer", lambda: loaded.scorer(vision, first)),
        *(
            cell("select", lambda kept=kept: choose(kept), kept)
            for kept in sorted({max(1, sizes.vision_tokens // part) for part in (2, 8)})
        ),
    ]


def _part(loaded: Model, shown: Prepared) -> Cell:
    sizes = tuple(float(call["pixel_values"].size) for call in shown.calls)
    return Cell("vision", sizes, lambda: loaded.vision([shown]), part=True)


def _prefills(loaded: Model, prompt: Prompt, media: tuple[Prepared, ...]) -> list[Cell]:
    """Return prefills of the largest request, with more and more of its tokens."""
    sizes, vision = sizes_of(prompt, media), loaded.vision(media)
    total = sizes.vision_tokens
    kept = [total]
    while kept[-1] > LEAST_KEPT and len(kept) < 2 * MOST_REQUESTS:
        kept.append(int(kept[-1] / 1.7))
    return [_prefill(loaded.llm, prompt, vision, sizes, count) for count in sorted(kept) if count]


def _prefill(
    llm: LanguageModel, prompt: Prompt, vision: VisionTokens, sizes: Sizes, kept: int
) -> Cell:
    total = sizes.vision_tokens
    even = np.linspace(0, total, kept, endpoint=False).astype(np.int64)
    selection = Selection(even, total, None, None, "count")

    def run() -> object:
        with suppress(StopIteration):
            return next(llm.generate(prompt, vision, selection, Generation(max_new_tokens=1)))

    return Cell("prefill", (stage_size("prefill", sizes, kept),), run)


def _text_rows(prompt: Prompt) -> int:
    return len(prompt.ids) - len(prompt.slots)


def _versions(backend: Backend) -> dict[str, str]:
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in ("tokprune", "onnxruntime", "onnxruntime-gpu", "numpy"):
        with suppress(Exception):  # not installed, or in place without metadata
            found[package] = version(package)
    if backend in ("tensorrt", "tensorrt-rtx"):
        from tokprune_runtimes import trt_build

        found[backend] = trt_build.engine_version(backend)
    return {name: str(number) for name, number in found.items()}
