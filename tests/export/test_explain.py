"""Relevance against its definition: all matrices, gradients of eager attention."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokprune_export.explain import TILE_ROWS, attention_rows, logits_at, relevance, trace

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Callable[..., Path]) -> Any:
    """Six heads over three key-value heads, 3 layers."""
    from transformers import Qwen2VLForConditionalGeneration

    loaded = Qwen2VLForConditionalGeneration.from_pretrained(tiny_checkpoint())
    return loaded.eval().requires_grad_(requires_grad=False)


def prompts(model: Any, batch: int, rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    size = model.config.text_config.hidden_size
    embeds = torch.randn(batch, rows, size, generator=random)
    return embeds, torch.randint(0, 40, (3, batch, rows), generator=random)


def naive(
    model: Any, embeds: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Relevance of one sample as it is defined: R <- R + Abar R over whole matrices."""
    decoder = model.model.language_model
    decoder.set_attn_implementation("eager")
    out = decoder(
        inputs_embeds=embeds.clone().requires_grad_(),
        position_ids=positions,
        output_attentions=True,
        use_cache=False,
    )
    decoder.set_attn_implementation("sdpa")
    logits = model.lm_head(out.last_hidden_state)[0]
    total = torch.zeros(embeds.shape[1])
    rows = (targets >= 0).nonzero()[:, 0]
    for row in rows:
        gradients = torch.autograd.grad(
            logits[row, targets[row]], out.attentions, retain_graph=True
        )
        r = torch.eye(embeds.shape[1])
        for attention, gradient in zip(out.attentions, gradients, strict=True):
            r = r + (attention * gradient).clamp(min=0).mean(dim=1)[0].detach() @ r
        total += r[row]
    return total / len(rows)


def test_it_equals_the_full_product_of_eager_attention(model: Any) -> None:
    rows = TILE_ROWS + 40  # so that relevance crosses tiles
    embeds, positions = prompts(model, 3, rows)
    targets = torch.full((3, rows), -1)
    targets[0, rows - 6 : rows - 3] = torch.tensor([4, 5, 6])
    targets[1, 30] = 7
    targets[2, rows - 2 :] = torch.tensor([1, 90])
    traced = trace(model.model.language_model, embeds, positions)
    found = relevance(traced, model.lm_head, targets)
    for sample in range(3):
        one = slice(sample, sample + 1)
        expected = naive(model, embeds[one], positions[:, one], targets[sample])
        error = (found[sample] - expected).abs() / expected.clamp(min=1e-4 * expected.max())
        assert error.max() < 1e-4
        assert ((found[sample] - expected).abs().max() / expected.max()) < 1e-5


def test_samples_of_a_batch_do_not_see_each_other(model: Any) -> None:
    embeds, positions = prompts(model, 2, 50)
    targets = torch.full((2, 50), -1)
    targets[0, 30:33] = 3
    targets[1, 47] = 5
    decoder = model.model.language_model
    together = relevance(trace(decoder, embeds, positions), model.lm_head, targets)
    alone = trace(decoder, embeds[:1, :40], positions[:, :1, :40])
    expected = relevance(alone, model.lm_head, targets[:1, :40])
    torch.testing.assert_close(together[:1, :40], expected, rtol=1e-4, atol=1e-6)
    assert together[0, 40:].abs().max() == 0


def test_memory_does_not_grow_with_the_square_of_the_prompt(model: Any) -> None:
    def largest(rows: int) -> int:
        embeds, positions = prompts(model, 1, rows)
        targets = torch.full((1, rows), -1)
        targets[0, -2] = 3
        with Largest() as seen:
            traced = trace(model.model.language_model, embeds, positions)
            relevance(traced, model.lm_head, targets)
            attention_rows(traced.layers[0], 0, torch.arange(rows - 9, rows), torch.arange(rows))
        return seen.elements

    short, long = 2 * TILE_ROWS, 8 * TILE_ROWS
    assert largest(long) < 4.1 * largest(short)
    heads = model.config.text_config.num_attention_heads
    assert largest(long) <= heads * TILE_ROWS * long < long * long * heads / 4


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operator made, backward pass included."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return made


def test_first_layer_rows_equal_eager_attention(model: Any) -> None:
    embeds, positions = prompts(model, 2, 40)
    decoder = model.model.language_model
    traced = trace(decoder, embeds, positions)
    decoder.set_attn_implementation("eager")
    with torch.no_grad():
        out = decoder(inputs_embeds=embeds, position_ids=positions, output_attentions=True)
    decoder.set_attn_implementation("sdpa")
    rows, columns = torch.arange(25, 40), torch.arange(4, 24)
    found = attention_rows(traced.layers[0], 1, rows, columns)
    torch.testing.assert_close(found, out.attentions[0][1][:, 25:, 4:24], rtol=1e-5, atol=1e-7)


def test_the_models_own_attention_is_back_afterwards(model: Any) -> None:
    embeds, positions = prompts(model, 1, 12)
    decoder = model.model.language_model
    with torch.no_grad():
        expected = model.lm_head(decoder(inputs_embeds=embeds, position_ids=positions)[0])
    traced = trace(decoder, embeds, positions)
    every = torch.ones(1, 12, dtype=torch.bool)
    torch.testing.assert_close(logits_at(traced, model.lm_head, every), expected[0])
    assert decoder.config._attn_implementation == "sdpa"


def test_windowed_attention_is_refused(model: Any) -> None:
    embeds, positions = prompts(model, 1, 12)
    layer = model.model.language_model.layers[1].self_attn
    layer.sliding_window = 4
    try:
        with pytest.raises(ValueError, match="attends with sliding_window"):
            trace(model.model.language_model, embeds, positions)
    finally:
        layer.sliding_window = None
    assert model.model.language_model.config._attn_implementation == "sdpa"
