"""Held-out questions about drawn pictures, the same on every machine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from jaxtyping import UInt8

from tokprune.errors import RequestInvalid
from tokprune.scenes.drawing import draw
from tokprune.scenes.page_questions import ask_page
from tokprune.scenes.pages import Page, make_page
from tokprune.scenes.questions import KINDS, Question, ask, compare
from tokprune.scenes.scene import CROWD_TOKENS, Scene, make_scene
from tokprune.types import Array

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
GROUPS = (*KINDS, "document", "compare")
CROWDED_SHARE = 0.25  # of the scenes of 196 vision tokens and more
SIGNS_SHARE = 0.3  # of the scenes that no sign is asked about
GRIDS = (
    (8, 8),
    (8, 8),
    (8, 12),
    (12, 8),
    (10, 10),
    (14, 14),
    (14, 14),
    (14, 14),
    (12, 16),
    (16, 13),
)
GRIDS_OF = {36: (6, 6), 64: (8, 8), 96: (8, 12), 100: (10, 10), 144: (12, 12), 196: (14, 14),
            256: (16, 16), 400: (20, 20)}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One question about one or two drawn pictures."""

    key: str  # stable: "test/196/000123/2"
    pictures: tuple[UInt8[Array, "h w 3"], ...]
    question: str
    answer: str
    group: str
    dense: bool = False  # 20 things or more in the picture


def suite(
    split: Split,
    scenes: int,
    *,
    tokens: int | None = None,
    questions: int = 1,
    groups: Sequence[str] = GROUPS,
) -> Iterator[Sample]:
    """Yield questions about the first `scenes` scenes of a split.

    Scene i depends on (split, i, tokens, groups) alone. The groups take turns from scene to scene,
    and a scene is made so that its first question can be asked.

    Args:
        split: "train", "dev" or "test"; they share no scene.
        scenes: how many.
        tokens: cells of 28 x 28 pixels of a picture, which are Qwen2-VL's vision tokens; None
            mixes 64 to 208. A `compare` question shows two pictures that together have about as
            many.
        questions: how many a scene; fewer where a scene allows no more.
        groups: types of question.

    Raises:
        RequestInvalid: a split, group or number of tokens is unknown.
    """
    _check(split, tokens, groups)
    for number in range(scenes):
        rng = Random(f"{split}/{tokens}/{number}")
        grid = GRIDS_OF[tokens] if tokens else rng.choice(GRIDS)
        turned = [groups[(number + turn) % len(groups)] for turn in range(len(groups))]
        for index, (shown, question) in enumerate(_asked(rng, grid, turned, questions)):
            yield Sample(
                key=f"{split}/{tokens or 'mixed'}/{number:06d}/{index}",
                pictures=tuple(map(draw, shown)),
                question=question.text,
                answer=question.answer,
                group=question.group,
                dense=any(isinstance(each, Scene) and each.dense for each in shown),
            )


def grid_of(tokens: int) -> tuple[int, int]:
    """Return rows and columns of a picture with so many vision tokens.

    Raises:
        RequestInvalid: no picture is drawn with so many.
    """
    if tokens not in GRIDS_OF:
        sizes = ", ".join(map(str, GRIDS_OF))
        raise RequestInvalid(f"No grid of {tokens} vision tokens. Known: {sizes}")
    return GRIDS_OF[tokens]


def _check(split: str, tokens: int | None, groups: Sequence[str]) -> None:
    if split not in SPLITS:
        raise RequestInvalid(f"Unknown split {split!r}. Known: {', '.join(SPLITS)}")
    if tokens is not None:
        grid_of(tokens)
    unknown = [group for group in groups if group not in GROUPS]
    if unknown or not groups:
        raise RequestInvalid(f"Unknown groups {unknown}. Known: {', '.join(GROUPS)}")


def _asked(
    rng: Random, grid: tuple[int, int], groups: Sequence[str], count: int
) -> list[tuple[tuple[Scene | Page, ...], Question]]:
    """Make what the first group asks about, and questions: of that group, then of the others."""
    while True:
        if groups[0] == "document":
            page = make_page(rng, *grid)
            return [((page,), question) for question in ask_page(rng, page, count)]
        if groups[0] == "compare":
            pair = _pair(rng, grid)
            found = [question for _ in range(4 * count) if (question := compare(rng, pair))]
            if found:
                return [(pair, question) for question in list(dict.fromkeys(found))[:count]]
            continue
        scene, first = scene_question(rng, grid, groups[0])
        others = [kind for group in groups[1:] for kind in KINDS.get(group, ())]
        more = ask(rng, scene, others or KINDS[groups[0]], count) if count > 1 else []
        return [((scene,), each) for each in list(dict.fromkeys([first, *more]))[:count]]


def scene_question(rng: Random, grid: tuple[int, int], group: str) -> tuple[Scene, Question]:
    """Make a scene, and a question of one group of `KINDS` about it."""
    kinds = KINDS[group]
    while True:
        scene = _scene(rng, grid, sign=group == "text")
        if first := ask(rng, scene, rng.sample(kinds, len(kinds)), 1):
            return scene, first[0]


def _scene(rng: Random, grid: tuple[int, int], *, sign: bool) -> Scene:
    """Make a scene; large ones may be crowded, and a few have signs that nobody asks about."""
    crowded = grid[0] * grid[1] >= CROWD_TOKENS and rng.random() < CROWDED_SHARE
    signs = 0
    if sign or rng.random() < SIGNS_SHARE:
        signs = rng.randint(1, 2 if grid[0] * grid[1] < CROWD_TOKENS else 3)
    return make_scene(rng, *grid, signs=signs, crowded=crowded)


def _pair(rng: Random, grid: tuple[int, int]) -> tuple[Scene, Scene]:
    """Two pictures that together have about as many tokens as the grid."""
    rows, columns = (max(4, round(side * 0.72)) for side in grid)
    first = make_scene(rng, rows, columns)
    return first, make_companion(rng, first)


def make_companion(rng: Random, scene: Scene) -> Scene:
    """Another picture of the same size in which one or two of the things occur again."""
    count = min(len(scene.things), rng.randint(1, 2))
    return make_scene(rng, scene.rows, scene.columns, rng.sample(scene.things, count))
