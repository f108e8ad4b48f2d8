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
from tokprune_export.agreement import Figures, Quality, attention_scores, measure
from tokprune_export.checkpoint import Checkpoint, open_checkpoint
from tokprune_export.division import Division, divide
from tokprune_export.examples import Example, read_examples
from tokprune_export.exits import guarded
from tokprune_export.label_cache import SHARD_LABELS, LabelCache
from tokprune_export.labels import label_all, sample_name
from tokprune_export.progress import Counting
from tokprune_export.scorer_training import (
    RECIPES,
    Arch,
    Pair,
    network_of,
    pair_of,
    predictions,
    train,
)
from tokprune_export.scorers import Scorer, save_scorer
from tokprune_export.teacher import check_video, fingerprint, open_teacher
from tokprune_export.workers import Workers, join_workers

ARCHES: tuple[Arch, ...] = ("paper", "grid")


@dataclass(frozen=True)
class TrainOptions:
    """Train a scorer for a checkpoint, from questions that it answers rightly.

    The checkpoint answers every question greedily. Where it is right, the answer is explained: how
    much did each vision token matter? Two networks learn to predict that from the first layer's
    attention, and the better one is written.

    Data: the paper has 8,000 to 12,000 right answers. Of ten pictures or videos eight are trained
    on, one tells when to stop and one how good the networks are. Questions about pictures and about
    videos may be mixed: one scorer learns from both, and the figures are given for each.

    Time: one forward per question and one backward per answer token, then minutes. Measured with
    the demo-sized model (1.6 M parameters, 196 vision tokens) on one CPU core: 40 ms a label; per
    epoch and 1,000 labels 7 s for the paper's network and 1.4 s for the grid. Several GPUs or
    machines share the labels: torchrun --nproc-per-node=4 -m tokprune_export.train MODEL ...

    Memory: the checkpoint in float32, and what its backward pass keeps, which grows with the
    prompt's length and not with its square. A label takes heads x text rows x vision tokens x 2
    bytes of disk (22 kB there), and in training heads x 20 x vision tokens x 2 bytes of memory.
    """

    model: tyro.conf.Positional[str]
    """A folder with a checkpoint in HF format, or a hub id with --revision."""
    data: tyro.conf.Positional[Path]
    """JSON lines: {"image": path or "images": [paths], "question": ..., "answer": ...}; for videos
    {"video": path, "fps" or "num_frames": ...} or {"frames": [paths], "fps": ...} in the place of
    the picture. Paths are relative to the file. Answers are compared exactly, but for case and
    spaces at the ends: ask for short ones."""
    output: tyro.conf.Positional[Path]
    """The scorer file to make (safetensors). It must not exist."""
    arch: Literal["best", "paper", "grid"] = "best"
    """Which network to write; "best" is the one with the higher held-out recall at 25 %."""
    other: Path | None = None
    """Write the network that was not chosen here."""
    epochs: int | None = None
    """Most passes over the labels (default: 15 for paper, 12 for grid). Training ends earlier where
    the loss on pictures and videos that it has not seen grows. The paper has about 100."""
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
    checkpoint = open_checkpoint(options.model, options.revision)
    workers = join_workers()
    try:
        examples = read_examples(options.data, options.limit, shown=workers.leads)
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
    check_video(teacher, todo.values())  # now, and not after hours
    right = sum(not cache.is_wrong(name) for name in mine if name in cache)
    wrong = len(mine) - len(todo) - right
    what = "labels" if workers.count == 1 else f"labels (worker 1 of {workers.count})"
    with Counting(what, len(todo), shown=workers.leads) as counting:
        waiting = list(todo.values())
        try:
            for start in range(0, len(waiting), SHARD_LABELS):
                for example, label in label_all(teacher, waiting[start : start + SHARD_LABELS]):
                    cache.add(sample_name(example), label)
                    right, wrong = right + (label is not None), wrong + (label is None)
                    counting.advance(note=f"{right} right, {wrong} wrong and skipped")
        finally:
            cache.flush()  # what an interrupted run has computed stays


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
    division = divide(examples, cache, _folder(options), options.seed)
    raw = measure([attention_scores(label) for label in division.held.labels], division.held)
    fitted = {arch: _fit(options, arch, division, cache) for arch in ARCHES}
    rows = {arch: row for arch, (_, row) in fitted.items()}
    best = max(ARCHES, key=lambda arch: rows[arch].overall.recall_at_25)
    shipped: Arch = best if options.arch == "best" else options.arch
    spare: Arch = "grid" if shipped == "paper" else "paper"
    Console().print(_table({"attention": raw, **rows}, shipped, division))
    heads = int(checkpoint.text_config["num_attention_heads"])
    facts = _facts(options, checkpoint, division)
    for arch, other, path in ((shipped, spare, options.output), (spare, shipped, options.other)):
        if path is not None:
            beside = {other: rows[other], "attention": raw}
            overall = {name: row.overall._asdict() for name, row in beside.items()}
            apart = {name: row.apart() for name, row in beside.items()}
            notes = {
                **facts,
                "others": json.dumps(overall, sort_keys=True),
                "others_by_modality": json.dumps(apart, sort_keys=True),
            }
            save_scorer(path, fitted[arch][0], heads, notes)
            Console().print(f"wrote {path} ({arch})", highlight=False, soft_wrap=True)


