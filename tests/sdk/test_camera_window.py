"""The last frames of a camera as a video: which they are, and what of them is encoded again."""

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_camera import END, GONE, Script, camera_of, grabbed
from stub_model import a_picture, a_vlm
from watchdog import watchdog

from tokprune import (
    CameraLost,
    ChangeGate,
    Clip,
    FrameTooOld,
    RequestInvalid,
    Watcher,
    Window,
    load,
)
from tokprune.camera.camera import Camera
from tokprune.types import Array


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(60):
        yield


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def camera(script: Script, clock: Clock) -> Iterator[Camera]:
    with camera_of(script, clock, max_frame_age_s=1.0) as made:
        yield made


def until(true: Callable[[], object]) -> None:
    while not true():
        time.sleep(0.001)


def show(script: Script, camera: Camera, *pictures: int | Array) -> None:
    """Have the camera see pictures, one after another."""
    for picture in pictures:
        before = camera.status().frames
        script.give(a_picture(picture) if isinstance(picture, int) else picture)
        until(lambda: camera.status().frames > before)  # noqa: B023 - called at once


def values(clip: Clip) -> list[int]:
    """Return which plain pictures a clip has."""
    return [int(frame[0, 0, 0]) for frame in clip.frames]


def plain(value: int, height: int = 8, width: int = 12) -> Array:
    return np.full((height, width, 3), value, np.uint8)


def test_a_window_has_the_last_frames_and_the_stamp_of_the_newest(
    camera: Camera, script: Script
) -> None:
    window = Window(camera, 3)
    for value in range(5):
        show(script, camera, plain(value))
        clip = window.look()
        assert values(clip) == list(range(max(0, value - 2), value + 1))
        assert clip.stamp is not None
        assert clip.stamp.number == value


@pytest.mark.parametrize(("frames", "together"), [(2, 2), (4, 2), (8, 2), (5, 2), (6, 3), (7, 1)])
def test_groups_that_are_encoded_together_stay_the_same_while_the_window_rolls(
    camera: Camera, script: Script, frames: int, together: int
) -> None:
    window = Window(camera, frames, together=together)
    known: set[tuple[int, ...]] = set()
    for value in range(30):
        show(script, camera, plain(value))
        seen = values(window.look())
        assert seen == list(range(seen[0], value + 1))
        assert min(value + 1, frames - together + 1) <= len(seen) <= frames
        groups = [tuple(seen[n : n + together]) for n in range(0, len(seen), together)]
        assert set(groups[:-1]) <= known | {groups[-1]}  # the newest alone is new
        known.add(groups[-1])


def test_frames_that_come_too_soon_are_left_out(
    camera: Camera, script: Script, clock: Clock
) -> None:
    window = Window(camera, 4, fps=2.0)
    for value in range(60):
        show(script, camera, plain(value))
        clock.now_s += 1 / 30
    clip = window.look()
    assert values(clip) == [14, 29, 44, 59]  # a little early rather than a frame late
    assert clip.fps == 2.0


def test_a_window_without_a_rate_tells_that_of_the_camera(
    camera: Camera, script: Script, clock: Clock
) -> None:
    window = Window(camera, 8)
    for value in range(6):
        show(script, camera, plain(value))
        clock.now_s += 0.2
    assert window.look().fps == pytest.approx(5.0)


def test_what_was_before_an_outage_is_not_in_the_video_of_after(
    camera: Camera, script: Script, clock: Clock
) -> None:
    window = Window(camera, 4, together=2)
    show(script, camera, *(plain(value) for value in (1, 2, 3)))
    script.give(GONE)
    until(lambda: camera.state == "LOST")
    with pytest.raises(CameraLost):
        window.look()
    clock.now_s += 5
    show(script, camera, plain(4))
    assert values(window.look()) == [4]
    show(script, camera, plain(5), plain(6), plain(7))
    assert values(window.look()) == [4, 5, 6, 7]
    show(script, camera, plain(8))
    assert values(window.look()) == [6, 7, 8]


def test_a_stale_camera_has_no_video(camera: Camera, script: Script, clock: Clock) -> None:
    window = Window(camera, 4)
    show(script, camera, plain(1), plain(2))
    clock.now_s += 1.5
    with pytest.raises(FrameTooOld):
        window.look()


def test_frames_of_another_size_begin_a_new_video(camera: Camera, script: Script) -> None:
    window = Window(camera, 4)
    show(script, camera, plain(1), plain(2), plain(3, height=16), plain(4, height=16))
    clip = window.look()
    assert clip.frames.shape == (2, 16, 12, 3)
    assert values(clip) == [3, 4]


def test_the_newest_frame_ends_the_video_though_the_next_is_not_due(
    camera: Camera, script: Script, clock: Clock
) -> None:
    window = Window(camera, 4, fps=0.2, together=2)
    clip = Clip(plain(0)[None], 1.0)
    for value in range(160):
        show(script, camera, plain(value))
        clip = window.look()
        assert clip.stamp is not None
        assert clip.stamp.number == value
        assert len(clip.frames) <= 4
        clock.now_s += 0.1
    assert values(clip) == [95, 145, 159]


