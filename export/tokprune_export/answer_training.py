"""Train a scorer on what answers lose, through the frozen LLM.

Of each question's vision tokens a share is drawn that may stay; the others are dimmed (dimming.py)
by their scores. The loss is how far the LLM's answer moves: KL(with all tokens || dimmed), summed
over the answer's tokens and its end. Labels that explain a given answer say nothing of what "no"
or "three" was read from; this loss does. Noise on the scores lets tokens that are scored too low be
met, and falls together with the temperature, so that in the end tokens are there or gone.

A share of the questions is shown as a glance (glances.py), whose scores count for the tokens of the
whole pictures that lie under them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokprune.types import Array
from tokprune_export.decoder import TextModel
from tokprune_export.dimming import kept_shares
from tokprune_export.label_cache import Label
from tokprune_export.lessons import Lesson, lost_answers, moved, parts, rows_of
from tokprune_export.pairs import Pair, batched_logits, collate
from tokprune_export.scorer_training import Recipe, optimiser_of, predictions
from tokprune_export.scorers import Network


@dataclass(frozen=True)
class Course:
    """What is drawn while a network is trained on answers."""

    fewest: float = 0.03  # share of the tokens that stay: log-uniform from here ...
    most: float = 0.3  # ... to here
    start: float = 1.0  # temperature, and scale of the logistic noise, at first ...
    end: float = 0.3  # ... and at last; they fall geometrically
    glances: float = 1 / 3  # share of the questions that show a glance, where there is one


class Task(NamedTuple):
    """A lesson as one network sees it."""

    pair: Pair
    lesson: Lesson
    glance: Pair | None = None  # the same question as the first of two looks shows its pictures


RECIPE = Recipe(8, 16, 2e-3, 0.01, "one_cycle")
COURSE = Course()


def train_on_answers(
    network: Network,
    text: TextModel,
    tasks: Sequence[Task],
    checked: Sequence[Task],
    recipe: Recipe,
    seed: int,
    report: Callable[[float, float], None],
    course: Course = COURSE,
) -> int:
    """Fit a network in place, and return the epoch whose weights it has.

    Deterministic on a CPU for equal seeds and thread counts.

    Args:
        network: what to fit, on the LLM's device.
        text: the LLM, its weights frozen.
        tasks: what to learn from.
        checked: others; the epoch counts after which their answers lose least when all but the
            best-scored tokens are gone, and the recipe's patience ends the training after it.
        recipe: epochs and optimiser.
        seed: of order, shares and noise.
        report: told after each step the mean loss of its epoch so far, and the last loss of
            `checked`.
        course: what is drawn.
    """
    steps = recipe.steps(len(tasks))
    optimizer, schedule = optimiser_of(network, recipe, steps)
    random = np.random.default_rng(seed)
    best, best_loss, weights = 0, float("inf"), network.state_dict()
    last = _mean_lost(network, text, checked, course)
    for epoch in range(1, recipe.epochs + 1):
        order, total = random.permutation(len(tasks)), 0.0
        for step in range(steps):
            chosen = [tasks[i] for i in order[step * recipe.batch : (step + 1) * recipe.batch]]
            heat = course.start * (course.end / course.start) ** (
                ((epoch - 1) * steps + step) / (recipe.epochs * steps)
            )
            optimizer.zero_grad()
            loss = _learn(network, text, chosen, course, heat, random)
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss
            report(total / (step + 1), last)
        last = _mean_lost(network, text, checked, course)
        if last < best_loss:
            best, best_loss = epoch, last
            weights = {name: value.clone() for name, value in network.state_dict().items()}
        if epoch - best >= recipe.patience:
            break
    network.load_state_dict(weights)
    return best


def _learn(
    network: Network,
    text: TextModel,
    chosen: Sequence[Task],
    course: Course,
    heat: float,
    random: np.random.Generator,
) -> float:
    """Add one batch's gradients, and return its mean loss. All its questions keep one share."""
    share = math.exp(random.uniform(math.log(course.fewest), math.log(course.most)))
    total = 0.0
    for part in parts(text, list(chosen), lambda task: rows_of(task.lesson.label)):
        lessons = [task.lesson for task in part]
        glanced = [t.glance is not None and random.random() < course.glances for t in part]
        seen = [
            task.glance if task.glance is not None and small else task.pair
            for task, small in zip(part, glanced, strict=True)
        ]
        scores = batched_logits(network, batch := collate(seen))
        uniform = torch.from_numpy(random.uniform(1e-6, 1 - 1e-6, tuple(scores.shape)))
        noisy = scores + heat * torch.logit(uniform).to(scores)
        rows = [row[slots] for row, slots in zip(noisy, batch.slots, strict=True)]
        rows = [
            spread(row, lesson.label) if small else row
            for row, lesson, small in zip(rows, lessons, glanced, strict=True)
        ]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-torch.inf)
        real = ~padded.isneginf()  # newlines have no score: they stay
        count = (share * real.sum(dim=1)).clamp(min=1.0)
        kept = kept_shares(padded.masked_fill(~real, 0.0), real, count, heat)
        kept = torch.where(real, kept, 1.0)
        shares = [kept[number, : len(row)] for number, row in enumerate(rows)]
        loss = moved(text, lessons, shares).sum() / len(chosen)
        loss.backward()
        total += float(loss.detach())
    return total


def spread(scores: Float[Tensor, " m"], label: Label) -> Float[Tensor, " n"]:
    """Return a glance's scores for the tokens of the whole pictures, -inf where it shows none."""
    assert label.glance is not None
    under = label.glance.under.long().to(scores.device)
    return torch.where(under >= 0, scores[under.clamp(min=0)], -torch.inf)


def _mean_lost(network: Network, text: TextModel, tasks: Sequence[Task], course: Course) -> float:
    """Return what answers lose, in the shares that the training has of whole looks and glances."""
    scores = predictions(network, [task.pair for task in tasks])
    lost = float(np.mean(lost_answers(text, list(scores), [task.lesson for task in tasks])))
    both = [(task.glance, task.lesson) for task in tasks if task.glance is not None]
    if not both or not course.glances:
        return lost
    after = glance_scores(network, both)
    lessons = [lesson for _, lesson in both]
    return lost + course.glances * (float(np.mean(lost_answers(text, after, lessons))) - lost)


def glance_scores(network: Network, seen: Sequence[tuple[Pair, Lesson]]) -> list[Array]:
    """Return what glances say of the whole pictures' tokens, as shares that sum to 1."""
    scores = predictions(network, [pair for pair, _ in seen])
    whole = [
        spread(torch.from_numpy(score), lesson.label).clamp(min=0.0).numpy()
        for score, (_, lesson) in zip(scores, seen, strict=True)
    ]
    return [each / each.sum() for each in whole]
