"""Train a scorer on what answers lose, through the frozen LLM.

Of each question's vision tokens a share is drawn that may stay; the others are dimmed (dimming.py)
by their scores. The loss is how far the LLM's answer moves: KL(with all tokens || dimmed), summed
over the answer's tokens and its end. Labels that explain a given answer say nothing of what "no"
or "three" was read from; this loss does. Noise on the scores lets tokens that are scored too low be
met, and falls together with the temperature, so that in the end tokens are there or gone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from tokprune.types import Array
from tokprune_export.decoder import TextModel
from tokprune_export.dimming import dimmed_hidden, kept_shares
from tokprune_export.label_cache import Label
from tokprune_export.labels import activation_bytes
from tokprune_export.scorer_training import (
    Pair,
    Recipe,
    batched_logits,
    collate,
    optimiser_of,
    predictions,
)
from tokprune_export.scorers import Network

LIKELY = 64  # tokens of the vocabulary that stand for an answer's distribution
FADED = 0.02  # tokens of smaller shares are left out: their part in the loss is small
CHECKED_AT = (0.25, 0.11)  # kept shares that tell when to stop
CPU_BYTES, GPU_BYTES = 512 << 20, 16 << 30  # of what a backward pass needs, at once


@dataclass(frozen=True)
class Course:
    """What is drawn while a network is trained on answers."""

    fewest: float = 0.03  # share of the tokens that stay: log-uniform from here ...
    most: float = 0.3  # ... to here
    start: float = 1.0  # temperature, and scale of the logistic noise, at first ...
    end: float = 0.3  # ... and at last; they fall geometrically


@dataclass(frozen=True)
class Lesson:
    """A question that was answered rightly, and what the LLM says to it with all tokens."""

    label: Label
    likely: Int64[Tensor, "m top"]  # for each answer token and the end: the likeliest tokens
    log_probs: Float[Tensor, "m top"]


class Task(NamedTuple):
    """A lesson as one network sees it."""

    pair: Pair
    lesson: Lesson


class Dimmed(NamedTuple):
    """Prompts and answers without what was left out, padded on the right."""

    embeds: Float[Tensor, "b s d"]
    positions: Int64[Tensor, "p b s"]
    bias: Float[Tensor, "b s"]
    emits: Bool[Tensor, "b s"]  # rows whose logits are the answer, and its end


RECIPE = Recipe(8, 16, 2e-3, 0.01, "one_cycle")
COURSE = Course()


@torch.no_grad()
def lessons_of(text: TextModel, labels: Sequence[Label]) -> Iterator[Lesson]:
    """Ask the LLM every question with all tokens."""
    for part in _parts(text, list(labels), _rows_of):
        whole = [torch.ones(len(label.slots)) for label in part]
        spoken = _log_probs(text, laid_out(text, part, whole))
        top = spoken.topk(min(LIKELY, spoken.shape[1]), dim=1)
        counts = [len(label.answer) + 1 for label in part]
        likely, values = top.indices.cpu().split(counts), top.values.cpu().split(counts)
        yield from map(Lesson, part, likely, values)


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
    last = _mean_lost(network, text, checked)
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
        last = _mean_lost(network, text, checked)
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
    for part in _parts(text, list(chosen), lambda task: _rows_of(task.lesson.label)):
        lessons = [task.lesson for task in part]
        scores = batched_logits(network, batch := collate([task.pair for task in part]))
        real = batch.slots & ~scores.isneginf()  # newlines have no score: they stay
        uniform = torch.from_numpy(random.uniform(1e-6, 1 - 1e-6, tuple(scores.shape)))
        noise = torch.logit(uniform).to(scores)
        count = (share * real.sum(dim=1)).clamp(min=1.0)
        kept = kept_shares(scores.masked_fill(~real, 0.0) + heat * noise, real, count, heat)
        kept = torch.where(real, kept, 1.0)
        shares = [row[slots] for row, slots in zip(kept, batch.slots, strict=True)]
        loss = _moved(text, lessons, shares).sum() / len(chosen)
        loss.backward()
        total += float(loss.detach())
    return total


def _mean_lost(network: Network, text: TextModel, tasks: Sequence[Task]) -> float:
    scores = predictions(network, [task.pair for task in tasks])
    return float(np.mean(lost_answers(text, list(scores), [task.lesson for task in tasks])))


@torch.no_grad()
def lost_answers(
    text: TextModel, scores: Sequence[Array], lessons: Sequence[Lesson]
) -> list[float]:
    """Return how far each answer moves when all but the best-scored tokens are gone: mean KLs."""
    lost: list[float] = []
    pairs = list(zip(scores, lessons, strict=True))
    for part in _parts(text, pairs, lambda pair: _rows_of(pair[1].label)):
        told = [lesson for _, lesson in part]
        moved = [
            _moved(text, told, [_best(score, lesson.label, share) for score, lesson in part])
            for share in CHECKED_AT
        ]
        counts = [len(lesson.likely) for lesson in told]
        sums = [each.sum() for each in torch.stack(moved).mean(dim=0).split(counts)]
        lost += torch.stack(sums).tolist()
    return lost


def _best(scores: Array, label: Label, share: float) -> Float[Tensor, " n"]:
    """Return 1 for the best-scored share of the tokens and for newlines, 0 for the others."""
    cells, index = label.cells.long(), label.index.flatten()
    patch = (index[cells] == torch.arange(len(cells))).numpy()
    order = np.argsort(-np.where(patch, scores, -np.inf), kind="stable")
    kept = ~patch
    kept[order[: math.ceil(share * patch.sum())]] = True
    return torch.from_numpy(kept.astype(np.float32))


def _moved(
    text: TextModel, lessons: Sequence[Lesson], shares: Sequence[Float[Tensor, " n"]]
) -> Float[Tensor, " m"]:
    """KL(answer with all tokens || with these shares), token by token, over the likeliest ones."""
    spoken = _log_probs(text, laid_out(text, [lesson.label for lesson in lessons], shares))
    likely = torch.cat([lesson.likely for lesson in lessons]).to(spoken.device)
    known = torch.cat([lesson.log_probs for lesson in lessons]).to(spoken.device)
    return (known.exp() * (known - spoken.gather(1, likely))).sum(dim=1)


def laid_out(
    text: TextModel, labels: Sequence[Label], shares: Sequence[Float[Tensor, " n"]]
) -> Dimmed:
    """Lay out prompts and answers, vision tokens with the shares they take part with."""
    table, device = text.embeddings, text.embeddings.device
    rows = [
        _rows(table, label, share.to(device)) for label, share in zip(labels, shares, strict=True)
    ]
    longest = max(len(embeds) for embeds, *_ in rows)
    wide = (len(rows), longest)
    embeds = table.new_zeros(*wide, table.shape[1])
    positions = torch.zeros(text.position_axes, *wide, dtype=torch.int64, device=device)
    emits = torch.zeros(wide, dtype=torch.bool, device=device)
    biases: list[Tensor] = []
    for number, (these, where, bias, label) in enumerate(rows):
        length = len(these)
        embeds[number, :length] = these
        positions[:, number, :length] = where
        emits[number, length - len(label.answer) - 1 : length] = True
        biases.append(torch.cat([bias, bias.new_zeros(longest - length)]))
    return Dimmed(embeds, positions, torch.stack(biases), emits)


def _rows(
    table: Float[Tensor, "v d"], label: Label, share: Float[Tensor, " n"]
) -> tuple[Tensor, Tensor, Tensor, Label]:
    """Return one prompt's rows, their positions and biases, without what has faded away."""
    device = table.device
    ids, slots = torch.cat([label.ids, label.answer]).to(device), label.slots.to(device)
    embeds = table[ids]
    embeds[slots] = label.embeds.to(embeds)
    bias = torch.zeros(len(ids), device=device).index_put((slots,), share.clamp(min=FADED).log())
    stays = torch.ones(len(ids), dtype=torch.bool, device=device)
    stays[slots] = share.detach() > FADED
    return embeds[stays], label.positions.to(device)[:, stays], bias[stays], label


