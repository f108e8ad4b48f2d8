"""What a training step minimises, and which questions a model answers exactly."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from batch import Batch, attention_bias
from cells import CLASSES, EVENT, IGNORED, PLACE
from demos import Demo
from mixture import ALL_GROUPS
from network import BLOCKED, Watch, run_text
from referents import DOES, MEANT, classes_loss
from torch import Tensor, nn

CELL_LABELS = ("shape", "color", "size", "digit", "first", "second", "field", "order")
CELL_WEIGHTS = (2.0, 1.0, 1.0, 2.0, 3.0, 3.0, 1.0, 2.0)  # shapes and characters are hard
CELLS_SHARE = 0.5  # of the auxiliary loss beside the questions
BACKGROUND_WEIGHT = 0.15
CAPTION_WEIGHT = 0.7
# Layers of the LLM after which its dense tasks are asked: of vision tokens where they are and, in a
# film, what the thing there has done so far; of phrases what they mean, and what that does.
PLACE_LAYER, EVENT_LAYER, MEANT_LAYER, DOES_LAYER = 2, 3, 3, 4
PLACE_SHARE, EVENT_SHARE, REFERENT_SHARE = 0.5, 0.5, 0.5
# Of these layers one head attends, while a text is spelled, to the token with the next character.
# To be asked where that is (referents.py) did not teach it in a thousand steps.
SPELLING_LAYERS, SPELLING_SHARE = (3, 4), 0.25


class Heads(nn.Module):
    """Throw-away linear heads of the dense auxiliary tasks."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.cells = nn.Linear(hidden, sum(CLASSES))
        self.place = nn.Sequential(nn.RMSNorm(hidden), nn.Linear(hidden, sum(PLACE)))
        self.event = nn.Sequential(nn.RMSNorm(hidden), nn.Linear(hidden, sum(EVENT)))
        self.meant = nn.Sequential(nn.RMSNorm(hidden), nn.Linear(hidden, sum(MEANT)))
        self.does = nn.Sequential(nn.RMSNorm(hidden), nn.Linear(hidden, sum(DOES)))


class Learner(NamedTuple):
    """What is trained: a network of a family, and the heads."""

    demo: Demo
    model: nn.Module
    heads: Heads


