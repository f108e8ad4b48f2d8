"""From examples to labels: what is answered, and which vision tokens it was answered from."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from tokprune.canvas import canvas, follows
from tokprune.types import KIND, PATCH, Array
from tokprune_export.decoder import TextModel
from tokprune_export.examples import Example
from tokprune_export.explain import Trace, attention_rows, logits_at, relevance, trace
from tokprune_export.glances import Glances
from tokprune_export.label_cache import Label
from tokprune_export.media import identity
from tokprune_export.teacher import Asked, Teacher, ask_all, greedy

WAITING_BYTES = 512 << 20  # vision tokens of questions that wait for others of their length
BATCH_BYTES = 128 << 20  # activations of one batch; more is slower on a CPU, and no faster


def sample_name(example: Example) -> str:
    """Name an example by its content, so that a cache survives moved or reordered files."""
    shown = [identity(source).content for source in example.media]
    parts = [*shown, example.question, example.answer]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def label_all(
    teacher: Teacher, examples: Sequence[Example]
) -> Iterator[tuple[Example, Label | None]]:
    """Yield each example with its label, or None where the answer was wrong, in any order."""
    per_token, glances = activation_bytes(teacher.text), Glances(teacher)
    asked = zip(examples, ask_all(teacher, examples), strict=True)
    for part in _waiting(asked):
        # The longest first: a batch has the length of its first, whatever comes after.
        waiting = sorted(part, key=lambda pair: _length(pair[1]), reverse=True)
        while waiting:
            count = max(1, BATCH_BYTES // (per_token * _length(waiting[0][1])))
            batch, waiting = waiting[:count], waiting[count:]
            labels = _label(teacher, [item for _, item in batch])
            yield from _with_glances(glances, batch, labels)


def _with_glances(
    glances: Glances, batch: Sequence[tuple[Example, Asked]], labels: Sequence[Label | None]
) -> Iterator[tuple[Example, Label | None]]:
    """Add what a smaller look shows of the questions that were answered rightly."""
    for (example, item), label in zip(batch, labels, strict=True):
        if label is None:
            yield example, None
        else:
            yield example, replace(label, glance=glances.of(example, item))


def _waiting(asked: Iterable[tuple[Example, Asked]]) -> Iterator[list[tuple[Example, Asked]]]:
    """Gather what is to be sorted by length, as much as memory should hold."""
    part: list[tuple[Example, Asked]] = []
    held_bytes = 0
    for example, item in asked:
        part.append((example, item))
        held_bytes += item.vision.embeds.nbytes
        if held_bytes >= WAITING_BYTES:
            yield part
            part, held_bytes = [], 0
    yield part


def explain_answer(teacher: Teacher, asked: Asked) -> Float32[Array, " n"]:
    """Return what each vision token mattered to one answer, not normalised."""
    if not len(asked.answer):
        return np.zeros(len(asked.prompt.slots), np.float32)
    (label,) = _explain(teacher, *_forward(teacher, [asked]), [asked])
    return label.relevance.numpy()


def activation_bytes(text: TextModel) -> int:
    """Estimate what the backward pass keeps of one row."""
    config = text.model.config
    floats = 12 * config.hidden_size + 6 * config.intermediate_size
    return 4 * config.num_hidden_layers * floats


def _length(asked: Asked) -> int:
    return len(asked.prompt.ids) + len(asked.answer)


def _label(teacher: Teacher, batch: Sequence[Asked]) -> list[Label | None]:
    """Label what was answered rightly.

    One teacher-forced forward tells whether greedy decoding gives exactly the known answer. Where
    it does not, the answer is decoded: it may be the same but for case or spaces.
    """
    traced, targets = _forward(teacher, batch)
    exact = _is_greedy(teacher, traced, targets, batch)
    spoken = [
        item.answer if same else _same_answer(teacher, item)
        for item, same in zip(batch, exact, strict=True)
    ]
    others = [
        (number, item._replace(answer=ids))
        for number, (item, same, ids) in enumerate(zip(batch, exact, spoken, strict=True))
        if not same and ids is not None
    ]
    labels: list[Label | None] = [None] * len(batch)
    if any(exact):
        kept = torch.tensor(exact, device=teacher.device)
        found = _explain(teacher, traced, torch.where(kept[:, None], targets, -1), batch)
        labels = [label if same else None for label, same in zip(found, exact, strict=True)]
    if others:
        again = [item for _, item in others]
        found = _explain(teacher, *_forward(teacher, again), again)
        for (number, _), label in zip(others, found, strict=True):
            labels[number] = label
    return labels


def _forward(teacher: Teacher, batch: Sequence[Asked]) -> tuple[Trace, Int64[Tensor, "b s"]]:
    """Run prompts and answers; targets mark the rows that emit the answer's tokens."""
    rows = max(_length(item) for item in batch)
    table, axes = teacher.text.embeddings, teacher.text.position_axes
    embeds = table.new_zeros(len(batch), rows, table.shape[1])
    positions = torch.zeros(axes, len(batch), rows, dtype=torch.int64)
    targets = torch.full((len(batch), rows), -1)
    for number, item in enumerate(batch):
        prompt, vision, _, answer = item
        start, end = len(prompt.ids), _length(item)
        ids = torch.cat([torch.from_numpy(prompt.ids), answer]).to(table.device)
        embeds[number, :end] = table[ids]
        embeds[number, prompt.slots] = torch.from_numpy(vision.embeds).to(embeds)
        positions[:, number, :end] = _positions(item)
        targets[number, start - 1 : end - 1] = answer
    return trace(teacher.text.model, embeds, positions.to(table.device)), targets.to(table.device)


