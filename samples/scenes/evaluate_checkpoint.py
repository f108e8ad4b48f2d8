"""Ask a demo checkpoint held-out questions, check stock transformers, and write the model card.

    python samples/scenes/evaluate_checkpoint.py RUN/hf samples/scenes/checkpoints/qwen2_vl \
        --run RUN

Writes the complete checkpoint (weights, tokenizer, processor files), evaluation.json, curve.png
and README.md into the second folder. About ten minutes on one core.
"""

import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from card import Tally, write_card
from cells import to_patches
from checkpoint import MAX_PIXELS, MIN_PIXELS, save_hf
from losses import question_hits
from mixture import OPEN, REPLY, SEE, SEEN, make_row, to_batch
from PIL import Image
from rows import Answered, Batch, Part, Row, Writer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tokprune.scenes import GROUPS, Sample, Scene, suite
from tokprune.scenes.scene import TOKEN_PX

SIZES = (64, 100, 144, 196, 256, 400)  # vision tokens
LAYOUTS = {  # of the training: layout, share of rows with a system message
    "dialogue": ("talk", 0.0),
    "system message": ("plain", 1.0),
    "question before the picture": ("first", 0.0),
    "later picture": ("later", 0.0),
    "two or three pictures": ("several", 0.0),
}
BATCH_TOKENS = 1600


@dataclass(frozen=True)
class Options:
    """Evaluate a demo checkpoint and write its card."""

    checkpoint: tyro.conf.Positional[Path]
    """HF folder to evaluate."""
    target: tyro.conf.Positional[Path]
    """Folder of the shipped checkpoint."""
    run: Path
    """Folder of the training: its log and options go into the card."""
    scenes: int = 2000
    """Test scenes of mixed sizes."""
    scenes_each: int = 400
    """Test scenes of each single size."""
    generated: int = 150
    """Questions that stock transformers answers by generate()."""
    threads: int = 1
    card_only: bool = False
    """Write the card again from the evaluation.json that is there."""


def batch_samples(
    writer: Writer, samples: Iterable[Sample]
) -> Iterator[tuple[Batch, list[Sample]]]:
    """Samples with equally many pictures of one size together."""
    waiting: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        shape = (len(sample.pictures), *sample.pictures[0].shape[:2])
        ready = waiting.setdefault(shape, [])
        ready.append(sample)
        tokens = shape[0] * shape[1] * shape[2] // TOKEN_PX**2
        if len(ready) * tokens >= BATCH_TOKENS:
            yield _batch(writer, ready), waiting.pop(shape)
    for ready in waiting.values():
        yield _batch(writer, ready), ready