def batch_loss(
    learner: Learner, batch: Batch, *, vision_only: bool, drop: bool, parts: float = 0.0
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one batch, and figures to show.

    Args:
        learner: what is trained.
        batch: what it is shown.
        vision_only: train the vision encoder alone.
        drop: hide vision tokens from the LLM.
        parts: in this share of the rows that lose tokens, hide them from the encoder too.
    """
    demo, model, heads = learner
    hidden = dropped(batch) if drop and not vision_only else None
    if hidden is not None and parts and demo.encode_parts:
        rows = torch.rand(len(hidden), 1, device=hidden.device) < parts
        unseen = (hidden & rows)[batch.slots]
        vision = demo.encode_parts(model, batch.pixels, unseen)
        batch = without(batch, unseen)
    else:
        vision = demo.encode(model, batch.pixels)
    cells, accuracy = cell_loss(heads.cells(vision), batch.cells)
    values = {"aux": float(cells.detach()), **dict(zip(CELL_LABELS, accuracy, strict=True))}
    if vision_only:
        return cells, values
    spelling: list[tuple[Tensor, float]] = []
    letters = batch.letters != IGNORED

    def watch(layer: int, queries: Tensor, keys: Tensor, bias: Tensor) -> None:
        if layer in SPELLING_LAYERS and bool(letters.any()):
            logits = (queries[:, 0] @ keys[:, 0].transpose(1, 2) + bias[:, 0])[letters]
            spelling.append(found_loss(logits, batch.letters[letters]))

    states = text_states(demo, model, batch, vision, hidden, watch)
    asked = batch.labels != IGNORED
    labels = batch.labels[asked]
    logits = demo.llm(model).head(states[-1][asked])
    caption = ALL_GROUPS.index("caption")
    weight = torch.where(batch.groups[asked] == caption, CAPTION_WEIGHT, 1.0)
    each = F.cross_entropy(logits.float(), labels, reduction="none")
    answers = (each * weight).sum() / weight.sum()
    hits = (logits.argmax(-1) == labels).float().mean()
    dense, hit = dense_losses(heads, batch, states)
    values |= {"loss": float(answers.detach()), "hits": float(hits), **hit}
    for loss, share in spelling:
        dense = dense + SPELLING_SHARE * loss
        values["letters"] = share  # of the last layer
    return answers + CELLS_SHARE * cells + dense, values


def found_loss(logits: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy of attention to one token, and the share of rows that attend to it most.

    Rows whose token is hidden count nothing.

    Args:
        logits: [m, s], hidden ones very low.
        wanted: [m]
    """
    seen = logits.gather(1, wanted[:, None])[:, 0] > BLOCKED / 2
    each = F.cross_entropy(logits.float(), wanted, reduction="none")
    count = seen.sum().clamp(min=1)
    hits = ((logits.argmax(-1) == wanted) & seen).sum() / count
    return torch.where(seen, each, 0.0).sum() / count, float(hits)


def dense_losses(
    heads: Heads, batch: Batch, states: Sequence[Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """Losses of what is asked inside the LLM, and the share of each that is right."""
    slots, meant = batch.slots, batch.referents[..., 0] != IGNORED
    means, does = batch.referents[meant].split((len(MEANT), len(DOES)), -1)
    asked = {
        "place": (heads.place, PLACE_LAYER, slots, batch.places, PLACE, PLACE_SHARE),
        "event": (heads.event, EVENT_LAYER, slots, batch.events, EVENT, EVENT_SHARE),
        "meant": (heads.meant, MEANT_LAYER, meant, means, MEANT, REFERENT_SHARE),
        "does": (heads.does, DOES_LAYER, meant, does, DOES, REFERENT_SHARE),
    }
    total = states[0].new_zeros(())
    hits: dict[str, float] = {}
    for name, (head, layer, where, labels, parts, share) in asked.items():
        if bool((labels != IGNORED).any()):  # pictures have no events
            loss, hits[name] = classes_loss(head(states[layer - 1][where]), labels, parts)
            total = total + share * loss
    return total, hits


def without(batch: Batch, unseen: Tensor) -> Batch:
    """The batch with nothing asked of vision tokens that the encoder was not shown, [n]."""
    parts = {
        name: getattr(batch, name).masked_fill(unseen[:, None], IGNORED)
        for name in ("cells", "events", "places")
    }
    return replace(batch, **parts)


def text_states(
    demo: Demo,
    model: nn.Module,
    batch: Batch,
    vision: Tensor,
    hidden: Tensor | None = None,
    watch: Watch | None = None,
) -> list[Tensor]:
    """Hidden states after each layer; vision tokens [b, s] may be hidden from the LLM."""
    llm = demo.llm(model)
    embeds = llm.embed(batch.ids)
    embeds = embeds.to(vision.dtype).masked_scatter(batch.slots[..., None], vision)
    bias = attention_bias(batch.segments, BLOCKED)
    if hidden is not None:
        bias = bias.masked_fill(hidden[:, None, None], BLOCKED)
    return run_text(llm, embeds, batch.positions, bias, watch)


def cell_loss(logits: Tensor, cells: Tensor) -> tuple[Tensor, list[float]]:
    """Auxiliary loss: what stands in each cell; background counts little."""
    losses: list[Tensor] = []
    accuracy: list[float] = []
    for index, part in enumerate(logits.float().split(CLASSES, -1)):
        labels = cells[..., index]
        weight = torch.where(labels > 0, 1.0, BACKGROUND_WEIGHT) * (labels >= 0)
        each = F.cross_entropy(part, labels.clamp(min=0), reduction="none")
        loss = (each * weight).sum() / weight.sum().clamp(min=1)
        losses.append(loss * CELL_WEIGHTS[index])
        things = labels > 0
        hits = (part.argmax(-1) == labels)[things].float()
        accuracy.append(float(hits.mean()) if len(hits) else 1.0)
    return torch.stack(losses).sum(), accuracy


def dropped(batch: Batch) -> Tensor:
    """Vision tokens to hide from the LLM, [b, s]: on 70 % of the rows, half of these biased.

    Even dropout takes U(0, 0.7) of all tokens; biased dropout takes U(0.4, 1) of the background and
    U(0, 0.15) of the things, so that the model meets every density of background.
    """
    slots = batch.slots
    rows = len(slots)
    device = slots.device
    things = torch.zeros_like(slots).masked_scatter(slots, batch.cells[:, 0] > 0)
    active = torch.rand(rows, 1, device=device) < 0.7
    biased = torch.rand(rows, 1, device=device) < 0.5
    even = 0.7 * torch.rand(rows, 1, device=device)
    background = 0.4 + 0.6 * torch.rand(rows, 1, device=device)
    foreground = 0.15 * torch.rand(rows, 1, device=device)
    chance = torch.where(biased, torch.where(things, foreground, background), even) * active
    return slots & (torch.rand(slots.shape, device=device) < chance)


@torch.no_grad()
def question_hits(demo: Demo, model: nn.Module, batch: Batch) -> list[list[tuple[str, bool]]]:
    """Group of every question of every row, and whether all tokens of the answer are right.

    With the true answers of earlier turns before it, this is what greedy decoding would say.
    """
    vision = demo.encode(model, batch.pixels)
    asked = batch.labels != IGNORED
    states = text_states(demo, model, batch, vision)
    logits = demo.llm(model).head(states[-1][asked])
    hits = torch.ones_like(asked)
    hits[asked] = logits.argmax(-1) == batch.labels[asked]
    found: list[list[tuple[str, bool]]] = []
    for row in range(len(hits)):
        found.append([])
        for question in range(int(batch.questions[row].max()) + 1):
            mine = batch.questions[row] == question
            group = ALL_GROUPS[int(batch.groups[row][mine][0])]
            found[-1].append((group, bool(hits[row][mine].all())))
    return found


def exact_match(demo: Demo, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """Share of questions answered exactly, by group; `all` leaves captions out."""
    right: dict[str, list[bool]] = {}
    for batch in batches:
        for row in question_hits(demo, model, batch):
            for group, hit in row:
                right.setdefault(group, []).append(hit)
    asked = [hit for group, hits in right.items() if group != "caption" for hit in hits]
    shares = {group: round(sum(hits) / len(hits), 3) for group, hits in sorted(right.items())}
    return {"all": round(sum(asked) / len(asked), 4), **shares}
