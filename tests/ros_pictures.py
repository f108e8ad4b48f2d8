"""Image messages as ROS 2 has them, and a camera that publishes them."""

import threading
import time
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fake_ros_actions import wait_for
from fake_ros_messages import KNOWN
from sparse_scene import SCENE as SCENE
from tokprune_ros.asking import Asking
from tokprune_ros.images import BYTES_A_PIXEL

from tokprune.text.sampling import Sampling

Header = KNOWN["std_msgs/Header"]


def raw(encoding: str, width: int, height: int, data: bytes, step: int = 0, **more: Any) -> Any:
    step = step or width * BYTES_A_PIXEL.get(encoding, 3)
    given = {"encoding": encoding, "width": width, "height": height, "step": step, **more}
    return SimpleNamespace(is_bigendian=0, data=array("B", data), **given)


def shot(number: int) -> Any:
    """Return an image message of the scene that differs from the one before, as cameras' do."""
    picture = SCENE.pictures[0].copy()
    picture[0, 0] = number % 256
    height, width, _ = picture.shape
    stamp = KNOWN["builtin_interfaces/Time"](sec=number)
    header = Header(stamp=stamp, frame_id="camera")
    kind = KNOWN["sensor_msgs/Image"]
    return kind(
        header=header,
        encoding="bgr8",
        width=width,
        height=height,
        step=width * 3,
        data=array("B", picture[..., ::-1].tobytes()),
    )


class Publisher:
    """Publishes at 30 Hz on a thread of its own."""

    def __init__(self, see: Callable[[Any], None], make: Callable[[int], Any] = shot) -> None:
        self.count = 0
        self.times_s: dict[int, float] = {}
        self._see, self._make = see, make
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._over.wait(1 / 30):
            message = self._make(self.count + 1)
            self.count += 1
            self.times_s[self.count] = time.monotonic()
            self._see(message)

    def __enter__(self) -> "Publisher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10.0)


def first_picture(asking: Asking[Any]) -> None:
    wait_for(lambda: (asking.situation().camera or SimpleNamespace(state="")).state == "LIVE")


def slow_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every word take 50 ms: what is to happen in the middle of an answer does."""
    begin = Sampling.start

    def start(self: Sampling) -> Any:
        draw = begin(self)

        def draw_late(logits: Any) -> int:
            time.sleep(0.05)
            return draw(logits)

        return draw_late

    monkeypatch.setattr(Sampling, "start", start)
