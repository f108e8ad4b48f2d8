"""Which frames are taken, by their times alone."""

from fractions import Fraction
from math import ceil
from typing import Any

import pytest

from tokprune import RequestInvalid, load_video
from tokprune.timeline import Timeline, Wanted, choose


def steady(frames: int, gap: int, tick: Fraction, first: int = 0) -> Timeline:
    times = tuple(first + gap * number for number in range(frames))
    return Timeline(times, first + gap * frames, (first,), tick, (64, 48))


@pytest.mark.torch
def test_frames_spread_evenly_are_those_of_transformers() -> None:
    from transformers.video_utils import VideoMetadata, default_sample_indices_fn

    ticks = [
        steady(97, 512, Fraction(1, 15360)),
        steady(97, 1, Fraction(1, 30), first=-3),
        Timeline(  # thirds of a tenth, in whole milliseconds
            tuple(round(Fraction(1000 * n, 30)) for n in range(97)), 3233, (0,), Fraction(1, 1000),
            (64, 48),
        ),
    ]  # fmt: skip
    for count in (1, 2, 3, 8, 13, 16, 31, 32, 48, 64, 95, 96, 97):
        theirs = default_sample_indices_fn(VideoMetadata(total_num_frames=97), num_frames=count)
        for timeline in ticks:
            taken = choose(timeline, Wanted(num_frames=count), "film")
            assert [timeline.times.index(time) for time in taken.times] == theirs.tolist()
            assert taken.fps == pytest.approx(30 * count / 97, rel=1e-3)


def test_a_frame_every_so_often_is_found_in_spite_of_rounded_times() -> None:
    for rate in (15, 24, 25, 30, 60):
        times = tuple(round(Fraction(1000 * n, rate)) for n in range(10 * rate))
        timeline = Timeline(times, 10_000, (0,), Fraction(1, 1000), (64, 48))
        for fps in (1.0, 2.0, 5.0, rate / 4, rate / 2, float(rate)):
            taken = choose(timeline, Wanted(fps=fps), "film")
            found = [timeline.times.index(time) for time in taken.times]
            assert found == [int(n * rate / fps) for n in range(ceil(10 * fps))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 1.0, "num_frames": 2}, "give one of the two"),
        ({"fps": 0.0}, "fps must be above 0, got 0.0"),
        ({"fps": float("nan")}, "fps must be above 0, got nan"),
        ({"num_frames": 0}, "num_frames must be 1 to max_frames=768, got 0"),
        ({"num_frames": 800}, "num_frames must be 1 to max_frames=768, got 800"),
        ({"max_frames": 0}, "max_frames must be 1 or more"),
        ({"start_s": -1.0}, "expected 0 <= start_s < end_s"),
        ({"start_s": 2.0, "end_s": 2.0}, "expected 0 <= start_s < end_s"),
        ({"end_s": float("inf")}, "expected 0 <= start_s < end_s"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_the_file_is_opened(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestInvalid, match=message):
        load_video("no/such/film.mp4", **options)