def test_a_window_that_is_closed_or_let_go_of_stops_collecting(
    camera: Camera, script: Script
) -> None:
    listeners = camera._capture._listeners
    window = Window(camera, 4)
    assert len(listeners) == 1
    window.close()
    window.close()
    assert not listeners
    Window(camera, 4)
    assert not listeners
    show(script, camera, plain(1))
    assert values(window.look()) == [1]


def test_frames_that_left_the_window_are_freed(camera: Camera, script: Script) -> None:
    window = Window(camera, 2, gate=ChangeGate())
    held: list[weakref.ref[Array]] = []
    for value in range(0, 200, 20):
        image = plain(value)
        held.append(weakref.ref(image))
        show(script, camera, image)
        window.look()
        del image
    gc.collect()
    alive = [number for number, image in enumerate(held) if image() is not None]
    assert set(alive) <= {7, 8, 9}, alive  # two of the window; the camera and the test's loop one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "1 to 768 frames, got 0"),
        ({"frames": 3, "together": 4}, "4 to 768 frames, got 3"),
        ({"frames": 1000}, "got 1000"),
        ({"frames": 4, "fps": 0.0}, "fps must be above 0, got 0.0"),
        ({"frames": 4, "fps": float("nan")}, "fps must be above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(
    camera: Camera, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestInvalid, match=message):
        Window(camera, **options)


def test_only_new_frames_are_encoded(camera: Camera, script: Script) -> None:
    with a_vlm() as vlm, Watcher(vlm, camera, "what?", window=4) as watcher:
        show(script, camera, 0, 1, 2)
        assert watcher.next(timeout_s=10.0).answer.encoder_runs == 3
        for seed in (3, 4, 5):
            show(script, camera, seed)
            answer = watcher.next(timeout_s=10.0).answer
            assert (answer.encoder_runs, answer.encoder_hits) == (1, 3)
            assert answer.frames[0].number == seed


def test_frames_that_differ_by_noise_alone_are_not_encoded(camera: Camera, script: Script) -> None:
    clean = np.random.default_rng(0).uniform(60, 180, (4, 6, 3)).repeat(8, 0).repeat(8, 1)
    rng = np.random.default_rng(1)

    def noisy() -> Array:
        return (clean + rng.normal(0, 3, clean.shape)).astype(np.uint8)

    with a_vlm() as vlm, Watcher(vlm, camera, "what?", window=4) as watcher:
        show(script, camera, noisy())
        assert watcher.next(timeout_s=10.0).answer.encoder_runs == 1
        for number in range(1, 6):
            show(script, camera, noisy())
            answer = watcher.next(timeout_s=10.0).answer
            assert answer.encoder_runs == 0
            assert answer.frames[0].number == number
        show(script, camera, 255 - noisy())
        assert watcher.next(timeout_s=10.0).answer.encoder_runs == 1


def test_the_answer_is_that_about_the_same_frames_as_a_video(
    camera: Camera, script: Script
) -> None:
    with a_vlm() as vlm, Watcher(vlm, camera, "what?", window=3, gate=None) as watcher:
        show(script, camera, 1, 2, 3, 4)
        seen = watcher.next(timeout_s=10.0)
        fps = 1.0  # the stub reads no times
        clip = Clip(np.stack([a_picture(seed) for seed in (2, 3, 4)]), fps)
        assert seen.answer.text == vlm.ask(clip, "what?").text


def test_a_window_of_a_file_goes_frame_by_frame_and_by_the_files_time(script: Script) -> None:
    pictures = [a_picture(number // 8) for number in range(12)]  # two different ones
    script.give(*(grabbed(each, media_s=n / 10) for n, each in enumerate(pictures)), END)
    with (
        camera_of(script, live=False) as camera,
        a_vlm() as vlm,
        Watcher(vlm, camera, "what?", window=3, window_fps=5.0) as watcher,
    ):
        seen = list(watcher)
    assert [each.frame.media_s for each in seen] == [n // 2 / 5 for n in range(12)]
    assert [each.answer.total // 24 for each in seen] == [1, 1, 2, 2, *[3] * 8]
    assert [each.answer.encoder_runs for each in seen] == [1, *[0] * 7, 1, *[0] * 3]


@pytest.mark.demo
def test_qwen_encodes_one_pair_a_new_frame(
    demo_bundle: Path, camera: Camera, script: Script
) -> None:
    pictures = [a_picture(seed, 112, 112) for seed in range(9)]
    with (
        load(demo_bundle, backend="cpu") as vlm,
        Watcher(vlm, camera, "what moves?", window=4, max_new_tokens=2) as watcher,
    ):
        show(script, camera, *pictures[:4])
        assert watcher.next(timeout_s=30.0).answer.encoder_runs == 2
        for number in range(4, 9):
            show(script, camera, pictures[number])
            seen = watcher.next(timeout_s=30.0).answer
            assert (seen.encoder_runs, seen.encoder_hits) == (1, 1), number
