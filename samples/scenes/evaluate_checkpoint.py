"""Ask a demo checkpoint held-out questions, check stock transformers, and write the model card.

    python samples/scenes/evaluate_checkpoint.py RUN/hf samples/scenes/checkpoints/qwen2_vl \
        --run RUN

Writes the complete checkpoint (weights, tokenizer, processor files), README.md and curve.png into
the second folder, and the figures into its folder `card`, where they are no part of the model.
About ten minutes on one core.
"""

import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import tyro
from batch import Batch
from card import Tally, write_card
from lines import Answered, Row
from losses import question_hits
from mixture import ALL_GROUPS, make_row
from rows import Writer
from torch import nn

from tokprune.prompting import Conversation, Shown, Turn, build_prompt
from tokprune.scenes import Sample, suite
from tokprune.scenes.film_suite import FilmSample, film_suite
from tokprune.scenes.scene import TOKEN_PX
from tokprune.types import Medium
from tokprune_export.families import FAMILIES

SIZES = (64, 100, 144, 196, 256, 400)  # cells of 28 x 28 px
FILMS = (((6, 6), 8), ((6, 6), 16), ((8, 8), 8))  # cells of a frame, frames; the first in detail
LAYOUTS = {  # of the training: layout, share of rows with a system message
    "dialogue": ("talk", 0.0),
    "system message": ("plain", 1.0),
    "question before the picture": ("first", 0.0),
    "later picture": ("later", 0.0),
    "two or three pictures": ("several", 0.0),
}
BATCH_CELLS = 1600
AnySample: TypeAlias = Sample | FilmSample


@dataclass(frozen=True)
class Options:
    """Evaluate a demo checkpoint and write its card."""

    checkpoint: tyro.conf.Positional[Path]
    """Checkpoint to evaluate."""
    target: tyro.conf.Positional[Path]
    """Folder of the shipped checkpoint."""
    run: Path
    """Folder of the training: its log and options go into the card."""
    scenes: int = 2000
    """Test scenes of mixed sizes."""
    scenes_each: int = 400
    """Test scenes of each single size."""
    films: int = 1000
    """Test videos, where the family takes them."""
    films_each: int = 300
    """Test videos of each other size and length."""
    generated: int = 150
    """Questions that transformers answers by generate()."""
    threads: int = 1
    card_only: bool = False
    """Write the card again from the figures that are there."""


