"""What counts as a change of a picture, and which pixels are given where there is none."""

from random import Random
from typing import Any

import numpy as np
import pytest

from tokprune import ChangeGate, Frame, FrameStamp, RequestInvalid
from tokprune.scenes.drawing import draw_thing
from tokprune.scenes.painting import draw_background
from tokprune.scenes.scene import Thing, make_scene
from tokprune.types import Array
from tokprune.watching.gate import FLICKER, THRESHOLD, block_means, difference

SIGMA = 7.0  # the most noise that scenes are drawn with
SIZES_HW = [(448, 448), (672, 896), (720, 1280)]


def frame(image: Array, number: int = 0, captured_s: float = 0.0) -> Frame:
    return Frame(image, FrameStamp("door", number, captured_s, 1e9))


def a_scene(size_hw: tuple[int, int], things: tuple[Thing, ...]) -> Array:
    """Draw without noise."""
    picture = draw_background(np.random.default_rng(3), *size_hw)
    for number, thing in enumerate(things):
        draw_thing(picture, thing, np.random.default_rng(number))
    return picture


def shot(clean: Array, seed: int, *, gain: float = 1.0, sigma: float = SIGMA) -> Array:
    """Return what a camera sees of it."""
    noise = np.random.default_rng(seed).standard_normal(clean.shape, np.float32)
    return (clean * np.float32(gain) + noise * sigma).clip(0, 255).astype(np.uint8)


