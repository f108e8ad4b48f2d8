"""Five questions about one drawn picture, asked as a conversation in several ways, and one by one.

A conversation keeps the model's own answers, right or wrong, as a user's would.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int64
from rich.progress import track

import tokprune
from tokprune.scenes import Sample, suite
from tokprune.scenes.questions import KINDS
from tokprune.types import Array

TURNS = 5
TOKENS = 196  # of Qwen2-VL; a picture of 392 x 392 pixels
BUDGET = 0.5
NEW_TOKENS = 8  # as in the accuracy tests: the longest answer has fewer
GOAL_POINTS = -1.0
RESAMPLES = 4000

Answers: TypeAlias = list[str]
Way: TypeAlias = Callable[[tokprune.VLM, Sequence[Sample]], Answers]


@dataclass(frozen=True)
class Talk:
    """One scene: its questions, and which were answered rightly, by the way of asking."""

    key: str
    groups: tuple[str, ...]
    right: dict[str, tuple[bool, ...]]
    as_unpruned: dict[str, tuple[bool, ...]]  # the answer is that of the unpruned conversation


def conversation(budget: float, *, pin: bool = False, selector: str | None = None) -> Way:
    """Ask one question after another; the picture is shown with the first."""

    def ask(vlm: tokprune.VLM, samples: Sequence[Sample]) -> Answers:
        chat = vlm.chat(budget=budget, pin=pin, selector=selector)
        answers: Answers = []
        for turn, sample in enumerate(samples):
            shown = () if turn else sample.pictures[0]
            answers.append(chat.ask(sample.question, shown, max_new_tokens=NEW_TOKENS).text)
        return answers

    return ask


def one_by_one(budget: float) -> Way:
    """Ask every question by itself, without what was said before."""

    def ask(vlm: tokprune.VLM, samples: Sequence[Sample]) -> Answers:
        return [
            vlm.ask(one.pictures[0], one.question, budget, max_new_tokens=NEW_TOKENS).text
            for one in samples
        ]

    return ask


def pinned_alone(selector: str) -> Way:
    """Ask every question by itself about a pinned picture."""

    def ask(vlm: tokprune.VLM, samples: Sequence[Sample]) -> Answers:
        pinned = vlm.pin(samples[0].pictures[0], budget=BUDGET, selector=selector)
        return [pinned.ask(one.question, max_new_tokens=NEW_TOKENS).text for one in samples]

    return ask


UNPRUNED, RESELECTED = "chat, unpruned", "chat, chosen again for every question"
WAYS: dict[str, Way] = {
    UNPRUNED: conversation(1.0),
    RESELECTED: conversation(BUDGET),
    "chat, pinned by spread": conversation(BUDGET, pin=True, selector="spread"),
    "chat, pinned by uniform": conversation(BUDGET, pin=True, selector="uniform"),
    "single questions, unpruned": one_by_one(1.0),
    "single questions, chosen for each": one_by_one(BUDGET),
    "single questions, pinned by spread": pinned_alone("spread"),
}


def dialogues(count: int) -> Iterator[list[Sample]]:
    """Yield five questions of different types about each of `count` scenes of the test split."""
    found, asked = 0, count
    while found < count:  # a scene that allows fewer questions is passed over
        asked += count
        samples = suite("test", asked, tokens=TOKENS, questions=TURNS, groups=tuple(KINDS))
        whole = [list(of) for _, of in groupby(samples, lambda s: s.key.rpartition("/")[0])]
        whole = [samples for samples in whole if len(samples) == TURNS]
        yield from whole[found:count]
        found = len(whole)


def talks(bundle: Path, scenes: int) -> list[Talk]:
    """Hold every conversation in every way, on one thread."""
    with tokprune.load(bundle, backend="cpu", threads=1) as vlm:
        return [
            _talk(vlm, samples)
            for samples in track(dialogues(scenes), description=bundle.name, total=scenes)
        ]


def _talk(vlm: tokprune.VLM, samples: Sequence[Sample]) -> Talk:
    said = {name: way(vlm, samples) for name, way in WAYS.items()}
    truth = [sample.answer for sample in samples]
    return Talk(
        key=samples[0].key.rpartition("/")[0],
        groups=tuple(sample.group for sample in samples),
        right={name: _same(answers, truth) for name, answers in said.items()},
        as_unpruned={name: _same(answers, said[UNPRUNED]) for name, answers in said.items()},
    )


def _same(ours: Answers, theirs: Answers) -> tuple[bool, ...]:
    return tuple(one == other for one, other in zip(ours, theirs, strict=True))


def summarise(held: Sequence[Talk]) -> dict[str, Any]:
    """Return accuracy by way and turn, and how far each way is from the unpruned conversation."""
    right = {name: np.array([talk.right[name] for talk in held], np.float64) for name in WAYS}
    draws = np.random.default_rng(0).integers(0, len(held), (RESAMPLES, len(held)))
    ways: dict[str, Any] = {}
    for name, values in right.items():
        apart = values - right[UNPRUNED]
        agrees = np.array([talk.as_unpruned[name] for talk in held], np.float64)
        ways[name] = {
            "accuracy": round(float(values.mean()), 4),
            "by_turn": [round(float(turn), 4) for turn in values.mean(axis=0)],
            "points": points(apart.mean(axis=1), draws),
            "points_by_turn": [points(turn, draws) for turn in apart.T],
            "says_what_unpruned_says": round(float(agrees.mean()), 4),
            "by_group": _by_group(held, values),
        }
    history = (right[UNPRUNED] - right["single questions, unpruned"]).mean(axis=1)
    return {
        "scenes": len(held),
        "ways": ways,
        "points_by_history": points(history, draws),
        "reached": ways[RESELECTED]["points"]["mean"] >= GOAL_POINTS,
        "worst_group": _worst_group(ways),
    }


def points(
    apart: Float[Array, " scenes"], draws: Int64[Array, "resamples scenes"]
) -> dict[str, float]:
    """Return a mean difference in points, with its 95 % bootstrap interval over scenes."""
    means = apart[draws].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    values = {"mean": apart.mean(), "low": low, "high": high}
    return {name: round(float(100 * value), 2) for name, value in values.items()}


def _by_group(held: Sequence[Talk], right: Float[Array, "scenes turns"]) -> dict[str, float]:
    groups = np.array([talk.groups for talk in held])
    return {
        str(group): round(float(right[groups == group].mean()), 4) for group in np.unique(groups)
    }


def _worst_group(ways: dict[str, Any]) -> str:
    """Return the type of question that loses most by choosing tokens."""
    full, pruned = ways[UNPRUNED]["by_group"], ways[RESELECTED]["by_group"]
    return min(full, key=lambda group: pruned[group] - full[group])
