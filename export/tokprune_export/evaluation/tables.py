"""The results as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokprune_export.evaluation.cells import FULL, SHUFFLED, UNPRUNED
from tokprune_export.evaluation.figures import worst
from tokprune_export.evaluation.latency import STAGES
from tokprune_export.evaluation.options import is_fixed
from tokprune_export.evaluation.suites import DENSE, PICTURES, VIDEOS, WHOLE
from tokprune_export.evaluation.turns import AFRESH, AGAIN, WAYS, named

SLICES = (DENSE, PICTURES, VIDEOS)
Results = Mapping[str, Any]


def markdown(results: Results) -> str:
    """Return all tables."""
    lines = [*_head(results), *_main(results, results["figures"])]
    if results["more"]:
        lines += ["", f"# The same on {results['more']['n']} questions"]
        lines += _main(results, results["more"])
    lines += [*_adaptive(results), *_agreement(results), *_turns(results), *_latency(results)]
    lines += [*_downsample(results), *_missing(results)]
    return "\n".join(lines) + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table, numbers to the right."""
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return ["", *(f"| {' | '.join(map(_inside, line))} |" for line in lines)]


def _inside(text: str) -> str:
    """Return text that stays in its cell, whatever a group is called."""
    return " ".join(text.splitlines()).replace("|", "\\|")


def groups_of(figures: Results) -> list[str]:
    """Return the groups, slices left out."""
    return [name for name in figures["parts"] if name != WHOLE and name not in SLICES]


def budgets_of(results: Results, figures: Results) -> list[str]:
    """Return the budgets that were asked for, as far as these questions had them."""
    asked = {budget for budgets in figures["cells"].values() for budget in budgets}
    return [budget for budget in results["budgets"] if budget in asked]


def _head(results: Results) -> list[str]:
    figures = results["figures"]
    full = figures["cells"][FULL][UNPRUNED][WHOLE]
    split = "" if results["split"] == "-" else f", {results['split']} split"
    size = f" of {results['frames']} frames" if results["frames"] else ""
    size += f" of {results['tokens']} vision tokens" if results["tokens"] else ""
    accuracy = "Right answers are not given: scores are loyalty, the share of unpruned answers."
    if results["labelled"]:
        accuracy = f"Full accuracy {_percent(full['accuracy'])}."
    ours = ", ".join(f"`{name}`" for name in results["ours"]) or "none"
    return [
        "# What pruning does to answers",
        "",
        f"Bundle `{results['bundle']}`, suite {results['suite']}{split}{size}, {figures['n']} "
        f"questions, {full['kept']:.0f} vision tokens on average. {accuracy} Ours: {ours} (default "
        f"of the bundle: `{results['default']}`). {results['machine']}, {results['date']}. "
        f"{results['note']}".strip(),
        "",
        "`all` is the mean over groups; intervals are 95 %, from a paired bootstrap within groups. "
        "docs/evaluation.md explains every column.",
    ]


def _main(results: Results, figures: Results) -> list[str]:
    budgets = budgets_of(results, figures)
    if all(UNPRUNED not in cells for name, cells in figures["cells"].items() if name != FULL):
        budgets = [budget for budget in budgets if budget != UNPRUNED]
    figure = "retention" if results["labelled"] else "loyalty"
    title = "Share of full accuracy" if results["labelled"] else "Loyalty"
    lines = ["", f"## {title} by budget, mean over groups"]
    lines += table(
        ["selector", *budgets],
        [
            [_bold(results, name), *(_interval(_part(cells, b)[figure]) for b in budgets)]
            for name, cells in figures["cells"].items()
            if name != FULL
        ],
    )
    for budget in [b for b in budgets if b != UNPRUNED] or budgets:
        lines += _by_group(results, figures, budget)
    return [*lines, *_differences(results, figures), *_spread(figures)]


