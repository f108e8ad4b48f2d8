"""Pictures by PyAV: colours, sizes, rotation, damage, order; and what FFmpeg is told."""

import errno
import io
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av", reason="av (PyAV) is not installed")

import golden_colours  # noqa: E402
from mjpeg_server import streaming  # noqa: E402
from stream_pictures import Show, encoded_live, jpeg, number_of, numbered_picture, until_gone  # noqa: E402
from video_files import STEP, edited, encoded, numbered, turned  # noqa: E402

from tokprune import BackendUnavailable, load_video  # noqa: E402
from tokprune.camera.naming.options import CameraOptions  # noqa: E402
from tokprune.camera.naming.sources import parse_source  # noqa: E402
from tokprune.camera.reading import live_options, opening  # noqa: E402
from tokprune.camera.reading.av_errors import words_for  # noqa: E402
from tokprune.camera.reading.av_frames import grabbed  # noqa: E402
from tokprune.camera.reading.opening import opener_of  # noqa: E402
from tokprune.camera.reading.reader import Grabbed, SourceGone  # noqa: E402

MULTIPART = "multipart/x-mixed-replace; boundary=frame"
FORMATS = ("yuyv422", "uyvy422", "nv12", "gray", "yuv420p", "yuvj420p", "yuvj422p")
SIZES_WH = ((192, 32), (193, 33), (191, 31), (640, 48))


def read_all(source: Any) -> tuple[list[Grabbed], Any]:
    """Return every picture of a source that ends, and its reader."""
    reader: Any = opener_of(parse_source(source))()
    try:
        return list(iter(reader.read, None)), reader
    finally:
        reader.close()


def streamed(data: bytes, content_type: str = "video/x-matroska") -> list[np.ndarray]:
    """Return the pictures of a file that is served as if it were live."""
    pictures, _ = watched([data], content_type)
    return [picture.image() for picture in pictures]


def watched(parts: list[bytes], content_type: str) -> tuple[list[Grabbed], Any]:
    """Return the pictures of a stream that ends, and its reader."""
    with streaming(lambda: parts, content_type) as server:
        reader: Any = opener_of(parse_source(server.url()))()
        pictures, reason = until_gone(reader)
        reader.close()
    assert reason.endswith("the stream has ended")
    return pictures, reader


