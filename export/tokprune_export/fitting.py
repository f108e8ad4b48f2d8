"""One scorer network from the labels: trained on one of two losses, and measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch

from tokprune_export.agreement import Figures, Quality, attention_scores, measure, quality
from tokprune_export.answer_training import COURSE, RECIPE, Task, glance_scores, train_on_answers
from tokprune_export.decoder import TextModel
from tokprune_export.division import Division
from tokprune_export.label_cache import SHARD_LABELS, Label, LabelCache
from tokprune_export.lessons import Lesson, lessons_of, lost_answers
from tokprune_export.pairs import Pair, glance_of, pair_of
from tokprune_export.progress import Counting
from tokprune_export.scorer_training import (
    RECIPES,
    Objective,
    divergence,
    network_of,
    predictions,
    train,
)
from tokprune_export.scorers import Arch, Network, Scorer, Size

Loss = Literal["relevance", "answers"]
LOSSES: dict[Arch, Loss] = {
    "paper": "relevance",
    "grid": "relevance",
    "asked": "answers",
    "frames": "answers",
}


class Fitted(NamedTuple):
    """A network, and how good it is."""

    scorer: Scorer
    figures: Figures
    loss: Loss
    glances: Quality | None  # of the held-out questions that have one


@dataclass(frozen=True)
class Classroom:
    """What networks are trained from."""

    text: TextModel  # the frozen LLM
    size: Size
    division: Division
    cache: LabelCache
    device: torch.device
    seed: int
    glances: float  # share of the questions that are shown as a glance, in training on answers

    @cached_property
    def held(self) -> list[Lesson]:
        """What nothing is trained on, with the LLM's answers."""
        return list(lessons_of(self.text, self.division.held.labels))

    def measured(self, scores: Sequence) -> Figures:
        """Say how good the scores of the held-out questions are."""
        return measure(scores, self.division.held, lost_answers(self.text, scores, self.held))

    def attention(self) -> Figures:
        """Say how good the mean attention is, which needs no network."""
        return self.measured([attention_scores(label) for label in self.division.held.labels])

    def labels(self, names: Sequence[str]) -> list[Label]:
        """Read labels, a shard's worth at a time."""
        found: list[Label] = []
        for start in range(0, len(names), SHARD_LABELS):
            labels = self.cache.read(names[start : start + SHARD_LABELS])
            found += [labels[name] for name in names[start : start + SHARD_LABELS]]
        return found

    def fit(self, arch: Arch, loss: Loss, epochs: int | None) -> Fitted:
        """Train one network and measure it."""
        return self.teach(network_of(arch, self.size, self.seed), arch, loss, epochs)

    def teach(
        self,
        network: Network,
        arch: Arch,
        loss: Loss,
        epochs: int | None = None,
        objective: Objective = divergence,
    ) -> Fitted:
        """Train a network that is given and measure it.

        Args:
            network: untrained.
            arch: whose recipe it gets.
            loss: what it learns from.
            epochs: None: as many as the recipe has.
            objective: how it learns from relevance; the paper's if not given.
        """
        network.to(self.device)
        if loss == "answers":
            self._on_answers(network, arch, epochs)
        else:
            self._on_relevance(network, arch, epochs, objective)
        pairs = [self._pair(network, label) for label in self.division.held.labels]
        row, glances = self.measured(list(predictions(network, pairs))), self._glances(network)
        kinds = self.division.modalities
        seen = None if glances is None else glances._asdict()
        scorer = Scorer(network, arch, kinds, row.overall._asdict(), row.apart(), seen)
        return Fitted(scorer, row, loss, glances)

    def _glances(self, network: Network) -> Quality | None:
        """Say how good the scores are where a smaller look is all that was taken."""
        seen = [(self._glance(network, lesson.label), lesson) for lesson in self.held]
        both = [(pair, lesson) for pair, lesson in seen if pair is not None]
        if not both:
            return None
        scores, lessons = glance_scores(network, both), [lesson for _, lesson in both]
        lost = lost_answers(self.text, scores, lessons)
        return quality(scores, [lesson.label for lesson in lessons], lost)

    def _pair(self, network: Network, label: Label) -> Pair:
        return pair_of(network, label, self.text.embeddings, self.device)

    def _glance(self, network: Network, label: Label) -> Pair | None:
        return glance_of(network, label, self.text.embeddings, self.device)

    def _on_relevance(
        self, network: Network, arch: Arch, epochs: int | None, objective: Objective
    ) -> None:
        def pairs(names: Sequence[str]) -> list[Pair]:
            return [self._pair(network, label) for label in self.labels(names)]

        recipe = RECIPES[arch].scaled(epochs)
        with Counting(f"training the {arch} network", recipe.epochs) as counting:
            train(
                network,
                pairs(self.division.training),
                pairs(self.division.checked),
                recipe,
                self.seed,
                lambda _, loss, other: counting.advance(note=_note(loss, other)),
                objective,
            )

    def _on_answers(self, network: Network, arch: Arch, epochs: int | None) -> None:
        recipe = RECIPE.scaled(epochs)
        tasks = self._tasks(network, self.division.training, "answers with all vision tokens")
        checked = self._tasks(network, self.division.checked, "others, to tell when to stop")
        steps = recipe.epochs * recipe.steps(len(tasks))
        with Counting(f"training the {arch} network on answers, steps", steps) as counting:
            train_on_answers(
                network,
                self.text,
                tasks,
                checked,
                recipe,
                self.seed,
                lambda loss, other: counting.advance(note=_note(loss, other)),
                replace(COURSE, glances=self.glances),
            )

    def _tasks(self, network: Network, names: Sequence[str], what: str) -> list[Task]:
        tasks: list[Task] = []
        labels = self.labels(names)
        with Counting(what, len(labels)) as counting:
            for lesson in lessons_of(self.text, labels):
                label = lesson.label
                tasks.append(Task(self._pair(network, label), lesson, self._glance(network, label)))
                counting.advance()
        return tasks


def _note(loss: float, other: float) -> str:
    return f"loss {loss:.4f}, on what it has not seen {other:.4f}"
