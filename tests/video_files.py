"""Video files made by the tests. The brightness of a frame says its number."""

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
import numpy as np

from tokprune import Clip

STEP = 3  # grey levels from one frame to the next
LOSSLESS = {"libx264": {"qp": "0"}}


def numbered(
    count: int = 30,
    *,
    codec: str = "libx264",
    container: str = "mp4",
    rate: int = 10,
    size_wh: tuple[int, int] = (64, 48),
    times_ms: Sequence[int] | None = None,
    sound: bool = False,
    **options: str,
) -> bytes:
    """Return a video of plain grey frames, at a constant rate unless `times_ms` says when."""
    width, height = size_wh
    frames = [np.full((height, width, 3), STEP * number, np.uint8) for number in range(count)]
    times = None if times_ms is None else [Fraction(time, 1000) for time in times_ms]
    return encoded(frames, codec, container, rate, times, sound=sound, **options)


def encoded(
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    container: str = "mp4",
    rate: int = 10,
    times: Sequence[Fraction] | None = None,
    *,
    pixels: str | None = None,
    sound: bool = False,
    **options: str,
) -> bytes:
    """Return RGB frames as a video file."""
    data = BytesIO()
    steady = {"fflags": "bitexact"}  # no names by chance, which tests could mistake for elements
    with av.open(data, "w", format=container, options=steady) as output:
        stream: Any = output.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        stream.options = LOSSLESS.get(codec, {}) | options
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        speaker: Any = output.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for number, pixel in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixel), "rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[number] * 1000), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if speaker is not None:
            _speak(output, speaker, seconds=len(frames) / rate)
    return data.getvalue()


def _speak(output: Any, speaker: Any, seconds: float) -> None:
    for number in range(int(seconds * 16_000 / 1024)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16_000, 1024 * number
        output.mux(speaker.encode(frame))
    output.mux(speaker.encode())


def numbers(clip: Clip) -> list[int]:
    """Return which frames of a `numbered` video a clip holds."""
    middle = clip.frames[:, 8:-8, 8:-8].mean(axis=(1, 2, 3))
    found = np.rint(middle / STEP).astype(int)
    assert np.abs(middle - STEP * found).max() < 0.45 * STEP
    return found.tolist()


def edited(
    data: bytes, edit: Callable[[int, bytes], bytes | None], container: str = "webm"
) -> bytes:
    """Return a video whose packets were changed, or left out where `edit` returns None."""
    result = BytesIO()
    with av.open(BytesIO(data)) as source, av.open(result, "w", format=container) as output:
        given = source.streams.video[0]
        stream = output.add_stream_from_template(given)
        output.start_encoding()  # writes the header even if there is nothing else
        for number, packet in enumerate(p for p in source.demux(given) if p.size):
            content = edit(number, bytes(packet))
            if content is not None:
                output.mux(_like(packet, content, stream, after=0))
    return result.getvalue()


def joined(first: bytes, second: bytes) -> bytes:
    """Return two MPEG-TS videos of ten frames a second as one, in one stream."""
    result, after = BytesIO(), 0
    with av.open(result, "w", format="mpegts") as output:
        stream: Any = None
        for data in (first, second):
            with av.open(BytesIO(data)) as source:
                given = source.streams.video[0]
                stream = stream or output.add_stream_from_template(given)
                packets = [packet for packet in source.demux(given) if packet.size]
                for packet in packets:
                    output.mux(_like(packet, bytes(packet), stream, after))
                after += 9000 * len(packets)
    return result.getvalue()


def _like(packet: Any, content: bytes, stream: Any, after: int) -> Any:
    made = av.Packet(content)
    made.pts, made.time_base = packet.pts + after, packet.time_base
    made.dts = None if packet.dts is None else packet.dts + after
    made.duration, made.is_keyframe, made.stream = packet.duration, packet.is_keyframe, stream
    return made


def turned(data: bytes, matrix: Sequence[float]) -> bytes:
    """Return an MP4 with another display matrix [a, b, c, d] (ISO/IEC 14496-12, 8.3.2)."""
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (round(65536 * value) for value in matrix)
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]
