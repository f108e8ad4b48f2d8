"""Drawn streams: what a camera sees that stands still, while things move or appear before it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from tokprune.scenes.drawing import draw
from tokprune.scenes.questions import KINDS
from tokprune.scenes.scene import Scene
from tokprune.scenes.suite import Split, grid_of, scene_question
from tokprune.types import Array, Image

NOISE = 2.0  # standard deviation of a pixel of a camera, in grey levels
STEP_PX = 4  # a frame that the thing moves by
PART = 6  # sides of the picture are so many times those of the thing: it is 3 % of the picture
FROM_THE_START = 0.5  # chance that a thing is there in the first frame
STREAM_GROUPS = tuple(KINDS)  # those of pictures that ask about one scene


@dataclass(frozen=True)
class StreamSample:
    """One question about a stream, asked at its last frame."""

    key: str  # stable: "test/stream/196/000123"
    frames: tuple[Image, ...]
    question: str
    answer: str  # of the last frame
    group: str
    dense: bool = False  # 20 things or more in the last frame


def noisy(picture: Image, noise: np.random.Generator) -> Image:
    """Return the picture through a camera's noise."""
    seen: Array = np.rint(picture + noise.normal(0, NOISE, picture.shape))
    return np.minimum(np.maximum(seen, 0), 255).astype(np.uint8)


def slowly(picture: Image, random: np.random.Generator) -> Iterator[Image]:
    """Yield frames of a camera before which a square of 3 % of the picture moves to the right.

    By 4 px a frame, and again from the left.
    """
    height, width = picture.shape[:2]
    tall, wide = max(1, height // PART), max(1, width // PART)
    thing = random.integers(0, 256, (tall, wide, 3), np.uint8)
    number = 0
    while True:
        left = STEP_PX * number % (width - wide + 1)
        frame = np.array(picture)
        frame[height // 3 : height // 3 + tall, left : left + wide] = thing
        yield noisy(frame, random)
        number += 1


def stream_suite(
    split: Split,
    streams: int,
    *,
    tokens: int,
    frames: int,
    groups: Sequence[str] = STREAM_GROUPS,
) -> Iterator[StreamSample]:
    """Yield questions about streams, each asked at the last of its frames.

    Half of the things are there from the start, the others come at a frame of their own, so that
    the last frame shows the whole scene and the frames before it less. The groups take turns.
    Stream i depends on (split, i, tokens, frames, groups) alone.

    Args:
        split: "train", "dev" or "test"; they share no stream.
        streams: how many.
        tokens: cells of 28 x 28 pixels of a frame.
        frames: of a stream.
        groups: types of question.
    """
    for number in range(streams):
        key = f"{split}/stream/{tokens}/{number:06d}"
        rng = Random(f"{key}/{frames}")
        scene, question = scene_question(rng, grid_of(tokens), groups[number % len(groups)])
        yield StreamSample(
            key=key,
            frames=_frames(rng, scene, frames, np.random.default_rng(number)),
            question=question.text,
            answer=question.answer,
            group=question.group,
            dense=scene.dense,
        )


def _frames(rng: Random, scene: Scene, count: int, noise: np.random.Generator) -> tuple[Image, ...]:
    comes = [0 if rng.random() < FROM_THE_START else rng.randrange(count) for _ in scene.things]
    drawn: dict[int, Image] = {}  # by how many things are there
    made: list[Image] = []
    for frame in range(count):
        there = tuple(t for t, at in zip(scene.things, comes, strict=True) if at <= frame)
        if len(there) not in drawn:
            drawn[len(there)] = draw(replace(scene, things=there))
        made.append(noisy(drawn[len(there)], noise))
    return tuple(made)
