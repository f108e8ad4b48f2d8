"""The questions of an evaluation: drawn scenes, videos or streams, or a file of one's own."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import cast

from tokprune.errors import RequestInvalid
from tokprune.manifest import Modality
from tokprune.scenes import (
    FilmSample,
    Sample,
    Split,
    StreamSample,
    film_suite,
    stream_suite,
    suite,
)
from tokprune.scenes.suite import grid_of
from tokprune.types import Medium
from tokprune_export.examples import Example, read_examples
from tokprune_export.media import Source, identity, modality

SCENES, FILMS, STREAMS = "scenes", "scenes-video", "scenes-stream"
TOKENS = {SCENES: 196, FILMS: 36, STREAMS: 196}
FRAMES = {FILMS: 8, STREAMS: 12}
SPLIT: Split = "dev"
AHEAD = 16  # questions that are looked at beyond the last, for one that asks something else
WHOLE, DENSE, PICTURES, VIDEOS = "all", "dense", "pictures", "videos"
RESERVED = (WHOLE, DENSE, PICTURES, VIDEOS)  # rows that are no groups
UNGROUPED = "ungrouped"


@dataclass(frozen=True)
class Suite:
    """Where questions come from."""

    name: str  # "scenes", "scenes-video", "scenes-stream", or a file's name
    split: str  # "-" of a file
    tokens: int | None = None
    frames: int | None = None
    examples: tuple[Example, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether right answers are known."""
        return not self.examples or bool(self.examples[0].answer)

    @property
    def modalities(self) -> set[Modality]:
        """What its questions are about."""
        if self.examples:
            return {example.modality for example in self.examples}
        return {"video" if self.name == FILMS else "picture"}

    @property
    def streams(self) -> bool:
        """Whether something was seen before what is asked about."""
        if self.examples:
            return any(example.seen for example in self.examples)
        return self.name == STREAMS


@dataclass(frozen=True)
class Task:
    """One question."""

    key: str  # says what is asked: the same in every run
    place: str  # for messages
    media: tuple[Source | Medium, ...]  # files are read by the process that asks
    question: str
    answer: str  # "" where it is not known
    group: str
    dense: bool = False  # a crowded scene
    other_question: str = ""  # of another sample, which the twins read; "": there is none
    before: str = ""  # the question of the turn before it
    seen: tuple[Source | Medium, ...] = ()  # of a stream, the pictures before the one asked about

    @property
    def modality(self) -> Modality:
        """Whether it is about a video."""
        return modality(self.media)


def open_suite(
    name: str,
    split: Split | None = None,
    tokens: int | None = None,
    frames: int | None = None,
    limit: int | None = None,
) -> Suite:
    """Find a suite by name, or read a file's first `limit` lines.

    Raises:
        RequestInvalid: there is none of that name, or an option has no meaning for it.
    """
    if name == SCENES and frames is not None:
        raise RequestInvalid(
            f"--frames is for drawn videos and streams: give --suite {FILMS} or {STREAMS}, or no "
            "--frames"
        )
    if name in TOKENS:
        size = tokens or TOKENS[name]
        grid_of(size)
        length = None if name == SCENES else frames or FRAMES[name]
        return Suite(name, split or SPLIT, size, length)
    if not Path(name).is_file():
        raise RequestInvalid(
            f"Unknown suite {name!r}: give {SCENES}, {FILMS}, {STREAMS}, or a file with one JSON "
            "object a line"
        )
    for option, value in (("split", split), ("tokens", tokens), ("frames", frames)):
        if value is not None:
            raise RequestInvalid(f"--{option} is for drawn scenes; {name} brings its own questions")
    examples = tuple(read_examples(Path(name), limit, answers="all or none"))
    taken = {example.group for example in examples} & set(RESERVED)
    if taken:
        raise RequestInvalid(
            f"{name} has the group {min(taken)!r}, which the tables use for themselves: rename it"
        )
    return Suite(Path(name).name, "-", examples=examples)


