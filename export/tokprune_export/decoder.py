"""Llama- and Qwen2-style decoders and their first layer, as modules that export cleanly.

They hold the checkpoint's own weights, as views, and none of its code: the HF module stays the
oracle that parity.py compares with. Linear weights are stored as the transposed view, so that the
exporter neither copies nor renames them and both forms of the LLM can share one file of weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor, nn
from torch.nn import functional

Heads: TypeAlias = Float[Tensor, "1 t a hd"]
Cache: TypeAlias = Float[Tensor, "1 kv t hd"]
Attended: TypeAlias = tuple[Float[Tensor, "1 t a*hd"], Cache, Cache]
Attend: TypeAlias = Callable[[Heads, Heads, Heads, Cache, Cache], Attended]
Rotation: TypeAlias = tuple[Float[Tensor, "1 t 1 hd"], Float[Tensor, "1 t 1 hd"]]

HEAD_MULTIPLE = 8  # what ONNX Runtime's GroupQueryAttention takes


@dataclass(frozen=True)
class TextModel:
    """The language half of a loaded HF checkpoint."""

    model: Any  # the HF decoder: takes inputs_embeds, position_ids, past_key_values
    head: nn.Linear
    mrope_section: tuple[int, ...] | None  # None: one position axis
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def position_axes(self) -> int:
        """Leading axis of `position_ids`: 3 for M-RoPE, else 1."""
        return 3 if self.mrope_section else 1

    def position_ids(self, positions: Int64[Tensor, "p 1 t"]) -> Int64[Tensor, "..."]:
        """Return positions as the HF decoder takes them: [3, 1, t] for M-RoPE, else [1, t]."""
        return positions if self.mrope_section else positions[0]

    @property
    def cache_dim(self) -> int:
        """Head size in the cache: others than multiples of 8 are padded with zeros."""
        return -(-self.head_dim // HEAD_MULTIPLE) * HEAD_MULTIPLE

    @property
    def embeddings(self) -> Float[Tensor, "vocabulary d"]:
        """The table of token embeddings."""
        return self.model.embed_tokens.weight.detach()


def frozen(tensor: Tensor) -> nn.Parameter:
    """Return the tensor as a parameter that shares its storage."""
    return nn.Parameter(tensor.detach(), requires_grad=False)


class Linear(nn.Module):
    """`x W + b` over the weights of an `nn.Linear`."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        self.weight = frozen(source.weight.t())
        self.bias = None if source.bias is None else frozen(source.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to the last axis."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class RmsNorm(nn.Module):
    """Root-mean-square norm over the weights of an HF one."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.weight = frozen(source.weight)
        self.epsilon: float = source.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon))


class Rope(nn.Module):
    """Cosine and sine of each position. With `section`, M-RoPE: pairs of channels take turns in
    time, row and column. Follows transformers' Qwen2VLRotaryEmbedding.
    """  # noqa: D205

    def __init__(self, text: TextModel) -> None:
        super().__init__()
        rotary = text.model.rotary_emb
        self.inverse_frequencies = frozen(rotary.inv_freq.float())
        self.scaling: float = rotary.attention_scaling
        self.section = text.mrope_section

    def forward(self, position_ids: Int64[Tensor, "p 1 t"]) -> Rotation:
        """Return both, with an axis of length 1 for the heads."""
        angles = position_ids[..., None].float() * self.inverse_frequencies
        if self.section is None:
            angles = angles[0]
        else:
            parts = angles.split(list(self.section), dim=-1)
            angles = torch.cat([part[i % 3] for i, part in enumerate(parts)], dim=-1)
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(2)
        return angles.cos() * self.scaling, angles.sin() * self.scaling


def rotate(x: Heads, rotation: Rotation) -> Heads:
    """Turn each head's channel pairs (half a head apart) by the angles of its position."""
    cos, sin = rotation
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def grouped_scores(query: Heads, key: Cache, scale: float) -> Float[Tensor, "1 kv g t s"]:
    """Scaled products of every query with every key of its group, without repeating keys."""
    _, rows, heads, size = query.shape
    groups = key.shape[1]
    grouped = query.transpose(1, 2).reshape(1, groups, heads // groups, rows, size)
    return (grouped * scale) @ key.unsqueeze(2).transpose(-1, -2)


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, source: Any, text: TextModel) -> None:
        super().__init__()
        self.head_dim = text.head_dim
        self.padding = text.cache_dim - text.head_dim
        self.input_norm = RmsNorm(source.input_layernorm)
        self.query = Linear(source.self_attn.q_proj)
        self.key = Linear(source.self_attn.k_proj)
        self.value = Linear(source.self_attn.v_proj)
        self.output = Linear(source.self_attn.o_proj)
        self.mlp_norm = RmsNorm(source.post_attention_layernorm)
        self.gate = Linear(source.mlp.gate_proj)
        self.up = Linear(source.mlp.up_proj)
        self.down = Linear(source.mlp.down_proj)
        self.activation = source.mlp.act_fn

    def forward(
        self, x: Tensor, rotation: Rotation, past: tuple[Cache, Cache], attend: Attend
    ) -> Attended:
        """Return the new hidden states, and the keys and values up to here."""
        hidden = self.input_norm(x)
        query = rotate(self.query(hidden).unflatten(-1, (-1, self.head_dim)), rotation)
        key = rotate(self.key(hidden).unflatten(-1, (-1, self.head_dim)), rotation)
        value = self.value(hidden).unflatten(-1, (-1, self.head_dim))
        if self.padding:
            pad = (0, self.padding)
            query, key, value = (functional.pad(each, pad) for each in (query, key, value))
        attended, keys, values = attend(query, key, value, *past)
        if self.padding:
            heads = attended.unflatten(-1, (-1, self.head_dim + self.padding))
            attended = heads[..., : self.head_dim].flatten(2)
        x = x + self.output(attended)
        hidden = self.mlp_norm(x)
        return x + self.down(self.activation(self.gate(hidden)) * self.up(hidden)), keys, values


class Decoder(nn.Module):
    """All layers and the head. How rows attend to the cache is the caller's."""

    def __init__(self, text: TextModel) -> None:
        super().__init__()
        self.scale: float = text.head_dim**-0.5
        self.rope = Rope(text)
        self.layers = nn.ModuleList(Layer(layer, text) for layer in text.model.layers)
        self.norm = RmsNorm(text.model.norm)
        self.head = Linear(text.head)

    def forward(
        self, x: Tensor, position_ids: Tensor, past: list[Tensor], attend: Attend
    ) -> tuple[Tensor, ...]:
        """Return the last row's logits, then keys and values of each layer."""
        rotation = self.rope(position_ids)
        present: list[Tensor] = []
        for layer, keys, values in zip(self.layers, past[::2], past[1::2], strict=True):
            x, new_keys, new_values = layer(x, rotation, (keys, values), attend)
            present += [new_keys, new_values]
        return self.head(self.norm(x[:, -1:])), *present


class PortableLlm(nn.Module):
    """Attention in plain operators; the cache grows by concatenation."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        inputs_embeds: Float[Tensor, "1 t d"],
        position_ids: Int64[Tensor, "p 1 t"],
        attention_bias: Float[Tensor, "1 s"],
        past: list[Cache],
    ) -> tuple[Tensor, ...]:
        """Return logits and the cache, `t` longer than before."""
        new, old = inputs_embeds.shape[1], past[0].shape[2]
        rows = torch.arange(new, device=inputs_embeds.device)[:, None] + old
        columns = torch.arange(old + new, device=inputs_embeds.device)[None]
        lowest = torch.finfo(inputs_embeds.dtype).min
        mask = torch.where(columns <= rows, attention_bias, lowest)

        scale = self.decoder.scale

        def attend(query: Heads, key: Heads, value: Heads, keys: Cache, values: Cache) -> Attended:
            keys = torch.cat((keys, key.transpose(1, 2)), dim=2)
            values = torch.cat((values, value.transpose(1, 2)), dim=2)
            shares = torch.softmax(grouped_scores(query, keys, scale) + mask, dim=-1)
            mixed = shares @ values.unsqueeze(2)
            return mixed.flatten(1, 2).transpose(1, 2).flatten(2), keys, values

        return self.decoder(inputs_embeds, position_ids, past, attend)


class OrtLlm(nn.Module):
    """Attention as `com.microsoft.GroupQueryAttention`; the cache is a buffer updated in place.

    M-RoPE is outside of what the operator can rotate, so queries and keys are rotated before.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        inputs_embeds: Float[Tensor, "1 t d"],
        position_ids: Int64[Tensor, "p 1 t"],
        attention_bias: Float[Tensor, "1 s"],
        seqlens_k: Int32[Tensor, " 1"],
        total_sequence_length: Int32[Tensor, ""],
        past: list[Cache],
    ) -> tuple[Tensor, ...]:
        """Return logits and the cache, whose capacity stays."""
        bias = attention_bias[:, None, None].expand(-1, -1, inputs_embeds.shape[1], -1)

        scale = self.decoder.scale

        def attend(query: Heads, key: Heads, value: Heads, keys: Cache, values: Cache) -> Attended:
            flat = query.flatten(2)
            inputs = [flat, key.flatten(2), value.flatten(2), keys, values]
            inputs += [seqlens_k, total_sequence_length, None, None, None, bias]
            mixed, new_keys, new_values = torch.onnx.ops.symbolic_multi_out(
                "com.microsoft::GroupQueryAttention",
                inputs,
                {"num_heads": query.shape[2], "kv_num_heads": key.shape[2], "scale": scale},
                dtypes=(flat.dtype, flat.dtype, flat.dtype),
                shapes=(flat.shape, keys.shape, values.shape),
                version=1,
            )
            return mixed, new_keys, new_values

        return self.decoder(inputs_embeds, position_ids, past, attend)


