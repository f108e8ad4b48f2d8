"""A camera that is watched for long, in a process of its own: age of frames, failures, growth.

tests/watch_camera.py watches a `fake://` camera, and writes down what came of it. The promises of
robots.md have no slack here: a state that came too late is one that another was still read instead
of after its time, and a frame was not the newest if the one after it had come before anybody
looked. test_camera_promises.py tries the same in short parts.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from counts import PARTS
from scripted_camera import Script, grabbed
from stub_model import a_picture, a_vlm
from watchdog import watchdog

from tokprune import Watcher
from tokprune.camera.camera import Camera
from tokprune.camera.capture import Capture, Plan

PROGRAM = Path(__file__).parents[1] / "watch_camera.py"
SOURCE = "fake://scenes?fps=30&size=224x224"
FRAME_S = 1 / 30
FOUND_S = {"drop": 1.0, "freeze": 2.0, "stall": 2.0}
BACK_S = 2.0
NAMES = {
    "drop": ("LOST", "camera_lost"),
    "freeze": ("FROZEN", "camera_frozen"),
    "stall": ("STALE", "frame_too_old"),
}
TIMEOUT_S, SCHEDULING_S = 0.3, 0.25  # of each call; what a busy machine may add to it
DAY_S = 86_400.0
LARGEST_SHARE, LARGEST_BYTES = 0.01, 8_000_000


def ran(address: str, seconds: float, model_s: float, *fault: str) -> dict[str, Any]:
    """Run the program, and return what it found."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), address, str(seconds), str(model_s), *fault],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    found["arrivals"] = {int(number): at_s for number, at_s in found["arrivals"].items()}
    return found


def has_grown(found: dict[str, Any]) -> bool:
    return found["share"] >= LARGEST_SHARE or found["growth"] >= LARGEST_BYTES


def watched(address: str, seconds: float, model_s: float) -> dict[str, Any]:
    """Run the program, and check what holds whatever happens to the camera."""
    found = ran(address, seconds, model_s)
    assert found["threads"][0] == found["threads"][1], found["threads"]
    assert found["files"][0] == found["files"][1], found["files"]
    assert not has_grown(found), found["growth"]
    for answer in found["answers"]:
        assert 0 <= answer["looked_s"] - answer["captured_s"] <= found["limit_s"], answer
    late = [each for each in found["failures"] if each[2] > TIMEOUT_S + SCHEDULING_S]
    assert not late, late
    return found


def check_newest(found: dict[str, Any]) -> None:
    """Check that no frame was older than an inference and the time to the frame after it."""
    arrivals = found["arrivals"]
    for answer in found["answers"]:
        following = answer["frame"] + 1
        if following in arrivals:
            whole_s = answer["captured_s"] + answer["age_s"]
            inference_s = whole_s - answer["looked_s"]
            one_frame_s = arrivals[following] - arrivals[answer["frame"]]
            assert answer["age_s"] <= inference_s + one_frame_s, answer


def check_failures(found: dict[str, Any], faults: list[tuple[float, float]], kind: str) -> None:
    """Check what was read of the camera's state, and asked, while it had failed and after."""
    name, code = NAMES[kind]
    states, answers = found["states"], found["answers"]
    for (began_s, ended_s), (following_s, _) in pairwise(faults):
        due_s = began_s + found["opened_s"] + FOUND_S[kind]
        noticed = [first_s for each, first_s, _ in states
                   if each == name and began_s <= first_s <= ended_s]  # fmt: skip
        assert noticed, f"not found at {began_s:.1f}"
        for each, first_s, last_s in states:
            late_s = min(last_s, ended_s) - max(first_s, due_s)
            assert each != "LIVE" or late_s <= 0, f"LIVE {late_s:.3f} s too long at {began_s:.1f}"
        back = [first_s for each, first_s, last_s in states if each == "LIVE" and last_s > ended_s]
        assert min(back) <= min(ended_s + BACK_S, following_s), (ended_s, back)
        after = [each for each in answers if noticed[0] < each["looked_s"] < following_s]
        stale = [each for each in after if each["captured_s"] < ended_s]
        assert not stale, stale
        assert after, f"no answer came after {ended_s:.1f}"
    assert code in {each for each, *_ in found["failures"]}


def times(at_s: float, for_s: float, every_s: float, count: int) -> list[tuple[float, float]]:
    """Return when each failure begins and ends, and one more that is not reached."""
    return [(at_s + n * every_s, at_s + for_s + n * every_s) for n in range(count + 1)]


