"""What the ablation of scorers is made of, against what it says it is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from grids import vision_tokens
from scorer_variants import Rotations, Rows

from tokprune.canvas import canvas, follows
from tokprune_export.checkpoint import open_checkpoint
from tokprune_export.decoder import FirstLayer, TextModel
from tokprune_export.label_cache import Label
from tokprune_export.teacher import open_text

pytestmark = pytest.mark.torch
TEXT, ROWS = 9, 6  # rows of the prompt behind the picture; those that attend


@pytest.fixture(scope="module")
def text(tiny_checkpoint: Callable[..., Path]) -> TextModel:
    """Of a Qwen2-VL: its rotary positions have three axes, its queries and keys a bias."""
    return open_text(open_checkpoint(str(tiny_checkpoint())), torch.device("cpu"))


@pytest.fixture(scope="module")
def label(text: TextModel) -> Label:
    """Of random tokens, with the attention that the runtime would give."""
    vision = vision_tokens((3, 4), hidden=text.embeddings.shape[1])
    tokens = len(vision.where)
    index, cells = canvas(vision.where, vision.regions)
    ids = torch.randint(0, 90, (2 + tokens + TEXT,), generator=torch.Generator().manual_seed(0))
    slots = torch.arange(2, 2 + tokens)
    positions = torch.stack([torch.arange(len(ids)), torch.arange(len(ids)) // 2, ids % 7])
    embeds = torch.from_numpy(vision.embeds).half()
    inputs = text.embeddings[ids]
    inputs[slots] = embeds.float()
    rows = torch.arange(len(ids) - ROWS, len(ids))
    with torch.no_grad():
        attention = FirstLayer(text)(inputs[None], positions[:, None], rows, slots)
    return Label(
        attention=attention.half(),
        question=torch.ones(ROWS, dtype=torch.bool),
        index=torch.from_numpy(index.astype(np.int32)),
        cells=torch.from_numpy(cells.astype(np.int32)),
        relevance=torch.rand(tokens),
        embeds=embeds,
        ids=ids,
        slots=slots,
        answer=torch.arange(1),
        positions=positions,
        follows=torch.from_numpy(follows(vision.regions)),
    )


def hugging_face(text: TextModel, label: Label, positions: torch.Tensor) -> torch.Tensor:
    """Return the first layer's attention on vision tokens, as the HF decoder gives it."""
    inputs = text.embeddings[label.ids]
    inputs[label.slots] = label.embeds.float()
    text.model.set_attn_implementation("eager")
    with torch.no_grad():
        out = text.model(
            inputs_embeds=inputs[None],
            position_ids=positions[:, None],
            output_attentions=True,
            use_cache=False,
        )
    text.model.set_attn_implementation("sdpa")
    return out.attentions[0][0][:, -ROWS:, label.slots]


@pytest.mark.parametrize(("rows", "halves"), [("rotated", [1]), ("plain", [0]), ("both", [1, 0])])
def test_attention_with_and_without_rotary_positions_is_hugging_faces(
    rows: Rows, halves: list[int], text: TextModel, label: Label
) -> None:
    seen = Rotations(text).of_label(label, rows).attention.float()
    expected = torch.cat([hugging_face(text, label, label.positions * turned) for turned in halves])
    torch.testing.assert_close(seen, expected, rtol=2e-3, atol=1e-4)  # kept in half precision


def test_rotary_positions_make_a_difference(text: TextModel, label: Label) -> None:
    plain = Rotations(text).of_label(label, "plain").attention
    assert (plain.float() - label.attention.float()).abs().max() > 0.01
