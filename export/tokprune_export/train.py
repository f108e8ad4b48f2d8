"""`tokprune-train`: relevance labels from a checkpoint's own answers, then a scorer network."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from tokprune.errors import RequestInvalid
from tokprune_export.checkpoint import Checkpoint, open_checkpoint
from tokprune_export.cli import guarded
from tokprune_export.examples import Example, read_examples
from tokprune_export.label_cache import SHARD_LABELS, Label, LabelCache
from tokprune_export.labels import label_all, picture_hash, sample_name
from tokprune_export.progress import Counting
from tokprune_export.scorer_training import (
    RECIPES,
    Arch,
    Quality,
    attention_scores,
    network_of,
    pair_of,
    predictions,
    quality,
    split,
    train,
)
from tokprune_export.scorers import Scorer, save_scorer
from tokprune_export.teacher import fingerprint, open_teacher
from tokprune_export.workers import Workers, join_workers

FEWEST_LABELS = 20
ARCHES: tuple[Arch, ...] = ("paper", "grid")


@dataclass(frozen=True)
class TrainOptions:
    """Train a scorer for a checkpoint, from questions that it answers rightly.

    The checkpoint answers every question greedily. Where it is right, the answer is explained: how
    much did each vision token matter? Two networks learn to predict that from the first layer's
    attention, and the better one is written.
    """

    model: tyro.conf.Positional[str]
    """A folder with a checkpoint in HF format, or a hub id with --revision."""
    data: tyro.conf.Positional[Path]
    """JSON lines: {"image": path or "images": [paths], "question": ..., "answer": ...}; paths are
    relative to the file. Answers are compared exactly, but for case and spaces at the ends: ask for
    short ones."""
    output: tyro.conf.Positional[Path]
    """The scorer file to make (safetensors). It must not exist."""
    arch: Literal["best", "paper", "grid"] = "best"
    """Which network to write; "best" is the one with the higher held-out recall at 25 %."""
    other: Path | None = None
    """Write the network that was not chosen here."""
    epochs: int | None = None
    """Passes over the labels (default: 100 for paper, 12 for grid)."""
    seed: int = 0
    """Equal seeds give equal files on one machine's CPU."""
    cache: Path | None = None
    """Where labels are kept (default: OUTPUT.labels). A run that broke goes on from there; under
    torchrun all machines must see this folder."""
    limit: int | None = None
    """Read the first N examples only."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the checkpoint and the networks run."""
    revision: str | None = None
    """Commit hash (40 hex digits) of a hub id."""


def main() -> None:
    """Run `tokprune-train`. Exit 2 with one line where the request cannot be met."""
    options = tyro.cli(TrainOptions, prog="tokprune-train")
    sys.exit(guarded("tokprune-train", lambda: run(options)))


def run(options: TrainOptions) -> None:
    """Label, train, compare, write.

    Raises:
        RequestInvalid: the data or the options make no sense.
        ExportRefused: so does the checkpoint.
    """
    _check(options)
    examples = read_examples(options.data, options.limit)
    checkpoint = open_checkpoint(options.model, options.revision)
    workers = join_workers()
    try:
        cache = LabelCache(_folder(options) / fingerprint(checkpoint)[:16])
        write_labels(options, checkpoint, examples, cache, workers)
        workers.wait()
        if workers.leads:
            cache.scan()
            _train(options, checkpoint, examples, cache)
    finally:
        workers.close()


def write_labels(
    options: TrainOptions,
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    cache: LabelCache,
    workers: Workers,
) -> None:
    """Compute this process's share of the labels that are not in the cache."""
    mine = {sample_name(example): example for example in workers.share(examples)}
    todo = {name: example for name, example in mine.items() if name not in cache}
    if not todo:
        return
    teacher = open_teacher(checkpoint, _device(options, workers))
    right = sum(not cache.is_wrong(name) for name in mine if name in cache)
    wrong = len(mine) - len(todo) - right
    what = "labels" if workers.count == 1 else f"labels (worker 1 of {workers.count})"
    with Counting(what, len(todo), shown=workers.leads) as counting:
        waiting = list(todo.values())
        for start in range(0, len(waiting), SHARD_LABELS):
            for example, label in label_all(teacher, waiting[start : start + SHARD_LABELS]):
                cache.add(sample_name(example), label)
                right, wrong = right + (label is not None), wrong + (label is None)
                counting.advance(note=f"{right} right, {wrong} wrong and skipped")
    cache.flush()