@pytest.mark.parametrize(
    ("seconds", "model_s"), [(3.0, 0.2), pytest.param(60.0, 0.6, marks=pytest.mark.soak)]
)
def test_a_minute_of_answers_has_no_old_frame_and_leaves_nothing_behind(
    seconds: float, model_s: float
) -> None:
    found = watched(SOURCE, seconds, model_s)
    assert [name for name, *_ in found["states"]] in (["CONNECTING", "LIVE"], ["LIVE"])
    check_newest(found)
    answers, arrivals = found["answers"], found["arrivals"]
    first, last = min(arrivals), max(arrivals)
    assert (arrivals[last] - arrivals[first]) / (last - first) == pytest.approx(FRAME_S, rel=0.1)
    assert len(answers) >= 0.6 * seconds / model_s
    assert all(answer["age_s"] >= model_s for answer in answers)
    passed_over = sum(answer["drops"] for answer in answers)
    assert passed_over == answers[-1]["frame"] + 1 - len(answers)


@pytest.mark.parametrize("cycles", [100 // PARTS, pytest.param(100, marks=pytest.mark.soak)])
def test_a_hundred_times_unplugged_it_is_found_at_once_and_comes_back(cycles: int) -> None:
    at_s, for_s, every_s = 0.5, 0.6, 1.6  # shorter than the promises: all the stricter
    address = f"{SOURCE}&drop={at_s}:{for_s}&every={every_s}"
    found = watched(address, cycles * every_s + at_s - 0.1, 0.13)
    check_newest(found)
    check_failures(found, times(at_s, for_s, every_s, cycles), "drop")


@pytest.mark.parametrize(
    ("kind", "for_s"), [("freeze", 2.6), ("stall", 2.4)], ids=["freeze", "stall"]
)
@pytest.mark.parametrize("cycles", [pytest.param(20, marks=pytest.mark.soak)])
def test_a_frozen_or_blocked_camera_is_found_in_time_and_not_asked_about(
    kind: str, for_s: float, cycles: int
) -> None:
    at_s = 0.5
    every_s = at_s + for_s + 1.0
    address = f"{SOURCE}&{kind}={at_s}:{for_s}&every={every_s}"
    found = watched(address, cycles * every_s + at_s - 0.1, 0.13)
    check_failures(found, times(at_s, for_s, every_s, cycles), kind)


@pytest.mark.parametrize("cycles", [pytest.param(40, marks=pytest.mark.soak)])
def test_a_camera_that_changes_its_size_is_answered_about_all_the_time(cycles: int) -> None:
    address = f"{SOURCE}&resize=0.5:0.5:168x112&every=1"
    found = watched(address, cycles + 0.4, 0.1)
    assert {name for name, *_ in found["states"]} <= {"CONNECTING", "LIVE"}
    assert not [code for code, *_ in found["failures"] if not code.startswith("camera_lost")]
    check_newest(found)
    for answer in found["answers"]:
        small = answer["captured_s"] % 1 > 0.55
        near = min(answer["captured_s"] % 0.5, 0.5 - answer["captured_s"] % 0.5) < 0.1
        assert near or answer["total"] == (14 * 21 if small else 28 * 28), answer
    totals = [answer["total"] for answer in found["answers"]]
    changes = sum(before != after for before, after in pairwise(totals))
    assert changes == 2 * cycles


def test_frames_that_are_kept_are_found_out() -> None:
    assert has_grown(ran(SOURCE, 3.0, 0.05, "frames"))


@pytest.fixture
def limited() -> Iterator[None]:
    with watchdog(60):
        yield


@pytest.mark.usefixtures("limited")
def test_a_wall_clock_that_jumps_by_days_changes_nothing() -> None:
    script, chance = Script(), Random(0)
    wall = 1e9

    def jumping() -> float:
        nonlocal wall
        wall += chance.choice((-DAY_S, DAY_S, 0.03))
        return wall

    plan = Plan(script.open, name="eye", shown="script", live=True)
    walls: list[float] = []
    with (
        Camera(Capture(plan, wall=jumping)) as camera,
        a_vlm() as vlm,
        Watcher(vlm, camera, "a?", deadline_s=20.0, max_new_tokens=3) as watcher,
    ):
        for number in range(60):
            script.give(grabbed(a_picture(number)))
            seen = watcher.next(timeout_s=20.0)
            assert seen.frame.number == number
            assert seen.state == "LIVE"
            assert 0 <= seen.age_s < 20
            assert seen.answer.finish_reason in ("stop", "length")
            walls.append(seen.frame.wall_s)
    assert max(walls) - min(walls) > DAY_S
