"""Figures, tables and a plot from the answers of an evaluation."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from tokprune.types import Array
from tokprune_export.answer_cells import DEFAULT, FULL, Record

Results: TypeAlias = dict[str, Any]  # as results.json has it
RANDOM = "random"
RIVALS = (RANDOM, "uniform", "uniform + size bias", "attention", "attention-coverage")
RESAMPLES = 5_000
PLOTTED = (RANDOM, "uniform", "attention", "attention-coverage", "oracle", DEFAULT)


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
    bootstrap = Bootstrap(len(records))

    def at(name: str, share: float) -> Float[Array, " m"]:
        return right[f"{name}@{share:g}"]

    return {
        **facts,
        "own": own,
        "samples": len(records),
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


def markdown(results: Results) -> str:
    """Return the tables."""
    shares, groups = results["shares"], list(results["groups"])
    heads = [f"{float(share):.4g}" for share in shares]
    full, selectors = results["full"], results["selectors"]
    lines = [
        "# What pruning does to answers",
        "",
        f"Bundle `{results['bundle']}`, {results['questions']}, {results['samples']} questions, "
        f"{results['mean_vision_tokens']:.0f} vision tokens on average, full accuracy "
        f"{full['mean']:.1%}. {results['machine']}, {results['date']}. {results['note']}".strip(),
        "",
        "## Share of full accuracy by kept share (all types; 95 % paired bootstrap)",
        "",
        *_table(
            ["selector", *heads],
            [
                [name, *(_percent(cells[s]["of_full"]) for s in shares)]
                for name, cells in selectors.items()
            ],
        ),
    ]
    for share in shares:
        lines += [
            "",
            f"## Accuracy by type of question, {float(share):.4g} kept",
            "",
            *_table(
                ["selector", *groups, "worst of full", "loyalty", "mean"],
                [
                    [
                        FULL,
                        *(f"{full['groups'][g]:.1%}" for g in groups),
                        "",
                        "",
                        f"{full['mean']:.1%}",
                    ],
                    *([name, *_row(cells[share], groups)] for name, cells in selectors.items()),
                ],
            ),
        ]
    lines += ["", "## Differences in accuracy, points (95 % paired bootstrap)", ""]
    lines += _table(["selector", "against", *heads], list(_difference_rows(results)))
    if results["agreement"]:
        lines += ["", "## Agreement of scores with the oracle", ""]
        lines += _table(
            ["scores", "recall at 50 %", "recall at 25 %", "Spearman"],
            [
                [name, *(f"{v:.3f}" for v in row.values())]
                for name, row in results["agreement"].items()
            ],
        )
    return "\n".join(lines) + "\n"


def _percent(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.1%} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"


def _row(cell: Mapping[str, Any], groups: Sequence[str]) -> list[str]:
    worst = cell["worst_group"]
    named = "" if worst is None else f"{worst} {cell['groups_of_full'][worst]:.0%}"
    loyalty = f"{cell['loyalty']:.1%}" if "loyalty" in cell else ""
    return [*(f"{cell['groups'][g]:.1%}" for g in groups), named, loyalty, f"{cell['mean']:.1%}"]


def _difference_rows(results: Results) -> list[list[str]]:
    rows = []
    for name in (DEFAULT, results["own"]):
        for rival, values in results["differences"][name].items():
            shown = [
                f"{100 * v['mean']:+.1f} ({100 * v['low']:+.1f} to {100 * v['high']:+.1f})"
                for v in values.values()
            ]
            rows.append([name, rival, *shown])
    return rows


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def plot(results: Results) -> bytes:
    """Return a PNG: share of full accuracy over kept share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    kept = [100 * float(share) for share in results["shares"]]
    shown = [
        name for name in results["selectors"] if name in PLOTTED or name.startswith("relevance (")
    ]
    for name in [name for name in shown if "shuffled" not in name]:
        values = [results["selectors"][name][share]["of_full"] for share in results["shares"]]
        means = np.array([value["mean"] for value in values])
        margins = [means - [v["low"] for v in values], [v["high"] for v in values] - means]
        axes.errorbar(
            kept, 100 * means, yerr=100 * np.abs(margins), marker="o", capsize=2, label=name
        )
    axes.set_xscale("log")
    axes.set_xticks(kept, [f"{value:.4g}" for value in kept])
    axes.minorticks_off()
    axes.set_xlabel("vision tokens kept, % (log scale)")
    axes.set_ylabel("share of full accuracy, %")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    data = BytesIO()
    figure.savefig(data, format="png", dpi=150, metadata={"Software": None})
    return data.getvalue()