class FirstLayer(nn.Module):
    """How text rows attend to vision columns in layer 0 (method.md section 3).

    Keys of all columns, queries of the wanted rows only, causal softmax over all columns, then the
    slice: never more than `u x s` scores.
    """

    def __init__(self, text: TextModel) -> None:
        super().__init__()
        layer = text.model.layers[0]
        self.rope = Rope(text)
        self.head_dim = text.head_dim
        self.norm = RmsNorm(layer.input_layernorm)
        self.query = Linear(layer.self_attn.q_proj)
        self.key = Linear(layer.self_attn.k_proj)

    def forward(
        self,
        inputs_embeds: Float[Tensor, "1 s d"],
        position_ids: Int64[Tensor, "p 1 s"],
        rows: Int64[Tensor, " u"],
        columns: Int64[Tensor, " n"],
    ) -> Float[Tensor, "a u n"]:
        """Return the attention of `rows` on `columns`."""
        hidden = self.norm(inputs_embeds)
        cos, sin = self.rope(position_ids)
        asking = (cos.index_select(1, rows), sin.index_select(1, rows))
        query = self.query(hidden.index_select(1, rows)).unflatten(-1, (-1, self.head_dim))
        key = rotate(self.key(hidden).unflatten(-1, (-1, self.head_dim)), (cos, sin))
        scale = self.head_dim**-0.5
        scores = grouped_scores(rotate(query, asking), key.transpose(1, 2), scale)
        before = torch.arange(inputs_embeds.shape[1], device=rows.device)[None] <= rows[:, None]
        scores = scores.masked_fill(~before, torch.finfo(scores.dtype).min)
        shares = torch.softmax(scores, dim=-1).flatten(1, 2)[0]
        return shares.index_select(2, columns)
