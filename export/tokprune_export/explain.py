"""Relevance labels: how much each prompt token mattered to the answer (arXiv:2506.01097).

The explanation is that of Chefer, Gur and Wolf 2021: with Abar_l = E_heads[(A_l * dy/dA_l)^+],

    R = I;  for l = first .. last layer:  R <- R + Abar_l R;      relevance = R[answer's row]

for every answer token, y its raw logit, averaged over tokens. Two identities make it cheap and
exact: only one row is wanted, so `r <- r + r Abar_l` from the LAST layer to the first gives it
without products of matrices; and dy/dA_h = dO_h V^T, so the forward runs with fused attention, and
A and its gradient exist one tile of rows at a time. Memory is O(tokens x hidden) a layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

_NAME = "tokprune_recorded"
TILE_ROWS = 128  # rows of attention in memory at once


class Layer(NamedTuple):
    """What one attention layer computed, rotary embedding applied. `g` are key-value heads."""

    query: Float[Tensor, "b a s e"]
    key: Float[Tensor, "b g s e"]
    value: Float[Tensor, "b g s e"]
    output: Float[Tensor, "b a s e"]  # before o_proj; in the autograd graph
    scaling: float


class Trace(NamedTuple):
    """One teacher-forced forward, ready to be explained."""

    hidden: Float[Tensor, "b s d"]  # after the final norm
    layers: list[Layer]


def trace(
    text_model: Any, embeds: Float[Tensor, "b s d"], positions: Int64[Tensor, "p b s"]
) -> Trace:
    """Run the LLM over prompts and answers, and keep what explanations need.

    Args:
        text_model: the decoder of a transformers model (`model.model.language_model`), Llama-like:
            causal attention over all earlier rows, through transformers' attention interface.
        embeds: prompts with their vision tokens, and answers; padded on the right.
        positions: rotary ids; p is 3 for M-RoPE, else 1.

    Raises:
        ValueError: the decoder's attention is of another kind.
    """
    embeds = embeds.detach().requires_grad_()
    with _recorded(text_model) as layers, torch.enable_grad():
        ids = positions if len(positions) > 1 else positions[0]
        hidden = text_model(
            inputs_embeds=embeds, position_ids=ids, use_cache=False
        ).last_hidden_state
    if len(layers) != text_model.config.num_hidden_layers:
        raise ValueError(
            f"{type(text_model).__name__} ran {len(layers)} attentions through transformers' "
            f"attention interface, expected {text_model.config.num_hidden_layers}: "
            "its answers cannot be explained"
        )
    return Trace(hidden, layers)


def logits_at(trace: Trace, head: Any, rows: Bool[Tensor, "b s"]) -> Float[Tensor, "m v"]:
    """Return the logits at the marked rows, sample by sample."""
    with torch.enable_grad():
        return head(trace.hidden[rows])


def relevance(trace: Trace, head: Any, targets: Int64[Tensor, "b s"]) -> Float[Tensor, "b s"]:
    """Explain answers: the mean over their tokens of every earlier row's relevance, in float32.

    Args:
        trace: the forward over prompts and answers. Its autograd graph stays alive.
        head: hidden states -> logits.
        targets: the token that each row emitted, where that is to be explained, else -1. Rows that
            emitted the end of the answer say nothing of the picture: leave them out.
    """
    explained = targets >= 0
    chosen = logits_at(trace, head, explained).float()
    chosen = chosen.gather(1, targets[explained][:, None])[:, 0]
    order = (explained.cumsum(dim=1) - 1)[explained]  # 0 for a sample's first answer token, ...
    rows = explained.nonzero()
    total = torch.zeros(targets.shape, device=targets.device)
    outputs = [layer.output for layer in trace.layers]
    for step in range(int(explained.sum(dim=1).max())):
        now = order == step
        # Samples do not see each other, so one backward of the sum gives each its own gradient.
        gradients = torch.autograd.grad(chosen[now].sum(), outputs, retain_graph=True)
        start = torch.zeros_like(total)
        start[rows[now, 0], rows[now, 1]] = 1.0
        total += _propagated(start, trace.layers, gradients)
    return total / explained.sum(dim=1, keepdim=True).clamp(min=1)


@torch.no_grad()
def attention_rows(
    layer: Layer, sample: int, rows: Int64[Tensor, " u"], columns: Int64[Tensor, " n"]
) -> Float[Tensor, "a u n"]:
    """Return attention of some rows to some columns; the softmax runs over all columns."""
    query, key = layer.query[sample, :, rows].float(), layer.key[sample].float()
    key = key.repeat_interleave(len(query) // len(key), dim=0)
    scores = torch.matmul(query * layer.scaling, key.transpose(1, 2))
    future = torch.arange(key.shape[1], device=rows.device) > rows[:, None]
    return scores.masked_fill(future, float("-inf")).softmax(dim=-1)[:, :, columns]


@torch.no_grad()
def _propagated(
    start: Float[Tensor, "b s"], layers: list[Layer], gradients: tuple[Tensor, ...]
) -> Float[Tensor, "b s"]:
    """Carry relevance from the answer's row back through all layers, the last one first."""
    r = start
    for layer, gradient in zip(reversed(layers), reversed(gradients), strict=True):
        added = torch.zeros_like(r)
        groups = layer.query.shape[1] // layer.key.shape[1]
        key = layer.key.float().repeat_interleave(groups, dim=1).transpose(2, 3)
        value = layer.value.float().repeat_interleave(groups, dim=1).transpose(2, 3)
        last = int(r.any(dim=0).nonzero().max()) + 1
        first = int(r.any(dim=0).nonzero().min())
        for low in range(first, last, TILE_ROWS):
            high = min(low + TILE_ROWS, last)
            query = layer.query[:, :, low:high].float() * layer.scaling
            scores = torch.matmul(query, key[..., :high])
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=r.device).triu_(low + 1)
            weights = scores.masked_fill_(future, float("-inf")).softmax(dim=-1)
            weights *= torch.matmul(gradient[:, :, low:high].float(), value[..., :high])
            mean = weights.clamp_(min=0).mean(dim=1)
            added[:, :high] += torch.matmul(r[:, None, low:high], mean)[:, 0]
        r = r + added
    return r


@contextmanager
def _recorded(text_model: Any) -> Iterator[list[Layer]]:
    """Swap the decoder's attention for one that records, through transformers' own interface."""
    from transformers import AttentionInterface

    layers: list[Layer] = []

    def attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        _refuse_others(module, attention_mask, options)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        groups = query.shape[1] // key.shape[1]
        output = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(groups, dim=1),
            value.repeat_interleave(groups, dim=1),
            is_causal=True,
            scale=scale,
        )
        layers.append(Layer(query.detach(), key.detach(), value.detach(), output, scale))
        return output.transpose(1, 2), None

    usual = text_model.config._attn_implementation  # noqa: SLF001 # no public reader
    AttentionInterface.register(_NAME, attend)
    text_model.set_attn_implementation(_NAME)
    try:
        yield layers
    finally:
        text_model.set_attn_implementation(usual)


def _refuse_others(module: Any, mask: Tensor | None, options: dict[str, Any]) -> None:
    odd = [name for name in ("sliding_window", "softcap", "s_aux") if options.get(name) is not None]
    if mask is not None:
        odd.append("a mask")
    if odd:
        raise ValueError(
            f"{type(module).__name__} attends with {', '.join(odd)}: only plain causal attention "
            "can be explained"
        )
