"""One scorer network from the labels: trained on one of two losses, and measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch

from tokprune_export.agreement import Figures, attention_scores, measure
from tokprune_export.answer_training import (
    RECIPE,
    Lesson,
    Task,
    lessons_of,
    lost_answers,
    train_on_answers,
)
from tokprune_export.decoder import TextModel
from tokprune_export.division import Division
from tokprune_export.label_cache import SHARD_LABELS, Label, LabelCache
from tokprune_export.progress import Counting
from tokprune_export.scorer_training import RECIPES, Pair, network_of, pair_of, predictions, train
from tokprune_export.scorers import Arch, Network, Scorer, Size

Loss = Literal["relevance", "answers"]
LOSSES: dict[Arch, Loss] = {"paper": "relevance", "grid": "relevance", "asked": "answers"}


class Fitted(NamedTuple):
    """A network, and how good it is."""

    scorer: Scorer
    figures: Figures
    loss: Loss


@dataclass(frozen=True)
class Classroom:
    """What networks are trained from."""

    text: TextModel  # the frozen LLM
    size: Size
    division: Division
    cache: LabelCache
    device: torch.device
    seed: int

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
        network = network_of(arch, self.size, self.seed).to(self.device)
        run = self._on_answers if loss == "answers" else self._on_relevance
        run(network, arch, epochs)
        pairs = [self._pair(network, label) for label in self.division.held.labels]
        row = self.measured(list(predictions(network, pairs)))
        kinds = self.division.modalities
        return Fitted(Scorer(network, arch, kinds, row.overall._asdict(), row.apart()), row, loss)

    def _pair(self, network: Network, label: Label) -> Pair:
        return pair_of(network, label, self.text.embeddings, self.device)

    def _on_relevance(self, network: Network, arch: Arch, epochs: int | None) -> None:
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
            )

    def _tasks(self, network: Network, names: Sequence[str], what: str) -> list[Task]:
        tasks: list[Task] = []
        labels = self.labels(names)
        with Counting(what, len(labels)) as counting:
            for lesson in lessons_of(self.text, labels):
                tasks.append(Task(self._pair(network, lesson.label), lesson))
                counting.advance()
        return tasks


def _note(loss: float, other: float) -> str:
    return f"loss {loss:.4f}, on what it has not seen {other:.4f}"
