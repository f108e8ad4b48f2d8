"""Three pictures of the results: over kept tokens, over time to first token, and by group."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokprune_export.evaluation.cells import (
    DOWNSAMPLE,
    FULL,
    ORACLE,
    RANDOM,
    SHUFFLED,
    UNPRUNED,
)
from tokprune_export.evaluation.suites import WHOLE
from tokprune_export.evaluation.tables import fixed_budgets, groups_of

STRONG = ("#c1272d", "#0b5fa5", "#7b2d8b", "#00753a", "#b35c00", "#222222")  # ours
PALE = (
    "#7f9fbf", "#bf9f7f", "#8fbf8f", "#bf8f9f", "#9f8fbf", "#7fbfbf", "#bfbf7f", "#999999",
)  # fmt: skip
MARKERS = "osv^D<>pPX"
BASELINES = (DOWNSAMPLE, "uniform", RANDOM)  # drawn dark
QUARTER = "0.25"  # the budget of the picture by group
Results = Mapping[str, Any]
Point = tuple[float, float]


def over_kept(results: Results) -> bytes:
    """Return a PNG: accuracy over the mean of kept vision tokens."""
    cells = results["figures"]["cells"]
    figure = _figure_of(results)
    lines = {
        name: [(b[x][WHOLE]["kept"], b[x][WHOLE][figure]["mean"]) for x in _budgets(results, b)]
        for name, b in cells.items()
    }
    return _lines(results, lines, "vision tokens that enter the LLM, mean (log scale)")


def over_ttft(results: Results) -> bytes | None:
    """Return a PNG: accuracy over the median time to first token; None where it was not timed."""
    if not results["latency"]:
        return None
    cells, times = results["figures"]["cells"], results["latency"]["cells"]
    figure = _figure_of(results)
    lines: dict[str, list[Point]] = {}
    for key, timed in times.items():
        name, _, budget = key.partition("@")
        part = cells.get(name, {}).get(budget, {}).get(WHOLE)
        if part is not None and part[figure] is not None:
            lines.setdefault(name, []).append((timed["p50"]["ttft"], part[figure]["mean"]))
    return _lines(results, lines, "time to first token, ms, median (log scale)")


def by_group(results: Results) -> bytes:
    """Return a PNG: scores in every group at a quarter of the tokens; of twins, those of ours."""
    figures, figure = results["figures"], _figure_of(results)
    budgets = [budget for budget in fixed_budgets(results) if budget != UNPRUNED] or [UNPRUNED]
    budget = QUARTER if QUARTER in budgets else budgets[-1]
    parts = [*groups_of(figures), WHOLE]
    shown = {FULL: figures["cells"][FULL][UNPRUNED]}
    ours = (*results["ours"], *(f"{name}{SHUFFLED}" for name in results["ours"]))
    for name, each in figures["cells"].items():
        if SHUFFLED in name and name not in ours:
            continue
        if name != FULL and budget in each and each[budget][WHOLE][figure] is not None:
            shown[name] = each[budget]
    shown = dict(
        sorted(shown.items(), key=lambda item: item[1][WHOLE][figure]["mean"], reverse=True)
    )
    values = [[by[part][figure]["mean"] for part in parts] for by in shown.values()]
    size = (2.6 + 0.75 * len(parts), 1.2 + 0.27 * len(shown))
    picture = Figure(figsize=size, layout="constrained")
    axes = picture.subplots()
    axes.imshow(
        100 * np.asarray(values), aspect="auto", cmap="RdYlGn", vmin=0, vmax=100, alpha=0.55
    )
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(parts)), list(map(_literal, parts)), rotation=30, ha="right")
    axes.set_yticks(range(len(shown)), list(map(_literal, shown)), fontsize=8)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in (FULL, *results["ours"]) else "normal")
    axes.axvline(len(parts) - 1.5, color="black", linewidth=1)
    axes.set_title(f"{figure}, %, budget {budget}", fontsize=10)
    return _png(picture)


def _figure_of(results: Results) -> str:
    return "accuracy" if results["labelled"] else "loyalty"


def _budgets(results: Results, cells: Mapping[str, Any]) -> list[str]:
    """Return the fixed budgets of a selector that have figures."""
    figure = _figure_of(results)
    fixed = [budget for budget in fixed_budgets(results) if budget in cells]
    return [budget for budget in fixed if cells[budget][WHOLE][figure] is not None]


def _lines(results: Results, lines: Mapping[str, Sequence[Point]], label: str) -> bytes:
    """Draw a line a selector, best first in the legend; ours are bold, twins left out."""
    figure = _figure_of(results)
    shown = {n: points for n, points in lines.items() if points and SHUFFLED not in n}
    whole = results["figures"]["cells"][FULL][UNPRUNED][WHOLE][figure]["mean"]
    shown.pop(FULL, None)
    names = sorted(shown, key=lambda name: _rank(shown[name]))
    picture = Figure(figsize=(10, max(5, 1 + 0.24 * len(names))), layout="constrained")
    axes = picture.subplots()
    axes.axhline(100 * whole, color="black", linestyle="--", linewidth=1, label="full", zorder=1)
    ours = results["ours"]  # in one order, so that a line looks the same in both pictures
    others = [name for name in results["figures"]["cells"] if name not in ours]
    for name in names:
        points = 100 * np.asarray(shown[name]) * (0.01, 1)
        style = _style(name, ours, others)
        axes.plot(points[:, 0], points[:, 1], label=_literal(name), **style)
    _dress(axes, results, label)
    legend = picture.legend(loc="outside right upper", fontsize=8, title="best mean first")
    for text in legend.get_texts():
        text.set_fontweight("bold" if text.get_text() in ours else "normal")
    return _png(picture)


def _literal(text: str) -> str:
    """Return text in which a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def _rank(points: Sequence[Point]) -> tuple[int, float]:
    """Return what lines are sorted by: those that were refused at some budgets come last."""
    return -len(points), -float(np.mean([y for _, y in points]))


