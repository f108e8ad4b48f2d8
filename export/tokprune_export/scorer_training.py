"""Train scorer networks on relevance labels, and say how well they find what mattered.

Label and loss are the paper's (arXiv:2506.01097): zero the lower half of the relevance, divide by
the sum, KL(label || prediction). Its network has its optimiser too: Adam, batch 128, cosine from
1e-3.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokprune.manifest import Modality
from tokprune.types import Array
from tokprune_export.pairs import Batch, Pair, batched_logits, collate
from tokprune_export.scorers import NETWORKS, Arch, Network, Size

Objective: TypeAlias = Callable[[Tensor, Batch], Tensor]  # logits [b, n] -> losses [b]

HELD_OUT = 0.1  # share of the pictures, and of the videos


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
    "frames": Recipe(12, 64, 3e-3, 0.01, "one_cycle"),
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


def divergence(logits: Float[Tensor, "b n"], batch: Batch) -> Float[Tensor, " b"]:
    """KL(target || prediction) of each sample."""
    # Newlines have logits of -inf, and targets of 0: they say nothing.
    silent = ~batch.slots | logits.isneginf()
    predicted = logits.log_softmax(dim=1).masked_fill(silent, 0.0)
    known = torch.xlogy(batch.target, batch.target)
    return (known - batch.target * predicted).sum(dim=1)


def train(
    network: Network,
    pairs: Sequence[Pair],
    checked: Sequence[Pair],
    recipe: Recipe,
    seed: int,
    report: Callable[[int, float, float], None],
    objective: Objective = divergence,
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
        objective: each sample's loss.
    """
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer, schedule = optimiser_of(network, recipe, recipe.steps(len(pairs)))
    random = np.random.default_rng(seed)
    best, best_loss, weights = 0, float("inf"), network.state_dict()
    for epoch in range(1, recipe.epochs + 1):
        total = 0.0
        for chosen in _chunks(random.permutation(len(pairs)).tolist(), recipe.batch):
            batch = collate([pairs[i] for i in chosen])
            loss = objective(batched_logits(network, batch), batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        loss = mean_loss(network, checked, objective)
        report(epoch, total / len(pairs), loss)
        if loss < best_loss:
            best, best_loss = epoch, loss
            weights = {name: value.clone() for name, value in network.state_dict().items()}
        if epoch - best >= recipe.patience:
            break
    network.load_state_dict(weights)
    return best


@torch.no_grad()
def mean_loss(
    network: nn.Module, pairs: Sequence[Pair], objective: Objective, batch: int = 64
) -> float:
    """Return the mean loss of a network."""
    total = 0.0
    for chosen in _chunks(list(pairs), batch):
        laid = collate(chosen)
        total += float(objective(batched_logits(network, laid), laid).sum())
    return total / len(pairs)


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
