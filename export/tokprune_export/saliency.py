"""Saliency: the attention that a vision token gets inside the vision encoder.

The mean over queries and heads of the attention that each patch gets, summed over the last layers
and averaged over the patches of a vision token. VTC-CLS (arXiv 2412.05819) sums the class token's
row over layers 16 to 23 of CLIP's 24 (its code's default); none of these encoders has that token,
so every patch asks, and by default the last third of the layers is summed.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import ceil
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokprune_export.errors import ExportRefused
from tokprune_export.onnx import Output

SHARE = 3  # one layer of so many
# What each patch got in the pass just made, all frames or tiles in one row
Watch: TypeAlias = AbstractContextManager[Callable[[], Float[Tensor, " p"]]]


def layers_summed(available: int, asked: int | None) -> int:
    """Return how many layers are summed, the last ones of those that are used.

    Args:
        available: layers in which every patch attends to its whole frame or tile.
        asked: None takes a third of them.

    Raises:
        ExportRefused: there are none, or not so many.
    """
    if not available:
        raise ExportRefused(
            "This vision encoder has no layer in which every patch attends to its whole picture: "
            "leave out --saliency"
        )
    if asked is not None and not 1 <= asked <= available:
        raise ExportRefused(f"Got --saliency-layers {asked}; expected 1 to {available}")
    return ceil(available / SHARE) if asked is None else asked


def outputs(*tokens: int | str, layers: int) -> tuple[Output, ...]:
    """Return the outputs of a vision encoder, from the axes of its vision tokens."""
    only = Output("vision_tokens", tokens)
    return (only, Output("saliency", tokens[:-1])) if layers else (only,)


def received(query: Float[Tensor, "f p a hd"], key: Float[Tensor, "f p a hd"]) -> Tensor:
    """Return the attention that each patch gets [f, p] in float32: of all queries, of all heads.

    One head after the other: all at once, 6,000 patches and 16 heads would be 2.3 GB a frame. The
    mean over queries is a matrix product, as ONNX Runtime's CPU takes 12 ms for a ReduceMean over
    the rows of 1,024 x 1,024 numbers, and less than 1 ms for the product.
    """
    ones = torch.ones_like(key[:, :, 0, 0], dtype=torch.float32)[:, None]
    mean = ones / ones.sum(-1, keepdim=True)
    queries = query.permute(2, 0, 1, 3) * query.shape[-1] ** -0.5
    keys = key.permute(2, 0, 3, 1)
    shares = [
        mean @ torch.softmax((queries[head] @ keys[head]).float(), dim=-1)
        for head in range(query.shape[2])
    ]
    return torch.cat(shares, dim=1).mean(1)


@contextmanager
def watched(attentions: Sequence[nn.Module]) -> Iterator[Callable[[], Float[Tensor, " p"]]]:
    """Let some HF layers attend as HF's eager implementation does, and watch its maps.

    What is returned gives the attention that each patch got since it was last asked, all frames or
    tiles in one row: the mean over queries and heads, summed over the layers. Qwen's layers return
    no maps, so the function that makes them is wrapped where its module has it.
    """
    modeling: Any = sys.modules[type(attentions[0]).__module__]
    config: Any = attentions[0].config
    eager, usual = modeling.eager_attention_forward, config._attn_implementation  # noqa: SLF001
    seen: dict[nn.Module, list[Tensor]] = {attention: [] for attention in attentions}

    def watching(module: nn.Module, *arguments: Any, **options: Any) -> Any:
        output, maps = eager(module, *arguments, **options)  # maps: [f, a, p, p]
        if module in seen:
            seen[module].append(maps.float().mean((1, 2)).flatten())
        return output, maps

    def total() -> Float[Tensor, " p"]:
        summed = torch.stack([torch.cat(each) for each in seen.values()]).sum(0)
        for each in seen.values():
            each.clear()
        return summed

    modeling.eager_attention_forward = watching
    config._attn_implementation = "eager"  # noqa: SLF001 - transformers has no getter
    try:
        yield total
    finally:
        modeling.eager_attention_forward = eager
        config._attn_implementation = usual  # noqa: SLF001