def tasks(suite_: Suite, count: int) -> Iterator[Task]:
    """Yield the first `count` questions, each with other words for its twin."""
    if not suite_.examples:
        yield from islice(_twinned(_drawn(suite_, count + AHEAD), ()), count)
        return
    given = [_task(example, suite_.name) for example in suite_.examples[:count]]
    for task in _twinned(given, [example.question for example in suite_.examples]):
        yield replace(task, key=_hashed(task.key, task.other_question))


def pairs(suite_: Suite, count: int) -> Iterator[Task]:
    """Yield second questions about what a first one was asked about, at most `count`."""
    found = _given_pairs(suite_) if suite_.examples else _drawn_pairs(suite_, 2 * count)
    yield from islice(found, count)


def _drawn(suite_: Suite, scenes: int, questions: int = 1) -> Iterator[Task]:
    for sample in _samples(suite_, scenes, questions):
        media: tuple[Medium, ...]
        seen: tuple[Medium, ...] = ()
        match sample:
            case FilmSample():
                media = (sample.clip,)
            case StreamSample():
                seen, media = sample.frames[:-1], sample.frames[-1:]
            case Sample():
                media = sample.pictures
        yield Task(
            key=sample.key,
            place=sample.key,
            media=media,
            question=sample.question,
            answer=sample.answer,
            group=sample.group,
            dense=not isinstance(sample, FilmSample) and sample.dense,
            seen=seen,
        )


def _samples(
    suite_: Suite, scenes: int, questions: int
) -> Iterable[Sample | FilmSample | StreamSample]:
    split = cast(Split, suite_.split)  # files do not come here
    if suite_.name == STREAMS:
        tokens, frames = suite_.tokens or TOKENS[STREAMS], suite_.frames or FRAMES[STREAMS]
        return stream_suite(split, scenes, tokens=tokens, frames=frames)
    if suite_.frames is None:
        return suite(split, scenes, tokens=suite_.tokens, questions=questions)
    grid = grid_of(suite_.tokens or TOKENS[FILMS])
    return film_suite(split, scenes, grid=grid, frames=suite_.frames, questions=questions)


def _task(example: Example, name: str) -> Task:
    contents = [identity(source).content for source in (*example.seen, *example.media)]
    return Task(
        key=_hashed(*contents, example.question),
        place=f"{name}, line {example.line}",
        media=example.media,
        question=example.question,
        answer=example.answer,
        group=example.group or UNGROUPED,
        seen=example.seen,
    )


def _twinned(given: Iterable[Task], circle: Sequence[str]) -> Iterator[Task]:
    """Give each question the words of the next that asks something else, or of the first such."""
    waiting: list[Task] = []  # all of the same words
    for task in given:
        if waiting and waiting[0].question != task.question:
            yield from (replace(one, other_question=task.question) for one in waiting)
            waiting = []
        waiting.append(task)
    for task in waiting:
        others = (words for words in circle if words != task.question)
        yield replace(task, other_question=next(others, ""))


def _drawn_pairs(suite_: Suite, scenes: int) -> Iterator[Task]:
    if suite_.streams:  # one question each
        return
    last: Task | None = None
    for task in _drawn(suite_, scenes, questions=2):
        if last is not None and _scene(last) == _scene(task):
            yield replace(task, key=f"{task.key} after {last.question}", before=last.question)
        last = task


def _scene(task: Task) -> str:
    return task.key.rpartition("/")[0]


def _given_pairs(suite_: Suite) -> Iterator[Task]:
    """Pair each line of a file with the last one before it about the same media."""
    latest: dict[tuple[Source, ...], str] = {}
    for example in suite_.examples:
        task = _task(example, suite_.name)
        before = latest.get(example.media)
        if before is not None and before != example.question:
            yield replace(task, key=_hashed(task.key, "after", before), before=before)
        latest[example.media] = example.question


def _hashed(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