def _by_group(results: Results, figures: Results, budget: str) -> list[str]:
    groups, whole = groups_of(figures), figures["cells"][FULL][UNPRUNED]
    slices = [name for name in figures["parts"] if name in SLICES]
    figure = "accuracy" if results["labelled"] else "loyalty"
    title = "Accuracy" if results["labelled"] else "Loyalty"
    heads = ["selector", *groups, "all", *slices, "worst group", "loyalty", "kept", "encoded"]

    def line(name: str, parts: Results) -> list[str]:
        least = worst(parts, groups)
        return [
            _bold(results, name),
            *(_percent(parts[part][figure]) for part in (*groups, WHOLE, *slices)),
            "" if least is None else f"{least[0]} {least[1]:.0%}",
            _percent(parts[WHOLE]["loyalty"]),
            "" if parts[WHOLE]["kept"] is None else f"{parts[WHOLE]['kept']:.0f}",
            "" if parts[WHOLE]["encoded"] is None else f"{parts[WHOLE]['encoded']:.0%}",
        ]

    rows = [line(FULL, whole)]
    rows += [
        line(name, cells[budget])
        for name, cells in figures["cells"].items()
        if name != FULL and budget in cells
    ]
    return ["", f"## {title} by group at budget {budget}", *table(heads, rows)]


def _differences(results: Results, figures: Results) -> list[str]:
    if not figures["differences"]:
        return []
    budgets = [b for b in budgets_of(results, figures) if b != UNPRUNED]
    what = "accuracy" if results["labelled"] else "loyalty"
    lines = ["", f"## Differences in {what}, points"]
    lines += ["", "Ours less the other; bold where the interval excludes 0."]
    for name, rivals in figures["differences"].items():
        lines += table(
            [f"`{name}` against", *budgets],
            [[rival, *(_points(each.get(b)) for b in budgets)] for rival, each in rivals.items()],
        )
    return lines


def _spread(figures: Results) -> list[str]:
    spreads = figures["random_spread"]
    if not spreads:
        return []
    shown = ", ".join(f"{100 * value:.1f} at {budget}" for budget, value in spreads.items())
    return ["", f"Highest less lowest of the three seeds of `random`, in points: {shown}."]


def _adaptive(results: Results) -> list[str]:
    if not results["adaptive"]:
        return []
    cells = results["figures"]["cells"]
    figure = "accuracy" if results["labelled"] else "loyalty"
    heads = ["selector", "budget", "kept, mean", "kept, p95", figure]
    heads += ["fixed, equal mean", figure, "fixed, equal p95", figure]
    rows = []
    for each in results["adaptive"].values():
        fixed = (each["equal_mean"], each["equal_p95"])
        row = [each["name"], each["budget"]]
        row += [f"{each['kept']['mean']:.1f}", f"{each['kept']['p95']:.1f}"]
        row.append(_interval(cells[each["name"]][each["budget"]][WHOLE][figure]))
        for budget in fixed:
            row += [budget, _interval(cells[each["name"]][budget][WHOLE][figure])]
        rows.append(row)
    return ["", "## Adaptive budgets and fixed ones that keep as much", *table(heads, rows)]


def _agreement(results: Results) -> list[str]:
    rows = []
    for name, budgets in results["figures"]["cells"].items():
        part = next(iter(budgets.values()))[WHOLE]
        if part["spearman"] is not None:
            values = (part[figure] for figure in ("recall_50", "recall", "spearman"))
            rows.append([_bold(results, name), *(f"{value:.3f}" for value in values)])
    if not rows:
        return []
    heads = ["scores", "recall at 50 %", "recall at 25 %", "Spearman"]
    return ["", "## Agreement of scores with the oracle", *table(heads, rows)]