@dataclass(frozen=True)
class Asked:
    """A checkpoint that is asked."""

    model: nn.Module
    writer: Writer

    def suite(self, samples: Iterable[AnySample]) -> dict[str, bool]:
        """Whether each sample is answered exactly, by key."""
        found: dict[str, bool] = {}
        for batch, asked in _batches(self.writer, samples):
            hits = question_hits(self.writer.demo, self.model, batch)
            for sample, [(_, hit)] in zip(asked, hits, strict=True):
                found[sample.key] = hit
        return found

    def layouts(self) -> dict[str, Tally]:
        """Exact answers in every layout of the training; earlier turns hold the true answers."""
        tallies: dict[str, Tally] = {}
        for name, (layout, systems) in LAYOUTS.items():
            if layout != "plain" and layout not in self.writer.demo.plan.layouts:
                continue
            rng = random.Random(f"evaluation/{name}")
            hits: list[bool] = []
            for grid in ((6, 6), (8, 8), (10, 10), (14, 14)):
                count = 96 if layout == "first" else 12
                for _ in range(count // 6):
                    batch = self.writer.batch(
                        [make_row(rng, grid, layout, systems) for _ in range(6)]
                    )
                    for row in question_hits(self.writer.demo, self.model, batch):
                        hits += [hit for group, hit in row if group != "caption"]
            tallies[name] = Tally(sum(hits), len(hits))
        return tallies


def media_of(sample: AnySample) -> tuple[Medium, ...]:
    """What a question is about."""
    return (sample.clip,) if isinstance(sample, FilmSample) else sample.pictures


def _batches(
    writer: Writer, samples: Iterable[AnySample]
) -> Iterator[tuple[Batch, list[AnySample]]]:
    """Samples with equally many pictures of one size together."""
    waiting: dict[tuple[int, ...], list[AnySample]] = {}
    for sample in samples:
        shape = _shape(sample)
        ready = waiting.setdefault(shape, [])
        ready.append(sample)
        if len(ready) * np.prod(shape) >= BATCH_CELLS * TOKEN_PX**2:
            yield _batch(writer, ready), waiting.pop(shape)
    for ready in waiting.values():
        yield _batch(writer, ready), ready


def _shape(sample: AnySample) -> tuple[int, ...]:
    if isinstance(sample, FilmSample):
        return sample.clip.frames.shape[:3]
    return len(sample.pictures), *sample.pictures[0].shape[:2]


def _batch(writer: Writer, samples: Sequence[AnySample]) -> Batch:
    rows: list[Row] = []
    for sample in samples:
        media = media_of(sample)
        turn = Answered(sample.question, sample.answer, ALL_GROUPS.index(sample.group))
        rows.append(Row(media, tuple(range(len(media))), ((turn,),)))
    return writer.batch(rows)


def stock_answer(writer: Writer, model: nn.Module, sample: AnySample) -> str:
    """What transformers' generate() answers to a prompt as the device makes it."""
    media = media_of(sample)
    prepared = writer.processor.prepare(media)
    content = (*(Shown(number) for number in range(len(prepared))), sample.question)
    conversation = Conversation((Turn(content),))
    prompt = build_prompt(
        conversation, prepared, writer.chat, writer.tokens, writer.tokenizer, writer.processor
    )
    with torch.no_grad():
        new = writer.demo.generate(model, prompt, prepared).tolist()
    return writer.tokenizer.decode(new, skip_special_tokens=True).strip()


def compare_stock(
    writer: Writer, folder: Path, samples: Sequence[AnySample], hits: dict[str, bool]
) -> Tally:
    """How often generate() is right exactly where the fast pass says so."""
    model = FAMILIES[writer.family].load(folder, None)
    agree = [(stock_answer(writer, model, s) == s.answer) == hits[s.key] for s in samples]
    return Tally(sum(agree), len(agree))


def _by_group(samples: Sequence[AnySample], hits: dict[str, bool]) -> dict[str, Tally]:
    found: dict[str, list[bool]] = {}
    for sample in samples:
        found.setdefault(sample.group, []).append(hits[sample.key])
    return {name: Tally(sum(found[name]), len(found[name])) for name in ALL_GROUPS if name in found}


def evaluate_pictures(asked: Asked, options: Options) -> dict[str, dict[str, Tally]]:
    """The tables about pictures."""
    mixed = list(suite("test", options.scenes))
    hits = asked.suite(mixed)
    tables = {
        "all": {f"{options.scenes:,} test scenes": Tally(sum(hits.values()), len(hits))},
        "group": _by_group(mixed, hits),
        "size": {},
        "layout": asked.layouts(),
    }
    print(json.dumps(tables, default=vars), flush=True)
    for cells in SIZES:
        fixed = list(suite("test", options.scenes_each, tokens=cells))
        found = asked.suite(fixed)
        height, width = next(s.pictures[0].shape[:2] for s in fixed if len(s.pictures) == 1)
        name = f"{height} x {width} px, {_count(asked.writer, fixed)} vision tokens"
        tables["size"][name] = Tally(sum(found.values()), len(found))
        if cells == 196:
            tables["group_196"] = _by_group(fixed, found)
    samples = mixed[: options.generated]
    tables["stock"] = {"pictures": compare_stock(asked.writer, options.checkpoint, samples, hits)}
    return tables


def evaluate_films(asked: Asked, options: Options) -> dict[str, dict[str, Tally]]:
    """The tables about videos."""
    tables: dict[str, dict[str, Tally]] = {"film_size": {}}
    for index, (grid, frames) in enumerate(FILMS):
        count = options.films_each if index else options.films
        films = list(film_suite("test", count, grid=grid, frames=frames))
        hits = asked.suite(films)
        tokens = _count(asked.writer, films)
        side = grid[0] * TOKEN_PX
        name = f"{frames} frames of {side} x {side} px, {tokens} vision tokens"
        tables["film_size"][name] = Tally(sum(hits.values()), len(hits))
        if not index:
            tables["film_group"] = _by_group(films, hits)
            some = films[: options.generated // 3]
            agree = compare_stock(asked.writer, options.checkpoint, some, hits)
            tables["film_stock"] = {"videos": agree}
    return tables


def _count(writer: Writer, samples: Sequence[AnySample]) -> int:
    """Vision tokens of the first sample that shows one picture or video."""
    media = next(media for media in map(media_of, samples) if len(media) == 1)
    return sum(len(prepared.where) for prepared in writer.processor.prepare(media))


def main() -> None:
    """Evaluate, save, and write the card."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    began = time.monotonic()
    writer = Writer(options.checkpoint)
    model = writer.demo.load(options.checkpoint).eval()
    path = options.target / "card" / "evaluation.json"
    if options.card_only:
        found = json.loads(path.read_text(encoding="utf-8"))
        tables = {name: {k: Tally(**v) for k, v in rows.items()} for name, rows in found.items()}
        write_card(options.target, writer.demo, model, tables, options.run)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.demo.save(options.target, model)
    asked = Asked(model, writer)
    tables = evaluate_pictures(asked, options)
    if "film" in writer.demo.plan.layouts:
        tables |= evaluate_films(asked, options)
    text = json.dumps(tables, default=vars, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    write_card(options.target, writer.demo, model, tables, options.run)
    print(f"{text}\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
