"""Live streams served on loopback: what comes, how late, and what happens when it ends."""

import re
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av", reason="av (PyAV) is not installed")

from mjpeg_server import streaming
from rtsp_server import rtsp
from stream_pictures import NUMBERS, Show, encoded_live, jpeg_parts, number_of, until_gone

from tokprune.camera.naming.sources import parse_source
from tokprune.camera.reading.opening import opener_of
from tokprune.camera.reading.reader import Reader, SourceGone

Served = tuple[str, Callable[[], None]]  # address, and what kills the server
KINDS = ("mjpeg", "mpegts", "rtsp")


def opened(url: str, open_timeout_s: float = 5.0, read_timeout_s: float = 5.0) -> Any:
    source = parse_source(url)
    return opener_of(source, open_timeout_s=open_timeout_s, read_timeout_s=read_timeout_s)()


@pytest.fixture
def serve() -> Generator[Callable[[str, Show], Served], None, None]:
    """Serves a show in one of three ways."""
    with ExitStack() as stack:

        def start(kind: str, show: Show) -> Served:
            if kind == "rtsp":
                camera = stack.enter_context(rtsp(show))
                return camera.url(), camera.kill

            def body() -> Iterable[bytes]:
                if kind == "mjpeg":
                    return jpeg_parts(show)
                return (b"".join(pieces) for pieces in encoded_live(show, "mpegts"))

            types = {"mjpeg": "multipart/x-mixed-replace; boundary=frame", "mpegts": "video/mp2t"}
            stack.callback(show.stopped.set)
            server = stack.enter_context(streaming(body, types[kind]))
            return server.url(), server.kill

        yield start


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_of_a_stream_comes_in_order_and_soon(
    kind: str, serve: Callable[[str, Show], Served]
) -> None:
    show = Show(fps=30, gop=15)
    url, _ = serve(kind, show)
    reader = opened(url)
    numbers, late_s, wrong_s = [], [], []
    for number in range(40):
        grabbed = reader.read()
        now_s = time.monotonic()
        late_s.append(now_s - show.sent_s[number])
        wrong_s.append(abs((grabbed.captured_s or 0) - show.sent_s[number]))
        assert (grabbed.captured_s or 0) <= now_s
        numbers.append(number_of(grabbed.image()))
    reader.close()
    assert numbers == [number % NUMBERS for number in range(40)]
    assert reader.skipped == 0
    # What came while FFmpeg looked at the stream is decoded at once. RTSP and MPEG-TS tell that a
    # picture is whole when the next begins, or the one after.
    assert sorted(late_s[20:])[5] < {"mjpeg": 0.02, "mpegts": 0.09, "rtsp": 0.055}[kind]
    assert sorted(wrong_s[20:])[5] < 0.02  # but when it came is said rightly


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_do_not_pile_up_behind_a_slow_consumer(
    kind: str, serve: Callable[[str, Show], Served]
) -> None:
    show = Show(fps=40)
    url, _ = serve(kind, show)
    reader = opened(url)
    newest: list[Any] = [None, -1]
    stop = threading.Event()

    def capture() -> None:
        while not stop.is_set():
            grabbed = reader.read()
            newest[:] = [grabbed, newest[1] + 1]

    thread = threading.Thread(target=capture)
    thread.start()
    ages = []
    for _ in range(4):
        time.sleep(0.25)  # the model
        grabbed, number = newest
        ages.append(time.monotonic() - show.sent_s[number])
        assert number_of(grabbed.image()) == number % NUMBERS
    stop.set()
    thread.join()
    reader.close()
    assert sorted(ages)[1] < 0.15  # a queue would be 0.9 s behind at the end
    assert max(ages) < 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_server_is_found_within_a_second(
    kind: str, serve: Callable[[str, Show], Served]
) -> None:
    url, kill = serve(kind, Show())
    reader = opened(url)
    reader.read()
    threading.Thread(target=kill).start()
    begin = time.monotonic()
    _, reason = until_gone(reader)
    assert re.search(r"127\.0\.0\.1:\d+: (the stream|the connection|it closed)", reason)
    assert time.monotonic() - begin < 1.0
    reader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_server_is_gone_after_the_read_timeout(
    kind: str, serve: Callable[[str, Show], Served]
) -> None:
    show = Show()
    url, _ = serve(kind, show)
    reader = opened(url, read_timeout_s=0.4)
    reader.read()
    show.silent.set()
    begin, came_s = time.monotonic(), [0.0]
    _, reason = until_gone(reader, lambda: came_s.append(time.monotonic() - begin))
    assert re.search(r"nothing came for 0\.4 s|no answer in time", reason)
    assert 0.3 < time.monotonic() - begin < 0.8
    assert max(came_s) < 0.3  # what FFmpeg held back is not given as if it were new
    reader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_interruption_ends_a_read_that_waits_and_forbids_later_ones(
    kind: str, serve: Callable[[str, Show], Served]
) -> None:
    show = Show()
    url, _ = serve(kind, show)
    reader = opened(url)
    reader.read()
    show.silent.set()
    threading.Timer(0.2, reader.interrupt).start()
    begin = time.monotonic()
    assert "reading was stopped" in until_gone(reader)[1]
    assert time.monotonic() - begin < 0.5
    show.silent.clear()
    with pytest.raises(SourceGone, match="reading was stopped"):
        reader.read()
    reader.close()