def _fit(
    options: TrainOptions, arch: Arch, division: Division, cache: LabelCache
) -> tuple[Scorer, Figures]:
    """Train one network and measure it."""
    device, held = _device(options, Workers()), division.held
    network = network_of(arch, len(held.labels[0].attention), options.seed).to(device)

    def pairs(names: Sequence[str]) -> list[Pair]:
        made: list[Pair] = []
        for start in range(0, len(names), SHARD_LABELS):
            part = names[start : start + SHARD_LABELS]
            labels = cache.read(part)
            made += [pair_of(network, labels[name], device) for name in part]
        return made

    recipe = RECIPES[arch].scaled(options.epochs)
    with Counting(f"training the {arch} network", recipe.epochs) as counting:
        train(
            network,
            pairs(division.training),
            pairs(division.checked),
            recipe,
            options.seed,
            lambda _, loss, other: counting.advance(
                note=f"loss {loss:.4f}, on what it has not seen {other:.4f}"
            ),
        )
    pairs_held = [pair_of(network, label, device) for label in held.labels]
    row = measure(list(predictions(network, pairs_held)), held)
    return Scorer(network, arch, division.modalities, row.overall._asdict(), row.apart()), row


def _facts(options: TrainOptions, checkpoint: Checkpoint, division: Division) -> dict[str, str]:
    """Return what the file says of its making."""
    return {
        "model": checkpoint.name,
        "model_fingerprint": fingerprint(checkpoint),
        "data": options.data.name,
        "labels": str(len(division.training)),
        "answered_wrongly": str(division.wrong),
        "seed": str(options.seed),
        "epochs": str(options.epochs or "default"),
    }


def _table(rows: Mapping[str, Figures], shipped: str, division: Division) -> Table:
    trained, held = len(division.training), len(division.held.labels)
    title = f"{trained} labels to train on; agreement with the oracle on {held} others"
    table = Table(title=title, title_justify="left", min_width=80)
    for column in ("scorer", "recall at 50 %", "recall at 25 %", "Spearman", "KL"):
        table.add_column(column, justify="left" if column == "scorer" else "right")

    def add(name: str, row: Quality) -> None:
        figures = (row.recall_at_50, row.recall_at_25, row.spearman, row.kl)
        table.add_row(name, *(f"{figure:.3f}" for figure in figures))

    for name, row in rows.items():
        add(name + (" (written)" if name == shipped else ""), row.overall)
        for kind, part in row.by_modality.items():
            add(f"  {part.samples:.0f} about {kind}s", part)
    return table


if __name__ == "__main__":
    main()
