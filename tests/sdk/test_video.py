"""Frames of video files: which are taken, how they look, and what is refused."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import run_program

from tokprune import BackendUnavailable, Clip, PictureInvalid, RequestInvalid, clip_of, load_video

av = pytest.importorskip("av", reason="PyAV is not installed (extra camera)")
from video_files import edited, encoded, numbered, numbers, turned  # noqa: E402

from tokprune import video_file  # noqa: E402
from tokprune.pictures import load_picture  # noqa: E402

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "H.264 in MP4": ("mp4", "libx264", {}),
    "H.264 in Matroska": ("matroska", "libx264", {}),
    "H.264 in MPEG-TS": ("mpegts", "libx264", {}),
    "H.264 in FLV": ("flv", "libx264", {}),
    "H.264 with many keys and open groups": (
        "mp4",
        "libx264",
        {"x264-params": "open-gop=1:keyint=6:bframes=3"},
    ),
    "H.265 in MP4": ("mp4", "libx265", {"x265-params": "log-level=none:keyint=8"}),
    "AV1 in MP4": ("mp4", "libsvtav1", {"crf": "5", "preset": "12"}),
    "VP8 in WebM": ("webm", "libvpx", {"b": "4M", "g": "7"}),
    "VP9 in WebM": ("webm", "libvpx-vp9", {"lossless": "1", "cpu-used": "8"}),
    "MPEG-4 with B-frames in AVI": ("avi", "mpeg4", {"qmin": "1", "qmax": "1", "bf": "2"}),
    "Motion JPEG in AVI": ("avi", "mjpeg", {"qmin": "1", "qmax": "1"}),
    "MPEG-2 in MPEG-PS": ("mpeg", "mpeg2video", {"qmin": "1", "qmax": "1"}),
    "FFV1 in Matroska": ("matroska", "ffv1", {}),
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "0")


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_every_kind_of_file_are_found_by_their_time(kind: str) -> None:
    container, codec, options = KINDS[kind]
    data = numbered(50, codec=codec, container=container, rate=25, **options)
    assert numbers(load_video(data, num_frames=50)) == list(range(50))
    assert numbers(load_video(data, num_frames=7)) == [7 * 50 // 7 * n // 7 for n in range(7)]
    assert numbers(load_video(data, fps=5.0)) == list(range(0, 50, 5))
    late = load_video(data, num_frames=3, start_s=1.6, end_s=1.84)
    assert numbers(late) == [40, 42, 44]


def test_frames_at_odd_times_are_taken_by_what_is_on_screen() -> None:
    times = [0, 100, 150, 1000, 1050, 2900]
    for container in ("mp4", "matroska"):
        data = numbered(6, container=container, times_ms=times)
        assert numbers(load_video(data, fps=2.0, end_s=2.9)) == [0, 2, 3, 4, 4, 4]
        assert numbers(load_video(data, num_frames=3, end_s=2.9)) == [0, 2, 4]
        assert numbers(load_video(data, num_frames=5, end_s=2.9)) == [0, 2, 4, 4, 4]
        assert numbers(load_video(data, num_frames=1, start_s=0.12, end_s=0.5)) == [1]


def test_nothing_asked_is_two_frames_a_second_and_no_more_than_32() -> None:
    short, long = numbered(21, rate=10), numbered(60, rate=2)
    clip = load_video(short)
    assert (numbers(clip), clip.fps) == ([0, 5, 10, 15, 20], 2.0)
    assert len(load_video(numbered(64, rate=4)).frames) == 32  # 16 s
    clip = load_video(long)
    assert numbers(clip) == [60 * n // 32 for n in range(32)]
    assert clip.fps == pytest.approx(32 / 30)
    assert numbers(load_video(numbered(5, rate=1))) == [0, 1, 2, 3, 4]  # has no more
    assert numbers(load_video(short, max_frames=2)) == [0, 10]


def test_at_most_takes_what_there_is() -> None:
    slow, fast = numbered(4, rate=2), numbered(30, rate=10)
    assert numbers(load_video(slow, num_frames=32, at_most=True)) == [0, 1, 2, 3]
    clip = load_video(slow, fps=25.0, at_most=True)
    assert (numbers(clip), clip.fps) == ([0, 1, 2, 3], 2.0)
    assert numbers(load_video(fast, fps=5.0, max_frames=3, at_most=True)) == [0, 10, 20]
    assert numbers(load_video(fast, fps=1.0, max_frames=3, at_most=True)) == [0, 10, 20]
    assert numbers(load_video(fast, num_frames=3, start_s=2.8, at_most=True)) == [28, 29]
    assert numbers(load_video(fast, at_most=True)) == numbers(load_video(fast))


def test_paths_and_bytes_read_the_same_and_sound_does_not_matter(tmp_path: Path) -> None:
    data = numbered(12, sound=True, container="matroska")
    path = tmp_path / "film.any"  # names do not matter
    path.write_bytes(data)
    for source in (data, path, str(path)):
        clip = load_video(source, num_frames=4)
        assert (clip.frames.shape, clip.frames.dtype) == ((4, 48, 64, 3), np.uint8)
        assert numbers(clip) == [0, 3, 6, 9]


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_only_what_is_needed_is_decoded(container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = numbered(80, container=container, g="10", bf="2")
    decoded: list[int] = []
    sound = video_file._sound

    def counted(frames: list[Any], stream: Any) -> list[Any]:
        decoded.extend(frame.pts for frame in frames)
        return sound(frames, stream)

    monkeypatch.setattr(video_file, "_sound", counted)
    assert numbers(load_video(data, num_frames=2)) == [0, 40]
    assert len(decoded) <= 8
    decoded.clear()
    assert numbers(load_video(data, num_frames=1, start_s=7.2, end_s=7.5)) == [72]
    assert len(decoded) <= 10


def test_packets_that_show_nothing_are_not_taken_for_frames() -> None:
    hidden = (3, 4, 11, 17)

    def hide(number: int, packet: bytes) -> bytes:  # VP8's show_frame (RFC 6386, 9.1)
        return bytes([packet[0] & ~0x10]) + packet[1:] if number in hidden else packet

    data = edited(numbered(20, codec="libvpx", container="webm", b="4M"), hide)
    shown = [number for number in range(20) if number not in hidden]
    assert numbers(load_video(data, fps=10.0)) == [
        max(n for n in shown if n <= number) for number in range(20)
    ]
    with pytest.raises(PictureInvalid, match="has 16 frames between"):
        load_video(data, num_frames=17)


def test_a_recording_that_begins_between_keys_begins_at_the_first_key() -> None:
    whole = numbered(30, container="mpegts", g="10", bf="2")

    def drop(number: int, packet: bytes) -> bytes | None:
        return packet if number >= 4 else None

    assert numbers(load_video(edited(whole, drop, container="mpegts"), fps=10.0)) == list(
        range(10, 30)
    )


@pytest.mark.parametrize("size_wh", [(65, 49), (64, 47), (3, 5), (1, 1), (191, 2)])
def test_odd_sizes_are_kept(size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    ramp = np.add.outer(np.arange(height), np.arange(width)) * 5 % 256
    frame = np.repeat(ramp[..., None], 3, axis=-1).astype(np.uint8)
    data = encoded([frame] * 2, "ffv1", "matroska", pixels="bgr0")
    np.testing.assert_array_equal(load_video(data, num_frames=2).frames, [frame] * 2)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), lambda x: x),
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),  # a phone held upright
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
    ],
)
def test_rotation_and_mirroring_are_applied(
    matrix: tuple[int, ...], expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:8, :24], frame[-16:, :8] = 255, 120
    data = turned(encoded([frame] * 3, pixels="yuv444p"), matrix)
    clip = load_video(data, num_frames=3)
    for shown in clip.frames:
        assert shown.shape == expected(frame).shape
        assert np.abs(shown.astype(int) - expected(frame)).max() <= 2


@pytest.mark.parametrize(
    ("yuv", "space", "scale"),
    [
        ((63, 102, 240), 1, 1),  # BT.709
        ((81, 90, 240), 5, 1),  # BT.601
        ((81, 90, 240), None, None),  # untagged: taken for BT.601
        ((54, 99, 255), 1, 2),  # full range
    ],
)
def test_colours_are_those_of_the_tagged_space(
    yuv: tuple[int, int, int], space: int | None, scale: int | None
) -> None:
    planes = [
        np.full((48 // part, 64 // part), value) for value, part in zip(yuv, (1, 2, 2), strict=True)
    ]
    raw = np.concatenate([plane.ravel() for plane in planes]).reshape(72, 64).astype(np.uint8)
    data = BytesIO()
    with av.open(data, "w", format="mp4") as output:
        stream: Any = output.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame: Any = av.VideoFrame.from_ndarray(raw, "yuv420p")
        if space is not None:
            stream.codec_context.colorspace = frame.colorspace = space
            stream.codec_context.color_range = frame.color_range = scale
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    pixel = load_video(data.getvalue()).frames[0, 20, 20].astype(int)
    assert np.abs(pixel - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 31}, r"film.mp4' has 30 frames between 0.000 s and 3.000 s, num_frames=31"),
        ({"num_frames": 9, "start_s": 2.2}, "has 8 frames between 2.200 s and 3.000 s.*at most 8"),
        ({"fps": 10.5}, "at most 10 frames a second, fps=10.5 would only repeat"),
        ({"start_s": 3.0}, r"lasts 3.000 s, and start_s=3.0, end_s=None ask for more"),
        ({"end_s": 3.2}, "lasts 3.000 s, and start_s=0.0, end_s=3.2 ask for more"),
        ({"fps": 10.0, "max_frames": 29}, "takes 30 frames, more than max_frames=29"),
        ({"num_frames": 30, "max_pixels": 92_159}, "30 frames of 64 x 48 pixels.*max_pixels=92159"),
    ],
)
def test_what_a_video_does_not_have_is_refused_before_decoding(
    tmp_path: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(numbered(30))
    monkeypatch.setattr(video_file, "_frames", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(PictureInvalid, match=message):
        load_video(path, **options)


def test_without_pyav_the_package_imports_and_says_what_to_install(tmp_path: Path) -> None:
    found = run_program("without_pyav.py")
    assert found["loaded"] == []
    assert found["error"] == BackendUnavailable.code
    assert "pip install 'tokprune[camera]'" in found["message"]


def test_pictures_of_one_size_make_a_clip(tmp_path: Path) -> None:
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "second.png")
    clip = clip_of([picture, tmp_path / "second.png", Image.fromarray(picture)], fps=4.0)
    assert isinstance(clip, Clip)
    assert (clip.frames.shape, clip.fps) == ((3, 6, 9, 3), 4.0)
    np.testing.assert_array_equal(clip.frames, [picture] * 3)
    with pytest.raises(
        PictureInvalid, match=r"Frame 2 of the video has 9 x 5 .* frame 0 has 9 x 6"
    ):
        clip_of([picture, picture, picture[:5]], fps=4.0)
    with pytest.raises(PictureInvalid, match=r"Frame 1 .*second\.png'\), frame 0 has 9 x 5"):
        clip_of([picture[:5], tmp_path / "second.png"], fps=4.0)
    with pytest.raises(PictureInvalid, match="one frame or more, got none"):
        clip_of([], fps=4.0)
    with pytest.raises(RequestInvalid, match=r"rate above 0, got 0\.0"):
        clip_of([picture], fps=0.0)


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "avi", "mpegts", "flv", "mpeg"])
def test_a_video_in_the_place_of_a_picture_says_what_to_do(container: str, tmp_path: Path) -> None:
    codec = "mpeg1video" if container == "mpeg" else "libx264"
    data = numbered(4, container=container, codec=codec, rate=25)
    (tmp_path / "film.bin").write_bytes(data)
    for source in (tmp_path / "film.bin", data):
        with pytest.raises(
            PictureInvalid, match=r"is a video, .*load_video\(FILE\).* --video FILE"
        ):
            load_picture(source)