def _batch(writer: Writer, samples: Sequence[Sample]) -> Batch:
    height, width = samples[0].pictures[0].shape[:2]
    blank = Scene(height // TOKEN_PX, width // TOKEN_PX, 1.0, (), 0)
    rows: list[Row] = []
    for sample in samples:
        prefix: list[Part] = [OPEN]
        for index in range(len(sample.pictures)):
            prefix += [SEE, index, SEEN]
        group = GROUPS.index(sample.group)
        turn = Answered(f"{sample.question}{REPLY}", sample.answer, group)
        rows.append(Row((blank,) * len(sample.pictures), tuple(prefix), ((turn,),)))
    patches = np.stack([to_patches(p) for sample in samples for p in sample.pictures])
    cells = np.zeros((len(patches), blank.rows * blank.columns, 4), np.int64)
    return writer.batch(rows, patches, cells)


def ask_suite(
    model: Qwen2VLForConditionalGeneration, writer: Writer, samples: Iterable[Sample]
) -> dict[str, bool]:
    """Whether each sample is answered exactly, by key."""
    found: dict[str, bool] = {}
    for batch, asked in batch_samples(writer, samples):
        for sample, [(_, hit)] in zip(asked, question_hits(model, batch), strict=True):
            found[sample.key] = hit
    return found


def ask_layouts(model: Qwen2VLForConditionalGeneration, writer: Writer) -> dict[str, Tally]:
    """Exact answers in every layout; earlier turns hold the true answers."""
    tallies: dict[str, Tally] = {}
    for name, (layout, systems) in LAYOUTS.items():
        rng = random.Random(f"evaluation/{name}")
        hits: list[bool] = []
        for grid in ((6, 6), (8, 8), (10, 10), (14, 14)):
            count = 96 if layout == "first" else 12
            for _ in range(count // 6):
                rows = [make_row(rng, grid, layout, systems) for _ in range(6)]
                for row in question_hits(model, to_batch(writer, rows)):
                    hits += [hit for group, hit in row if group != "caption"]
        tallies[name] = Tally(sum(hits), len(hits))
    return tallies


class Stock:
    """The checkpoint as stock transformers runs it: chat template, image processor, generate()."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = Qwen2VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        )
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.images = Qwen2VLImageProcessorPil(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)

    @torch.no_grad()
    def answer(self, sample: Sample) -> str:
        """Greedy answer."""
        content = [{"type": "image"}] * len(sample.pictures)
        content = [*content, {"type": "text", "text": sample.question}]
        messages = [{"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        pictures = self.images(
            images=[Image.fromarray(picture) for picture in sample.pictures], return_tensors="pt"
        )
        pieces = text.split("<|image_pad|>")
        text = pieces[0]
        for grid, piece in zip(pictures["image_grid_thw"], pieces[1:], strict=True):
            text += "<|image_pad|>" * (int(grid.prod()) // 4) + piece
        encoded = self.tokenizer(text, return_tensors="pt")
        kinds = (encoded.input_ids == self.model.config.image_token_id).int()
        out = self.model.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            mm_token_type_ids=kinds,
            **pictures,
            max_new_tokens=16,
            do_sample=False,
        )
        return self.tokenizer.decode(out[0, encoded.input_ids.shape[1] :], skip_special_tokens=True)


def compare_stock(folder: Path, samples: Sequence[Sample], hits: dict[str, bool]) -> Tally:
    """How often generate() is right exactly where the fast pass says so."""
    stock = Stock(folder)
    agree = [(stock.answer(s) == s.answer) == hits[s.key] for s in samples]
    return Tally(sum(agree), len(agree))


def _by(samples: Sequence[Sample], hits: dict[str, bool], *, groups: bool) -> dict[str, Tally]:
    """Tallies by group, or by size."""
    found: dict[str, list[bool]] = {}
    for sample in samples:
        height, width = sample.pictures[0].shape[:2]
        tokens = height * width // TOKEN_PX**2
        size = f"{tokens} tokens" if len(sample.pictures) == 1 else "two pictures"
        found.setdefault(sample.group if groups else size, []).append(hits[sample.key])
    names = list(GROUPS) if groups else sorted(found, key=lambda n: (n[0] == "t", len(n), n))
    return {name: Tally(sum(found[name]), len(found[name])) for name in names if name in found}


def evaluate(
    model: Qwen2VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    options: Options,
) -> dict[str, dict[str, Tally]]:
    """All tables of the card."""
    writer = Writer(tokenizer)
    mixed = list(suite("test", options.scenes))
    hits = ask_suite(model, writer, mixed)
    tables = {
        "all": {f"{options.scenes:,} test scenes": Tally(sum(hits.values()), len(hits))},
        "group": _by(mixed, hits, groups=True),
        "size_mixed": _by(mixed, hits, groups=False),
    }
    print(json.dumps(tables, default=vars), flush=True)
    tables["size"] = {}
    for tokens in SIZES:
        fixed = list(suite("test", options.scenes_each, tokens=tokens))
        found = ask_suite(model, writer, fixed)
        tables["size"][f"{tokens} tokens"] = Tally(sum(found.values()), len(found))
        if tokens == 196:
            tables["group_196"] = _by(fixed, found, groups=True)
    tables["layout"] = ask_layouts(model, writer)
    tables["stock"] = {"generate()": compare_stock(folder, mixed[: options.generated], hits)}
    return tables


def main() -> None:
    """Evaluate, save, and write the card."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    began = time.monotonic()
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        options.checkpoint, dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    path = options.target / "evaluation.json"
    if options.card_only:
        found = json.loads(path.read_text(encoding="utf-8"))
        tables = {name: {k: Tally(**v) for k, v in rows.items()} for name, rows in found.items()}
        write_card(options.target, model, tables, options.run)
        return
    options.target.mkdir(parents=True, exist_ok=True)
    save_hf(options.target, model, tokenizer)
    tables = evaluate(model, tokenizer, options.target, options)
    text = json.dumps(tables, default=vars, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    write_card(options.target, model, tables, options.run)
    print(f"{text}\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