def _style(name: str, ours: Sequence[str], others: Sequence[str]) -> dict[str, Any]:
    if name in ours:
        place = ours.index(name)
        return {
            "color": STRONG[place % len(STRONG)], "linewidth": 2.6, "marker": MARKERS[place % 10],
            "markersize": 6, "zorder": 4,
        }  # fmt: skip
    if name == ORACLE:
        return {"color": "black", "linewidth": 1.2, "linestyle": ":", "zorder": 3}
    if name in BASELINES:
        style = {"color": "#444444", "linewidth": 1.6, "marker": MARKERS[BASELINES.index(name)]}
        return {**style, "markersize": 4, "linestyle": "--", "zorder": 3}
    place = others.index(name)
    return {
        "color": PALE[place % len(PALE)], "linewidth": 1.1, "marker": MARKERS[place // 8 % 10],
        "markersize": 3.5, "linestyle": ("-", "--", "-.")[place // 8 % 3], "zorder": 2,
    }  # fmt: skip


def _dress(axes: Axes, results: Results, label: str) -> None:
    axes.set_xscale("log")
    ticks = _ticks(*axes.get_xlim())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel(f"{_figure_of(results)}, mean over groups, %")
    title = f"{results['bundle']}, {results['suite']}, {results['split']}"
    axes.set_title(_literal(title), fontsize=10)
    axes.grid(visible=True, alpha=0.25)


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two bounds, evenly on a log scale."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    found = [step * 10.0**decade for decade in decades for step in (1, 1.5, 2, 3, 5, 7)]
    return [tick for tick in found if low <= tick <= high]


def _png(picture: Figure) -> bytes:
    data = BytesIO()
    picture.savefig(data, format="png", dpi=140, metadata={"Software": None})
    return data.getvalue()
