"""Means over groups of questions, with paired bootstrap intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from tokprune.types import Array

RESAMPLES = 5_000
COVERED = (2.5, 97.5)  # percentiles


class Estimate(NamedTuple):
    """A figure and its 95 % interval; nan where there is none."""

    mean: float
    low: float
    high: float


def stratified(groups: Sequence[str], resamples: int = RESAMPLES) -> Float32[Array, "b m"]:
    """Return what each question weighs in each resample; a row's weights add up to 1.

    Every group is resampled by itself, and all groups weigh the same: the weighted sum is the mean
    over groups. The same seed always: every selector meets the same resamples.
    """
    random = np.random.default_rng(0)
    names = np.asarray(groups)
    weights = np.zeros((resamples, len(names)), np.float32)
    kinds = np.unique(names)
    for kind in kinds:
        inside = np.flatnonzero(names == kind)
        count = len(inside)
        drawn = random.multinomial(count, np.full(count, 1 / count), size=resamples)
        weights[:, inside] = drawn / (count * len(kinds))
    return weights


def balanced(groups: Sequence[str]) -> Float32[Array, " m"]:
    """Return what each question weighs in the mean over groups."""
    names = np.asarray(groups)
    kinds, place, counts = np.unique(names, return_inverse=True, return_counts=True)
    return (1 / (counts[place] * len(kinds))).astype(np.float32)


class Resampled:
    """Columns of figures, one a cell, of the same questions; their means and resampled means."""

    def __init__(self, values: Float[Array, "m c"], groups: Sequence[str]) -> None:
        """Resample once, for all columns.

        Args:
            values: of each question and cell; a column with a nan has no figures.
            groups: of each question; one group: a plain mean.
        """
        known = ~np.isnan(values).any(axis=0)
        sound = np.where(known, values, 0)
        self._means = np.where(known, balanced(groups).astype(np.float64) @ sound, np.nan)
        self._drawn = stratified(groups) @ sound.astype(np.float32)

    def mean(self, column: int) -> Estimate:
        """Return a column's mean."""
        return _estimate(self._means[column], self._drawn[:, column])

    def difference(self, first: int, second: int) -> Estimate:
        """Return how far one column's mean is above another's, question by question."""
        drawn = self._drawn[:, first] - self._drawn[:, second]
        return _estimate(self._means[first] - self._means[second], drawn)

    def ratio(self, part: int, whole: int) -> Estimate:
        """Return a mean as a share of another; nan where that is 0.

        Resamples in which the other is 0 have no share, and are left out of the interval.
        """
        if not self._means[whole] > 0:
            return Estimate(np.nan, np.nan, np.nan)
        there = self._drawn[:, whole] > 0
        drawn = self._drawn[there, part] / self._drawn[there, whole]
        return _estimate(self._means[part] / self._means[whole], drawn)


def _estimate(mean: float, drawn: Float[Array, " b"]) -> Estimate:
    if np.isnan(mean):
        return Estimate(np.nan, np.nan, np.nan)
    low, high = np.percentile(drawn, COVERED)
    return Estimate(float(mean), float(low), float(high))