def _check(options: TrainOptions) -> None:
    for path in (options.output, options.other):
        if path is not None and path.exists():
            raise RequestInvalid(f"{path} exists already: remove it, or choose another name")
        if path is not None and not path.absolute().parent.is_dir():
            raise RequestInvalid(f"There is no folder {path.absolute().parent} to write into")
    for name, value in (("--epochs", options.epochs), ("--limit", options.limit)):
        if value is not None and value < 1:
            raise RequestInvalid(f"Got {name} {value}; expected 1 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RequestInvalid("Got --device cuda, but torch finds no CUDA device here: use cpu")


def _folder(options: TrainOptions) -> Path:
    return options.cache or options.output.with_name(f"{options.output.name}.labels")


def _device(options: TrainOptions, workers: Workers) -> torch.device:
    if options.device == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", workers.local_rank % torch.cuda.device_count())


def _train(
    options: TrainOptions, checkpoint: Checkpoint, examples: Sequence[Example], cache: LabelCache
) -> None:
    """Train both networks on the cached labels, print how good they are and write one."""
    training, held, wrong = _divide(options, examples, cache)
    labels = list(cache.read(held).values())
    raw = quality([attention_scores(label) for label in labels], labels)
    scorers: dict[Arch, Scorer] = {}
    rows: dict[Arch, Quality] = {}
    for arch in ARCHES:
        scorers[arch], rows[arch] = _fit(options, arch, training, cache, labels)
    best = max(ARCHES, key=lambda arch: rows[arch].recall_at_25)
    shipped: Arch = best if options.arch == "best" else options.arch
    spare: Arch = "grid" if shipped == "paper" else "paper"
    Console().print(_table({"attention": raw, **rows}, shipped, len(training), len(labels)))
    facts = _facts(options, checkpoint, len(training), wrong)
    heads = int(checkpoint.text_config["num_attention_heads"])
    for arch, other, path in (
        (shipped, spare, options.output),
        (spare, shipped, options.other),
    ):
        if path is not None:
            beside = {other: rows[other]._asdict(), "attention": raw._asdict()}
            notes = {**facts, "others": json.dumps(beside, sort_keys=True)}
            save_scorer(path, scorers[arch], heads, notes)
            Console().print(f"wrote {path} ({arch})", highlight=False, soft_wrap=True)


def _divide(
    options: TrainOptions, examples: Sequence[Example], cache: LabelCache
) -> tuple[list[str], list[str], int]:
    """Name the samples to train on and to hold out, and count those answered wrongly."""
    named = {sample_name(example): example for example in examples}
    missing = sum(name not in cache for name in named)
    if missing:
        raise RequestInvalid(
            f"{missing} labels of other machines are not in {_folder(options)}: "
            "give --cache a folder that all machines see"
        )
    right = [name for name in named if not cache.is_wrong(name)]
    pictures = [list(map(picture_hash, named[name].pictures)) for name in right]
    training, held = split(pictures, options.seed) if right else ([], [])
    if len(training) < FEWEST_LABELS or not held:
        raise RequestInvalid(
            f"{len(right)} of {len(named)} questions were answered rightly: too few to train on "
            f"(at least {FEWEST_LABELS}, and more than one picture). Check the answers' wording"
        )
    return [right[i] for i in training], [right[i] for i in held], len(named) - len(right)


def _fit(
    options: TrainOptions, arch: Arch, names: Sequence[str], cache: LabelCache, held: list[Label]
) -> tuple[Scorer, Quality]:
    device = _device(options, Workers())
    network = network_of(arch, len(held[0].attention), options.seed).to(device)
    pairs = []
    for start in range(0, len(names), SHARD_LABELS):
        part = names[start : start + SHARD_LABELS]
        labels = cache.read(part)
        pairs += [pair_of(network, labels[name], device) for name in part]
    recipe = RECIPES[arch].scaled(options.epochs)
    with Counting(f"training the {arch} network", recipe.epochs) as counting:
        train(
            network,
            pairs,
            recipe,
            options.seed,
            lambda epoch, loss: counting.advance(note=f"loss {loss:.4f} after epoch {epoch}"),
        )
    scores = list(predictions(network, [pair_of(network, label, device) for label in held]))
    row = quality(scores, held)
    return Scorer(network, arch, row._asdict()), row


def _facts(
    options: TrainOptions, checkpoint: Checkpoint, trained: int, wrong: int
) -> dict[str, str]:
    """Return what the file says of its making."""
    return {
        "model": checkpoint.name,
        "model_fingerprint": fingerprint(checkpoint),
        "data": options.data.name,
        "labels": str(trained),
        "answered_wrongly": str(wrong),
        "seed": str(options.seed),
        "epochs": str(options.epochs or "default"),
    }


def _table(rows: Mapping[str, Quality], shipped: Arch, trained: int, held: int) -> Table:
    title = f"{trained} labels to train on; agreement with the oracle on {held} of other pictures"
    table = Table(title=title, title_justify="left", min_width=80)
    for column in ("scorer", "recall at 50 %", "recall at 25 %", "Spearman", "KL"):
        table.add_column(column, justify="left" if column == "scorer" else "right")
    for name, row in rows.items():
        figures = (row.recall_at_50, row.recall_at_25, row.spearman, row.kl)
        mark = " (written)" if name == shipped else ""
        table.add_row(name + mark, *(f"{figure:.3f}" for figure in figures))
    return table


if __name__ == "__main__":
    main()
