"""Llama- and Qwen2-style decoders and their first layer, as modules that export cleanly.

They hold the checkpoint's own weights, as views, and none of its code: the HF module stays the
oracle that parity.py compares with. What attends to the cache is in llm_forms.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from tokprune_export.layers import Heads, Linear, RmsNorm, Rope, Rotation, rotate

Cache: TypeAlias = Float[Tensor, "1 kv t hd"]
Attended: TypeAlias = tuple[Float[Tensor, "1 t a*hd"], Cache, Cache]
Attend: TypeAlias = Callable[[Heads, Heads, Heads, Cache, Cache], Attended]

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
        self.rope = Rope(text.model.rotary_emb, text.mrope_section)
        self.layers = nn.ModuleList(Layer(layer, text) for layer in text.model.layers)
        self.norm = RmsNorm(text.model.norm)
        self.head = Linear(text.head)

    def forward(
        self, x: Tensor, position_ids: Tensor, past: list[Tensor], attend: Attend
    ) -> tuple[Tensor, ...]:
        """Return the last row's logits in float32, then keys and values of each layer."""
        rotation = self.rope(position_ids, x)
        present: list[Tensor] = []
        for layer, keys, values in zip(self.layers, past[::2], past[1::2], strict=True):
            x, new_keys, new_values = layer(x, rotation, (keys, values), attend)
            present += [new_keys, new_values]
        return self.head(self.norm(x[:, -1:])).float(), *present


class FirstLayer(nn.Module):
    """How text rows attend to vision columns in layer 0 (method.md section 3).

    Keys of all columns, queries of the wanted rows only, causal softmax over all columns, then the
    slice: never more than `u x s` scores.
    """

    def __init__(self, text: TextModel) -> None:
        super().__init__()
        layer = text.model.layers[0]
        self.rope = Rope(text.model.rotary_emb, text.mrope_section)
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
        cos, sin = self.rope(position_ids, inputs_embeds)
        asking = (cos.index_select(1, rows), sin.index_select(1, rows))
        query = self.query(hidden.index_select(1, rows)).unflatten(-1, (-1, self.head_dim))
        key = rotate(self.key(hidden).unflatten(-1, (-1, self.head_dim)), (cos, sin))
        scale = self.head_dim**-0.5
        scores = grouped_scores(rotate(query, asking), key.transpose(1, 2), scale)
        before = torch.arange(inputs_embeds.shape[1], device=rows.device)[None] <= rows[:, None]
        scores = scores.float().masked_fill(~before, torch.finfo(torch.float32).min)
        shares = torch.softmax(scores, dim=-1).flatten(1, 2)[0]
        return shares.index_select(2, columns)