def raw(frames: Iterable[Any]) -> bytes:
    """Return frames as they are, in a Matroska file that says their colour range."""
    data = io.BytesIO()
    stream: Any = None
    with av.open(data, "w", format="matroska") as output:
        for number, frame in enumerate(frames):
            if stream is None:
                stream = output.add_stream("rawvideo", rate=30)
                stream.width, stream.height = frame.width, frame.height
                stream.pix_fmt = frame.format.name
                stream.codec_context.color_range = 2 if "j" in frame.format.name else 0
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return data.getvalue()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_colours_of_a_raw_stream_are_right(form: str, size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    drawn = [golden_colours.drawn(height, width, shift) for shift in range(2)]
    images = streamed(raw(golden_colours.frame(pixels, form) for pixels in drawn))
    assert len(images) == 2
    for image, pixels in zip(images, drawn, strict=True):
        assert image.shape == (height, width, 3)
        assert image.flags.c_contiguous
        assert image.flags.owndata
        inner = golden_colours.inner(width)
        wrong = np.abs(image.astype(int) - golden_colours.expected(pixels, form))[:, inner]
        assert wrong.max() <= 2


def test_colours_of_motion_jpeg_are_right_from_any_sampling() -> None:
    drawn = golden_colours.drawn(32, 192)
    for sampling in (0, 1, 2):  # 4:4:4, 4:2:2, 4:2:0
        part = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg(drawn, subsampling=sampling)
        [image, *_] = streamed((part + b"\r\n") * 3, MULTIPART)
        inner = golden_colours.inner(192)
        assert np.abs(image.astype(int) - drawn)[:, inner].max() <= 4  # JPEG's own loss included


def test_colours_of_h264_are_right() -> None:
    drawn = golden_colours.drawn(64, 192)
    [image] = streamed(encoded([drawn], "libx264", "matroska"))
    wrong = np.abs(image.astype(int) - golden_colours.expected(drawn, "yuv420p"))
    assert wrong[:, golden_colours.inner(192)].max() <= 2


def test_sizes_and_pixel_formats_may_change_in_mid_stream() -> None:
    """As when somebody changes the settings of a camera."""
    sizes = [(64, 48), (65, 47), (128, 96), (64, 48)]
    parts = b""
    for number, size_wh in enumerate(sizes * 2):
        picture = jpeg(numbered_picture(number, size_wh), subsampling=number % 3)
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
        parts += head.encode() + picture + b"\r\n"
    images = streamed(parts, MULTIPART)
    assert [image.shape[1::-1] for image in images] == sizes * 2
    assert [number_of(image) for image in images] == list(range(8))


def test_h264_may_change_its_size_in_mid_stream() -> None:
    pieces: list[bytes] = []
    for size_wh in ((64, 48), (96, 64)):
        show = Show(fps=1000, size_wh=size_wh, count=5)
        pieces += [b"".join(each) for each in encoded_live(show, "mpegts")]
    pictures, _ = watched(pieces, "video/mp2t")
    shapes = [picture.image().shape for picture in pictures]
    small, large = (48, 64, 3), (64, 96, 3)
    assert shapes == sorted(shapes)
    assert shapes.count(small) >= 3  # of two that come at once, the newest is given
    assert shapes.count(large) >= 3


def test_a_picture_can_be_made_long_after_its_source_was_closed() -> None:
    show = Show(fps=200, count=30)
    with streaming(
        lambda: (b"".join(pieces) for pieces in encoded_live(show, "mpegts")), "video/mp2t"
    ) as server:
        reader: Any = opener_of(parse_source(server.url()))()
        kept = [reader.read() for _ in range(5)]
        reader.close()
    assert [number_of(picture.image()) for picture in kept] == list(range(5))
    image = kept[0].image()
    image[:] = 7  # the caller's own
    assert number_of(kept[0].image()) == 0


def test_equal_planes_mean_equal_pictures_whatever_pads_the_rows() -> None:
    for form in FORMATS:
        pixels = golden_colours.drawn(31, 191)
        first, second = (golden_colours.frame(pixels, form) for _ in range(2))
        for plane, value in ((first.planes[0], 1), (second.planes[0], 2)):
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
            used = 2 * 192 if form.endswith("yvy422") or form == "yuyv422" else 191
            rows[:, used:] = value  # beyond the picture
        planes = [grabbed(frame, "x", None).plane for frame in (first, second)]
        assert np.array_equal(planes[0], planes[1]), form
        assert not planes[0].flags.writeable
        pixels[0, 0] = 255 - pixels[0, 0]
        other = grabbed(golden_colours.frame(pixels, form), "x", None).plane
        assert not np.array_equal(planes[0], other), form


def test_a_video_file_is_read_frame_by_frame_with_its_times(tmp_path: Path) -> None:
    film = tmp_path / "kitchen.mp4"
    film.write_bytes(numbered(25, rate=25, sound=True))
    pictures, reader = read_all(film)
    assert [round(each.image().mean() / STEP) for each in pictures] == list(range(25))
    times = [each.media_s for each in pictures]
    assert times == pytest.approx([number / 25 for number in range(25)], abs=1e-4)
    assert reader.interval_s == pytest.approx(1 / 25)
    assert reader.skipped == 0


def test_b_frames_and_uneven_times_come_in_the_order_of_time(tmp_path: Path) -> None:
    times_ms = [0, 40, 50, 200, 210, 220, 500, 900, 910, 1000]
    film = tmp_path / "uneven.mkv"
    film.write_bytes(numbered(10, container="matroska", times_ms=times_ms, bf="2"))
    pictures, _ = read_all(film)
    assert [round(each.image().mean() / STEP) for each in pictures] == list(range(10))
    assert [each.media_s for each in pictures] == pytest.approx([t / 1000 for t in times_ms])


def test_a_turned_film_stands_upright(tmp_path: Path) -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :32] = 200  # the upper left corner
    film = tmp_path / "turned.mp4"
    film.write_bytes(turned(encoded([pixels] * 3), (0, 1, -1, 0)))
    pictures, _ = read_all(film)
    image = pictures[0].image()
    assert image.shape == (64, 32, 3)
    assert image.flags.c_contiguous
    assert image[:28, 20:].min() > 150 > 50 > image[36:].max()
    assert np.abs(image.astype(int) - load_video(film).frames[0]).max() <= 3
    film.write_bytes(turned(encoded([pixels] * 3), (0.7, 0.7, -0.7, 0.7)))
    with pytest.raises(SourceGone, match="no multiple of 90 degrees"):
        read_all(film)


