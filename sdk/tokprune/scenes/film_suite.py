"""Held-out questions about drawn videos, the same on every machine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from tokprune.errors import RequestInvalid
from tokprune.scenes.film import draw_film, make_film
from tokprune.scenes.film_questions import FILM_MAKERS, ask_film
from tokprune.scenes.suite import SPLITS, Split
from tokprune.types import Clip

FILM_GROUPS = tuple(FILM_MAKERS)
FPS = 4.0


@dataclass(frozen=True)
class FilmSample:
    """One question about one drawn video."""

    key: str  # stable: "test/film/8x8x8/000123/2"
    clip: Clip
    question: str
    answer: str
    group: str


def film_suite(
    split: Split,
    films: int,
    *,
    grid: tuple[int, int] = (6, 6),
    frames: int = 8,
    questions: int = 1,
    groups: Sequence[str] = FILM_GROUPS,
) -> Iterator[FilmSample]:
    """Yield questions about the first `films` videos of a split.

    Video i depends on (split, i, grid, frames) alone. The groups take turns from video to video.

    Args:
        split: "train", "dev" or "test"; they share no video.
        films: how many.
        grid: rows and columns of a frame, in vision tokens of 28 pixels.
        frames: of a video, 4 or more.
        questions: how many a video; fewer where a video allows no more.
        groups: types of question.

    Raises:
        RequestInvalid: a split or group is unknown, or a video is too small or short.
    """
    _check(split, grid, frames, groups)
    for number in range(films):
        rng = Random(f"{split}/film/{grid}/{frames}/{number}")
        turned = [groups[(number * questions + turn) % len(groups)] for turn in range(len(groups))]
        while True:
            film = make_film(rng, *grid, frames)
            found = ask_film(rng, film, turned[:questions], questions)
            if found:
                break
        clip = Clip(draw_film(film), FPS)
        for index, question in enumerate(found):
            yield FilmSample(
                key=f"{split}/film/{frames}x{grid[0]}x{grid[1]}/{number:06d}/{index}",
                clip=clip,
                question=question.text,
                answer=question.answer,
                group=question.group,
            )


def _check(split: str, grid: tuple[int, int], frames: int, groups: Sequence[str]) -> None:
    if split not in SPLITS:
        raise RequestInvalid(f"Unknown split {split!r}. Known: {', '.join(SPLITS)}")
    if min(grid) < 4 or frames < 4:
        raise RequestInvalid(
            f"A video of {frames} frames of {grid[0]} x {grid[1]} vision tokens: expected 4 or "
            "more of each"
        )
    unknown = [group for group in groups if group not in FILM_MAKERS]
    if unknown or not groups:
        raise RequestInvalid(f"Unknown groups {unknown}. Known: {', '.join(FILM_GROUPS)}")
