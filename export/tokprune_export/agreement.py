"""How well scores find the vision tokens that mattered: figures against the oracle."""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from tokprune.manifest import Metrics, Modality
from tokprune.types import Array
from tokprune_export.label_cache import Label
from tokprune_export.scorers import mean_rows

_TINY = 1e-12


class Quality(NamedTuple):
    """Agreement with the oracle, on pictures and videos that were not trained on."""

    recall_at_50: float  # of the oracle's top half, how much is in the prediction's
    recall_at_25: float
    spearman: float
    kl: float
    answers_lost: float  # KL of answers from the best-scored 25 % and 11 % to those from all tokens
    samples: float


class Held(NamedTuple):
    """Labels that nothing was trained on, and what each question was about."""

    labels: list[Label]
    modalities: list[Modality]


class Figures(NamedTuple):
    """How good scores are."""

    overall: Quality
    by_modality: dict[Modality, Quality]  # empty where there is one modality only

    def apart(self) -> dict[Modality, Metrics]:
        """Return the figures by modality as files have them."""
        return {kind: quality._asdict() for kind, quality in self.by_modality.items()}


def measure(scores: Sequence[Array], held: Held, lost: Sequence[float]) -> Figures:
    """Compare predicted with true relevance, of all samples and of each modality.

    Args:
        scores: of each held-out sample.
        held: their labels.
        lost: how far their answers move when only the best-scored tokens are left.
    """
    kinds = sorted(set(held.modalities))
    rows = list(zip(scores, held.labels, lost, held.modalities, strict=True))

    def of(kind: Modality) -> Quality:
        chosen = [row for row in rows if row[3] == kind]
        return quality(
            [score for score, *_ in chosen],
            [label for _, label, *_ in chosen],
            [each for _, _, each, _ in chosen],
        )

    return Figures(
        quality(scores, held.labels, lost),
        {kind: of(kind) for kind in kinds} if len(kinds) > 1 else {},
    )


def target_of(relevance: Float32[Tensor, " n"]) -> Float32[Tensor, " n"]:
    """Zero the lower half, and divide by the sum (the paper's R*)."""
    kept = relevance.sort(descending=True, stable=True).indices[: ceil(len(relevance) / 2)]
    upper = torch.zeros_like(relevance)
    upper[kept] = relevance[kept]
    return upper / upper.sum().clamp(min=_TINY)


def quality(scores: Sequence[Array], labels: Sequence[Label], lost: Sequence[float]) -> Quality:
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
    figures = (at_50, at_25, rank, kl, np.mean(lost), len(rows))
    return Quality(*map(float, figures))


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