def things_of(seed: int, size_hw: tuple[int, int]) -> tuple[Thing, ...]:
    return make_scene(Random(seed), size_hw[0] // 28, size_hw[1] // 28).things


def a_thing(**changes: Any) -> Thing:
    usual: dict[str, Any] = {
        "color": "red",
        "shape": "square",
        "large": True,
        "radius": 20,
        "x": 200,
        "y": 180,
        "digit": "3",
        "rotation": 10,
    }
    return Thing(**{**usual, **changes})


def is_changed(before: Array, now: Array) -> bool:
    gate = ChangeGate()
    gate.through(frame(before))
    return gate.changed(frame(now, 1))


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 90), (10, 10), (14, 23), (57, 101)])
@pytest.mark.parametrize("block_px", [5, 8])
def test_block_means_are_those_of_every_pixel_once(size_hw: tuple[int, int], block_px: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3)).astype(np.uint8)
    means = block_means(image, block_px)
    edges = [[*range(0, max(side // block_px, 1) * block_px, block_px), side] for side in size_hw]
    expected = [
        [
            image[top:bottom, left:right].mean(axis=(0, 1))
            for left, right in zip(edges[1][:-1], edges[1][1:], strict=True)
        ]
        for top, bottom in zip(edges[0][:-1], edges[0][1:], strict=True)
    ]
    assert np.allclose(means, expected, atol=1e-3)


@pytest.mark.parametrize("size_hw", SIZES_HW)
@pytest.mark.parametrize("seed", range(3))
def test_noise_and_flicker_are_no_change(size_hw: tuple[int, int], seed: int) -> None:
    clean = a_scene(size_hw, things_of(seed, size_hw))
    assert not is_changed(shot(clean, seed, gain=0.99), shot(clean, seed + 9, gain=1.01))


@pytest.mark.parametrize("size_hw", SIZES_HW)
@pytest.mark.parametrize(
    ("before", "now"),
    [
        (a_thing(), a_thing(x=202)),
        (a_thing(), a_thing(y=178)),
        (a_thing(radius=10, digit=None), a_thing(radius=10, digit=None, x=204, y=184)),
        (a_thing(), None),
        (None, a_thing(radius=10, digit=None)),
        (a_thing(radius=18, digit="3"), a_thing(radius=18, digit="8")),
        (a_thing(radius=18, digit="1"), a_thing(radius=18, digit="7")),
        (a_thing(digit=None), a_thing(digit=None, color="purple")),  # of the same brightness
        (a_thing(digit=None, color="cyan"), a_thing(digit=None, color="green")),
    ],
)
def test_what_happens_to_one_thing_is_a_change(
    before: Thing | None, now: Thing | None, size_hw: tuple[int, int]
) -> None:
    shots = [
        shot(a_scene(size_hw, () if thing is None else (thing,)), seed)
        for seed, thing in enumerate((before, now))
    ]
    assert is_changed(shots[0], shots[1])


def test_a_thing_at_the_edge_of_a_picture_of_odd_size_is_seen() -> None:
    before = np.full((483, 641, 3), 90, np.uint8)
    for rows, columns in ((slice(480, 483), slice(100, 110)), (slice(100, 110), slice(637, 641))):
        now = before.copy()
        now[rows, columns] = 250
        assert is_changed(before, now)


def test_light_that_is_switched_is_a_change_and_flicker_is_not() -> None:
    lit = np.random.default_rng(0).integers(40, 200, (120, 160, 3)).astype(np.uint8)
    for gain, changed in ((1 + FLICKER, False), (1 - FLICKER, False), (1.25, True), (0.7, True)):
        other = (lit * gain).round().astype(np.uint8)
        assert is_changed(lit, other) is changed, gain


def test_a_small_thing_is_seen_though_the_light_flickers() -> None:
    before = np.full((300, 300, 3), 100, np.uint8)
    now = np.full((300, 300, 3), 101, np.uint8)
    now[100:110, 100:110] = 140
    means = block_means(before), block_means(now)
    assert difference(*means) == pytest.approx(39, abs=1.5)


def test_an_unchanged_frame_gets_the_pixels_of_before_and_keeps_its_stamp() -> None:
    clean = np.full((90, 120, 3), 100.0, np.float32)
    gate = ChangeGate()
    first = gate.through(frame(shot(clean, 0), 0, 10.0))
    given = gate.through(frame(shot(clean, 1), 1, 10.1))
    assert given.image is first.image
    assert (given.stamp.number, given.stamp.captured_s) == (1, 10.1)
    assert (gate.frames, gate.unchanged) == (2, 1)


def test_a_changed_frame_goes_through_as_it_is_and_is_compared_with_from_then_on() -> None:
    dark, bright = np.full((40, 40, 3), 30, np.uint8), np.full((40, 40, 3), 200, np.uint8)
    gate = ChangeGate()
    gate.through(frame(dark))
    other = frame(bright, 1)
    assert gate.through(other) is other
    assert gate.through(frame(bright.copy(), 2)).image is bright
    assert gate.through(frame(dark, 3)).image is dark
    assert gate.unchanged == 1


def test_slow_change_adds_up() -> None:
    gate = ChangeGate()
    given: list[Array] = []
    for number in range(40):
        image = np.full((40, 40, 3), 100, np.uint8)
        image[10:30, 10:30] += np.uint8(number)
        given.append(gate.through(frame(image, number)).image)
        assert difference(block_means(given[-1]), block_means(image)) <= THRESHOLD
    assert 3 < len({id(image) for image in given}) < 10


def test_another_size_is_a_change() -> None:
    assert is_changed(np.zeros((40, 60, 3), np.uint8), np.zeros((60, 40, 3), np.uint8))


def test_asking_whether_a_frame_changed_keeps_nothing() -> None:
    gate = ChangeGate()
    dark, bright = np.full((40, 40, 3), 30, np.uint8), np.full((40, 40, 3), 200, np.uint8)
    assert gate.changed(frame(dark))
    gate.through(frame(dark))
    assert gate.changed(frame(bright, 1))
    assert gate.through(frame(dark.copy(), 2)).image is dark
    assert gate.frames == 2


def test_pixels_are_renewed_in_time_though_nothing_changed() -> None:
    image = np.full((40, 40, 3), 30, np.uint8)
    gate = ChangeGate(renew_s=10.0)
    given = [gate.through(frame(image.copy(), n, n * 4.0)).image for n in range(7)]
    assert [each is given[0] for each in given] == [True] * 3 + [False] * 4
    assert [each is given[3] for each in given] == [False] * 3 + [True] * 3 + [False]
    forever = ChangeGate(renew_s=None)
    kept = forever.through(frame(image, 0, 0.0)).image
    assert forever.through(frame(image.copy(), 1, 1e9)).image is kept


def test_at_threshold_0_only_equal_pixels_are_unchanged() -> None:
    image = np.full((40, 40, 3), 30, np.uint8)
    other = image.copy()
    other[3, 3, 0] += 1
    gate = ChangeGate(0.0)
    gate.through(frame(image))
    assert gate.through(frame(image.copy(), 1)).image is image
    assert gate.through(frame(other, 2)).image is other


def test_after_reset_the_next_frame_goes_through() -> None:
    image = np.full((40, 40, 3), 30, np.uint8)
    gate = ChangeGate()
    gate.through(frame(image))
    gate.reset()
    again = frame(image.copy(), 1)
    assert gate.changed(again)
    assert gate.through(again) is again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1.0}, "threshold must be 0 to 255 levels, got -1.0"),
        ({"threshold": float("nan")}, "threshold must be 0 to 255"),
        ({"renew_s": 0.0}, "renew_s must be above 0 seconds, or None, got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestInvalid, match=message):
        ChangeGate(**options)