def _log_probs(text: TextModel, dimmed: Dimmed) -> Float[Tensor, "m v"]:
    """Return what the LLM says in the answer's rows."""
    # GPUs and newer CPUs multiply bfloat16 twice as fast; sums stay float32.
    with torch.autocast(dimmed.embeds.device.type, torch.bfloat16, enabled=_halved(dimmed.embeds)):
        hidden = dimmed_hidden(text, *dimmed[:3])
        logits = text.head(hidden[dimmed.emits])
    return logits.float().log_softmax(dim=1)


def _halved(embeds: Tensor) -> bool:
    return embeds.is_cuda and torch.cuda.is_bf16_supported()


def _rows_of(label: Label) -> int:
    return len(label.ids) + len(label.answer)


def _parts(text: TextModel, items: list, rows: Callable[..., int]) -> Iterator[list]:
    """Cut into parts whose activations fit into memory."""
    longest = max(map(rows, items), default=1)
    needed, limit = activation_bytes(text) * longest, GPU_BYTES
    if not text.embeddings.is_cuda:  # no fused attention there: its maps are kept too
        maps = 3 * text.heads * len(text.model.layers)
        needed, limit = needed + 4 * maps * longest**2, CPU_BYTES
    size = max(1, limit // needed)
    for start in range(0, len(items), size):
        yield items[start : start + size]
