"""Tables and a plot from the figures of an evaluation."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from tokprune_export.answer_cells import DEFAULT, FULL
from tokprune_export.evaluation_report import RANDOM, Results

PLOTTED = (RANDOM, "uniform", "attention", "attention-spread", "oracle", DEFAULT)


def markdown(results: Results) -> str:
    """Return the tables."""
    lines = [*_head(results), *_by_share(results)]
    for share in results["shares"]:
        lines += _by_group(results, share)
    heads = [f"{float(share):.4g}" for share in results["shares"]]
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


def _head(results: Results) -> list[str]:
    asked = [f"{count} questions about {kind}s" for kind, count in results["modalities"].items()]
    return [
        "# What pruning does to answers",
        "",
        f"Bundle `{results['bundle']}`, {results['questions']}, {' and '.join(asked)}, "
        f"{results['mean_vision_tokens']:.0f} vision tokens on average, full accuracy "
        f"{results['full']['mean']:.1%}. {results['machine']}, {results['date']}. "
        f"{results['note']}".strip(),
    ]


def _by_share(results: Results) -> list[str]:
    """Return the table of all questions, and one of each modality where there are two."""
    shares = results["shares"]
    lines = ["", "## Share of full accuracy by kept share (all types; 95 % paired bootstrap)", ""]
    lines += _shares_of_full(results["selectors"], shares)
    for kind, part in results["by_modality"].items():
        lines += [
            "",
            f"## The same of the {part['samples']} questions about {kind}s "
            f"({part['mean_vision_tokens']:.0f} vision tokens, full accuracy {part['full']:.1%})",
            "",
            *_shares_of_full(part["selectors"], shares),
        ]
    return lines


def _by_group(results: Results, share: str) -> list[str]:
    groups, full = list(results["groups"]), results["full"]
    whole = [f"{full['groups'][group]:.1%}" for group in groups]
    rows = [[name, *_row(cells[share], groups)] for name, cells in results["selectors"].items()]
    return [
        "",
        f"## Accuracy by type of question, {float(share):.4g} kept",
        "",
        *_table(
            ["selector", *groups, "worst of full", "loyalty", "mean"],
            [[FULL, *whole, "", "", f"{full['mean']:.1%}"], *rows],
        ),
    ]


def _shares_of_full(selectors: Mapping[str, Any], shares: Sequence[str]) -> list[str]:
    rows = [
        [name, *(_percent(cells[share]["of_full"]) for share in shares)]
        for name, cells in selectors.items()
    ]
    return _table(["selector", *(f"{float(share):.4g}" for share in shares)], rows)


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
