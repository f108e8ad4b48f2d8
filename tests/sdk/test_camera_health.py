"""What pictures, and their absence, say of a camera: by a clock that the tests move."""

import numpy as np
import pytest

from tokprune import RequestInvalid
from tokprune.camera.health import CameraState, Health
from tokprune.types import Array


def picture(value: int, sigma: float = 0.0, seed: int = 0) -> Array:
    noise = np.random.default_rng(seed).normal(0, sigma, (48, 64)) if sigma else 0
    return np.clip(value + noise, 0, 255).astype(np.uint8) * np.ones((48, 64), np.uint8)


def run(health: Health, start_s: float, count: int, gap_s: float, *, still: bool = False) -> float:
    """Let pictures arrive, and return when the last one did."""
    for number in range(count):
        now_s = start_s + number * gap_s
        health.arrived(now_s, picture(7 if still else number % 200))
    return start_s + (count - 1) * gap_s


def test_a_camera_connects_until_its_first_picture() -> None:
    health = Health(live=True, now_s=10.0)
    assert health.judge(10.0) == ("CONNECTING", 10.0)
    assert health.judge(500.0) == ("CONNECTING", 10.0)
    health.arrived(501.0, picture(1))
    assert health.judge(501.0) == ("LIVE", 501.0)


def test_a_picture_older_than_the_limit_is_stale_until_the_next_comes() -> None:
    health = Health(live=True, now_s=0.0, max_frame_age_s=0.4)
    last_s = run(health, 0.0, 10, 1 / 30)
    assert health.state(last_s + 0.4) == "LIVE"
    assert health.judge(last_s + 0.41) == ("STALE", last_s + 0.4)
    health.arrived(last_s + 5, picture(99))
    assert health.judge(last_s + 5) == ("LIVE", last_s + 5)


@pytest.mark.parametrize(("gap_s", "limit_s"), [(1 / 30, 1.0), (0.2, 1.0), (0.5, 1.5), (2.0, 6.0)])
def test_the_limit_is_a_second_or_three_of_the_usual_gaps(gap_s: float, limit_s: float) -> None:
    health = Health(live=True, now_s=0.0)
    assert health.limit_s == 1.0
    run(health, 0.0, 20, gap_s)
    assert health.limit_s == pytest.approx(limit_s)


def test_what_the_source_says_counts_until_pictures_came() -> None:
    health = Health(live=True, now_s=0.0)
    health.opened(4.0)
    assert health.limit_s == 12.0
    run(health, 0.0, 10, 0.1)
    assert health.limit_s == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_pauses_before_key_frames_are_no_fault(seed: int) -> None:
    """Network cameras give bursts, with half a second between them."""
    rng = np.random.default_rng(seed)
    health = Health(live=True, now_s=0.0)
    now_s = 0.0
    for number in range(36_00):  # a long film of bursts
        now_s += 0.5 if number % 15 == 0 else float(rng.uniform(0.001, 0.03))
        if number:
            assert health.state(now_s) == "LIVE"
        health.arrived(now_s, picture(int(rng.integers(256))))


def test_a_repeated_picture_is_frozen_after_two_seconds_and_live_at_once_when_it_changes() -> None:
    health = Health(live=True, now_s=0.0)
    changed_s = run(health, 0.0, 5, 0.1)
    last_s = changed_s
    for number in range(1, 25):
        last_s = changed_s + 0.1 * number
        health.arrived(last_s, picture(4))
        expected: CameraState = "LIVE" if last_s - changed_s <= 2.0 else "FROZEN"
        assert health.state(last_s) == expected
    assert health.judge(last_s) == ("FROZEN", changed_s + 2.0)
    health.arrived(last_s + 0.1, picture(5))
    assert health.judge(last_s + 0.1) == ("LIVE", last_s + 0.1)


def test_pictures_that_carry_one_time_are_frozen_too() -> None:
    health = Health(live=True, now_s=0.0)
    for number in range(40):
        health.arrived(0.1 * number, picture(number), media_s=3.0)
    assert health.state(3.9) == "FROZEN"
    health.arrived(4.0, picture(1), media_s=3.1)
    assert health.state(4.0) == "LIVE"


def test_a_scene_where_nothing_happens_is_not_frozen_as_cameras_have_noise() -> None:
    health = Health(live=True, now_s=0.0)
    for number in range(900):
        health.arrived(number / 30, picture(120, 0.6, seed=number))
        assert health.state(number / 30) == "LIVE"


def test_frozen_pictures_can_be_allowed_and_files_never_freeze_or_age() -> None:
    still = Health(live=True, now_s=0.0, frozen_after_s=None)
    assert still.state(run(still, 0.0, 60, 0.1, still=True)) == "LIVE"
    file = Health(live=False, now_s=0.0)
    run(file, 0.0, 60, 0.1, still=True)
    assert file.state(10_000.0) == "LIVE"


def test_a_lost_camera_is_lost_until_a_picture_comes_and_not_when_it_opens() -> None:
    health = Health(live=True, now_s=0.0)
    last_s = run(health, 0.0, 5, 0.1)
    health.lost(last_s + 0.2, "no such device")
    health.lost(last_s + 0.7, "no such device")
    assert health.judge(last_s + 9) == ("LOST", last_s + 0.2)
    assert health.error == "no such device"
    health.opened(0.1)
    assert health.state(last_s + 9) == "LOST"
    health.arrived(last_s + 9, picture(4))  # the same pixels as before it was lost
    assert health.judge(last_s + 9) == ("LIVE", last_s + 9)
    assert (health.error, health.reconnects) == (None, 1)
    assert health.limit_s == 1.0, "the pause is no usual gap"


def test_what_has_ended_stays_so() -> None:
    health = Health(live=False, now_s=0.0)
    health.arrived(0.0, picture(1))
    health.ended(1.0)
    assert health.judge(99.0) == ("ENDED", 1.0)


@pytest.mark.parametrize("name", ["max_frame_age_s", "frozen_after_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_senseless_times_are_refused(name: str, value: float) -> None:
    with pytest.raises(RequestInvalid, match=f"{name} must be above 0 seconds"):
        Health(live=True, now_s=0.0, **{name: value})
