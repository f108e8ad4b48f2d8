"""What an answer loses when vision tokens are dimmed: pruning that a scorer can learn from.

Pruning takes tokens away or leaves them, which has no gradient. Dimming lets token v take part with
a share m_v of 0 to 1: log m_v is added to what every row attends to it with, in every layer. As the
share goes to 0 that becomes pruning at the LLM's input; 1 leaves the token alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from tokprune_export.decoder import TextModel

_NAME = "tokprune_dimmed"
_STEPS = 40  # of the bisection; halves the interval to nothing in float32


def kept_shares(
    scores: Float[Tensor, "b n"],
    real: Bool[Tensor, "b n"],
    count: Float[Tensor, " b"],
    temperature: float,
) -> Float[Tensor, "b n"]:
    """Return m = sigmoid((scores - tau) / temperature), with tau such that each row sums to count.

    The gradient takes into account that tau moves with the scores.

    Args:
        scores: higher is kept first.
        real: where there are tokens; all else gets 0.
        count: tokens to keep; from the number of tokens on, all shares are 1.
        temperature: at 0 the shares of the `count` highest scores would be 1, all others 0.
    """
    with torch.no_grad():
        fixed = scores.masked_fill(~real, 0.0)
        tau = _threshold(fixed, real, count, temperature)
        share = torch.sigmoid((fixed - tau[:, None]) / temperature)
        slope = share * (1 - share) * real
        pull = slope / slope.sum(dim=1, keepdim=True).clamp(min=1e-9)
    live = scores.masked_fill(~real, 0.0)
    moved = tau + ((live - fixed) * pull).sum(dim=1)
    shares = torch.sigmoid((live - moved[:, None]) / temperature)
    everything = count >= real.sum(dim=1)
    return torch.where(everything[:, None], 1.0, shares) * real


def _threshold(
    scores: Float[Tensor, "b n"],
    real: Bool[Tensor, "b n"],
    count: Float[Tensor, " b"],
    temperature: float,
) -> Float[Tensor, " b"]:
    """Find tau by bisection: the sum of the shares falls as tau grows."""
    margin = 20 * temperature
    low = scores.masked_fill(~real, float("inf")).amin(dim=1) - margin
    high = scores.masked_fill(~real, float("-inf")).amax(dim=1) + margin
    for _ in range(_STEPS):
        middle = (low + high) / 2
        total = (torch.sigmoid((scores - middle[:, None]) / temperature) * real).sum(dim=1)
        low = torch.where(total > count, middle, low)
        high = torch.where(total > count, high, middle)
    return (low + high) / 2


def dimmed_hidden(
    text: TextModel,
    embeds: Float[Tensor, "b s d"],
    positions: Int64[Tensor, "p b s"],
    bias: Float[Tensor, "b s"],
) -> Float[Tensor, "b s d"]:
    """Run the LLM over prompts and answers, padded on the right, and return its last hidden states.

    Args:
        text: its weights should be frozen.
        embeds: rows of prompts and answers.
        positions: rotary ids.
        bias: added to the attention of all rows to each row, in every layer.
    """
    with _dimmed(text.model, bias):
        return text.model(
            inputs_embeds=embeds, position_ids=text.position_ids(positions), use_cache=False
        ).last_hidden_state


@contextmanager
def _dimmed(text_model: Any, bias: Float[Tensor, "b s"]) -> Iterator[None]:
    """Swap the decoder's attention, through transformers' own interface.

    The bias is one more number of each key, and 1 of each query: so its gradient is exact, fused
    attention on a GPU needs no mask, and memory there stays linear in the rows.
    """
    from transformers import AttentionInterface

    def attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        del module, attention_mask
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        groups = query.shape[1] // key.shape[1]
        one = (bias / scale).to(key.dtype)[:, None, :, None].expand(*key.shape[:3], 1)
        key = torch.cat([key, one], dim=-1).repeat_interleave(groups, dim=1)
        query = torch.cat([query, torch.ones_like(query[..., :1])], dim=-1)
        value = value.repeat_interleave(groups, dim=1)
        run = _fused if query.is_cuda else _plain
        return run(query, key, value, scale).transpose(1, 2), None

    usual = text_model.config._attn_implementation  # noqa: SLF001 # no public reader
    AttentionInterface.register(_NAME, attend)
    text_model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        text_model.set_attn_implementation(usual)


def _plain(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend in plain products: a quarter of the time of torch's fused attention on a CPU."""
    rows = query.shape[2]
    future = torch.full((rows, rows), float("-inf"), device=query.device).triu_(1)
    scores = torch.matmul(query * scale, key.transpose(2, 3)).float() + future
    return torch.matmul(scores.softmax(dim=-1).to(value.dtype), value)


def _fused(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend in fused kernels, which want heads of one size, a multiple of 8."""
    size, wide = value.shape[-1], -(-query.shape[-1] // 8) * 8
    query, key, value = (
        functional.pad(each, (0, wide - each.shape[-1])) for each in (query, key, value)
    )
    attended = functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale
    )
    return attended[..., :size]
