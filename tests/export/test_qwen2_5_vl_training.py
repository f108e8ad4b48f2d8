"""`tokprune-train --glances` for Qwen2.5-VL, which no trained demo here stands for."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from qwen2_5_checkpoint import HEAD_DIM, HEADS, write_qwen2_5_checkpoint

from tokprune_export import train
from tokprune_export.checkpoint import Checkpoint, open_checkpoint
from tokprune_export.examples import Example
from tokprune_export.scorers import Size, load_scorer
from tokprune_export.teacher import Teacher, ask_all, greedy, open_teacher
from tokprune_export.train import TrainOptions

pytestmark = pytest.mark.torch
CPU = torch.device("cpu")
QUESTIONS = 40


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def brief(checkpoint: Checkpoint, device: torch.device) -> Teacher:
    """A teacher whose answers end at every fourth id of the vocabulary: random ones never end."""
    teacher = open_teacher(checkpoint, device)
    ends = [*teacher.tokens.eos, *range(0, len(teacher.text.embeddings), 4)]
    return replace(teacher, tokens=msgspec.structs.replace(teacher.tokens, eos=ends))


def test_a_scorer_learns_from_glances_at_half_the_size(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_qwen2_5_checkpoint(tmp_path / "model", demo_checkpoint)
    teacher = brief(open_checkpoint(str(tmp_path / "model")), CPU)
    random, lines = np.random.default_rng(0), list[str]()
    for number in range(QUESTIONS):
        picture = tmp_path / f"{number}.png"
        pixels = random.integers(0, 256, (84 + 28 * (number % 3), 140, 3), np.uint8)
        Image.fromarray(pixels).save(picture)
        example = Example((picture,), f"question {number}?", "?", 1)
        (asked,) = ask_all(teacher, [example])
        ids = greedy(teacher, asked.prompt, asked.vision, 12)
        says = "" if ids is None else teacher.tokenizer.decode(ids.tolist())
        line = {"image": picture.name, "question": example.question, "answer": says.strip() or "no"}
        lines.append(json.dumps(line))
    data, scorer = tmp_path / "data.jsonl", tmp_path / "scorer.safetensors"
    data.write_text("\n".join(lines))
    monkeypatch.setattr(train, "open_teacher", brief)
    train.run(TrainOptions(str(tmp_path / "model"), data, scorer, epochs=1, glances=1.0))
    learnt = load_scorer(scorer, Size(HEADS, HEADS * HEAD_DIM))
    assert learnt.by_glances is not None
    assert learnt.by_glances["samples"] > 0
