"""What the frozen LLM says to a question, and how far that moves when vision tokens are dimmed."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from tokprune.types import Array
from tokprune_export.decoder import TextModel
from tokprune_export.dimming import dimmed_hidden
from tokprune_export.label_cache import Label
from tokprune_export.labels import activation_bytes

LIKELY = 64  # tokens of the vocabulary that stand for an answer's distribution
FADED = 0.02  # tokens of smaller shares are left out: their part in the loss is small
CHECKED_AT = (0.25, 0.11)  # kept shares that tell when to stop
CPU_BYTES, GPU_BYTES = 512 << 20, 16 << 30  # of what a backward pass needs, at once


@dataclass(frozen=True)
class Lesson:
    """A question that was answered rightly, and what the LLM says to it with all tokens."""

    label: Label
    likely: Int64[Tensor, "m top"]  # for each answer token and the end: the likeliest tokens
    log_probs: Float[Tensor, "m top"]


class Dimmed(NamedTuple):
    """Prompts and answers without what was left out, padded on the right."""

    embeds: Float[Tensor, "b s d"]
    positions: Int64[Tensor, "p b s"]
    bias: Float[Tensor, "b s"]
    emits: Bool[Tensor, "b s"]  # rows whose logits are the answer, and its end


@torch.no_grad()
def lessons_of(text: TextModel, labels: Sequence[Label]) -> Iterator[Lesson]:
    """Ask the LLM every question with all tokens."""
    for part in parts(text, list(labels), rows_of):
        whole = [torch.ones(len(label.slots)) for label in part]
        spoken = _log_probs(text, laid_out(text, part, whole))
        top = spoken.topk(min(LIKELY, spoken.shape[1]), dim=1)
        counts = [len(label.answer) + 1 for label in part]
        likely, values = top.indices.cpu().split(counts), top.values.cpu().split(counts)
        yield from map(Lesson, part, likely, values)


@torch.no_grad()
def lost_answers(
    text: TextModel, scores: Sequence[Array], lessons: Sequence[Lesson]
) -> list[float]:
    """Return how far each answer moves when all but the best-scored tokens are gone: mean KLs."""
    lost: list[float] = []
    pairs = list(zip(scores, lessons, strict=True))
    for part in parts(text, pairs, lambda pair: rows_of(pair[1].label)):
        told = [lesson for _, lesson in part]
        lost_at = [
            moved(text, told, [_best(score, lesson.label, share) for score, lesson in part])
            for share in CHECKED_AT
        ]
        counts = [len(lesson.likely) for lesson in told]
        sums = [each.sum() for each in torch.stack(lost_at).mean(dim=0).split(counts)]
        lost += torch.stack(sums).tolist()
    return lost


def _best(scores: Array, label: Label, share: float) -> Float[Tensor, " n"]:
    """Return 1 for the best-scored share of the tokens and for newlines, 0 for the others."""
    cells, index = label.cells.long(), label.index.flatten()
    patch = (index[cells] == torch.arange(len(cells))).numpy()
    order = np.argsort(-np.where(patch, scores, -np.inf), kind="stable")
    kept = ~patch
    kept[order[: math.ceil(share * patch.sum())]] = True
    return torch.from_numpy(kept.astype(np.float32))


def moved(
    text: TextModel, lessons: Sequence[Lesson], shares: Sequence[Float[Tensor, " n"]]
) -> Float[Tensor, " m"]:
    """KL(answer with all tokens || with these shares), token by token, over the likeliest ones."""
    spoken = _log_probs(text, laid_out(text, [lesson.label for lesson in lessons], shares))
    likely = torch.cat([lesson.likely for lesson in lessons]).to(spoken.device)
    known = torch.cat([lesson.log_probs for lesson in lessons]).to(spoken.device)
    return (known.exp() * (known - spoken.gather(1, likely))).sum(dim=1)


def laid_out(
    text: TextModel, labels: Sequence[Label], shares: Sequence[Float[Tensor, " n"]]
) -> Dimmed:
    """Lay out prompts and answers, vision tokens with the shares they take part with."""
    table, device = text.embeddings, text.embeddings.device
    rows = [
        _rows(table, label, share.to(device)) for label, share in zip(labels, shares, strict=True)
    ]
    longest = max(len(embeds) for embeds, *_ in rows)
    wide = (len(rows), longest)
    embeds = table.new_zeros(*wide, table.shape[1])
    positions = torch.zeros(text.position_axes, *wide, dtype=torch.int64, device=device)
    emits = torch.zeros(wide, dtype=torch.bool, device=device)
    biases: list[Tensor] = []
    for number, (these, where, bias, label) in enumerate(rows):
        length = len(these)
        embeds[number, :length] = these
        positions[:, number, :length] = where
        emits[number, length - len(label.answer) - 1 : length] = True
        biases.append(torch.cat([bias, bias.new_zeros(longest - length)]))
    return Dimmed(embeds, positions, torch.stack(biases), emits)


def _rows(
    table: Float[Tensor, "v d"], label: Label, share: Float[Tensor, " n"]
) -> tuple[Tensor, Tensor, Tensor, Label]:
    """Return one prompt's rows, their positions and biases, without what has faded away."""
    device = table.device
    ids, slots = torch.cat([label.ids, label.answer]).to(device), label.slots.to(device)
    embeds = table[ids]
    embeds[slots] = label.embeds.to(embeds)
    bias = torch.zeros(len(ids), device=device).index_put((slots,), share.clamp(min=FADED).log())
    stays = torch.ones(len(ids), dtype=torch.bool, device=device)
    stays[slots] = share.detach() > FADED
    return embeds[stays], label.positions.to(device)[:, stays], bias[stays], label


def _log_probs(text: TextModel, dimmed: Dimmed) -> Float[Tensor, "m v"]:
    """Return what the LLM says in the answer's rows."""
    # GPUs and newer CPUs multiply bfloat16 twice as fast; sums stay float32.
    with torch.autocast(dimmed.embeds.device.type, torch.bfloat16, enabled=_halved(dimmed.embeds)):
        hidden = dimmed_hidden(text, *dimmed[:3])
        logits = text.head(hidden[dimmed.emits])
    return logits.float().log_softmax(dim=1)


def _halved(embeds: Tensor) -> bool:
    return embeds.is_cuda and torch.cuda.is_bf16_supported()


def rows_of(label: Label) -> int:
    """Return the rows of a prompt and its answer."""
    return len(label.ids) + len(label.answer)


def parts(text: TextModel, items: list, rows: Callable[..., int]) -> Iterator[list]:
    """Cut into parts whose activations fit into memory."""
    longest = max(map(rows, items), default=1)
    needed, limit = activation_bytes(text) * longest, GPU_BYTES
    if not text.embeddings.is_cuda:  # no fused attention there: its maps are kept too
        maps = 3 * text.heads * len(text.model.layers)
        needed, limit = needed + 4 * maps * longest**2, CPU_BYTES
    size = max(1, limit // needed)
    for start in range(0, len(items), size):
        yield items[start : start + size]
