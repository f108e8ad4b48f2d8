"""The forms of the LLM (engines.md): how rows attend to the cache, and how the cache is kept.

All take float32 rows and compute in the precision of the cache that they are given.
"""

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor, nn

from tokprune_export.decoder import Attend, Attended, Cache, Decoder, grouped_scores
from tokprune_export.layers import Heads, softmax


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
        lowest = torch.finfo(torch.float32).min
        mask = torch.where(columns <= rows, attention_bias, lowest)

        scale = self.decoder.scale

        def attend(query: Heads, key: Heads, value: Heads, keys: Cache, values: Cache) -> Attended:
            keys = torch.cat((keys, key.transpose(1, 2)), dim=2)
            values = torch.cat((values, value.transpose(1, 2)), dim=2)
            shares = softmax(grouped_scores(query, keys, scale), mask)
            mixed = shares @ values.unsqueeze(2)
            return mixed.flatten(1, 2).transpose(1, 2).flatten(2), keys, values

        return self.decoder(inputs_embeds.to(past[0].dtype), position_ids, past, attend)


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
        lengths = (seqlens_k, total_sequence_length)
        attend = _group_query_attention(self.decoder.scale, lengths, bias)
        return self.decoder(inputs_embeds, position_ids, past, attend)


class UnbiasedOrtLlm(nn.Module):
    """The same without a bias, in the precision of the cache.

    CUDA's operator refused a bias until 2026, and where it has one it leaves its fused kernels
    (microsoft/onnxruntime#29506, #29525).
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        inputs_embeds: Float[Tensor, "1 t d"],
        position_ids: Int64[Tensor, "p 1 t"],
        seqlens_k: Int32[Tensor, " 1"],
        total_sequence_length: Int32[Tensor, ""],
        past: list[Cache],
    ) -> tuple[Tensor, ...]:
        """Return logits and the cache, whose capacity stays."""
        lengths = (seqlens_k, total_sequence_length)
        attend = _group_query_attention(self.decoder.scale, lengths, None)
        return self.decoder(inputs_embeds.to(past[0].dtype), position_ids, past, attend)


def _group_query_attention(
    scale: float, lengths: tuple[Tensor, Tensor], bias: Tensor | None
) -> Attend:
    def attend(query: Heads, key: Heads, value: Heads, keys: Cache, values: Cache) -> Attended:
        flat = query.flatten(2)
        inputs = [flat, key.flatten(2), value.flatten(2), keys, values, *lengths]
        if bias is not None:
            inputs += [None, None, None, bias]
        mixed, new_keys, new_values = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            inputs,
            {"num_heads": query.shape[2], "kv_num_heads": key.shape[2], "scale": scale},
            dtypes=(flat.dtype, flat.dtype, flat.dtype),
            shapes=(flat.shape, keys.shape, values.shape),
            version=1,
        )
        return mixed, new_keys, new_values

    return attend


class TrtLlm(nn.Module):
    """ONNX's own `Attention` and `TensorScatter` (opset 24); the cache is a buffer kept in place.

    The mask is explicit, since TensorRT silently ignores `nonpad_kv_seqlen`; it takes neither past
    inputs nor a second output on `Attention`, so keys and values are scattered before it. It wants
    buffers of a fixed length too, so the mask tells how much of them is looked at: its columns.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        inputs_embeds: Float[Tensor, "1 t d"],
        position_ids: Int64[Tensor, "p 1 t"],
        attention_mask: Bool[Tensor, "1 1 t s"],
        write_indices: Int64[Tensor, " 1"],
        past: list[Cache],
    ) -> tuple[Tensor, ...]:
        """Return logits and the cache, whose capacity stays."""
        scale, seen = self.decoder.scale, attention_mask.shape[3]

        def write(cache: Cache, new: Heads) -> Cache:
            inputs = (cache, new.transpose(1, 2), write_indices)
            attributes = {"axis": 2, "mode": "linear"}
            return torch.onnx.ops.symbolic(
                "TensorScatter",
                inputs,
                attributes,
                dtype=cache.dtype,
                shape=cache.shape,
                version=24,
            )

        def attend(query: Heads, key: Heads, value: Heads, keys: Cache, values: Cache) -> Attended:
            keys, values = write(keys, key), write(values, value)
            heads = query.transpose(1, 2)
            mixed = torch.onnx.ops.symbolic(
                "Attention",
                (heads, keys[:, :, :seen], values[:, :, :seen], attention_mask),
                {"scale": scale},
                dtype=heads.dtype,
                shape=heads.shape,
                version=24,
            )
            return mixed.transpose(1, 2).flatten(2), keys, values

        return self.decoder(inputs_embeds.to(past[0].dtype), position_ids, past, attend)
