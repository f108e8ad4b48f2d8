"""The camera that is not there: what it draws, and how it fails."""

from collections.abc import Callable
from itertools import pairwise
from math import ceil
from threading import Event

import numpy as np
import pytest

import tokprune
from tokprune import RequestInvalid
from tokprune.camera.reading.fake import FakeReader, FakeSettings, fake_opener, fake_settings
from tokprune.camera.reading.reader import Reader, SourceGone
from tokprune.types import Array


class Clock:
    """Seconds that pass by one picture whenever the camera waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 50.0
        clock = self

        class Passing(Event):
            """Waits at once. Of the camera alone: other threads wait for their own."""

            def wait(self, timeout: float | None = None) -> bool:
                clock.now += (timeout or 0.0) + 1e-9
                return self.is_set()

        monkeypatch.setattr("tokprune.camera.reading.fake.Event", Passing)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def images(address: str, count: int, clock: Clock) -> list[Array]:
    reader = fake_opener(fake_settings(address), clock)()
    found: list[Array] = []
    for _ in range(count):
        grabbed = reader.read()
        assert grabbed is not None
        found.append(grabbed.image())
    return found


def test_equal_addresses_show_equal_pictures(clock: Clock) -> None:
    first = images("fake://scenes?seed=3&motion=50", 20, clock)
    again = images("fake://scenes?seed=3&motion=50", 20, clock)
    other = images("fake://scenes?seed=4&motion=50", 20, clock)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not any((a == b).all() for a, b in zip(first, other, strict=True))
    assert {image.shape for image in first} == {(448, 448, 3)}


def test_things_move_as_fast_as_asked_and_stand_still_at_no_motion(clock: Clock) -> None:
    still = images("fake://scenes?seed=3&motion=0&noise=0", 3, clock)
    assert (still[0] == still[2]).all()
    slow = images("fake://scenes?seed=3&motion=5&noise=0", 30, clock)
    fast = images("fake://scenes?seed=3&motion=100&noise=0", 30, clock)
    changes = [np.abs(f[29].astype(int) - f[25]).mean() for f in (slow, fast)]
    assert 0 < 2 * changes[0] < changes[1]


@pytest.mark.parametrize("seed", range(5))
def test_things_never_touch_and_never_leave_the_picture(seed: int) -> None:
    from tokprune.camera.reading import fake

    view = fake._View(FakeSettings(seed=seed, motion=80.0), 0, (448, 448))
    for step in range(200):
        things = [view._moved(n, t, step * 0.1) for n, t in enumerate(view._scene.things)]
        for number, one in enumerate(things):
            assert one.radius <= one.x < 448 - one.radius
            assert one.radius <= one.y < 448 - one.radius
            for other in things[:number]:
                distance = ((one.x - other.x) ** 2 + (one.y - other.y) ** 2) ** 0.5
                assert distance >= one.radius + other.radius


def test_a_camera_has_noise_so_that_a_still_scene_is_not_frozen(clock: Clock) -> None:
    shown = images("fake://scenes?motion=0", 5, clock)
    assert not any((shown[0] == other).all() for other in shown[1:])
    assert np.abs(shown[0].astype(int) - shown[1]).mean() < 4


def test_pictures_come_at_their_rate(clock: Clock) -> None:
    began = clock.now
    images("fake://scenes?fps=25", 50, clock)
    assert clock.now - began == pytest.approx(2.0, abs=0.05)


def test_it_does_not_catch_up_after_a_pause(clock: Clock) -> None:
    reader = fake_opener(fake_settings("fake://scenes?fps=10"), clock)()
    clock.now += 60
    before = clock.now
    for _ in range(10):
        reader.read()
    assert clock.now - before == pytest.approx(1.0, abs=0.11)


def test_another_scene_comes_where_that_is_asked(clock: Clock) -> None:
    shown = images("fake://scenes?fps=10&change=1&motion=0&noise=0", 19, clock)
    assert (shown[1] == shown[8]).all()
    assert not (shown[8] == shown[11]).all()


def during(reader: Reader, clock: Clock, seconds: float) -> list[object]:
    """Read for so long; return what came: a shape, or the error's text."""
    found: list[object] = []
    end = clock.now + seconds
    while clock.now < end:
        try:
            grabbed = reader.read()
        except SourceGone as error:
            return [*found, str(error)]
        assert grabbed is not None
        found.append(grabbed.image().shape)
    return found


