"""Figures of the two-turn test."""

from collections.abc import Mapping, Sequence

from tokprune_export.evaluation.bootstrap import Resampled
from tokprune_export.evaluation.cells import FULL, UNPRUNED, Cell
from tokprune_export.evaluation.figures import (
    Answered,
    Column,
    Figures,
    Question,
    figures,
    plain,
)
from tokprune_export.evaluation.record import Record
from tokprune_export.evaluation.turns import AFRESH, WAYS, named


def turn_figures(
    questions: Sequence[Question],
    records: Mapping[str, Record],
    cells: Sequence[Cell],
    selectors: Sequence[str],
    *,
    labelled: bool,
) -> Figures:
    """Return the figures of each way to ask a second question, and what is lost against afresh."""
    answered = Answered(questions, records, cells, Cell(named(FULL, AFRESH), UNPRUNED))
    values = answered.right if labelled else answered.loyal
    scores = Resampled(values, [question.group for question in questions])
    places = {column: place for place, column in enumerate(answered.columns)}
    losses: Figures = {}
    for name in selectors:
        budgets = [column.budget for column in places if column.name == named(name, AFRESH)]
        losses[name] = {
            way: {
                budget: plain(
                    scores.difference(
                        places[Column(named(name, way), budget)],
                        places[Column(named(name, AFRESH), budget)],
                    )
                )
                for budget in budgets
            }
            for way in WAYS[1:]
        }
    return {
        "selectors": list(selectors),
        "figures": figures(answered, {}, (), (), labelled=labelled),
        "losses": losses,
        "why": "",
    }
