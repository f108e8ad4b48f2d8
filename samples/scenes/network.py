"""The language half of the demo VLMs: first weights, and a fast forward pass.

The forward pass computes what transformers computes; packed questions need a mask of their own.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from attention import attend, turn
from demos.demo import Llm
from tokenizers import Tokenizer
from torch import Tensor

BLOCKED = -1e9
# Told the number of a layer, its queries and keys [b, heads, s, width], and what is added to their
# products.
Watch: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], None]


def initialise(llm: Llm) -> None:
    """Give initial weights that learn fast."""
    with torch.no_grad():
        llm.embed.weight.normal_(0, 0.3)
        llm.head.weight.normal_(0, 0.8 / llm.head.in_features**0.5)
        for name, weight in llm.layers.named_parameters():
            if weight.ndim == 1:
                continue
            std = 0.8 / weight.shape[1] ** 0.5
            if "o_proj" in name or "down_proj" in name:
                std /= (2 * len(llm.layers)) ** 0.5
            weight.normal_(0, std)


def run_text(
    llm: Llm, embeds: Tensor, positions: Tensor, bias: Tensor, watch: Watch | None = None
) -> list[Tensor]:
    """Hidden states [b, s, d] after each layer, the last one normalised.

    Args:
        llm: the decoder.
        embeds: [b, s, d]
        positions: [p, b, s]; rotary positions of p axes.
        bias: [b, 1, s, s], added to the attention logits.
        watch: sees what each layer attends with.
    """
    cos, sin = llm.rotary(embeds, positions if len(positions) > 1 else positions[0])
    cos, sin = cos[:, None], sin[:, None]
    x = embeds
    states: list[Tensor] = []
    for number, layer in enumerate(llm.layers, start=1):
        attention = layer.self_attn
        h = layer.input_layernorm(x)
        q, k, v = (
            project(h).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = turn(q, cos, sin) * attention.scaling, turn(k, cos, sin)
        groups = attention.num_key_value_groups
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        if watch is not None:
            watch(number, q, k, bias)
        x = x + attention.o_proj(attend(q, k, v, bias))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        states.append(x)
    states[-1] = llm.norm(x)
    return states


def take_over(llm: Llm, words: Tokenizer, trained: Llm, trained_words: Tokenizer) -> float:
    """Start from a trained LLM of the same sizes, as VLMs do, and return the share of known words.

    Words are matched by their text; those that it has not as one token keep their first weights.
    Biases that only one of the two has are left out.
    """
    known = 0
    with torch.no_grad():
        given = trained.layers.state_dict()
        own = llm.layers.state_dict()
        for name, weight in given.items():
            if name in own:
                own[name].copy_(weight)
        llm.norm.load_state_dict(trained.norm.state_dict())
        for index in range(words.get_vocab_size()):
            piece = words.id_to_token(index) or ""
            same = trained_words.token_to_id(piece)
            text = piece.replace("\u2581", " ")  # sentencepiece's space
            ids = trained_words.encode(text, add_special_tokens=False).ids if text else []
            if same is None and len(ids) == 1:
                same = ids[0]
            if same is not None:
                llm.embed.weight[index] = trained.embed.weight[same]
                llm.head.weight[index] = trained.head.weight[same]
                known += 1
    return known / words.get_vocab_size()


def whitened(patches: Tensor, width: int) -> Tensor:
    """Whitened, rotated principal components [width, 588] of patches [m, 588]."""
    centred = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
    white = (vectors / (values + values[-1]).sqrt()).T
    rotation = torch.linalg.qr(torch.randn(width, width))[0]  # no privileged dimensions
    return rotation @ white
