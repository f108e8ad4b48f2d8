"""How the default selector was chosen: scores, orders and their weights on the development split.

    python tests/benchmarks/selector_settings.py BUNDLE PAPER_SCORER qwen2_vl-pictures
    python tests/benchmarks/selector_settings.py BUNDLE PAPER_SCORER qwen2_vl-videos --frames 8 \\
        --tokens 36

Writes docs/results/selector-settings/NAME.json: share of the full accuracy for every setting. Three
minutes on two cores for a demo bundle; the settings stand in tokprune/selectors/spread.py and
relevance.py. With --data FILE the questions are your own.
"""

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
KEPT = (0.5, 0.25, 0.125)
SCALES = {
    f"spread, place {place:g}, time {time:g}, power {power:g}": Scale(place, time, power)
    for place, time in ((1.0, 1.0), (2.0, 2.0), (1.0, 2.0), (4.0, 4.0))
    for power in (0.5, 1.0, 2.0)
}
PLAIN = next(name for name, scale in SCALES.items() if scale == Scale())  # the default
Hits = dict[str, bool]  # "scores, coverage 0.5, bias @ 0.25" -> right


@dataclass(frozen=True)
class Options:
    """Try every setting."""

    bundle: tyro.conf.Positional[Path]
    """Exported with the grid scorer."""
    paper_scorer: tyro.conf.Positional[Path]
    """The other network of the same training."""
    name: tyro.conf.Positional[str]
    """Of the file to write."""
    samples: int = 600
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
    attention, grid = mean_attention(first), vlm.model.scorer(vision, first)
    paper = scored(next(iter(truth.scorers.values())), vision, first)
    text, _ = answers(select(keep_all(len(vision.embeds)), vision, KeepRatio(1.0)))
    hits = {"full": text == task.answer}
    mixed = (grid + attention) / 2
    tried: dict[str, Ranking] = {}
    for name, scores in (
        ("attention", attention),
        ("paper", paper),
        ("grid", grid),
        ("grid + paper", (grid + paper) / 2),
        ("3 grid + attention", (3 * grid + attention) / 4),
        ("grid + 3 attention", (grid + 3 * attention) / 4),
    ):
        tried[f"{name}, alone"] = Ranking(prefix_of(descending(scores, vision)))
        tried[f"{name}, {PLAIN}"] = Ranking(spread(scores, vision))
    for name, ranking in orders(mixed, vision).items():
        tried[f"grid + attention, {name}"] = ranking
    for name, ranking in tried.items():
        for kept in KEPT:
            text, _ = answers(select(ranking, vision, KeepRatio(kept)))
            hits[f"{name} @ {kept:g}"] = text == task.answer
    return hits


def orders(scores: Scores, vision: VisionTokens) -> dict[str, Ranking]:
    """Return every way to spend a budget on these scores."""
    found = {"alone": Ranking(prefix_of(descending(scores, vision)))}
    for share in (0.25, 0.5):
        for start, suffix in ((NEVER, ""), (0.0, ", size bias")):
            ranking = covering(scores, vision, share, start)
            found[f"coverage {share:g}{suffix}"] = ranking
    found |= {name: Ranking(spread(scores, vision, scale)) for name, scale in SCALES.items()}
    return found


def summarise(hits: Sequence[Hits]) -> dict[str, dict[str, float]]:
    """Return the share of the full accuracy by setting and kept share."""
    full = sum(each["full"] for each in hits)
    found: dict[str, dict[str, float]] = {}
    for cell in hits[0]:
        if cell != "full":
            setting, _, kept = cell.rpartition(" @ ")
            share = sum(each[cell] for each in hits) / full
            found.setdefault(setting, {})[kept] = round(share, 4)
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
        "full_accuracy": round(sum(each["full"] for each in hits) / len(hits), 4),
        "share_of_full_accuracy": summarise(hits),
    }
    options.out.mkdir(exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    (options.out / f"{options.name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
