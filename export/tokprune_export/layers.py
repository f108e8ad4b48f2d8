"""The parts that decoders and vision encoders are made of, over the weights of HF's modules.

Weights stay the checkpoint's own float32, as views; a module computes in the precision of what it
is given (`like`). In a narrow one, what would overflow or lose too much stays float32: the
statistics of norms, softmax, and the angles of rotary embeddings. Linear weights are stored as the
transposed view, so that the exporter neither copies nor renames them and all forms of the LLM can
share one file of weights.
"""

from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

Heads: TypeAlias = Float[Tensor, "1 t a hd"]
Rotation: TypeAlias = tuple[Float[Tensor, "1 t 1 hd"], Float[Tensor, "1 t 1 hd"]]


def frozen(tensor: Tensor) -> nn.Parameter:
    """Return the tensor as a parameter that shares its storage."""
    return nn.Parameter(tensor.detach(), requires_grad=False)


def like(weight: Tensor, x: Tensor) -> Tensor:
    """Return the weight in the precision of `x`; narrow.py makes the cast part of the file."""
    return weight if weight.dtype == x.dtype else weight.to(x.dtype)


class Linear(nn.Module):
    """`x W + b` over the weights of an `nn.Linear`."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        self.weight = frozen(source.weight.t())
        self.bias = None if source.bias is None else frozen(source.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to the last axis."""
        y = x @ like(self.weight, x)
        return y if self.bias is None else y + like(self.bias, x)


class RmsNorm(nn.Module):
    """Root-mean-square norm over the weights of an HF one, computed in float32."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.weight = frozen(source.weight)
        self.epsilon: float = source.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return (self.weight * (wide * inverse)).to(x.dtype)


class LayerNorm(nn.Module):
    """`nn.LayerNorm` over the last axis, computed in float32."""

    def __init__(self, source: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = frozen(source.weight), frozen(source.bias)
        self.epsilon: float = source.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        size = self.weight.shape
        wide = functional.layer_norm(x.float(), size, self.weight, self.bias, self.epsilon)
        return wide.to(x.dtype)


def softmax(scores: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return shares along the last axis, in the precision of the scores.

    They are computed in float32, as is the sum with `bias`, which may be float32's lowest.
    """
    wide = scores.float()
    return torch.softmax(wide if bias is None else wide + bias, dim=-1).to(scores.dtype)


def rotate(x: Heads, rotation: Rotation) -> Heads:
    """Turn each head's channel pairs (half a head apart) by the angles of its position."""
    cos, sin = rotation
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Rope(nn.Module):
    """Cosine and sine of each position. With `section`, M-RoPE: pairs of channels take turns in
    time, row and column. Follows transformers' Qwen2VLRotaryEmbedding.
    """  # noqa: D205

    def __init__(self, rotary: Any, section: tuple[int, ...] | None) -> None:
        super().__init__()
        self.inverse_frequencies = frozen(rotary.inv_freq.float())
        self.scaling: float = rotary.attention_scaling
        self.section = section

    def forward(self, position_ids: Int64[Tensor, "p 1 t"], x: Tensor) -> Rotation:
        """Return both in the precision of `x`, with an axis of length 1 for the heads."""
        angles = position_ids[..., None].float() * self.inverse_frequencies
        if self.section is None:
            angles = angles[0]
        else:
            parts = angles.split(list(self.section), dim=-1)
            angles = torch.cat([part[i % 3] for i, part in enumerate(parts)], dim=-1)
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(2)
        return like(angles.cos() * self.scaling, x), like(angles.sin() * self.scaling, x)


class InPrecision(nn.Module):
    """A module that computes in `dtype`, between float32 inputs and float32 outputs."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, inputs: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """Cast what is floating point on the way in and out."""
        inside = [x.to(self.dtype) if x.is_floating_point() else x for x in inputs]
        outside = self.module(*inside)
        if isinstance(outside, Tensor):
            return outside.float()
        return tuple(output.float() for output in outside)
