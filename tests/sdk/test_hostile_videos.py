"""Video files that are broken, or that mean harm."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counts import CHUNKS, share
from programs import run_program

from tokprune import PictureInvalid, load_video

av = pytest.importorskip("av", reason="PyAV is not installed (extra camera)")
from video_files import edited, encoded, joined, numbered, numbers, turned  # noqa: E402

from tokprune import video_file  # noqa: E402

PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n%s\n#EXT-X-ENDLIST\n"
NO_VIDEO = {
    "nothing": b"",
    "text": b"This is not a video.\n" * 50,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "zeros": bytes(5000),
}


@pytest.mark.parametrize("kind", NO_VIDEO)
def test_what_is_no_video_is_refused(kind: str) -> None:
    data = NO_VIDEO[kind]
    with pytest.raises(PictureInvalid, match=f"The video of {len(data)} bytes cannot be decoded"):
        load_video(data)


@pytest.mark.parametrize("form", [PLAYLIST, b"ffconcat version 1.0\nfile %s\n"])
def test_a_playlist_opens_nothing(tmp_path: Path, form: bytes) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(numbered(3))
    for target in (str(path), f"file://{path}", "film.mp4", "http://127.0.0.1:9/film.mp4"):
        playlist = tmp_path / "list.mp4"
        playlist.write_bytes(form % target.encode())
        with pytest.raises(PictureInvalid, match="cannot be decoded"):
            load_video(playlist)


def test_another_file_is_not_opened_even_where_ffmpeg_asks_for_it() -> None:
    with pytest.raises(PictureInvalid, match=r"refers to 'secret\.ts'; only the file itself"):
        av.open(
            BytesIO(PLAYLIST % b"secret.ts"),
            format="hls",  # as if it were on the list
            container_options={"protocol_whitelist": "file"},
            io_open=video_file._open_nothing,
        )


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("none.mp4", "No such file.*pass the path of a video"),
        ("/", "is a folder"),
        ("/dev/zero", "a pipe or a device"),
        ("rtsp://host/film", "nothing is fetched"),
        ("https://host/film.mp4", "nothing is fetched"),
        ("concat:a.ts|b.ts", "No such file"),
        ("pipe:0", "No such file"),
        ("nul\0.mp4", "null"),
    ],
)
def test_what_is_no_file_is_refused(path: str, match: str) -> None:
    with pytest.raises(PictureInvalid, match=match):
        load_video(path)


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PictureInvalid, match="a pipe"):
        load_video(tmp_path / "pipe")


def test_sound_alone_is_refused() -> None:
    data = BytesIO()
    with av.open(data, "w", format="mp4") as output:
        speaker: Any = output.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        output.mux(speaker.encode(frame))
        output.mux(speaker.encode())
    with pytest.raises(PictureInvalid, match="holds audio, expected moving pictures"):
        load_video(data.getvalue())


@pytest.mark.parametrize(
    ("container", "match"),
    [
        ("mp4", "holds nothing, expected moving pictures"),
        ("matroska", "cannot be decoded"),
        ("avi", "has no frame that can be decoded"),
    ],
)
def test_a_video_without_frames_is_refused(container: str, match: str) -> None:
    empty = edited(numbered(3), lambda *_: None, container=container)
    assert len(empty) > 200
    with pytest.raises(PictureInvalid, match=match):
        load_video(empty)


def test_a_codec_that_is_not_on_the_list_is_refused() -> None:
    data = numbered(3, codec="flv1", container="flv")
    with pytest.raises(PictureInvalid, match=r"'flv', expected one of H.264, .*ffmpeg -i"):
        load_video(data)


def test_many_streams_are_refused() -> None:
    data = BytesIO()
    with av.open(data, "w", format="matroska") as output:
        for _ in range(65):
            stream: Any = output.add_stream("mjpeg", rate=10)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        for stream in output.streams:
            output.mux(stream.encode(av.VideoFrame(16, 16, "yuvj420p")))
    with pytest.raises(PictureInvalid, match="has 65 streams, more than 64"):
        load_video(data.getvalue())


def test_huge_frames_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    small = encoded([np.zeros((48, 64, 3), np.uint8)], "ffv1", "matroska", pixels="bgr0")
    for width, height, match in (
        (7072, 7071, "frames of 7072 x 7071 pixels, more than 50000000"),
        (1 << 23, 1 << 23, "gives its frames no size that can be decoded"),
    ):
        # EBML elements PixelWidth and PixelHeight, RFC 9559
        data = small.replace(b"\xb0\x81\x40", b"\xb0\x83" + width.to_bytes(3, "big"))
        data = data.replace(b"\xba\x81\x30", b"\xba\x83" + height.to_bytes(3, "big"))
        data = grown(data, 4)
        monkeypatch.setattr(video_file, "_frames", lambda *_: pytest.fail("it was decoded"))
        with pytest.raises(PictureInvalid, match=match):
            load_video(data)


def grown(data: bytes, by: int) -> bytes:
    """Add to the sizes of the Matroska elements that hold a track's size in pixels."""
    for name in (b"\x16\x54\xae\x6b", b"\xae", b"\xe0"):
        at = data.index(name, data.index(b"\x16\x54\xae\x6b")) + len(name)
        length = 9 - data[at].bit_length()
        size = int.from_bytes(data[at : at + length], "big") + by
        data = data[:at] + size.to_bytes(length, "big") + data[at + length :]
    return data


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "flv"])
def test_a_truncated_file_is_refused_and_never_a_shorter_clip(container: str) -> None:
    codec = "mjpeg" if container == "avi" else "libx264"
    data = numbered(60, codec=codec, container=container)
    for part in (0.1, 0.3, 0.5, 0.8):
        with pytest.raises(PictureInvalid):
            load_video(data[: int(part * len(data))], num_frames=2)


