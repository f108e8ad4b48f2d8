"""Train scorer networks on relevance labels, and say how well they find what mattered.

Label and loss are the paper's (arXiv:2506.01097): zero the lower half of the relevance, divide by
the sum, KL(label || prediction). Its network has its optimiser too: Adam, batch 128, cosine from
1e-3.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from tokprune.manifest import Modality
from tokprune.types import Array
from tokprune_export.agreement import target_of
from tokprune_export.label_cache import Glance, Label
from tokprune_export.scorers import (
    NETWORKS,
    Arch,
    AskedScorer,
    GridScorer,
    Network,
    PaperScorer,
    Size,
)

HELD_OUT = 0.1  # share of the pictures, and of the videos


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


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    schedule: Literal["cosine", "one_cycle"]
    patience: int = 4  # epochs without a lower loss on what is not trained on, after which it ends

    def scaled(self, epochs: int | None) -> "Recipe":
        """Return the recipe with another number of epochs, if one is given."""
        return self if epochs is None else replace(self, epochs=epochs)

    def steps(self, samples: int) -> int:
        """Return the steps of an epoch."""
        return ceil(samples / self.batch)


# The paper trains for about 100 epochs on a GPU. One CPU core takes 7 s an epoch for 1,000 labels
# of 196 tokens, so ours are fewer, along the same cosine; --epochs 100 is the paper's.
RECIPES: dict[Arch, Recipe] = {
    "paper": Recipe(15, 128, 1e-3, 0.0, "cosine"),
    "grid": Recipe(12, 64, 3e-3, 0.01, "one_cycle"),
    "asked": Recipe(12, 64, 3e-3, 0.01, "one_cycle"),
}


def split(
    shown: Sequence[Sequence[str]], kinds: Sequence[Modality], seed: int
) -> tuple[list[int], list[int]]:
    """Choose which samples to use and which to hold out, whole pictures and videos at a time.

    Args:
        shown: names of what each sample shows; samples that share one stay together.
        kinds: what each sample is about: of each kind, the same share is held out.
        seed: of the choice.
    """
    groups = _joined(shown)
    films = {group for group, kind in zip(groups, kinds, strict=True) if kind == "video"}
    random = np.random.default_rng(seed)
    held: set[str] = set()
    for names in (sorted(set(groups) - films), sorted(films)):
        order = random.permutation(len(names))
        count = max(1, round(HELD_OUT * len(names)))
        held |= {names[i] for i in order[:count]}
    training = [i for i, group in enumerate(groups) if group not in held]
    return training, [i for i, group in enumerate(groups) if group in held]


def _joined(shown: Sequence[Sequence[str]]) -> list[str]:
    """Name each sample's group: one for all that share something, directly or through others."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for names in shown:
        first = min(map(root, names))
        for name in names:
            parent[root(name)] = first
    return [root(names[0]) for names in shown]


def network_of(arch: Arch, size: Size, seed: int) -> Network:
    """Return an untrained network; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[arch](size)


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
    )


def train(
    network: Network,
    pairs: Sequence[Pair],
    checked: Sequence[Pair],
    recipe: Recipe,
    seed: int,
    report: Callable[[int, float, float], None],
) -> int:
    """Fit a network in place, and return the epoch whose weights it has.

    Deterministic on a CPU for equal seeds and thread counts.

    Args:
        network: what to fit, on the pairs' device.
        pairs: its inputs and targets.
        checked: others; the epoch with their lowest loss counts, and the recipe's patience ends
            the training after it.
        recipe: epochs and optimiser.
        seed: of the order of samples.
        report: told the epoch, counted from 1, and the mean losses of `pairs` and `checked`.
    """
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer, schedule = optimiser_of(network, recipe, recipe.steps(len(pairs)))
    random = np.random.default_rng(seed)
    best, best_loss, weights = 0, float("inf"), network.state_dict()
    for epoch in range(1, recipe.epochs + 1):
        total = 0.0
        for chosen in _chunks(random.permutation(len(pairs)).tolist(), recipe.batch):
            batch = collate([pairs[i] for i in chosen])
            loss = divergence(batched_logits(network, batch), batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        loss = mean_divergence(network, checked)
        report(epoch, total / len(pairs), loss)
        if loss < best_loss:
            best, best_loss = epoch, loss
            weights = {name: value.clone() for name, value in network.state_dict().items()}
        if epoch - best >= recipe.patience:
            break
    network.load_state_dict(weights)
    return best


@torch.no_grad()
def mean_divergence(network: nn.Module, pairs: Sequence[Pair], batch: int = 64) -> float:
    """Return the mean loss of a network."""
    total = 0.0
    for chosen in _chunks(list(pairs), batch):
        laid = collate(chosen)
        total += float(divergence(batched_logits(network, laid), laid).sum())
    return total / len(pairs)


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
    return Batch(features, pairs, torch.cat(index), torch.cat(cells), prompts, slots, target)


def batched_logits(network: nn.Module, batch: Batch) -> Float[Tensor, "b n"]:
    """Run a network on several prompts at once: what it gives each of them alone; padding -inf."""
    empty = torch.full(batch.slots.shape, float("-inf"), device=batch.slots.device)
    match network:
        case GridScorer():
            logits = network.logits(batch.features, batch.index, batch.cells)
        case AskedScorer():
            layout = (batch.index, batch.cells, batch.prompts)
            logits = network.logits(_channels(network, batch), *layout)
        case PaperScorer():
            padded = torch.zeros(batch.slots.shape, device=batch.slots.device)
            padded = padded.masked_scatter(batch.slots, batch.features[0])
            return torch.where(batch.slots, network.logits(padded[:, None], batch.slots), empty)
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


def divergence(logits: Float[Tensor, "b n"], batch: Batch) -> Float[Tensor, " b"]:
    """KL(target || prediction) of each sample."""
    # Newlines have logits of -inf, and targets of 0: they say nothing.
    silent = ~batch.slots | logits.isneginf()
    predicted = logits.log_softmax(dim=1).masked_fill(silent, 0.0)
    known = torch.xlogy(batch.target, batch.target)
    return (known - batch.target * predicted).sum(dim=1)


@torch.no_grad()
def predictions(network: nn.Module, pairs: Sequence[Pair], batch: int = 64) -> Iterator[Array]:
    """Yield each pair's predicted relevance."""
    for chosen in _chunks(list(pairs), batch):
        laid = collate(chosen)
        scores = batched_logits(network, laid).softmax(dim=1)
        for row, slots in zip(scores, laid.slots, strict=True):
            yield row[slots].cpu().numpy()


def optimiser_of(
    network: nn.Module, recipe: Recipe, steps_an_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return the recipe's optimiser and its learning rates."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    steps = recipe.epochs * steps_an_epoch
    # AdamW without decay is Adam.
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    if recipe.schedule == "cosine":
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)


def _chunks(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