def test_damaged_frames_of_a_film_are_left_out_up_to_the_next_key_frame(tmp_path: Path) -> None:
    def cut(number: int, content: bytes) -> bytes:
        return content[: len(content) // 2] if number == 12 else content

    frames = [_textured(number) for number in range(40)]
    film = tmp_path / "damaged.mkv"
    options: dict[str, Any] = {"g": "10", "bf": "0", "sc_threshold": "0", "qp": "20"}
    film.write_bytes(edited(encoded(frames, "libx264", "matroska", **options), cut, "matroska"))
    pictures, reader = read_all(film)
    shown = [round((each.media_s or 0) * 10) for each in pictures]
    assert shown == [*range(12), *range(20, 40)]
    assert reader.skipped == 8
    for number, picture in zip(shown, pictures, strict=True):
        assert np.abs(picture.image().astype(int) - frames[number]).mean() < 12


def test_a_truncated_jpeg_of_a_stream_is_left_out_and_counted() -> None:
    parts: list[bytes] = []
    for number in range(6):
        picture = jpeg(_textured(number))
        if number in (0, 3):
            picture = picture[: len(picture) // 2]
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
        parts.append(head.encode() + picture + b"\r\n")
    pictures, reader = watched(parts, MULTIPART)
    images = [picture.image() for picture in pictures]
    right = [_textured(number) for number in (1, 2, 4, 5)]
    assert len(images) == 4
    for image, expected in zip(images, right, strict=True):
        assert np.abs(image.astype(int) - expected).mean() < 12
    assert reader.skipped == 2


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_stream_joined_between_key_frames_begins_with_a_whole_picture(codec: str) -> None:
    options: dict[str, Any] = {"g": "20", "bf": "0"} if codec == "libx264" else {
        "x265-params": "keyint=20:bframes=0:log-level=none"}  # fmt: skip
    frames = [_textured(number) for number in range(50)]
    data = encoded(frames, codec, "mpegts", 25, **options)
    late = data[188 * (len(data) // 188 // 4) :]
    images = streamed(late, "video/mp2t")
    assert len(images) >= 10
    for image, expected in zip(images[::-1], frames[::-1], strict=False):
        assert np.abs(image.astype(int) - expected).mean() < 12


def _textured(number: int) -> np.ndarray:
    rows, columns = np.mgrid[:96, :128]
    wave = 128 + 60 * np.sin((columns + 3 * number) / 9) + 60 * np.cos((rows - 2 * number) / 7)
    return np.repeat(wave[..., None], 3, -1).astype(np.uint8)


def test_a_codec_that_is_not_on_the_list_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [_textured(0)] * 3
    monkeypatch.setattr(
        "tokprune.camera.reading.av_frames.Decoder.decode", lambda *_: pytest.fail("it was decoded")
    )
    data = encoded(frames, "mpeg4", "matroska")
    with (
        streaming(lambda: [data], "video/x-matroska") as server,
        pytest.raises(SourceGone, match=r"its video is .*expected one of H\.264, H\.265"),
    ):
        opener_of(parse_source(server.url()))()
    film = tmp_path / "old.avi"
    film.write_bytes(encoded(frames, "wmv2", "avi"))
    with pytest.raises(SourceGone, match=r"'wmv2', expected one of H\.264"):
        read_all(film)


def test_sound_alone_and_nonsense_are_no_video(tmp_path: Path) -> None:
    data = io.BytesIO()
    with av.open(data, "w", format="matroska") as output:
        stream: Any = output.add_stream("aac", rate=16_000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 16_000
        output.mux([*stream.encode(silence), *stream.encode(None)])
    with (
        streaming(data.getvalue().splitlines(keepends=True).copy, "video/x-matroska") as server,
        pytest.raises(SourceGone, match="it sends no video"),
    ):
        opener_of(parse_source(server.url()))()
    film = tmp_path / "nonsense.mp4"
    film.write_bytes(b"nonsense" * 1000)
    with pytest.raises(SourceGone, match=r"file nonsense\.mp4: what it sends is no video"):
        read_all(film)


def test_an_interrupted_file_gives_no_more_frames(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(numbered(10))
    reader = opener_of(parse_source(film))()
    assert reader.read()
    reader.interrupt()
    with pytest.raises(SourceGone, match="reading was stopped"):
        reader.read()
    reader.close()


def test_no_descriptor_stays_open_after_fifty_files_and_failures(tmp_path: Path) -> None:
    good, bad = tmp_path / "film.mp4", tmp_path / "bad.mp4"
    good.write_bytes(numbered(3))
    bad.write_bytes(numbered(3)[:200])
    held: list[int] = []
    for number in range(60):
        reader = opener_of(parse_source(good))()
        reader.read()
        reader.close()
        for source in (bad, "/dev/video97", "rtsp://127.0.0.1:9/", "http://127.0.0.1:9/"):
            with pytest.raises(SourceGone):
                opener_of(parse_source(source))()
        if number >= 10:
            held.append(len(list(Path("/proc/self/fd").iterdir())))
    assert len(held) == 50
    assert held[-1] <= held[0]  # what earlier tests served may still be closing


def test_a_v4l2_camera_is_opened_with_what_was_asked_and_never_blocks() -> None:
    wanted = CameraOptions(width=1280, height=720, fps=29.97, format="mjpeg")
    given = live_options.device_opening(wanted)
    assert given.format == "v4l2"
    assert given.options | {
        "video_size": "1280x720", "framerate": "29.97", "input_format": "mjpeg", "fflags": "+4",
    } == given.options  # fmt: skip
    assert given.container_options["format_whitelist"] == "video4linux2,v4l2"
    assert given.container_options["protocol_whitelist"] == "none"
    bare = live_options.device_opening(CameraOptions()).options
    assert not bare.keys() & {"video_size", "framerate", "input_format"}


def test_a_camera_over_the_network_is_opened_with_short_queues_and_few_protocols() -> None:
    given = live_options.rtsp_opening()
    assert given.options["rtsp_transport"] == "tcp"
    assert "nobuffer" not in given.options.get("fflags", "")
    assert "file" not in given.container_options["protocol_whitelist"]
    body = live_options.http_opening("multipart/x-mixed-replace; boundary=x")
    assert body.format == "mpjpeg"
    assert body.container_options["protocol_whitelist"] == "none"
    assert live_options.http_opening("video/mp2t").format is None
    codecs = "h264,hevc,mjpeg,rawvideo,vp8,vp9,libdav1d"
    assert body.container_options["codec_whitelist"] == codecs
    assert live_options.codec_options("h264").get("err_detect") is None
    assert live_options.codec_options("mjpeg")["err_detect"] == "explode"


def test_an_absent_device_is_gone_at_once() -> None:
    begin = time.monotonic()
    with pytest.raises(SourceGone, match=r"^/dev/video97: no such device: is it plugged in\?"):
        opener_of(parse_source("v4l2:///dev/video97?width=640&height=480"))()
    with pytest.raises(SourceGone, match=r"^/dev/null: it is no camera \(V4L2\)"):
        opener_of(parse_source("/dev/null"))()
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENODEV, "x"), "device", "no such device"),
        (OSError(errno.EIO, "x"), "device", "no such device"),
        (OSError(errno.EBUSY, "x"), "device", "another program uses it"),
        (OSError(errno.EACCES, "x"), "device", "group 'video'"),
        (OSError(errno.EINVAL, "x"), "device", "no such size, rate or format"),
        (OSError(errno.EIO, "x"), "network", "cannot be reached"),
        (OSError(errno.EHOSTUNREACH, "x"), "network", "cannot be reached"),
        (OSError(errno.ENOENT, "x"), "network", "no such stream"),
        (av.error.ConnectionRefusedError(errno.ECONNREFUSED, "x", "u"), "network", "refused"),
        (av.error.HTTPUnauthorizedError(1, "x", "u"), "network", "not authorised"),
        (av.error.HTTPForbiddenError(1, "x", "u"), "network", "forbidden"),
        (av.error.HTTPServerError(1, "x", "u"), "network", "the server failed"),
        (av.error.ExitError(1, "x", "u"), "network", "no answer in time"),
        (av.error.InvalidDataError(1, "x", "u"), "network", "no video that can be read"),
        (RuntimeError("rtsp://admin:pw@host"), "network", r"it cannot be read \(RuntimeError\)"),
    ],
)
def test_errors_are_said_in_our_words(error: Exception, kind: Any, words: str) -> None:
    text = words_for(error, kind)
    assert re.search(words, text)
    assert "pw" not in text


def test_where_pyav_is_missing_it_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for source in ("/dev/video0", "rtsp://admin:hunter2@10.0.0.5/"):
        with pytest.raises(BackendUnavailable, match=r"pip install 'tokprune\[camera\]'") as error:
            opening.opener_of(parse_source(source))
        assert "hunter2" not in str(error.value)
        assert error.value.__context__ is None
