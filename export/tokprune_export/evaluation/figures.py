"""Figures from what was answered: of all questions, of each group, and of slices."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np
from jaxtyping import Bool, Float

from tokprune.manifest import Modality
from tokprune.types import Array
from tokprune_export.evaluation.bootstrap import Estimate, Resampled
from tokprune_export.evaluation.cells import (
    DOWNSAMPLE,
    RANDOM,
    SEEDS,
    SHUFFLED,
    UNPRUNED,
    WITHOUT_PRUNING,
    Cell,
    row_name,
    seeded,
)
from tokprune_export.evaluation.record import Given, Record
from tokprune_export.evaluation.suites import DENSE, PICTURES, VIDEOS, WHOLE

Figures = dict[str, Any]  # as results.json has them
QUALITY = ("recall_50", "recall", "spearman")


class Question(NamedTuple):
    """What is known of a question beside its pictures."""

    key: str
    group: str
    answer: str
    dense: bool
    modality: Modality


class Column(NamedTuple):
    """One row of the tables at one budget."""

    name: str
    budget: str


def same(answer: str, known: str) -> bool:
    """Whether answers are the same, but for case, spaces at the ends and a final full stop.

    Letters with accents are the same however they are encoded, as one character or as two.
    """
    first, second = (text.strip().casefold().removesuffix(".") for text in (answer, known))
    return normalize("NFC", first) == normalize("NFC", second)


def parts_of(questions: Sequence[Question]) -> dict[str, Bool[Array, " m"]]:
    """Return which questions each group and slice has; slices only where they are a part."""
    groups = np.asarray([question.group for question in questions])
    dense = np.asarray([question.dense for question in questions])
    films = np.asarray([question.modality == "video" for question in questions])
    found = {WHOLE: np.ones(len(questions), np.bool_)}
    if len(set(groups)) > 1:
        found |= {str(name): groups == name for name in np.unique(groups)}
    slices = {DENSE: dense, PICTURES: ~films, VIDEOS: films}
    return found | {name: part for name, part in slices.items() if part.any() and not part.all()}


class Answered:
    """Answers as figures: one line a question, one column a cell."""

    def __init__(
        self,
        questions: Sequence[Question],
        records: Mapping[str, Record],
        cells: Sequence[Cell],
        reference: Cell = WITHOUT_PRUNING,
    ) -> None:
        """Mark every answer.

        Args:
            questions: in any order.
            records: by key; each has all of the cells.
            cells: those of the tables.
            reference: the one among them with the unpruned answers.
        """
        self.questions = questions
        self.reference = Column(reference.name, reference.budget)
        self._given = [records[question.key].cells for question in questions]
        self._full = [given[reference.key].text for given in self._given]
        self._keys = {(cell.name, cell.budget): cell.key for cell in cells}
        columns = (Column(row_name(cell.name), cell.budget) for cell in cells)
        self.columns = list(dict.fromkeys(columns))
        self.right = self._table(lambda given, question, _: same(given.text, question.answer))
        self.loyal = self._table(lambda given, _, full: same(given.text, full))
        self.kept = self._table(lambda given, *_: float(given.kept))
        totals = [records[question.key].total for question in questions]
        self.encoded = self._encoded(np.asarray(totals, np.float64))

    def _table(self, mark: Any) -> Float[Array, "m c"]:
        """Mark answers; nan where there is none. The seeds of `random` are averaged."""
        lines = [
            [
                np.mean([_marked(mark, each[key], question, full) for key in self.keys(column)])
                for column in self.columns
            ]
            for each, question, full in zip(self._given, self.questions, self._full, strict=True)
        ]
        return np.asarray(lines, np.float64)

    def _encoded(self, totals: Float[Array, " m"]) -> Float[Array, "m c"]:
        """Return the share of the vision tokens that were encoded."""
        counts = self._table(
            lambda given, *_: np.nan if given.encoded is None else float(given.encoded)
        )
        whole = np.isnan(counts) & ~np.isnan(self.kept)
        return np.where(whole, 1.0, counts / totals[:, None])

    def keys(self, column: Column) -> list[str]:
        """Return where the answers of a column are kept."""
        return [self._keys[name, column.budget] for name in seeded(column.name)]

    def given(self, column: Column) -> list[list[Given]]:
        """Return the answers of a column, question by question."""
        keys = self.keys(column)
        return [[each[key] for key in keys] for each in self._given]

    def spread(self, budget: str) -> float:
        """Return how far the seeds of `random` differ in their means over all questions."""
        given = self.given(Column(RANDOM, budget))
        marks = [
            [same(one.text, q.answer or full) for one in line]
            for line, q, full in zip(given, self.questions, self._full, strict=True)
        ]
        return float(np.ptp(np.mean(np.reshape(marks, (-1, len(SEEDS))), axis=0)))


def _marked(mark: Any, given: Given, question: Question, full: str) -> float:
    return np.nan if given.refused else float(mark(given, question, full))


def figures(
    answered: Answered,
    quality: Mapping[str, Float[Array, "m 3"]],
    ours: Sequence[str],
    rivals: Sequence[str],
    *,
    labelled: bool,
) -> Figures:
    """Return all figures.

    Args:
        answered: the answers.
        quality: how far each selector's scores agree with the oracle.
        ours: the selectors whose differences are wanted,
        rivals: from these, and from their own twins.
        labelled: whether right answers are known; else all is about loyalty.
    """
    parts, cells, differences = parts_of(answered.questions), Figures(), Figures()
    for name, part in parts.items():
        whole = name == WHOLE
        strata = [q.group for q in answered.questions] if whole else [name] * int(part.sum())
        right = Resampled(answered.right[part], strata) if labelled else None
        loyal = Resampled(answered.loyal[part], strata)
        for place, column in enumerate(answered.columns):
            by_part = cells.setdefault(column.name, {}).setdefault(column.budget, {})
            scores = _scores(right, loyal, place, answered.columns.index(answered.reference))
            scores |= _tokens(answered.kept[part, place])
            share = answered.encoded[part, place]
            scores["encoded"] = None if np.isnan(share).any() else round(float(share.mean()), 4)
            scores |= _quality(quality.get(column.name), part, strata)
            by_part[name] = {"n": int(part.sum()), **scores}
        if whole:
            differences = _differences(answered, right or loyal, ours, rivals)
    return {
        "n": len(answered.questions),
        "parts": {name: int(part.sum()) for name, part in parts.items()},
        "cells": cells,
        "differences": differences,
        "random_spread": _spreads(answered),
        "downsample": _smaller(answered),
        "refused": _refused(answered),
    }


def worst(by_part: Mapping[str, Any], groups: Sequence[str]) -> tuple[str, float] | None:
    """Return the group that keeps the smallest share of its accuracy (without labels: loyalty)."""
    # A group that could not be asked leaves no figure over all; the others have theirs.
    labelled = any(by_part[part]["accuracy"] is not None for part in (WHOLE, *groups))
    figure = "retention" if labelled else "loyalty"
    found = {group: by_part[group][figure] for group in groups}
    shares = {group: share["mean"] for group, share in found.items() if share is not None}
    return min(shares.items(), key=lambda pair: pair[1]) if shares else None


def plain(estimate: Estimate) -> dict[str, float] | None:
    """Return an estimate as JSON has it; None where there is none."""
    if np.isnan(estimate.mean):
        return None
    return {name: round(value, 5) for name, value in estimate._asdict().items()}


def _scores(right: Resampled | None, loyal: Resampled, place: int, full: int) -> Figures:
    return {
        "accuracy": plain(right.mean(place)) if right else None,
        "retention": plain(right.ratio(place, full)) if right else None,
        "loyalty": plain(loyal.mean(place)),
    }


def _tokens(kept: Float[Array, " m"]) -> Figures:
    if np.isnan(kept).any():
        return {"kept": None, "kept_p95": None}
    return {
        "kept": round(float(kept.mean()), 2),
        "kept_p95": round(float(np.percentile(kept, 95)), 2),
    }


def _quality(
    rows: Float[Array, "m 3"] | None, part: Bool[Array, " m"], strata: Sequence[str]
) -> Figures:
    """Return agreement with the oracle, its mean taken as that of the answers is."""
    if rows is None or np.isnan(rows[part]).any():
        return dict.fromkeys(QUALITY)
    kinds = np.unique(strata)
    means = [rows[part][np.asarray(strata) == kind].mean(axis=0) for kind in kinds]
    values = np.mean(means, axis=0).tolist()
    return {name: round(value, 5) for name, value in zip(QUALITY, values, strict=True)}


def _differences(
    answered: Answered, scores: Resampled, ours: Sequence[str], rivals: Sequence[str]
) -> Figures:
    places = {column: place for place, column in enumerate(answered.columns)}
    found: Figures = {}
    for name in ours:
        for rival in (*rivals, f"{name}{SHUFFLED}"):
            shared = [
                c.budget
                for c in places
                if c.name == name and Column(rival, c.budget) in places and c.budget != UNPRUNED
            ]
            estimates = {
                budget: plain(
                    scores.difference(places[Column(name, budget)], places[Column(rival, budget)])
                )
                for budget in shared
            }
            if estimates:
                found.setdefault(name, {})[rival] = estimates
    return found


def _spreads(answered: Answered) -> Figures:
    budgets = [c.budget for c in answered.columns if c.name == RANDOM]
    asked = [b for b in budgets if not any(g.refused for g in answered.given(Column(RANDOM, b))[0])]
    return {budget: round(answered.spread(budget), 5) for budget in asked}


def _smaller(answered: Answered) -> Figures:
    """Return what became of the pictures at each budget."""
    found: Figures = {}
    for column in (column for column in answered.columns if column.name == DOWNSAMPLE):
        given = [line[0] for line in answered.given(column)]
        found[column.budget] = dict(Counter(one.note for one in given).most_common())
    return found


def _refused(answered: Answered) -> list[Figures]:
    """Say what could not be asked, and why."""
    found = []
    for column in answered.columns:
        why = [line[0].refused for line in answered.given(column) if line[0].refused]
        if why:
            reason = Counter(why).most_common(1)[0][0]
            place = {"selector": column.name, "budget": column.budget}
            found.append({**place, "questions": len(why), "why": reason})
    return found
