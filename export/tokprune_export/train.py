"""`tokprune-train`: relevance labels from a checkpoint's own answers, then a scorer network."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from tokprune.errors import RequestInvalid
from tokprune_export.agreement import Figures, Quality
from tokprune_export.checkpoint import Checkpoint, open_checkpoint
from tokprune_export.division import Division, divide
from tokprune_export.examples import Example, read_examples
from tokprune_export.exits import guarded
from tokprune_export.fitting import LOSSES, Classroom, Loss
from tokprune_export.label_cache import SHARD_LABELS, LabelCache
from tokprune_export.labels import label_all, sample_name
from tokprune_export.progress import Counting
from tokprune_export.scorers import save_scorer, size_of
from tokprune_export.teacher import check_video, fingerprint, open_teacher, open_text
from tokprune_export.workers import Workers, join_workers


@dataclass(frozen=True)
class TrainOptions:
    """Train a scorer for a checkpoint, from questions that it answers rightly.

    The checkpoint answers every question greedily. Where it is right, the answer is explained: how
    much did each vision token matter? A network then learns which tokens to keep, from the first
    layer's attention and, if it is "looks", from the vision tokens themselves.

    Data: the paper has 8,000 to 12,000 right answers. Of ten pictures or videos eight are trained
    on, one tells when to stop and one how good the networks are. Questions about pictures and about
    videos may be mixed: one scorer learns from both, and the figures are given for each.

    Time: one forward per question and one backward per answer token, then minutes. Measured with
    the demo-sized model (1.6 M parameters, 196 vision tokens) on one CPU core: 40 ms a label; per
    epoch and 1,000 labels 19 s for what is learned from answers, from relevance 7 s for the paper's
    network and 1.4 s for the grid. Several GPUs or machines share the labels: torchrun
    --nproc-per-node=4 -m tokprune_export.train MODEL ...

    Memory: the checkpoint in float32, and what its backward pass keeps, which grows with the
    prompt's length, on a GPU not with its square (at least one prompt at once: with 7B and 1,500
    tokens an estimated 26 GB for a label, half of it to learn from answers). A label takes heads x
    text rows x vision tokens x 2 bytes of disk (22 kB for the demo's 196 vision tokens), a picture
    vision tokens x width x 2 (50 kB there); in training a label takes heads x 22 x vision tokens x
    2 bytes of memory.
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
    arch: Annotated[
        Literal["asked", "frames", "grid", "paper", "best"],
        tyro.conf.arg(name="scorer-arch", aliases=("--arch",)),
    ] = "asked"
    """Which network to train: paper is that of arXiv:2506.01097; grid convolves over rows and
    columns with heads as channels; asked sees the vision tokens too, and reads the question; frames
    does as well, and convolves over a video's frames before and after: one demo VLM's answers about
    videos gained by it, another's did not. "best" trains all four and writes the one whose choice
    changes held-out answers least."""
    loss: Loss | None = None
    """What to learn from: explanations of right answers ("relevance", the paper's), or what the
    answers lose without the other tokens ("answers"). Default: answers for asked and
    frames, else relevance."""
    other: Path | None = None
    """With "best": write the second best here."""
    epochs: int | None = None
    """Most passes over the labels (default: 15 for paper, 12 for the others, 8 on answers).
    Training ends earlier where the loss on pictures and videos that it has not seen grows. The
    paper has about 100."""
    glances: float = 1 / 3
    """Share of the questions that are shown as the first of two looks shows them, where the family
    has such a look (encode="coarse", encode="lazy"); the scorer learns to say where to look. Of
    networks that learn from answers; 0: none."""
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
    if options.other is not None and options.arch != "best":
        raise RequestInvalid(
            f"Got --other with --scorer-arch {options.arch}, which trains one network: leave out "
            "--other, or give --scorer-arch best"
        )
    for name, value in (("--epochs", options.epochs), ("--limit", options.limit)):
        if value is not None and value < 1:
            raise RequestInvalid(f"Got {name} {value}; expected 1 or more")
    if not 0 <= options.glances <= 1:
        raise RequestInvalid(f"Got --glances {options.glances}; expected a share of 0 to 1")
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
    """Train on the cached labels, print how good the networks are and write the best."""
    division = divide(examples, cache, _folder(options), options.seed)
    device = _device(options, Workers())
    text = open_text(checkpoint, device)
    size = size_of(checkpoint.text_config)
    room = Classroom(text, size, division, cache, device, options.seed, options.glances)
    raw = room.attention()
    arches = tuple(LOSSES) if options.arch == "best" else (options.arch,)
    fitted = {arch: room.fit(arch, options.loss or LOSSES[arch], options.epochs) for arch in arches}
    rows = {arch: each.figures for arch, each in fitted.items()}
    ranked = sorted(arches, key=lambda arch: rows[arch].overall.answers_lost)
    looks = {name: each.glances for name, each in fitted.items() if each.glances is not None}
    Console().print(_table({"attention": raw, **rows}, looks, ranked[0], division))
    for arch, path in zip(ranked, (options.output, options.other), strict=False):
        if path is not None:
            beside = {"attention": raw, **{name: rows[name] for name in rows if name != arch}}
            overall = {name: row.overall._asdict() for name, row in beside.items()}
            apart = {name: row.apart() for name, row in beside.items()}
            notes = {
                **_facts(options, checkpoint, division),
                "loss": fitted[arch].loss,
                "others": json.dumps(overall, sort_keys=True),
                "others_by_modality": json.dumps(apart, sort_keys=True),
            }
            save_scorer(path, fitted[arch].scorer, size, notes)
            Console().print(f"wrote {path} ({arch})", highlight=False, soft_wrap=True)


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
        "glances": f"{options.glances:.3g}",
    }


def _table(
    rows: Mapping[str, Figures], glances: Mapping[str, Quality], shipped: str, division: Division
) -> Table:
    trained, held = len(division.training), len(division.held.labels)
    title = f"{trained} labels to train on; agreement with the oracle on {held} others"
    table = Table(title=title, title_justify="left", min_width=80)
    columns = ("scorer", "recall at 50 %", "recall at 25 %", "Spearman", "KL", "answers lost")
    for column in columns:
        table.add_column(column, justify="left" if column == "scorer" else "right")

    def add(name: str, row: Quality) -> None:
        figures = (row.recall_at_50, row.recall_at_25, row.spearman, row.kl, row.answers_lost)
        table.add_row(name, *(f"{figure:.3f}" for figure in figures))

    for name, row in rows.items():
        add(name + (" (written)" if name == shipped else ""), row.overall)
        for kind, part in row.by_modality.items():
            add(f"  {part.samples:.0f} about {kind}s", part)
        if name in glances:
            add(f"  {glances[name].samples:.0f} by the first of two looks", glances[name])
    return table


if __name__ == "__main__":
    main()
