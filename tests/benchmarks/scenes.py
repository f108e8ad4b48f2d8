"""The tables of docs/results: every demo VLM on drawn pictures and videos, with every selector.

    make bundles
    python tests/benchmarks/scenes.py WORK --more 2000:0.5,0.25,0.11:relevance-spread,uniform

Each case is one run of tokprune-eval on the test split. Its tables and plots go to
docs/results/scenes, and all rows to docs/results/scenes.json and scenes-video.json. A broken run
goes on where it was, and a case that is there with the same options costs nothing.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro
from machine import RESULTS

from tokprune_export.evaluation.rows import merge

CHECKPOINTS = Path(__file__).parents[2] / "samples" / "scenes" / "checkpoints"
DETAILS = RESULTS / "scenes"
WRITTEN = ("results.md", "accuracy-kept.png", "accuracy-ttft.png", "groups.png")
CODE = "from tokprune_export.cli import eval_main; eval_main()"
NOTE = (
    "The VLM was trained with dropout of vision tokens, even and biased towards background: one "
    "that never missed a token bears pruning worse."
)


class Case(NamedTuple):
    """One bundle and one suite."""

    family: str
    suite: str
    encode: str  # the ways to look that are worth trying

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.family}-{self.suite}"


# VILA takes the frames of a video as pictures, and was not trained on any.
CASES = (
    Case("qwen2_vl", "scenes", "coarse,coarse:2,repeats:0.2"),
    Case("llava_onevision", "scenes", "lazy,lazy:0.95,lazy:4"),
    Case("vila", "scenes", ""),
    Case("qwen2_vl", "scenes-video", "lazy:1,coarse,repeats:0.2"),
    Case("llava_onevision", "scenes-video", "lazy:1,repeats:0.2"),
)


@dataclass(frozen=True)
class Options:
    """Ask every demo VLM test questions, with every selector at every budget."""

    work: tyro.conf.Positional[Path]
    """Where answers are kept until all are there."""
    cases: tuple[str, ...] = tuple(case.name for case in CASES)
    """Which of them."""
    bundles: Path = Path("build/bundles")
    """Where the bundles are."""
    split: str = "test"
    """Drawn scenes: try this program on "dev"."""
    selectors: str = "all"
    """Names, with commas, as tokprune-eval takes them."""
    budgets: str = "1.0,0.5,0.33,0.25,0.22,0.11,0.05"
    oracle: bool = True
    """Whether to find the true relevance too, which takes longer than all answers."""
    samples: int = 500
    """Questions that every cell is asked."""
    more: tuple[str, ...] = ()
    """Cells that are asked more, as tokprune-eval takes them."""
    processes: int = 2
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS
    """Folder of the tables."""


def run(options: Options, case: Case) -> None:
    """Ask the questions of one case, and put its tables among the results."""
    out = options.work / case.name
    more = ("--more", *options.more) if options.more else ()
    oracle = ("--oracle", str(CHECKPOINTS / case.family)) if options.oracle else ()
    subprocess.run(
        [
            *(sys.executable, "-c", CODE, str(options.bundles / case.family)),
            *("--suite", case.suite, "--split", options.split, "--out", str(out)),
            *("--samples", str(options.samples), "--processes", str(options.processes)),
            *("--selectors", options.selectors, "--budgets", options.budgets, *oracle),
            *("--encode", case.encode),
            *("--note", f"{NOTE} {options.note}".strip(), *more),
        ],
        check=True,
    )
    folder = options.output / DETAILS.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in WRITTEN:
        shutil.copyfile(out / name, folder / f"{case.name}-{name}")


def main() -> None:
    """Run the cases, and join the rows of all that are there."""
    options = tyro.cli(Options)
    for case in CASES:
        if case.name in options.cases:
            run(options, case)
    for suite in ("scenes", "scenes-video"):
        runs = [options.work / case.name for case in CASES if case.suite == suite]
        done = [folder for folder in runs if (folder / "rows.json").exists()]
        if done:
            merge(done, options.output / f"{suite}.json")


if __name__ == "__main__":
    main()
