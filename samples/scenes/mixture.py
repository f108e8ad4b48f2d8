"""Which rows a training step sees: sizes, layouts, questions; a function of (seed, step)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TypeAlias

from batch import Batch
from demos import Demo
from lines import Answered, Part, Row
from rows import Writer
from tokenizer import SYSTEM_PROMPTS

from tokprune.scenes import (
    GROUPS,
    Page,
    Question,
    Scene,
    ask,
    ask_page,
    compare,
    describe,
    describe_page,
    in_picture,
    make_companion,
    make_page,
    make_scene,
)
from tokprune.scenes.film import make_film
from tokprune.scenes.film_questions import ask_film, ask_frame, describe_film
from tokprune.scenes.film_suite import FILM_GROUPS
from tokprune.scenes.questions import MAKERS, ORDINALS
from tokprune.scenes.scene import CROWD_TOKENS

Weights: TypeAlias = Sequence[tuple[float, tuple[float, ...]]]
ALL_GROUPS = (*GROUPS, *FILM_GROUPS, "size", "frame", "caption")
# The hard ones more often. A guess from earlier runs; the shares were not searched.
ASKED = (*MAKERS, "is_beside", "is_beside", "count", "count", "digit", "position", *("text",) * 5)
PAGES_SHARE = 0.35  # of the rows with one picture show a form or chart
SIGNS_SHARE, CROWDED_SHARE = 0.7, 0.25
SMALLEST_PAGE = 5  # vision tokens a side
CAPTION_THINGS = 12  # more are not described: too long
# Cells of a frame, and frames: short films of few things first, for the reason that demo.py gives.
FILMS = (
    (((4, 4), 4), ((4, 4), 6), ((4, 4), 8), ((5, 5), 4)),
    (((6, 6), 8), ((6, 6), 8), ((6, 6), 4), ((5, 5), 6), ((6, 6), 12), ((8, 8), 8)),
)
FILMS_SCHEDULE = ((0.0, (0.95, 0.05)), (0.78, (0.5, 0.5)), (0.84, (0.15, 0.85)))
FILM_ROWS = 10  # of 8 frames
LARGEST = (20, 20)  # half as many rows of it


def make_batch(
    writer: Writer, seed: int, step: int, done: float, *, factor: float = 1.0, begin: float = 0.0
) -> Batch:
    """Draw the batch of one step.

    Args:
        writer: makes tensors of rows.
        seed: of the training.
        step: of the training.
        done: share of the language steps, below 0 before these.
        factor: how many times as many rows as the plan has.
        begin: where in the plan of layouts the training began, if it went on from a checkpoint.
    """
    rng = Random(f"{seed}/{step}")
    plan = writer.demo.plan
    schedule = plan.again if begin else plan.schedule
    if done < 0:
        band = rng.choices(plan.bands, _now(plan.again, 0.0) if begin else plan.vision)[0]
        grid = rng.choice([grid for grid in band.grids if grid != LARGEST])
        pictures = [_picture(rng, grid) for _ in range(_rows(band.rows, factor))]
        return writer.batch([Row((each,), (0,), ()) for each in pictures], band.side_px)
    band = rng.choices(plan.bands, _now(schedule, done))[0]  # of one plain picture
    done = begin + (1 - begin) * done
    layout = "plain"
    if done >= plan.layouts_from:
        rest = 1 - sum(plan.layouts.values())
        layout = rng.choices(["plain", *plan.layouts], [rest, *plan.layouts.values()])[0]
    if layout == "film":
        grid, frames = rng.choice(rng.choices(FILMS, _now(FILMS_SCHEDULE, done))[0])
        rows = _rows(FILM_ROWS * 8 // frames, factor)
        return writer.batch([_film(rng, grid, frames) for _ in range(rows)])
    if layout not in ("plain", "talk"):
        band = rng.choices(plan.bands, _now(plan.others, done))[0]
    grid = rng.choice([grid for grid in band.grids if layout == "plain" or grid != LARGEST])
    halved = layout == "several" or grid == LARGEST
    rows = _rows(band.rows // 2 if halved else band.rows, factor)
    systems = 0.1 if done >= plan.layouts_from else 0.0
    made = [make_row(rng, grid, layout, systems) for _ in range(rows)]
    return writer.batch(made, band.side_px)


def _rows(planned: int, factor: float) -> int:
    return max(2, round(planned * factor))


def with_layouts(demo: Demo, shares: Mapping[str, float]) -> Demo:
    """The demo with other shares of some layouts.

    Raises:
        ValueError: the family's demo has no such layout, or nothing would be left for one plain
            picture.
    """
    plan = demo.plan
    unknown = sorted(shares.keys() - plan.layouts.keys())
    if unknown:
        raise ValueError(
            f"The demo {demo.card.name} has no layout {unknown[0]!r}; it has "
            f"{', '.join(plan.layouts)}"
        )
    layouts = {**plan.layouts, **shares}
    if min(layouts.values()) < 0 or sum(layouts.values()) > 1:
        given = ", ".join(f"{name} {share:g}" for name, share in layouts.items())
        raise ValueError(f"Layouts need shares of 0 and more, of 1 together; got {given}")
    return replace(demo, plan=replace(plan, layouts=layouts))


def make_development(writer: Writer) -> dict[str, list[Batch]]:
    """A small fixed set by size and layout: layout, grid, batches, rows in each."""
    sets = {
        "64": ("plain", (8, 8), 6, 10),
        "196": ("plain", (14, 14), 12, 8),
        "talk": ("talk", (8, 8), 3, 8),
        "several": ("several", (8, 8), 4, 6),
        "first": ("first", (8, 8), 4, 16),
        "later": ("later", (8, 8), 4, 6),
        "film": ("film", (6, 6), 6, 10),
    }
    made: dict[str, list[Batch]] = {}
    for name, (layout, grid, count, rows) in sets.items():
        if layout != "plain" and layout not in writer.demo.plan.layouts:
            continue
        rng = Random(f"development/{name}")
        made[name] = [
            writer.batch([make_row(rng, grid, layout) for _ in range(rows)]) for _ in range(count)
        ]
    return made


def _now(weights: Weights, done: float) -> tuple[float, ...]:
    return [each for start, each in weights if start <= done][-1]


def make_row(rng: Random, grid: tuple[int, int], layout: str, systems: float = 0.0) -> Row:
    """Make one row of a layout.

    Args:
        rng: source of all chance.
        grid: rows and columns of vision tokens of every picture.
        layout: "plain", "talk" (dialogues), "several" (pictures), "first" (the question before the
            picture), "later" (another picture in a later turn), "film" (a video of 8 frames).
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
        case "film":
            return _film(rng, grid, 8)
        case _:
            raise ValueError(f"unknown layout {layout!r}")


