"""How the default selector was chosen: scores, orders and their weights on the development split.

    python tests/benchmarks/selector_settings.py BUNDLE PAPER_SCORER qwen2_vl-pictures
    python tests/benchmarks/selector_settings.py BUNDLE PAPER_SCORER qwen2_vl-videos --frames 8 \\
        --tokens 36

Writes docs/results/selector-settings/NAME.json, with the share of the full accuracy for every
setting. The settings stand in tokprune/selectors/spread.py and relevance.py. With --data FILE the
questions are your own.
"""

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from machine import RESULTS, machine

from tokprune.budgets import KeepRatio
from tokprune.selection import keep_all, select
from tokprune.selectors.relevance import NEVER, covering
from tokprune.selectors.scores import mean_attention
from tokprune.selectors.selector import descending, prefix_of
from tokprune.selectors.spread import Scale, spread
from tokprune.types import Ranking, Scores, VisionTokens
from tokprune_export.errors import placed
from tokprune_export.evaluation.cells import ScorerFile
from tokprune_export.evaluation.opening import Answers, Setup, encode, opened
from tokprune_export.evaluation.suites import Task, open_suite, tasks
from tokprune_export.evaluation.truth import scored

TARGET = RESULTS / "selector-settings"
KEPT = (0.5, 0.25, 0.11)
ATTENTION_SHARES = (0.0, 0.25, 0.5)
PLACES, POWERS = (1.0, 2.0, 4.0), (0.5, 1.0, 2.0)
RIVAL = "attention, spread"  # needs no training; as it is shipped
RESAMPLES = 2000


class Hits(NamedTuple):
    """What was answered rightly, by setting and kept share: "scores, order @ 0.25"."""

    group: str
    right: dict[str, bool]


@dataclass(frozen=True)
class Options:
    """Try every setting."""

    bundle: tyro.conf.Positional[Path]
    """Exported with the scorer that is to be set."""
    paper_scorer: tyro.conf.Positional[Path]
    """The paper's network, of the same training."""
    name: tyro.conf.Positional[str]
    """Of the file to write."""
    samples: int = 500
    tokens: int = 196
    """Vision tokens of a drawn picture, or of a frame."""
    frames: int | None = None
    """Drawn videos of so many frames, and not pictures."""
    data: Path | None = None
    """Ask these questions (JSON lines, as tokprune-train reads them) and no drawn scenes."""
    out: Path = TARGET
    """Folder of the file to write."""
    processes: int = 2


def ask(setup: Setup, task: Task) -> Hits:
    """Ask one question with every setting."""
    vlm, truth = opened(setup)
    assert truth is not None
    with placed(task.place):
        _, prompt, _, vision, see_first = encode(vlm, task)
    first = see_first()
    answers = Answers(vlm, prompt, vision)
    attention, own = mean_attention(first), vlm.model.scorer(vision, first)
    paper = scored(next(iter(truth.scorers.values())), vision, first)
    tried = {f"attention, {name}": each for name, each in plain(attention, vision).items()}
    tried |= {f"paper, {name}": each for name, each in plain(paper, vision).items()}
    for share in ATTENTION_SHARES:
        name = f"own, attention {share:g}"
        scores = ((1 - share) * own + share * attention).astype(np.float32)
        found = orders(scores, vision)
        tried |= {f"{name}, {order}": ranking for order, ranking in found.items()}
    text, _ = answers(select(keep_all(len(vision.embeds)), vision, KeepRatio(1.0)))
    right = {"full": text == task.answer}
    for name, ranking in tried.items():
        for kept in KEPT:
            text, _ = answers(select(ranking, vision, KeepRatio(kept)))
            right[f"{name} @ {kept:g}"] = text == task.answer
    return Hits(task.group, right)


def plain(scores: Scores, vision: VisionTokens) -> dict[str, Ranking]:
    """Return these scores' own order, and the shipped spread."""
    alone = Ranking(prefix_of(descending(scores, vision)))
    return {"alone": alone, "spread": Ranking(spread(scores, vision))}


def orders(scores: Scores, vision: VisionTokens) -> dict[str, Ranking]:
    """Return every way to spend a budget on these scores."""
    found = {
        "alone": Ranking(prefix_of(descending(scores, vision))),
        "coverage 0.25": covering(scores, vision, 0.25, NEVER),
        "coverage 0.25, size bias": covering(scores, vision, 0.25, 0.0),
    }
    for place, power in product(PLACES, POWERS):
        scale = Scale(place, place, power)
        name = f"spread, place {place:g}, power {power:g}"
        found[name] = Ranking(spread(scores, vision, scale))
    return found


def summarise(hits: Sequence[Hits]) -> dict[str, dict[str, list[float | str]]]:
    """Return the figures of every setting and kept share.

    They are: share of the full accuracy, mean over groups; points ahead of RIVAL with the limits of
    the 95 % paired bootstrap interval; the worst group, and its share.
    """
    groups = np.array([each.group for each in hits])
    drawn = np.random.default_rng(0).integers(0, len(hits), (RESAMPLES, len(hits)))
    right = {cell: np.array([h.right[cell] for h in hits], float) for cell in hits[0].right}
    full = {group: right["full"][groups == group].mean() for group in sorted(set(groups))}
    found: dict[str, dict[str, list[float | str]]] = {}
    for cell, values in right.items():
        if cell == "full":
            continue
        setting, _, kept = cell.rpartition(" @ ")
        means = {group: values[groups == group].mean() for group in full}
        worst = min(means, key=lambda group: means[group] / max(full[group], 1e-9))
        ahead = values - right[f"{RIVAL} @ {kept}"]
        low, high = np.percentile(ahead[drawn].mean(axis=1), [2.5, 97.5])
        figures = (sum(means.values()) / sum(full.values()), ahead.mean(), low, high)
        rounded: list[float | str] = [round(float(figure), 4) for figure in figures]
        of_full = round(float(means[worst] / max(full[worst], 1e-9)), 4)
        found.setdefault(setting, {})[kept] = [*rounded, worst, of_full]
    return found


def main() -> None:
    """Ask, and write the table."""
    options = tyro.cli(Options)
    paper = ScorerFile(str(options.paper_scorer), "paper", "")
    setup = Setup(bundle=options.bundle, scorers=(paper,))
    suite = open_suite(
        "scenes" if options.frames is None else "scenes-video",
        "dev",
        options.tokens,
        options.frames,
    )
    if options.data is not None:
        suite = open_suite(str(options.data), limit=options.samples)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        hits = list(pool.map(partial(ask, setup), tasks(suite, options.samples), chunksize=8))
    write(options, hits)


def write(options: Options, hits: Sequence[Hits]) -> None:
    """Write the results file."""
    films = "" if options.frames is None else f", videos of {options.frames} frames"
    drawn = f"of the development split, {options.tokens} vision tokens{films}"
    content = {
        **machine("onnxruntime", "numpy"),
        "questions": f"{len(hits)} {drawn if options.data is None else options.data.name}",
        "full_accuracy": round(sum(each.right["full"] for each in hits) / len(hits), 4),
        "figures": "share of full, points ahead of attention-spread, low, high, worst group, share",
        "settings": summarise(hits),
    }
    options.out.mkdir(exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    (options.out / f"{options.name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
