"""Figures from the answers of an evaluation."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from tokprune.manifest import Modality
from tokprune.types import Array
from tokprune_export.answer_cells import FULL, Record

Results: TypeAlias = dict[str, Any]  # as results.json has it
RANDOM = "random"
RIVALS = (RANDOM, "uniform", "uniform + size bias", "attention", "attention-spread")
RESAMPLES = 5_000


class Bootstrap:
    """Paired: every selector is resampled with the same questions."""

    def __init__(self, samples: int) -> None:
        random = np.random.default_rng(0)
        counts = random.multinomial(samples, np.full(samples, 1 / samples), size=RESAMPLES)
        self._weights = counts.astype(np.float32) / samples

    def difference(self, first: Float[Array, " m"], second: Float[Array, " m"]) -> dict[str, float]:
        """Return the mean difference and its 95 % interval."""
        return _interval(float((first - second).mean()), self._weights @ (first - second))

    def ratio(self, part: Float[Array, " m"], whole: Float[Array, " m"]) -> dict[str, float]:
        """Return the ratio of the means and its 95 % interval; nan where the whole is 0."""
        if not whole.any():
            return dict.fromkeys(("mean", "low", "high"), float("nan"))
        below = np.maximum(self._weights @ whole, np.float32(1e-9))
        return _interval(float(part.mean() / whole.mean()), self._weights @ part / below)


def _interval(mean: float, resampled: Array) -> dict[str, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"mean": mean, "low": float(low), "high": float(high)}


def summarise(
    records: Sequence[Record], shares: Sequence[float], own: str, facts: Mapping[str, str | int]
) -> Results:
    """Return all figures: accuracy by selector, kept share and type of question.

    Args:
        records: one a question.
        shares: kept shares, in the tables' order.
        own: the bundle's own scores by name.
        facts: what stands at the head of the report.
    """
    right, spread = _right(records)
    groups = np.array([record.group for record in records])
    full = right.pop(f"{FULL}@1")
    names = list(dict.fromkeys(cell.rpartition("@")[0] for cell in right))
    modalities: Counter[Modality] = Counter(record.modality for record in records)
    bootstrap = Bootstrap(len(records))

    def at(name: str, share: float) -> Float[Array, " m"]:
        return right[f"{name}@{share:g}"]

    return {
        **facts,
        "own": own,
        "samples": len(records),
        "modalities": dict(sorted(modalities.items())),
        "mean_vision_tokens": float(np.mean([record.vision_tokens for record in records])),
        "shares": [f"{share:g}" for share in shares],
        "groups": {str(name): int((groups == name).sum()) for name in np.unique(groups)},
        "full": {"mean": float(full.mean()), "groups": _by_group(full, groups)},
        "selectors": {
            name: {
                f"{share:g}": _cell(at(name, share), full, groups, bootstrap)
                | _loyalty(records, f"{name}@{share:g}")
                for share in shares
            }
            for name in names
        },
        "by_modality": {
            kind: _part(records, kind, {**right, f"{FULL}@1": full}, shares)
            for kind in (sorted(modalities) if len(modalities) > 1 else ())
        },
        "random_spread": spread,
        "differences": {
            name: {
                rival: {
                    f"{share:g}": bootstrap.difference(at(name, share), at(rival, share))
                    for share in shares
                }
                for rival in RIVALS
                if rival != name
            }
            for name in names
        },
        "agreement": _agreement(records),
    }


def _part(
    records: Sequence[Record], kind: Modality, right: Mapping[str, Array], shares: Sequence[float]
) -> dict[str, Any]:
    """Return the figures of the questions about pictures, or about videos."""
    chosen = np.array([record.modality == kind for record in records])
    full = right[f"{FULL}@1"][chosen]
    bootstrap = Bootstrap(len(full))
    selectors: dict[str, dict[str, Any]] = {}
    for cell in (cell for cell in right if not cell.startswith(f"{FULL}@")):
        name, _, share = cell.rpartition("@")
        selectors.setdefault(name, {})[share] = {
            "mean": float(right[cell][chosen].mean()),
            "of_full": bootstrap.ratio(right[cell][chosen], full),
        }
    tokens = [record.vision_tokens for record in records if record.modality == kind]
    return {
        "samples": len(full),
        "mean_vision_tokens": float(np.mean(tokens)),
        "full": float(full.mean()),
        "selectors": selectors,
    }


def _right(records: Sequence[Record]) -> tuple[dict[str, Array], dict[str, float]]:
    """Mark right answers by cell, the seeds of `random` averaged, and say how far they differ."""
    seeds: dict[str, list[Array]] = {}
    right: dict[str, Array] = {}
    for cell in records[0].cells:
        found = [same(record.cells[cell], record.answer) for record in records]
        name, _, share = cell.rpartition("@")
        values = np.array(found, np.float32)
        if name.startswith(f"{RANDOM}/"):
            seeds.setdefault(share, []).append(values)
            right[f"{RANDOM}@{share}"] = np.mean(seeds[share], axis=0)
        else:
            right[cell] = values
    return right, {share: float(np.ptp([v.mean() for v in each])) for share, each in seeds.items()}


def same(answer: str, known: str) -> bool:
    """Whether an answer is the known one, but for case and spaces at the ends."""
    return answer.strip().casefold() == known.strip().casefold()


def _by_group(values: Array, groups: Array) -> dict[str, float]:
    return {str(name): float(values[groups == name].mean()) for name in np.unique(groups)}


def _cell(values: Array, full: Array, groups: Array, bootstrap: Bootstrap) -> dict[str, Any]:
    kept, whole = _by_group(values, groups), _by_group(full, groups)
    of_full = {name: kept[name] / whole[name] for name in kept if whole[name]}
    return {
        "mean": float(values.mean()),
        "of_full": bootstrap.ratio(values, full),
        "groups": kept,
        "groups_of_full": of_full,
        "worst_group": min(of_full, key=of_full.__getitem__) if of_full else None,
    }


def _loyalty(records: Sequence[Record], cell: str) -> dict[str, float]:
    """Return how often the unpruned answer is given, right or wrong."""
    if cell not in records[0].cells:
        return {}
    pairs = [(record.cells[cell], record.cells[f"{FULL}@1"]) for record in records]
    return {"loyalty": float(np.mean([same(*pair) for pair in pairs]))}


def _agreement(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    figures = ("recall_at_50", "recall_at_25", "spearman")
    return {
        name: dict(
            zip(
                figures, np.mean([r.agreement[name] for r in records], axis=0).tolist(), strict=True
            )
        )
        for name in records[0].agreement
    }