def _turns(results: Results) -> list[str]:
    turns = results["turns"]
    if not turns or not turns["figures"]:
        return [] if not turns else ["", "## Two turns", "", turns["why"]]
    cells = turns["figures"]["cells"]
    figure = "accuracy" if results["labelled"] else "loyalty"
    chat = cells[named(FULL, AGAIN)][UNPRUNED][WHOLE][figure]
    alone = cells[named(FULL, AFRESH)][UNPRUNED][WHOLE][figure]
    heads = ["selector", "budget", *WAYS, *(f"{way} - afresh, points" for way in WAYS[1:])]
    rows = []
    for name in turns["selectors"]:
        for budget in cells[named(name, AFRESH)]:
            ways = (cells[named(name, way)][budget][WHOLE] for way in WAYS)
            losses = (turns["losses"][name][way][budget] for way in WAYS[1:])
            rows.append(
                [name, budget, *(_percent(w[figure]) for w in ways), *(_points(x) for x in losses)]
            )
    return [
        "",
        "## Two turns",
        "",
        f"The second of two questions about the same, {turns['figures']['n']} pairs, {figure}. All "
        f"tokens: {_percent(alone)} afresh, {_percent(chat)} as the second turn. Afresh: a new "
        "conversation. Selected again: the second turn, tokens chosen for its question. Reused: "
        "the second turn, from the tokens that the first question chose. Reused alone: a new "
        "conversation, from the tokens that the first question chose.",
        *table(heads, rows),
    ]


def _latency(results: Results) -> list[str]:
    measured = results["latency"]
    if not measured:
        return []
    rows = []
    for key, times in measured["cells"].items():
        name, _, budget = key.partition("@")
        stages = [f"{times['p50'][stage]:.1f}" for stage in STAGES]
        whole = [f"{times[q]['ttft']:.1f}" for q in ("p50", "p95")]
        rows.append([_bold(results, name), budget, *stages, *whole])
    heads = ["selector", "budget", *(stage.replace("_", " ") for stage in STAGES)]
    return [
        "",
        "## Time to first token, ms",
        "",
        f"Medians of {measured['questions']} questions by stage, after pictures were cut; "
        "cells took turns, in one process of one thread. The vision encoder ran three times a "
        "question for all of them; `downsample` has its own time there.",
        *table([*heads, "TTFT p50", "TTFT p95"], rows),
    ]


def _downsample(results: Results) -> list[str]:
    made = results["figures"]["downsample"]
    if not made:
        return []
    cells = results["figures"]["cells"]["downsample"]
    rows = []
    for budget, ways in made.items():
        how = ", ".join(f"{way} {count}" for way, count in ways.items())
        rows.append([budget, f"{cells[budget][WHOLE]['kept']:.1f}", how])
    heads = ["budget", "vision tokens, mean", "how, questions"]
    return ["", "## What `downsample` did", *table(heads, rows)]


def _missing(results: Results) -> list[str]:
    lines: list[str] = []
    if results["skipped"]:
        lines += ["", "## Left out: this bundle cannot run them"]
        lines += table(["selector", "why"], [[n, w] for n, w in results["skipped"].items()])
    refused: dict[tuple[str, int, str], list[str]] = {}
    for each in results["figures"]["refused"]:
        place = (each["budget"], each["questions"], each["why"])
        refused.setdefault(place, []).append(each["selector"])
    if refused:
        lines += ["", "## Not answered", "", "These have no figure where a question is missing."]
        rows = [
            [", ".join(names), budget, str(count), why]
            for (budget, count, why), names in refused.items()
        ]
        lines += table(["selectors", "budget", "questions", "why"], rows)
    return lines


def _part(cells: Results, budget: str) -> Results:
    if budget in cells:
        return cells[budget][WHOLE]
    return {"retention": None, "accuracy": None, "loyalty": None}


def _bold(results: Results, name: str) -> str:
    return f"**{name}**" if name in results["ours"] and SHUFFLED not in name else name


def _percent(estimate: Mapping[str, float] | None) -> str:
    return "" if estimate is None else f"{estimate['mean']:.1%}"


def _interval(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return ""
    low, high = 100 * estimate["low"], 100 * estimate["high"]
    return f"{estimate['mean']:.1%} ({low:.1f} to {high:.1f})"


def _points(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return ""
    mean, low, high = (100 * estimate[name] for name in ("mean", "low", "high"))
    text = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def fixed_budgets(results: Results) -> list[str]:
    """Return the fixed budgets, most tokens first, as plots have them."""
    return [budget for budget in results["budgets"] if is_fixed(budget)]
