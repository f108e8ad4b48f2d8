"""Which rows a training step sees: sizes, layouts, questions; a function of (seed, step)."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from cells import label_cells, to_patches
from rows import Answered, Batch, Part, Row, Writer
from tokenizer import SYSTEM_PROMPTS

from tokprune.scenes import (
    GROUPS,
    Question,
    Scene,
    ask,
    compare,
    describe,
    draw,
    in_picture,
    make_companion,
    make_scene,
)
from tokprune.scenes.questions import ORDINALS

CAPTION = len(GROUPS)  # number of the auxiliary task, after the groups
SINGLE = GROUPS[:-1]  # questions about one picture
# The hard ones more often. A guess from earlier runs; the shares were not searched.
ASKED = (*SINGLE, "relation_yes_no", "relation_yes_no", "count", "count", "digit", "where")
OPEN = "<|im_start|>user\n"
SEE = "<|vision_start|>"
SEEN = "<|vision_end|>"
REPLY = "<|im_end|>\n<|im_start|>assistant\n"
AGAIN = "\n<|im_start|>user\n"


@dataclass(frozen=True)
class Pictures:
    """A band of picture sizes, in vision tokens, and how many rows of them make a batch."""

    grids: tuple[tuple[int, int], ...]
    rows: int


BANDS = (
    Pictures(((4, 4),), 32),
    Pictures(((6, 6), (5, 7), (7, 5)), 24),
    Pictures(((8, 8), (8, 8), (8, 12), (12, 8), (10, 10)), 16),
    Pictures(((14, 14), (14, 14), (14, 14), (12, 16), (16, 13), (20, 20)), 8),
)
VISION_WEIGHTS = (0.5, 0.3, 0.15, 0.05)  # of the bands while the vision encoder learns alone
# From this share of the other steps on, the bands are drawn with these weights. Tiny pictures
# first: an earlier schedule that mixed all sizes from the start stood still at 57 %.
SCHEDULE = (
    (0.0, (0.7, 0.3, 0.0, 0.0)),
    (0.08, (0.4, 0.35, 0.25, 0.0)),
    (0.3, (0.25, 0.25, 0.35, 0.15)),
    (0.5, (0.12, 0.18, 0.3, 0.4)),
    (0.7, (0.08, 0.12, 0.25, 0.55)),
)
LAYOUTS_FROM = 0.25
# Shares of the steps; the rest is "plain".
LAYOUTS = (("talk", 0.08), ("several", 0.18), ("first", 0.06), ("later", 0.04))


def make_batch(writer: Writer, seed: int, step: int, done: float, *, factor: int = 1) -> Batch:
    """Draw the batch of one step.

    Args:
        writer: makes tensors of rows.
        seed: of the training.
        step: of the training.
        done: share of the language steps, below 0 before these.
        factor: how many times as many rows as on a CPU.
    """
    rng = Random(f"{seed}/{step}")
    if done < 0:
        band = rng.choices(BANDS, VISION_WEIGHTS)[0]
        grid = rng.choice(band.grids[:5])
        scenes = [make_scene(rng, *grid) for _ in range(factor * band.rows)]
        return to_batch(writer, [Row((scene,), (SEE, 0, SEEN), ()) for scene in scenes])
    weights = [weights for start, weights in SCHEDULE if start <= done][-1]
    band = rng.choices(BANDS, weights)[0]
    layout = "plain"
    if done >= LAYOUTS_FROM:
        names = [name for name, _ in LAYOUTS]
        shares = [share for _, share in LAYOUTS]
        layout = rng.choices(["plain", *names], [1 - sum(shares), *shares])[0]
    if layout not in ("plain", "talk"):
        band = rng.choices(BANDS[1:], (0.35, 0.5, 0.15))[0]
    grid = rng.choice([grid for grid in band.grids if layout == "plain" or grid != (20, 20)])
    rows = max(2, band.rows // 2) if layout == "several" or grid == (20, 20) else band.rows
    rows *= factor
    systems = 0.1 if done >= LAYOUTS_FROM else 0.0
    return to_batch(writer, [make_row(rng, grid, layout, systems) for _ in range(rows)])


def to_batch(writer: Writer, rows: Sequence[Row]) -> Batch:
    """Draw the pictures of rows of one size."""
    scenes = [scene for row in rows for scene in row.scenes]
    patches = np.stack([to_patches(draw(scene)) for scene in scenes])
    return writer.batch(rows, patches, np.stack([label_cells(scene) for scene in scenes]))


def make_row(rng: Random, grid: tuple[int, int], layout: str, systems: float = 0.0) -> Row:
    """Make one row of a layout.

    Args:
        rng: source of all chance.
        grid: rows and columns of vision tokens of every picture.
        layout: "plain", "talk" (dialogues), "several" (pictures), "first" (the question before the
            picture), "later" (another picture in a later turn).
        systems: share of plain and talk rows with a system message.
    """
    match layout:
        case "plain":
            return _plain(rng, grid, systems)
        case "talk":
            return _talk(rng, grid, systems)
        case "several":
            return _several(rng, grid)
        case "first":
            return _question_first(rng, grid)
        case "later":
            return _later(rng, grid)
        case _:
            raise ValueError(f"unknown layout {layout!r}")


def _group(question: Question) -> int:
    return CAPTION if question.group == "caption" else GROUPS.index(question.group)


def _said(question: Question, before: str = "", about: Scene | None = None) -> Answered:
    return Answered(f"{before}{question.text}{REPLY}", question.answer, _group(question), about)


def _asked(rng: Random, scene: Scene, count: int) -> list[Question]:
    groups = rng.sample(ASKED, len(ASKED))
    return ask(rng, scene, groups, count)


def _one(rng: Random, scene: Scene) -> Question:
    """One question; a scene of two things may refuse eight groups in a row."""
    while True:
        questions = _asked(rng, scene, 1)
        if questions:
            return questions[0]


def _opening(rng: Random, share: float) -> str:
    if rng.random() < share:
        return f"<|im_start|>system\n{rng.choice(SYSTEM_PROMPTS)}<|im_end|>\n{OPEN}"
    return OPEN


def _plain(rng: Random, grid: tuple[int, int], systems: float) -> Row:
    """One picture, eight questions, often a description."""
    scene = make_scene(rng, *grid)
    branches: list[tuple[Part, ...]] = [
        (_said(question, about=scene),) for question in _asked(rng, scene, 8)
    ]
    if rng.random() < 0.7:
        branches.append((_said(describe(scene)),))
    return Row((scene,), (_opening(rng, systems) + SEE, 0, SEEN), tuple(branches))


def _talk(rng: Random, grid: tuple[int, int], systems: float) -> Row:
    """One picture, three dialogues of 2 to 5 turns."""
    scene = make_scene(rng, *grid)
    branches: list[tuple[Part, ...]] = []
    for _ in range(3):
        turns = _asked(rng, scene, rng.choice((2, 2, 3, 3, 4, 5)))
        branches.append(
            tuple(_said(q, AGAIN if number else "", scene) for number, q in enumerate(turns))
        )
    return Row((scene,), (_opening(rng, systems) + SEE, 0, SEEN), tuple(branches))


def _several(rng: Random, grid: tuple[int, int]) -> Row:
    """Two or three pictures of one size, compared and asked about one by one."""
    first = make_scene(rng, *grid)
    count = 3 if rng.random() < 0.2 else 2
    scenes = (first, *(make_companion(rng, first) for _ in range(count - 1)))
    found: list[Question] = []
    for _ in range(30):
        question = compare(rng, scenes)
        if question and question not in found and len(found) < 6:
            found.append(question)
    branches = [(_said(question, about=_shown_in(question, scenes)),) for question in found]
    for which, scene in enumerate(scenes):
        asked = [in_picture(question, which) for question in _asked(rng, scene, 2)]
        branches += [(_said(question, about=scene),) for question in asked]
    prefix: list[Part] = [_opening(rng, 0.05)]
    for index in range(count):
        prefix += [SEE, index, SEEN]
    return Row(scenes, tuple(prefix), tuple(branches))


def _shown_in(question: Question, scenes: Sequence[Scene]) -> Scene | None:
    """The picture that alone has what is asked for."""
    if question.text.startswith("which picture has a"):
        return scenes[ORDINALS.index(question.answer)]
    return None


def _question_first(rng: Random, grid: tuple[int, int]) -> Row:
    """The question, then the picture."""
    scene = make_scene(rng, *grid)
    question = _one(rng, scene)
    answered = Answered(SEEN + REPLY, question.answer, _group(question))
    return Row((scene,), (OPEN + question.text + SEE, 0, answered), ())


def _later(rng: Random, grid: tuple[int, int]) -> Row:
    """A picture, a question, its answer, and then another picture to ask about."""
    first = make_scene(rng, *grid)
    second = make_companion(rng, first)
    start = _one(rng, first)
    prefix = (OPEN + SEE, 0, SEEN, _said(start, about=first), AGAIN + SEE, 1, SEEN)
    asked = _asked(rng, second, 6)
    return Row((first, second), prefix, tuple((_said(q, about=second),) for q in asked))
