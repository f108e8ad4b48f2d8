"""Train scorer networks on relevance labels, and say how well they find what mattered.

Label and loss are the paper's (arXiv:2506.01097): zero the lower half of the relevance, divide by
the sum, KL(label || prediction). Its network has its optimiser too: Adam, batch 128, cosine from
1e-3.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from tokprune.types import Array
from tokprune_export.label_cache import Label, tensors_of
from tokprune_export.scorers import GridScorer, PaperScorer, mean_rows

Arch = Literal["paper", "grid"]
HELD_OUT = 0.1  # share of the pictures
_TINY = 1e-12


@dataclass(frozen=True)
class Pair:
    """One label as one network is trained on it."""

    features: Tensor  # [channels, n]; half precision where there are many
    index: Int64[Tensor, "r rows columns"]
    cells: Int64[Tensor, " n"]
    target: Float32[Tensor, " n"]  # sums to 1


@dataclass(frozen=True)
class Batch:
    """Pairs side by side, without padding between their tokens."""

    features: Float[Tensor, "c m"]
    index: Int64[Tensor, "r rows columns"]
    cells: Int64[Tensor, " m"]
    slots: Bool[Tensor, "b n"]  # where each pair's tokens lie once they are padded
    target: Float32[Tensor, "b n"]


Logits: TypeAlias = Callable[[Batch], Float[Tensor, "b n"]]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    schedule: Literal["cosine", "one_cycle"]

    def scaled(self, epochs: int | None) -> "Recipe":
        """Return the recipe with another number of epochs, if one is given."""
        return self if epochs is None else replace(self, epochs=epochs)


RECIPES: dict[Arch, Recipe] = {
    "paper": Recipe(100, 128, 1e-3, 0.0, "cosine"),
    "grid": Recipe(12, 64, 3e-3, 0.01, "one_cycle"),
}


class Quality(NamedTuple):
    """Agreement with the oracle, on pictures that were not trained on."""

    recall_at_50: float  # of the oracle's top half, how much is in the prediction's
    recall_at_25: float
    spearman: float
    kl: float
    samples: float


def split(pictures: Sequence[Sequence[str]], seed: int) -> tuple[list[int], list[int]]:
    """Choose which samples to train on and which to hold out, whole pictures at a time.

    Args:
        pictures: names of each sample's pictures; samples that share one stay together.
        seed: of the choice.
    """
    groups = _joined(pictures)
    names = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    held = {names[i] for i in order[: max(1, round(HELD_OUT * len(names)))]}
    training = [i for i, group in enumerate(groups) if group not in held]
    return training, [i for i, group in enumerate(groups) if group in held]


def _joined(pictures: Sequence[Sequence[str]]) -> list[str]:
    """Name each sample's group: one for all that share pictures, directly or through others."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for names in pictures:
        first = min(map(root, names))
        for name in names:
            parent[root(name)] = first
    return [root(names[0]) for names in pictures]


def target_of(relevance: Float32[Tensor, " n"]) -> Float32[Tensor, " n"]:
    """Zero the lower half, and divide by the sum (the paper's R*)."""
    kept = relevance.sort(descending=True, stable=True).indices[: ceil(len(relevance) / 2)]
    upper = torch.zeros_like(relevance)
    upper[kept] = relevance[kept]
    return upper / upper.sum().clamp(min=_TINY)


def network_of(arch: Arch, heads: int, seed: int) -> PaperScorer | GridScorer:
    """Return an untrained network; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PaperScorer() if arch == "paper" else GridScorer(heads)


def pair_of(network: PaperScorer | GridScorer, label: Label, device: torch.device) -> Pair:
    """Compute once what every epoch reads."""
    attention, question, index, cells = tensors_of(label, device)
    features = network.features(attention, question)
    dtype = torch.float16 if isinstance(network, GridScorer) else torch.float32
    return Pair(features.to(dtype), index, cells, target_of(label.relevance.to(device)))


def train(
    network: PaperScorer | GridScorer,
    pairs: Sequence[Pair],
    recipe: Recipe,
    seed: int,
    report: Callable[[int, float], None],
) -> None:
    """Fit a network in place. Deterministic on a CPU for equal seeds and thread counts.

    Args:
        network: what to fit, on the pairs' device.
        pairs: its inputs and targets.
        recipe: epochs and optimiser.
        seed: of the order of samples.
        report: told the epoch, counted from 1, and its mean loss.
    """
    steps = recipe.epochs * ceil(len(pairs) / recipe.batch)
    optimizer, schedule = _optimiser(network, recipe, steps)
    random = np.random.default_rng(seed)
    network.train()
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
        report(epoch, total / len(pairs))
    network.eval()


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
    return Batch(features, torch.cat(index), torch.cat(cells), slots, target)


def batched_logits(network: nn.Module, batch: Batch) -> Float[Tensor, "b n"]:
    """Run a network on several prompts at once: what it gives each of them alone; padding -inf."""
    empty = torch.full(batch.slots.shape, float("-inf"), device=batch.slots.device)
    if isinstance(network, GridScorer):
        return empty.masked_scatter(
            batch.slots, network.logits(batch.features, batch.index, batch.cells)
        )
    assert isinstance(network, PaperScorer)
    padded = torch.zeros(batch.slots.shape, device=batch.slots.device)
    padded = padded.masked_scatter(batch.slots, batch.features[0])
    return torch.where(batch.slots, network.logits(padded[:, None], batch.slots), empty)


def divergence(logits: Float[Tensor, "b n"], batch: Batch) -> Float[Tensor, " b"]:
    """KL(target || prediction) of each sample."""
    predicted = logits.log_softmax(dim=1).masked_fill(~batch.slots, 0.0)
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


def quality(scores: Sequence[Array], labels: Sequence[Label]) -> Quality:
    """Compare predicted with true relevance."""
    rows = [
        (
            recall(score, label.relevance.numpy(), 0.5),
            recall(score, label.relevance.numpy(), 0.25),
            spearman(score, label.relevance.numpy()),
            _kl(score, target_of(label.relevance).numpy()),
        )
        for score, label in zip(scores, labels, strict=True)
    ]
    at_50, at_25, rank, kl = np.mean(rows, axis=0)
    return Quality(float(at_50), float(at_25), float(rank), float(kl), float(len(rows)))


def attention_scores(label: Label) -> Array:
    """Return the mean attention, which needs no network."""
    scores = mean_rows(label.attention.float(), label.question)
    return (scores / scores.sum().clamp(min=_TINY)).numpy()


def recall(scores: Float[Array, " n"], oracle: Float[Array, " n"], share: float) -> float:
    """Return how much of the oracle's top tokens is among as many top-scored ones."""
    count = ceil(share * len(oracle))
    best = np.argsort(-oracle, kind="stable")[:count]
    return float(np.isin(best, np.argsort(-scores, kind="stable")[:count]).mean())


def spearman(first: Float[Array, " n"], second: Float[Array, " n"]) -> float:
    """Return the rank correlation; equal values share their mean rank. 0 where one is constant."""
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale else 0.0


def _ranks(values: Float[Array, " n"]) -> Array:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts - 1) / 2)[group]


def _kl(scores: Array, target: Array) -> float:
    some = target > 0
    predicted = np.maximum(scores[some], _TINY)
    return float((target[some] * np.log(target[some] / predicted)).sum())


def _optimiser(
    network: nn.Module, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    # AdamW without decay is Adam.
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    if recipe.schedule == "cosine":
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)


def _chunks(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
