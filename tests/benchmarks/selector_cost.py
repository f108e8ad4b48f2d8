"""What every selector costs at real scale, one thread, and what a projection of looks changes.

    python tests/benchmarks/selector_cost.py build/bundles/qwen2_vl build/bundles/vila ...

Writes docs/results/selectors.json and selectors.md. The bundles' own features of drawn pictures
say how much of a choice a projection keeps; costs are of drawn features, for no bundle is as large.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
import tyro
from machine import RESULTS, machine
from rich.console import Console
from rich.progress import track

from tokprune import load
from tokprune.budgets import KeepCount
from tokprune.model import Model
from tokprune.scenes import Sample, suite
from tokprune.selection import select
from tokprune.selectors import SELECTORS, Inputs, Selector
from tokprune.selectors.relevance import MMR_WIDTH, relevance_mmr, scope_relevance
from tokprune.selectors.training_free import cdpruner, divprune, flashvlm, scope
from tokprune.types import (
    COLUMN,
    FRAME,
    ROW,
    TILE,
    FirstLayer,
    Prompt,
    Region,
    VisionTokens,
)

SIZES = {1458: ((1, 27, 54), (2, 27, 27)), 6272: ((8, 28, 28), (8, 28, 28))}  # picture, video
CROPS = {1458: ((27, 27), (27, 27)), 6272: ((28, 28), (56, 98))}  # whole, all crops
WIDTHS = (896, 3584)
KEPT = 0.25
HEADS, ROWS, WORDS = 14, 22, 14
GOALS_MS = {"relevance": 10.0, "relevance-mmr": 30.0}  # at 1,458 tokens, d = 896
NARROW = (16, 32, 64)
PROJECTED: dict[str, Callable[[Inputs, int | None], Selector]] = {
    "relevance-mmr": lambda given, width: relevance_mmr(given.scorer, width=width),
    "scope-relevance": lambda given, width: scope_relevance(given.scorer, width=width),
    "divprune": lambda _, width: divprune(width=width),
    "cdpruner": lambda given, width: cdpruner(given, width=width),
    "scope": lambda _, width: scope(width=width),
    "flashvlm": lambda given, width: flashvlm(given, width=width),
}
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Options:
    """Measure every selector."""

    bundles: tyro.conf.Positional[tuple[Path, ...]]
    """Exported demo bundles, whose features are real."""
    rounds: int = 5
    """Samples of each cell at 1,458 tokens; rounds are interleaved, figures are medians."""
    rounds_large: int = 3
    """The same at 6,272 tokens."""
    scenes: int = 30
    """Drawn pictures of each bundle, of the development split."""
    width: int = 128
    """Dimensions of the rows that say "projected"."""
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS
    """Folder of the two files."""


class Cell(NamedTuple):
    """One selector on vision tokens that it takes."""

    name: str
    selector: Selector
    vision: VisionTokens


def main() -> None:
    """Measure and write."""
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # read when numpy is imported
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    options = tyro.cli(Options)
    costs = [row for tokens in SIZES for width in WIDTHS for row in measure(tokens, width, options)]
    result = {
        **machine("numpy"),
        "note": options.note,
        "kept": KEPT,
        "projected_to": options.width,
        "goals_ms": GOALS_MS,
        "before": before(),
        "rows": costs,
        "projection": [loss for bundle in options.bundles for loss in losses(bundle, options)],
    }
    (options.output / "selectors.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.output / "selectors.md").write_text(markdown(result))
    Console().print(markdown(result), markup=False, soft_wrap=True)


def measure(tokens: int, width: int, options: Options) -> list[dict[str, Any]]:
    """Measure every selector in every round, so that all meet the same machine."""
    table = np.random.default_rng(1).normal(0, 0.02, (1000, width)).astype(np.float32)
    scores = np.random.default_rng(2).dirichlet(np.ones(tokens)).astype(np.float32)
    given = Inputs(lambda _, __: scores, lambda ids: table[ids])
    cells = list(of(tokens, width, given, options.width))
    attention = np.random.default_rng(3).random((HEADS, ROWS, tokens)).astype(np.float32)
    first = FirstLayer(attention, np.arange(ROWS) < WORDS, np.zeros((ROWS, width), np.float32))
    prompt = prompt_for(tokens)
    rounds = options.rounds if tokens == min(SIZES) else options.rounds_large
    cpu: dict[str, list[float]] = {cell.name: [] for cell in cells}
    wall: dict[str, list[float]] = {cell.name: [] for cell in cells}
    for _ in track(range(rounds), description=f"{tokens} tokens, d = {width}"):
        for name, selector, vision in cells:
            gc.collect()
            began, used = time.perf_counter(), time.process_time()
            ranking = selector(prompt, vision, lambda: first)
            select(ranking, vision, KeepCount(round(tokens * KEPT)))
            cpu[name].append((time.process_time() - used) * 1e3)
            wall[name].append((time.perf_counter() - began) * 1e3)
    return [
        {
            "selector": name,
            "vision_tokens": tokens,
            "d": width,
            "cpu_ms": round(median(cpu[name]), 3),
            "wall_ms": round(median(wall[name]), 3),
            "samples_cpu_ms": [round(ms, 3) for ms in cpu[name]],
            "samples_wall_ms": [round(ms, 3) for ms in wall[name]],
        }
        for name in cpu
    ]


def of(tokens: int, width: int, given: Inputs, projected: int) -> list[Cell]:
    """Return every selector, and those that can project, once more."""
    picture, film = (grids(tokens, *size, width) for size in SIZES[tokens])
    crops = replace(film, **_crops(tokens))
    cells: list[Cell] = []
    for name, method in SELECTORS.items():
        vision = film if "frames" in method.needs else picture
        vision = crops if "tiles" in method.needs else vision
        cells.append(Cell(name, method.make(given), vision))
        if name in PROJECTED and name != "relevance-mmr":
            cells.append(Cell(f"{name}, projected", PROJECTED[name](given, projected), vision))
    return [*cells, Cell("relevance-mmr, exact", PROJECTED["relevance-mmr"](given, None), picture)]


def grids(tokens: int, frames: int, rows: int, columns: int, width: int) -> VisionTokens:
    """Draw features: smooth fields over rows, columns and time, mixed, and a third of noise."""
    random = np.random.default_rng(0)
    place = np.indices((frames, rows, columns)).reshape(3, -1)
    waves = random.normal(0, 0.35, (48, 3)) @ place + random.uniform(0, 6.28, (48, 1))
    embeds = np.swapaxes(np.sin(waves), 0, 1) @ random.normal(0, 1, (48, width))
    embeds += random.normal(0, embeds.std() / 3, embeds.shape)
    where = np.zeros((tokens, 7), np.int32)
    where[:, [FRAME, ROW, COLUMN]] = np.swapaxes(place, 0, 1)
    regions = tuple(Region(0, frame, 0, rows, columns) for frame in range(frames))
    saliency = random.dirichlet(np.ones(tokens)).astype(np.float32)
    return VisionTokens((0.02 * embeds).astype(np.float32), where, regions, saliency)


def _crops(tokens: int) -> dict[str, Any]:
    where, regions = np.zeros((tokens, 7), np.int32), list[Region]()
    start = 0
    for tile, (rows, columns) in enumerate(CROPS[tokens]):
        inside = slice(start, start + rows * columns)
        where[inside, TILE] = tile
        where[inside, ROW], where[inside, COLUMN] = np.indices((rows, columns)).reshape(2, -1)
        regions.append(Region(0, 0, tile, rows, columns))
        start = inside.stop
    return {"where": where, "regions": tuple(regions)}


def prompt_for(tokens: int) -> Prompt:
    """Return text, vision tokens, and a question of 14 words in 22."""
    total = 18 + tokens + ROWS
    words = np.zeros(total, np.bool_)
    words[18 + tokens : 18 + tokens + WORDS] = True
    ids = np.random.default_rng(4).integers(0, 1000, total)
    return Prompt(ids, np.arange(18, 18 + tokens), words, np.arange(total)[None], total)


def before() -> dict[str, Any]:
    """Return what the first layer and the scorer graph cost there, as prefill.json has it."""
    found = json.loads((RESULTS / "prefill.json").read_text())
    row = next(
        row
        for row in found["rows"]
        if row["vision_tokens"] == 1458 and row["keep"] == KEPT and row["form"] == "ort"
    )
    stages = {name: row["stages_wall_ms"][name] for name in ("first_layer", "scorer")}
    return {**stages, "date": found["date"], "processor": found["processor"]}


def losses(bundle: Path, options: Options) -> list[dict[str, Any]]:
    """Return, of a bundle's real features, how much of the exact choice a projection keeps."""
    kept: dict[tuple[str, int], list[float]] = {}
    with load(bundle, backend="cpu", threads=1) as vlm:
        width = vlm.model.bundle.manifest.llm.hidden_size
        for sample in track(list(suite("dev", options.scenes, tokens=196)), bundle.name):
            for cell, share in recalls(vlm.model, sample).items():
                kept.setdefault(cell, []).append(share)
    return [
        {
            "bundle": bundle.name,
            "d": width,
            "selector": name,
            "projected_to": to,
            "recall": round(mean(values), 4),
            "pictures": len(values),
        }
        for (name, to), values in kept.items()
    ]


