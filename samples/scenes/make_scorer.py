"""Train the scorer that a demo checkpoint is shipped with: questions, labels, networks.

    python samples/scenes/make_scorer.py samples/scenes/checkpoints/vila WORK

WORK gets the pictures and questions, the labels and two networks: `scorer.safetensors`, which goes
into the checkpoint's folder, and the paper's, trained as the paper does, as `other.safetensors`;
with --glance-scorer a third, for the first of two looks, which goes there too.
With --small nothing is shipped: those have seen at most 64 vision tokens (and a newline), and show
how far a scorer carries. A run that broke goes on. The card tells of the scorer once
`evaluate_checkpoint.py --card-only` has written it again.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from evaluate_checkpoint import AnySample, media_of
from rows import Writer

from tokprune.scenes import film_suite, suite, write

SMALL = 64  # vision tokens


@dataclass(frozen=True)
class Options:
    """Train the scorer of a demo checkpoint."""

    checkpoint: tyro.conf.Positional[Path]
    """Folder of the shipped checkpoint."""
    work: tyro.conf.Positional[Path]
    """Folder for all that is made on the way."""
    small: bool = False
    """Of small pictures and short videos alone, and nothing is shipped."""
    seed: int = 0
    """Of the networks."""
    size: float = 1.0
    """How many times as many questions. VILA1.5's scorer was made with 1.8: it was trained on no
    videos, so that there are fewer. LLaVA-OneVision's with 2."""
    arch: Literal["asked", "frames"] = "asked"
    """The kind of network that is shipped. LLaVA-OneVision's is of frames: about videos that kept
    more of the answers (docs/results/scorers). Qwen2-VL's videos gained nothing sure."""
    glances: float | None = None
    """Share of the questions that are shown as glances, if not tokprune-train's own. Qwen2-VL's
    and LLaVA-OneVision's scorers were made with 0."""
    glance_scorer: bool = False
    """Whether first looks get a scorer of their own, `glance_scorer.safetensors`, as Qwen2-VL's do
    (docs/encode.md says why). It learns from glances and whole looks, for twice as long: from
    glances alone it learnt less. LLaVA-OneVision's is the scorer that was shipped before, made
    without options: it did not learn for longer."""


def questions(options: Options, *, films: bool) -> Iterator[AnySample]:
    """Yield questions of the training split."""
    if options.small:
        yield from suite("train", _count(options, 1200), tokens=SMALL, questions=3)
        if films:
            yield from film_suite(
                "train", _count(options, 1000), grid=(5, 5), frames=4, questions=3
            )
        return
    yield from suite("train", _count(options, 700), tokens=196, questions=4)
    yield from suite("train", _count(options, 300), questions=3)
    yield from suite("train", _count(options, 100), tokens=400, questions=2)
    if films:
        yield from film_suite("train", _count(options, 800), questions=3)
        yield from film_suite("train", _count(options, 100), frames=16, questions=2)


def _count(options: Options, number: int) -> int:
    return max(10, round(number * options.size))


def is_small(writer: Writer, sample: AnySample) -> bool:
    """Whether the family makes few vision tokens of what is shown; newlines are not counted."""
    prepared = writer.processor.prepare(media_of(sample))
    return sum(r.rows * r.columns for each in prepared for r in each.regions) <= SMALL


def write_questions(options: Options, folder: Path) -> None:
    """Draw what is asked about."""
    writer = Writer(options.checkpoint)
    films = "film" in writer.demo.plan.layouts
    found = questions(options, films=films)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial, (s for s in found if not options.small or is_small(writer, s)))
    partial.rename(folder)


def main() -> None:
    """Write the questions, train, ship."""
    options = tyro.cli(Options)
    options.work.mkdir(parents=True, exist_ok=True)
    folder = options.work / f"questions-{'small-' if options.small else ''}{options.size:g}"
    if not folder.exists():
        write_questions(options, folder)
    best = options.work / "scorer.safetensors"
    glance = options.work / "glance_scorer.safetensors"
    train(options, folder, best, options.arch, options.glances)
    train(options, folder, options.work / "other.safetensors", "paper", options.glances)
    if options.glance_scorer:
        train(options, folder, glance, "asked", 1 / 3, epochs=16)
    for made in (best, *[glance] * options.glance_scorer):
        if not options.small:
            shutil.copyfile(made, options.checkpoint / made.name)


def train(
    options: Options,
    questions: Path,
    target: Path,
    arch: str,
    glances: float | None,
    epochs: int | None = None,
) -> None:
    """Train one network; the labels are made once."""
    target.unlink(missing_ok=True)  # of a run that broke, or of another checkpoint
    command = [sys.executable, "-m", "tokprune_export.train", str(options.checkpoint)]
    given = (str(questions / "data.jsonl"), str(target), "--scorer-arch", arch)
    cache = ("--cache", str(options.work / "labels"), "--seed", str(options.seed))
    shown = () if glances is None else ("--glances", str(glances))
    long = () if epochs is None else ("--epochs", str(epochs))
    subprocess.run([*command, *given, *cache, *shown, *long], check=True)


if __name__ == "__main__":
    main()
