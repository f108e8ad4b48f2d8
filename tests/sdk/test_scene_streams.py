"""Drawn streams: what changes in them, and that what is asked is true of their last frame."""

from itertools import islice, pairwise

import numpy as np

from tokprune.scenes import STREAM_GROUPS, noisy, slowly, stream_suite

STREAMS = 2 * len(STREAM_GROUPS)


def test_streams_are_the_same_on_every_machine_and_take_turns_by_group() -> None:
    first, again = (list(stream_suite("dev", STREAMS, tokens=64, frames=5)) for _ in range(2))
    assert [s.key for s in first] == [s.key for s in again]
    for one, other in zip(first, again, strict=True):
        assert (one.question, one.answer) == (other.question, other.answer)
        assert all(map(np.array_equal, one.frames, other.frames))
    assert [s.group for s in first] == [*STREAM_GROUPS] * 2
    tests = stream_suite("test", STREAMS, tokens=64, frames=5)
    assert {s.question for s in first} != {s.question for s in tests}


def test_things_come_one_after_the_other_and_stay() -> None:
    came = 0
    for sample in stream_suite("dev", STREAMS, tokens=64, frames=6):
        assert len(sample.frames) == 6
        last = sample.frames[-1].astype(int)
        gaps = [(np.abs(frame - last).mean(axis=2) > 20).mean() for frame in sample.frames]
        assert gaps[-1] == 0
        assert all(later <= before + 0.001 for before, later in pairwise(gaps))
        came += gaps[0] > 0.01
    assert came > STREAMS / 2


def test_a_stream_of_one_frame_shows_everything() -> None:
    (one,) = stream_suite("dev", 1, tokens=64, frames=1)
    (many,) = stream_suite("dev", 1, tokens=64, frames=6)
    assert one.frames[0].shape == many.frames[-1].shape


def test_a_square_moves_through_noise_and_the_rest_stands_still() -> None:
    picture = np.full((120, 180, 3), 128, np.uint8)
    frames = list(islice(slowly(picture, np.random.default_rng(0)), 50))
    for number, frame in enumerate(frames):
        moved = np.argwhere(np.abs(frame.astype(int) - 128).max(axis=2) > 12)
        (top, left), (bottom, right) = moved.min(axis=0), moved.max(axis=0)
        assert (top, bottom) == (40, 59)
        assert abs(left - 4 * number % 151) <= 2
        assert right - left <= 29
    assert (picture == 128).all(), "the given one stays as it is"
    still = np.stack([frame[:30] for frame in frames]).astype(float)
    assert 1.8 < still.std() < 2.2


def test_noise_stays_within_a_pixel() -> None:
    black, white = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)
    random = np.random.default_rng(0)
    assert noisy(black, random).max() < 20
    assert noisy(white, random).min() > 235
