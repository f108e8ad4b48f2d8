"""Real streams and files, from the decoder to the answer: watched end to end."""

import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="av (PyAV) is not installed")

import av
from mjpeg_server import streaming
from rtsp_server import rtsp
from stream_pictures import NUMBERS, Show, jpeg_parts, number_of, numbered_picture
from stub_model import Stub, a_vlm
from watchdog import watchdog

import tokprune
from tokprune import CameraLost, RequestInvalid, Watcher
from tokprune.types import Frame
from tokprune.vlm import VLM
from tokprune.watching import Asked, WatchEvent

QUESTION = "which number?"
CIRCLE = "what color is the circle?"


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(120):
        yield


@pytest.fixture
def vlm() -> Generator[VLM, None, None]:
    with a_vlm(Stub()) as made:
        yield made


def a_video(path: Path, count: int, fps: int = 10) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbers_asked(vlm: VLM, camera: tokprune.Camera, count: int) -> tuple[list[int], list[float]]:
    """Watch, and return the numbers that the pictures show, and their ages at the answers."""
    shown: list[int] = []

    def hear(event: WatchEvent) -> None:
        if isinstance(event, Asked):
            assert isinstance(event.looked, Frame)
            shown.append(number_of(event.looked.image))

    ages: list[float] = []
    with Watcher(vlm, camera, QUESTION, listener=hear, gate=None) as watcher:
        for seen in watcher:
            ages.append(seen.age_s)
            if len(ages) == count:
                break
    return shown, ages


def test_every_frame_of_a_real_video_is_asked_about_in_order(vlm: VLM, tmp_path: Path) -> None:
    video = a_video(tmp_path / "numbers.mp4", 20)
    with tokprune.open_camera(video) as camera:
        assert not camera.live
        shown, _ = numbers_asked(vlm, camera, 1000)
        assert camera.state == "ENDED"
    assert shown == list(range(20))


def test_seconds_of_a_video_are_its_own(vlm: VLM, tmp_path: Path) -> None:
    video = a_video(tmp_path / "numbers.mp4", 40)
    with tokprune.open_camera(video) as camera, Watcher(vlm, camera, QUESTION, every_s=1.0) as w:
        times = [seen.frame.media_s for seen in w]
    assert times == pytest.approx([0.0, 1.0, 2.0, 3.0], abs=0.01)


def test_a_looped_video_never_ends(vlm: VLM, tmp_path: Path) -> None:
    video = a_video(tmp_path / "numbers.mp4", 5)
    with tokprune.open_camera(video, loop=True) as camera:
        shown, _ = numbers_asked(vlm, camera, 12)
    assert shown == [0, 1, 2, 3, 4] * 2 + [0, 1]


def test_a_video_played_live_drops_what_nobody_looks_at(tmp_path: Path) -> None:
    video = a_video(tmp_path / "numbers.mp4", 20, fps=20)
    with tokprune.open_camera(video, live=True) as camera:
        frames: list[Frame] = []
        for frame in camera:
            frames.append(frame)
            time.sleep(0.12)
    numbers = [number_of(frame.image) for frame in frames]
    assert numbers == sorted(set(numbers))
    assert 4 <= len(numbers) <= 12
    first, last = frames[0].stamp, frames[-1].stamp
    assert last.media_s is not None
    assert first.media_s is not None
    assert last.captured_s - first.captured_s >= last.media_s - first.media_s - 0.01


@pytest.mark.parametrize("kind", ["mjpeg", "rtsp"])
def test_a_stream_on_the_network_is_watched_lost_and_found_again(vlm: VLM, kind: str) -> None:
    show = Show(fps=30)
    with ExitStack() as stack:
        if kind == "rtsp":
            server = stack.enter_context(rtsp(show))
        else:
            stack.callback(show.stopped.set)
            types = "multipart/x-mixed-replace; boundary=frame"
            server = stack.enter_context(streaming(lambda: jpeg_parts(show), types))
        camera = stack.enter_context(tokprune.open_camera(server.url(), name="hall"))
        shown, ages = numbers_asked(vlm, camera, 15)
        steps = [(b - a) % NUMBERS for a, b in pairwise(shown)]
        assert all(steps), "each is another picture"
        assert max(ages) < 1.0
        assert camera.status().size_wh == (64, 48)
        killed_s = time.monotonic()
        server.kill()
        while camera.state == "LIVE":
            time.sleep(0.001)
        assert time.monotonic() - killed_s <= 1.0
        with pytest.raises(
            CameraLost, match=f"Camera 'hall' .{kind if kind == 'rtsp' else 'http'}"
        ):
            camera.look()


def test_a_folder_of_pictures_is_asked_about_in_natural_order(vlm: VLM, tmp_path: Path) -> None:
    from PIL import Image

    for number in (1, 2, 10):
        Image.fromarray(numbered_picture(number)).save(tmp_path / f"frame-{number}.png")
    with tokprune.open_camera(tmp_path) as camera:
        shown, _ = numbers_asked(vlm, camera, 1000)
    assert shown == [1, 2, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"live": False}, "live: live=False is for files"),
        ({"loop": True}, "live: loop=True is for files"),
        ({"read_timeout_s": 0.0}, "read_timeout_s must be above 0 seconds"),
        ({"max_frame_age_s": -1.0}, "max_frame_age_s must be above 0 seconds"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    for source in ("fake://scenes", tokprune.PushedFrames()):
        with pytest.raises(RequestInvalid, match=message):
            tokprune.open_camera(source, **options)  # pyright: ignore[reportArgumentType]


def test_a_missing_file_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(RequestInvalid, match="no-such"):
        tokprune.open_camera(tmp_path / "no-such.mp4")


@pytest.mark.demo
def test_the_demo_answers_about_a_real_video_of_drawn_scenes(
    demo_bundle: Path, tmp_path: Path
) -> None:
    with tokprune.open_camera("fake://scenes?seed=7&fps=60&size=448x448") as fake:
        frames = [fake.wait(timeout_s=5.0).image for _ in range(6)]
    path = tmp_path / "scenes.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=5, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = 448, 448, "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.array(image), "rgb24")))
        container.mux(stream.encode(None))
    with tokprune.load(demo_bundle) as vlm, tokprune.open_camera(path) as camera:
        direct = vlm.ask(frames[0], CIRCLE, 0.5)
        with Watcher(vlm, camera, CIRCLE, budget=0.5) as watcher:
            answers = [seen.answer for seen in watcher]
    assert len(answers) == 6
    assert answers[0].text == direct.text
    assert all(answer.frame_age_s is not None for answer in answers)
