"""Labels as networks are trained on them, alone and side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from tokprune_export.agreement import target_of
from tokprune_export.label_cache import Glance, Label
from tokprune_export.scorers import AskedScorer, GridScorer, Network, PaperScorer


@dataclass(frozen=True)
class Pair:
    """One label as one network is trained on it."""

    features: Tensor  # [channels, n]; half precision where there are many
    embeds: Float[Tensor, "n d"]  # d is 0 for networks that do not read them
    words: Float[Tensor, "u d"]  # so is this one
    question: Bool[Tensor, " u"]
    index: Int64[Tensor, "r rows columns"]
    cells: Int64[Tensor, " n"]
    target: Float32[Tensor, " n"]  # sums to 1
    follows: Float32[Tensor, " r"]


@dataclass(frozen=True)
class Batch:
    """Pairs side by side, without padding between their tokens."""

    features: Float[Tensor, "c m"]
    pairs: Sequence[Pair]
    index: Int64[Tensor, "r rows columns"]
    cells: Int64[Tensor, " m"]
    prompts: Int64[Tensor, " r"]  # the pair that each region is of
    slots: Bool[Tensor, "b n"]  # where each pair's tokens lie once they are padded
    target: Float32[Tensor, "b n"]
    follows: Float32[Tensor, " r"]


def pair_of(
    network: Network, label: Label, table: Float[Tensor, "v d"], device: torch.device
) -> Pair:
    """Compute once what every epoch reads.

    Args:
        network: that will be trained.
        label: what it is trained on.
        table: the LLM's inputs of all token ids.
        device: where the network is.
    """
    return _pair(network, label, label, label.relevance, table, device)


def glance_of(
    network: Network, label: Label, table: Float[Tensor, "v d"], device: torch.device
) -> Pair | None:
    """Compute the same for the first of two looks; its tokens share the relevance under them."""
    if label.glance is None:
        return None
    under = label.glance.under.long()
    shared = label.relevance.new_zeros(len(label.glance.cells))
    shared.index_add_(0, under[under >= 0], label.relevance[under >= 0])
    return _pair(network, label, label.glance, shared, table, device)


def _pair(
    network: Network,
    label: Label,
    seen: Label | Glance,
    relevance: Float32[Tensor, " n"],
    table: Float[Tensor, "v d"],
    device: torch.device,
) -> Pair:
    attention = seen.attention.to(device, torch.float32)
    features = network.features(attention, label.question.to(device))
    dtype = torch.float32 if isinstance(network, PaperScorer) else torch.float16
    read = isinstance(network, AskedScorer)
    words = table[label.ids[len(label.ids) - len(label.question) :].to(table.device)]
    return Pair(
        features=features.to(dtype),
        embeds=seen.embeds if read else seen.embeds[:, :0],
        words=(words if read else words[:, :0]).detach().to(device, torch.float32),
        question=label.question.to(device),
        index=seen.index.to(device, torch.int64),
        cells=seen.cells.to(device, torch.int64),
        target=target_of(relevance.to(device)),
        follows=seen.follows.to(device),
    )


def collate(pairs: Sequence[Pair]) -> Batch:
    """Lay pairs side by side. Their regions do not touch, so convolutions keep them apart."""
    lengths = [len(pair.cells) for pair in pairs]
    rows = max(pair.index.shape[1] for pair in pairs)
    columns = max(pair.index.shape[2] for pair in pairs)
    slots = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    index, cells, tokens, layers = [], [], 0, 0
    for pair in pairs:
        count, high, wide = pair.index.shape
        shifted = torch.where(pair.index >= 0, pair.index + tokens, -1)
        index.append(functional.pad(shifted, (0, columns - wide, 0, rows - high), value=-1))
        layer, cell = pair.cells // (high * wide) + layers, pair.cells % (high * wide)
        cells.append((layer * rows + cell // wide) * columns + cell % wide)
        tokens, layers = tokens + len(pair.cells), layers + count
    slots = slots.to(pairs[0].target.device)
    target = torch.zeros(slots.shape, device=slots.device)
    target[slots] = torch.cat([pair.target for pair in pairs])
    features = torch.cat([pair.features for pair in pairs], dim=1).float()
    counts = torch.tensor([len(pair.index) for pair in pairs])
    prompts = torch.arange(len(pairs)).repeat_interleave(counts).to(slots.device)
    layout = (torch.cat(index), torch.cat(cells), prompts)
    follows = torch.cat([pair.follows for pair in pairs])
    return Batch(features, pairs, *layout, slots, target, follows)


def batched_logits(network: nn.Module, batch: Batch) -> Float[Tensor, "b n"]:
    """Run a network on several prompts at once: what it gives each of them alone; padding -inf."""
    empty = torch.full(batch.slots.shape, float("-inf"), device=batch.slots.device)
    match network:
        case GridScorer():
            logits = network.logits(batch.features, batch.index, batch.cells)
        case AskedScorer():
            layout = (batch.index, batch.cells, batch.prompts, batch.follows)
            logits = network.logits(_channels(network, batch), *layout)
        case PaperScorer():
            padded = batch.features.new_zeros(*batch.slots.shape, len(batch.features))
            padded[batch.slots] = batch.features.T
            logits = network.logits(padded.transpose(1, 2), batch.slots)
            return torch.where(batch.slots, logits, empty)
        case _:
            raise TypeError(f"{type(network).__name__} is no scorer network")
    return empty.masked_scatter(batch.slots, logits)


def _channels(network: AskedScorer, batch: Batch) -> Float[Tensor, "c m"]:
    """Return each pair's channels, side by side."""
    counts = [len(pair.cells) for pair in batch.pairs]
    rows = zip(batch.features.split(counts, dim=1), batch.pairs, strict=True)
    return torch.cat(
        [
            network.channels(features, pair.embeds.to(features), pair.words, pair.question)
            for features, pair in rows
        ],
        dim=1,
    )