def _said(question: Question, about: int | None = None) -> Answered:
    return Answered(question.text, question.answer, ALL_GROUPS.index(question.group), about)


def _asked(rng: Random, scene: Scene, count: int) -> list[Question]:
    groups = rng.sample(ASKED, len(ASKED))
    return ask(rng, scene, groups, count)


def _one(rng: Random, scene: Scene) -> Question:
    """One question; a scene of two things may refuse eight groups in a row."""
    while True:
        questions = _asked(rng, scene, 1)
        if questions:
            return questions[0]


def _system(rng: Random, share: float) -> str | None:
    return rng.choice(SYSTEM_PROMPTS) if rng.random() < share else None


def _picture(rng: Random, grid: tuple[int, int]) -> Scene | Page:
    page = min(grid) >= SMALLEST_PAGE and rng.random() < PAGES_SHARE
    return make_page(rng, *grid) if page else _scene(rng, grid)


def _scene(rng: Random, grid: tuple[int, int]) -> Scene:
    """A scene, often with signs; large ones may be crowded."""
    tokens = grid[0] * grid[1]
    crowded = tokens >= CROWD_TOKENS and rng.random() < CROWDED_SHARE
    signs = 0
    if tokens > 16 and rng.random() < SIGNS_SHARE:
        signs = rng.randint(1, 2 if tokens < CROWD_TOKENS else 3)
    return make_scene(rng, *grid, signs=signs, crowded=crowded)


def _plain(rng: Random, grid: tuple[int, int], systems: float) -> Row:
    """One picture, eight questions, often a description."""
    shown = _picture(rng, grid)
    asked = ask_page(rng, shown, 8) if isinstance(shown, Page) else _asked(rng, shown, 8)
    branches: list[tuple[Part, ...]] = [(_said(q, about=0),) for q in asked]
    if rng.random() < 0.7 and (isinstance(shown, Page) or len(shown.things) <= CAPTION_THINGS):
        caption = describe_page(shown) if isinstance(shown, Page) else describe(shown)
        branches.append((_said(caption, about=0),))
    return Row((shown,), (0,), tuple(branches), _system(rng, systems))


def _talk(rng: Random, grid: tuple[int, int], systems: float) -> Row:
    """One picture, three dialogues of 2 to 5 turns."""
    scene = _scene(rng, grid)
    branches: list[tuple[Part, ...]] = []
    for _ in range(3):
        turns = _asked(rng, scene, rng.choice((2, 2, 3, 3, 4, 5)))
        branches.append(tuple(_said(q, about=0) for q in turns))
    return Row((scene,), (0,), tuple(branches), _system(rng, systems))


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
    branches = [(_said(question, about=_shown_in(question)),) for question in found]
    for which, scene in enumerate(scenes):
        asked = [in_picture(question, which) for question in _asked(rng, scene, 2)]
        branches += [(_said(question, about=which),) for question in asked]
    return Row(scenes, tuple(range(count)), tuple(branches), _system(rng, 0.05))


def _shown_in(question: Question) -> int | None:
    """The picture that alone has what is asked for."""
    if question.text.startswith("which picture has a"):
        return ORDINALS.index(question.answer)
    return None


def _question_first(rng: Random, grid: tuple[int, int]) -> Row:
    """The question, then the picture."""
    scene = _scene(rng, grid)
    question = _one(rng, scene)
    answered = Answered("", question.answer, ALL_GROUPS.index(question.group))
    return Row((scene,), (question.text, 0, answered), ())


def _later(rng: Random, grid: tuple[int, int]) -> Row:
    """A picture, a question, its answer, and then another picture to ask about."""
    first = make_scene(rng, *grid)
    second = make_companion(rng, first)
    start = _one(rng, first)
    asked = _asked(rng, second, 6)
    branches = tuple((_said(question, about=1),) for question in asked)
    return Row((first, second), (0, _said(start, about=0), 1), branches)


def _film(rng: Random, grid: tuple[int, int], frames: int) -> Row:
    """One video, eight questions and more about single frames, and often a description."""
    while True:
        film = make_film(rng, *grid, frames)
        questions = ask_film(rng, film, rng.sample(FILM_GROUPS, len(FILM_GROUPS)), 8)
        if questions:
            break
    frames_asked = (ask_frame(rng, film) for _ in range(5))
    questions += dict.fromkeys(question for question in frames_asked if question)
    branches = [(_said(question, about=0),) for question in questions]
    if rng.random() < 0.7:
        branches.append((_said(describe_film(film)),))
    return Row((film,), (0,), tuple(branches))