def test_what_is_there_of_a_truncated_file_can_be_asked_for() -> None:
    data = numbered(60, codec="ffv1", container="matroska")
    half = data[: len(data) // 2]
    with pytest.raises(PictureInvalid, match=r"is truncated: it ends after 2\.\d+ s.*pass end_s=2"):
        load_video(half, num_frames=2)
    assert numbers(load_video(half, num_frames=2, end_s=2.0)) == [0, 10]


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_damage_in_the_middle_is_refused(container: str) -> None:
    def spoil(number: int, packet: bytes) -> bytes:
        return packet[: len(packet) // 3] + bytes(len(packet) // 2) if number == 11 else packet

    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3)).astype(np.uint8)
    whole = encoded(list(noise), container=container, g="30")
    assert len(load_video(whole, num_frames=15).frames) == 15
    data = edited(whole, spoil, container=container)
    with pytest.raises(PictureInvalid, match=r"cannot be decoded .* damaged"):
        load_video(data, num_frames=15)
    assert len(load_video(data, num_frames=5, end_s=0.5).frames) == 5  # not needed for these


def test_a_size_that_changes_is_refused() -> None:
    first, second = numbered(10, container="mpegts"), encoded(
        [np.zeros((32, 32, 3), np.uint8)] * 10, container="mpegts"
    )  # fmt: skip
    with pytest.raises(
        PictureInvalid, match=r"changes its frames' shape from \(48, 64, 3\) to \(3"
    ):
        load_video(joined(first, second), num_frames=20)


def test_times_that_jump_back_are_refused() -> None:
    data = numbered(20, container="mpegts", g="5", bf="0")
    with pytest.raises(PictureInvalid, match="jumps back in time"):
        load_video(continued(data + data))
    with pytest.raises(PictureInvalid, match="is damaged after"):
        load_video(data + data)  # without that, it looks as if something were lost between


def continued(data: bytes) -> bytes:
    """Number the packets of an MPEG-TS anew (ISO/IEC 13818-1, 2.4.3.3)."""
    result, counts = bytearray(data), dict[bytes, int]()
    for at in range(0, len(data), 188):
        stream = bytes([data[at + 1] & 0x1F, data[at + 2]])
        counts[stream] = counts.get(stream, -1) + (data[at + 3] >> 4 & 1)
        result[at + 3] = data[at + 3] & 0xF0 | counts[stream] & 0x0F
    return bytes(result)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_damaged_videos_are_read_or_refused(chunk: int) -> None:
    found = run_program("video_mutants.py", str(chunk), str(share(4_000)))
    assert found["crashed"] == []
    assert found["hung"] == []
    assert found["tried"] == share(4_000) == sum(found["codes"].values())
    assert set(found["codes"]) == {"refused", "read"}


def test_a_slanted_rotation_is_refused() -> None:
    data = turned(numbered(3), (0.7, 0.7, -0.7, 0.7))
    with pytest.raises(PictureInvalid, match="no multiple of 90 degrees"):
        load_video(data)