def _positions(asked: Asked) -> Int64[Tensor, "p t"]:
    """Return the rotary ids of prompt and answer."""
    prompt = torch.from_numpy(asked.prompt.positions)
    following = asked.prompt.next_position + torch.arange(len(asked.answer))
    return torch.cat([prompt, following.expand(len(prompt), -1)], dim=1)


@torch.no_grad()
def _is_greedy(
    teacher: Teacher, traced: Trace, targets: Int64[Tensor, "b s"], batch: Sequence[Asked]
) -> list[bool]:
    """Whether greedy decoding emits each sample's targets, and then ends."""
    emitted = targets >= 0
    right = torch.zeros_like(emitted)
    top = logits_at(traced, teacher.text.head, emitted).argmax(dim=-1)
    right[emitted] = top == targets[emitted]
    exact = (right == emitted).all(dim=1).tolist()
    last = torch.zeros_like(emitted)
    last[range(len(batch)), [_length(item) - 1 for item in batch]] = True
    ends = logits_at(traced, teacher.text.head, last).argmax(dim=-1).tolist()
    return [same and end in teacher.tokens.eos for same, end in zip(exact, ends, strict=True)]


def _same_answer(teacher: Teacher, asked: Asked) -> Int64[Tensor, " m"] | None:
    """Decode greedily, and return the tokens if the text is the known answer."""
    wanted = asked.text.strip().casefold()
    # No token but white space is shorter than a byte, so a right answer ends before that.
    ids = greedy(teacher, asked.prompt, asked.vision, len(wanted.encode()) + 8)
    if ids is None or not len(ids):
        return None
    text: str = teacher.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    return ids if text.strip().casefold() == wanted else None


def _explain(
    teacher: Teacher, traced: Trace, targets: Int64[Tensor, "b s"], batch: Sequence[Asked]
) -> list[Label]:
    scores = relevance(traced, teacher.text.head, targets)
    return [
        _cut(traced, scores[number], number, item, teacher.device)
        for number, item in enumerate(batch)
    ]


def _cut(
    traced: Trace, scores: Float[Tensor, " s"], number: int, asked: Asked, device: torch.device
) -> Label:
    """Keep what a scorer will see of one sample: first_layer's rows and columns."""
    prompt, vision = asked.prompt, asked.vision
    rows = np.arange(prompt.slots[-1] + 1, len(prompt.ids))
    columns = torch.from_numpy(prompt.slots).to(device)
    attention = attention_rows(traced.layers[0], number, torch.from_numpy(rows).to(device), columns)
    index, cells = canvas(vision.where, vision.regions)
    # Newlines stay with their rows, whatever scorers say of them: they have no cell there.
    patches = torch.from_numpy(vision.where[:, KIND] == PATCH)
    return Label(
        attention=attention.to("cpu", torch.float16),
        question=torch.from_numpy(prompt.words[rows]),
        index=torch.from_numpy(index.astype(np.int32)),
        cells=torch.from_numpy(cells.astype(np.int32)),
        relevance=scores[columns].cpu() * patches,
        embeds=torch.from_numpy(vision.embeds).half(),
        ids=torch.from_numpy(prompt.ids),
        slots=torch.from_numpy(prompt.slots),
        answer=asked.answer,
        positions=_positions(asked),
        follows=torch.from_numpy(follows(vision.regions)),
    )