def test_an_unplugged_camera_cannot_be_read_or_opened_until_it_is_back(clock: Clock) -> None:
    opener = fake_opener(fake_settings("fake://scenes?fps=10&drop=1:2&every=5"), clock)
    for _ in range(3):
        reader = opener()
        assert during(reader, clock, 4.9)[-1] == "it is unplugged"
        with pytest.raises(SourceGone, match="it is unplugged"):
            opener()
        clock.now += 2
        reader = opener()
        assert "it is unplugged" not in during(reader, clock, 1.5)
        clock.now = 50.0 + 5 * ceil((clock.now - 50) / 5)


def test_a_frozen_camera_repeats_one_picture(clock: Clock) -> None:
    shown = images("fake://scenes?fps=10&freeze=1:1", 30, clock)
    repeated = [(a == b).all() for a, b in pairwise(shown)]
    assert sum(map(int, repeated)) in (9, 10, 11)
    assert not any(repeated[:8] + repeated[-8:])


def test_a_camera_changes_its_size_in_mid_stream(clock: Clock) -> None:
    shown = images("fake://scenes?fps=10&resize=1:1:336x224", 30, clock)
    assert shown[0].shape == shown[-1].shape == (448, 448, 3)
    assert shown[15].shape == (224, 336, 3)


def test_a_stalled_camera_does_not_return_but_can_be_interrupted() -> None:
    reader = FakeReader(fake_settings("fake://scenes?stall=0:1000"), lambda: 1.0)
    reader.interrupt()
    assert reader.read() is None


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("fake://rooms", "expected 'scenes'"),
        ("fake://scenes?sed=3", "Unknown option of fake://scenes 'sed'. Did you mean 'seed'"),
        ("fake://scenes?seed=x", "seed is a whole number, got 'x'"),
        ("fake://scenes?fps=0", "fps must be above 0 and at most 240"),
        ("fake://scenes?fps=1000", "fps must be above 0 and at most 240"),
        ("fake://scenes?fps=-3", "fps is a number, 0 or more, got '-3'"),
        ("fake://scenes?fps=nan", "fps is a number, 0 or more, got 'nan'"),
        ("fake://scenes?size=450x448", "multiples of 28 from 112 to 616 pixels, got 450 x 448"),
        ("fake://scenes?size=448", "size is WIDTHxHEIGHT, got '448'"),
        ("fake://scenes?drop=3", "drop is AT:FOR .seconds., got '3'"),
        ("fake://scenes?resize=1:1:9x9", "multiples of 28"),
        ("fake://scenes?seed", "Expected fake://scenes"),
    ],
)
def test_what_makes_no_sense_is_refused(address: str, message: str) -> None:
    with pytest.raises(RequestInvalid, match=message):
        tokprune.open_camera(address)


def test_the_shell_of_a_camera_shows_each_failure() -> None:
    address = "fake://scenes?fps=60&drop=0.2:0.2&seed=1"
    states: list[str] = []
    watch: Callable[[], None]
    with tokprune.open_camera(address, name="eye") as camera:

        def note() -> None:
            if not states or states[-1] != camera.state:
                states.append(camera.state)

        watch = camera._capture.listen(note)
        while "LOST" not in states or states[-1] != "LIVE":
            camera.wait(timeout_s=5.0)
        watch()
    assert states[-3:] == ["LIVE", "LOST", "LIVE"]