def test_cameras_at_one_address_are_interrupted_one_by_one() -> None:
    show = Show()
    with rtsp(show) as camera:
        readers = [opened(camera.url()) for _ in range(3)]
        readers[1].interrupt()
        with pytest.raises(SourceGone):
            readers[1].read()
        for _ in range(20):
            readers[0].read()
            readers[2].read()
        for reader in readers:
            reader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_no_descriptor_and_no_thread_stays_after_fifty_connections(
    kind: str, serve: Callable[[str, Show], Served]
) -> None:
    show = Show(fps=200, size_wh=(32, 32))
    url, kill = serve(kind, show)
    counts = []
    for _ in range(15):
        reader = opened(url)
        reader.read()
        reader.interrupt()
        reader.close()
        counts.append(_held(reader))
    kill()
    for _ in range(35):
        with pytest.raises(SourceGone, match="connection refused"):
            opened(url)
    # The server's own sockets are in this process: it closes them a little later.
    end_s = time.monotonic() + 5
    while _held(None) > min(counts) and time.monotonic() < end_s:
        time.sleep(0.01)
    assert _held(None) <= min(counts)


def test_the_server_is_told_who_asks_and_nobody_else_is() -> None:
    show = Show(count=40)
    for scheme in ("Basic", "Digest MD5", "Digest SHA-256"):
        login = ("admin", "p@ss/w:rd% é")
        given = "admin:p%40ss%2Fw%3Ard%25%20%C3%A9"
        with streaming(lambda: jpeg_parts(show), login=login, scheme=scheme) as server:
            reader = opened(server.url(given))
            reader.read()
            reader.close()
            with pytest.raises(SourceGone, match="not authorised"):
                opened(server.url("admin:wrong"))
            with pytest.raises(SourceGone, match="not authorised"):
                opened(server.url())
            with (
                streaming(list, status=302, location=server.url()) as other,
                pytest.raises(SourceGone, match="not authorised"),
            ):
                opened(other.url(given))
            assert server.requests[-1][2] == ""  # another server is not told


@pytest.mark.parametrize("scheme", ["Basic", "Digest MD5"])
def test_an_rtsp_camera_wants_the_right_password(scheme: str) -> None:
    with rtsp(Show(), login=("admin", "p@ss/w?rd#1%"), scheme=scheme) as camera:
        reader = opened(camera.url("admin:p%40ss%2Fw%3Frd%231%25"))
        assert number_of(reader.read().image()) == 0
        reader.close()
        with pytest.raises(SourceGone, match=r"^rtsp://127\.0\.0\.1:\d+: not authorised"):
            opened(camera.url("admin:wrong"))
        with pytest.raises(SourceGone, match="there is no such stream: check the path"):
            opened(camera.url("admin:p%40ss%2Fw%3Frd%231%25", path="/other"))


def test_an_at_sign_and_a_percent_sign_may_stand_in_a_password_as_they_are() -> None:
    with rtsp(Show(), login=("admin", "p@ss%")) as camera:
        reader = opened(camera.url("admin:p@ss%"))
        reader.read()
        reader.close()
    show = Show(count=40)
    with streaming(lambda: jpeg_parts(show), login=("admin", "p@ss%")) as server:
        reader = opened(server.url("admin:p@ss%"))
        reader.read()
        reader.close()


def test_what_is_no_stream_is_named() -> None:
    cases = {
        "image/jpeg": "one picture, no stream",
        "text/html; charset=utf-8": "a web page, no video",
        "application/vnd.apple.mpegurl": "a playlist",
    }
    for content_type, words in cases.items():
        with (
            streaming(lambda: [b"x"], content_type) as server,
            pytest.raises(SourceGone, match=words),
        ):
            opened(server.url())
    with (
        streaming(lambda: [b"nonsense" * 9999], "application/octet-stream") as server,
        pytest.raises(SourceGone, match="no video that can be read"),
    ):
        opened(server.url())
    statuses = {404: "no such stream", 403: "forbidden", 500: "the server refused the request"}
    for status, words in statuses.items():
        with streaming(list, status=status) as server, pytest.raises(SourceGone, match=words):
            opened(server.url())


def test_a_server_that_accepts_and_says_nothing_is_left_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for scheme in ("http", "rtsp", "rtsps", "https"):
            begin = time.monotonic()
            with pytest.raises(SourceGone, match=r"no answer in time|secure"):
                opened(f"{scheme}://127.0.0.1:{port}/", open_timeout_s=0.3)
            assert 0.2 < time.monotonic() - begin < 1.0, scheme


def test_redirections_end() -> None:
    with (
        streaming(list, status=302, location="/again") as server,
        pytest.raises(SourceGone, match="redirects again and again"),
    ):
        opened(server.url())
    for location in ("file:///etc/passwd", "http://h:x/", "http://[/", "ftp://127.0.0.1/"):
        with (
            streaming(list, status=302, location=location) as server,
            pytest.raises(SourceGone, match="something else than http"),
        ):
            opened(server.url())


def test_parts_without_a_length_are_told_apart() -> None:
    show = Show(fps=100)
    with streaming(lambda: jpeg_parts(show, lengths=False)) as server:
        reader = opened(server.url())
        assert [number_of(reader.read().image()) for _ in range(10)] == list(range(10))
        reader.close()
        show.stopped.set()


def test_a_camera_that_comes_back_is_read_again() -> None:
    show = Show()
    with rtsp(show) as camera:
        for _ in range(2):
            reader = opened(camera.url())
            assert number_of(reader.read().image()) == 0
            camera.kill()
            until_gone(reader)
            reader.close()
            camera.start()


def _held(reader: Reader | None) -> int:
    """Return how many descriptors this process holds."""
    del reader
    return len(list(Path("/proc/self/fd").iterdir()))
