"""The shipped demo bundles answer held-out scenes and videos."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import tokprune
from tokprune.scenes import FilmSample, Sample, film_suite, suite

pytestmark = [pytest.mark.torch, pytest.mark.demo]


class Floor(NamedTuple):
    """What 120 questions must give; the cards have the figures of thousands."""

    full: float
    share_at_a_quarter: float  # of the full accuracy, by the bundle's default selector


PICTURES = {
    "qwen2_vl": Floor(0.73, 0.9),
    "llava_onevision": Floor(0.68, 0.9),
    "vila": Floor(0.62, 0.88),
}
VIDEOS = {"qwen2_vl": Floor(0.74, 0.8), "llava_onevision": Floor(0.7, 0.75)}


def accuracy(vlm: tokprune.VLM, samples: Sequence[Sample | FilmSample], budget: float) -> float:
    hits: list[bool] = []
    for sample in samples:
        shown = sample.clip if isinstance(sample, FilmSample) else list(sample.pictures)
        answer = vlm.ask(shown, sample.question, budget, max_new_tokens=8)
        hits.append(answer.text == sample.answer)
    return sum(hits) / len(hits)


@pytest.mark.parametrize("family", PICTURES)
def test_answers_about_pictures_stay_above_the_floor(
    family: str, demo_bundles: Callable[[str], Path]
) -> None:
    samples = list(suite("test", 120))
    check(tokprune.load(demo_bundles(family)), samples, PICTURES[family])


@pytest.mark.parametrize("family", VIDEOS)
def test_answers_about_videos_stay_above_the_floor(
    family: str, demo_bundles: Callable[[str], Path]
) -> None:
    check(tokprune.load(demo_bundles(family)), list(film_suite("test", 120)), VIDEOS[family])


def check(vlm: tokprune.VLM, samples: Sequence[Sample | FilmSample], floor: Floor) -> None:
    full = accuracy(vlm, samples, 1.0)
    assert full >= floor.full
    assert accuracy(vlm, samples, 0.25) >= floor.share_at_a_quarter * full
