"""How relevance-coverage was set: scores, share of coverage and size bias on the development split.

    python tests/benchmarks/selector_settings.py BUNDLE PAPER_SCORER --samples 900

Writes docs/results/selector-settings.json: share of the full accuracy for every setting. About five
minutes on two cores for the demo bundle; the settings stand in tokprune/selectors/relevance.py.
With --frames 8 --tokens 64 or --data FILE, the questions are about videos, or your own: give
another --out.
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
from tokprune.selectors.baselines import mean_attention
from tokprune.selectors.relevance import NEVER, covering
from tokprune_export import answer_cells
from tokprune_export.answer_cells import Answers, Seen, Setup, Task
from tokprune_export.errors import placed
from tokprune_export.evaluate import EvaluateOptions, tasks

TARGET = RESULTS / "selector-settings.json"
COVERAGE = (0.0, 0.25, 0.5, 0.75)
KEPT = (0.5, 0.25, 0.125, 0.06)
Hits = dict[str, bool]  # "scores, coverage 0.5, bias @ 0.25" -> right


@dataclass(frozen=True)
class Options:
    """Try every setting."""

    bundle: tyro.conf.Positional[Path]
    """Exported with the grid scorer."""
    paper_scorer: tyro.conf.Positional[Path]
    """The other network of the same training."""
    samples: int = 900
    tokens: int = 196
    """Vision tokens of a drawn picture, or of a frame."""
    frames: int | None = None
    """Drawn videos of so many frames, and not pictures."""
    data: Path | None = None
    """Ask these questions (JSON lines, as tokprune-train reads them) and no drawn scenes."""
    out: Path = TARGET
    """The file to write."""
    processes: int = 2


def ask(setup: Setup, task: Task) -> Hits:
    """Ask one question with every setting."""
    vlm, scorers, _ = answer_cells.opened(setup)
    with placed(task.key):
        prompt, _, prepared = answer_cells.prepare(vlm, task)
    vision = vlm.vision(prepared)
    first = vlm.first_layer.run(prompt, vision)
    answers = Answers(vlm, Seen(prompt, vision, first))
    attention, grid = mean_attention(first), vlm.scorer(vision, first)
    paper = answer_cells.run_scorer(next(iter(scorers.values())), vision, first)
    given = {
        "attention": attention,
        "paper": paper,
        "grid": grid,
        "grid + paper": (grid + paper) / 2,
        "grid + attention": (grid + attention) / 2,
    }
    text, _ = answers(select(keep_all(len(vision.embeds)), vision, KeepRatio(1.0)))
    hits = {"full": text == task.answer}
    for name, scores in given.items():
        for share in COVERAGE:
            for start, suffix in ((NEVER, ""), (0.0, ", size bias")):
                ranking = covering(scores, vision, share, start)
                for kept in KEPT:
                    text, _ = answers(select(ranking, vision, KeepRatio(kept)))
                    hits[f"{name}, coverage {share:g}{suffix} @ {kept:g}"] = text == task.answer
    return hits


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
    setup = Setup(bundle=options.bundle, scorers=(options.paper_scorer,))
    asked = EvaluateOptions(
        options.bundle,
        options.out.parent,
        split="dev",
        tokens=options.tokens,
        frames=options.frames,
        samples=options.samples,
        data=options.data,
    )
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        hits = list(pool.map(partial(ask, setup), tasks(asked), chunksize=8))
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
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