def recalls(model: Model, sample: Sample) -> dict[tuple[str, int], float]:
    """Return which share of the exact choice each projection keeps of one picture."""
    prompt, prepared = model.prepare(list(sample.pictures), sample.question)
    vision = model.vision(prepared)
    first = model.first_layer.run(prompt, vision)
    count = round(len(vision.where) * KEPT)
    given = Inputs(model.scorer, model.llm.embed)

    def chosen(name: str, to: int | None) -> set[int]:
        ranking = PROJECTED[name](given, to)(prompt, vision, lambda: first)
        return set(ranking.take(count).tolist())

    found: dict[tuple[str, int], float] = {}
    for name in PROJECTED:
        if "saliency" in SELECTORS[name].needs and vision.saliency is None:
            continue
        exact = chosen(name, None)
        found |= {(name, to): len(exact & chosen(name, to)) / count for to in NARROW}
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables that docs show."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    columns = list(dict.fromkeys((row["vision_tokens"], row["d"]) for row in result["rows"]))
    cells: dict[str, dict[Any, float]] = {}
    for row in result["rows"]:
        cells.setdefault(row["selector"], {})[row["vision_tokens"], row["d"]] = row["cpu_ms"]
    goals = [
        f"`{name}` {cells[name][1458, 896]:.1f} ms ({'reached' if reached else 'missed'}: at most "
        f"{goal:g})"
        for name, goal in result["goals_ms"].items()
        for reached in (cells[name][1458, 896] <= goal,)
    ]
    first = result["before"]
    lines = [
        "# What selectors cost",
        "",
        f"{result['processor']}, {result['date']}, {versions}. {result['note']}".strip(),
        "",
        f"Processor time in ms on one thread, keeping {result['kept']:.0%}; medians of "
        "interleaved rounds, every sample (and wall time) in `selectors.json`. Ranking and "
        "selection alone: what `relevance*` and `attention*` read comes on top, at 1,458 tokens "
        f"and d = 896 {first['first_layer']:.1f} ms for the first layer and "
        f"{first['scorer']:.1f} ms for the scorer graph (prefill.md, {first['date']}). Features "
        'are drawn: smooth fields and a third of noise. "Projected" compares looks in '
        f"{result['projected_to']} dimensions; `relevance-mmr` does in {MMR_WIDTH} unless it says "
        "exact. `cdpruner` takes no more tokens by determinant than there are dimensions, which is "
        "why it costs so little projected: the others follow by likeness to the question.",
        "",
        f"At 1,458 tokens, d = 896: {', '.join(goals)}.",
        "",
        "| selector | " + " | ".join(f"{n:,} tokens, d = {d:,}" for n, d in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name, row in cells.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[key]:.1f}" for key in columns) + " |")
    return "\n".join([*lines, "", *_projection(result)]) + "\n"


def _projection(result: Mapping[str, Any]) -> list[str]:
    """Return the table of what projections keep."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in result["projection"]:
        found.setdefault((row["bundle"], row["selector"]), {})[row["projected_to"]] = row["recall"]
    widths = sorted({row["d"] for row in result["projection"]})
    return [
        "## What a projection changes",
        "",
        f"Share of the exactly chosen quarter that is chosen still, on the demo bundles' own "
        f"features (d = {', '.join(map(str, widths))}) of drawn pictures; {result['kept']:.2f} "
        "would be chance.",
        "",
        "| bundle | selector | " + " | ".join(f"{to} dimensions" for to in NARROW) + " |",
        "|---|---|" + "---|" * len(NARROW),
        *(
            f"| {bundle} | {name} | " + " | ".join(f"{row[to]:.2f}" for to in NARROW) + " |"
            for (bundle, name), row in found.items()
        ),
    ]


if __name__ == "__main__":
    main()
