"""Frames of a video file, decoded by PyAV. Only `tokprune.video` imports this, when it reads one.

FFmpeg gets the bytes of one plain file and nothing else: a name or address inside it, as in a
playlist, is never opened. Containers and codecs are on allow-lists; FFmpeg knows hundreds more.
"""

from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from io import BufferedIOBase, RawIOBase
from itertools import pairwise
from statistics import median_low
from typing import Any, NamedTuple, NoReturn, TypeAlias

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tokprune.errors import PictureInvalid
from tokprune.pictures import MAX_PIXELS
from tokprune.timeline import Timeline, Wanted, choose
from tokprune.turning import CONVERT, upright
from tokprune.types import Array, Clip

CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,ogg,flv"
CODECS = {
    "h264": "H.264", "hevc": "H.265", "libdav1d": "AV1", "vp8": "VP8", "vp9": "VP9",
    "mpeg4": "MPEG-4", "mpeg2video": "MPEG-2", "mpeg1video": "MPEG-1", "mjpeg": "Motion JPEG",
    "theora": "Theora", "ffv1": "FFV1", "prores": "ProRes", "rawvideo": "raw",
}  # fmt: skip
MAX_STREAMS = 64
MAX_PACKETS = 4_000_000  # of all streams: half a day of video with sound
TRUNCATED_S = 0.5  # what may lack of the length that a header says
STATES_LENGTH = ("matroska", "avi", "flv")  # whose headers say how long everything lasts
LIMIT = {"max_pixels": str(MAX_PIXELS * 5 // 4)}  # decoders count whole blocks
_STRICT = {"err_detect": "explode"}  # or decoders paint over what is damaged


_File: TypeAlias = RawIOBase | BufferedIOBase


class _Unexpected(Exception):
    """Decoding does not show what the packets announced."""


class _Limits(NamedTuple):
    name: str  # of the video, for messages
    max_pixels: int

    def check(self, width: int, height: int, count: int) -> None:
        """Refuse frames that would take too much memory."""
        if width < 1 or height < 1:
            _refuse(f"{self.name} gives its frames no size that can be decoded: {CONVERT}")
        if width * height > MAX_PIXELS:
            _refuse(
                f"{self.name} has frames of {width} x {height} pixels, more than {MAX_PIXELS}: "
                "make them smaller"
            )
        if width * height * count > self.max_pixels:
            _refuse(
                f"{self.name}: {count} frames of {width} x {height} pixels are more than "
                f"max_pixels={self.max_pixels} together: take fewer frames, make them smaller, or "
                "raise the limit (3 bytes a pixel)"
            )


def read(file: _File, wanted: Wanted, max_pixels: int, name: str) -> Clip:
    """Return the frames that are wanted of an open file.

    Raises:
        PictureInvalid: it cannot or must not be decoded, or does not have them.
    """
    limits = _Limits(name, max_pixels)
    try:
        timeline = _scan(file, name)
        try:
            return _take(file, timeline, wanted, limits, seek=True)
        except (_Unexpected, FFmpegError):  # packets without a picture, a key that is none, ...
            timeline = _watch(file, timeline, name)
            return _take(file, timeline, wanted, limits, seek=False)
    except PictureInvalid:
        raise
    except Exception as error:  # FFmpeg and PyAV raise almost anything on a broken file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        _refuse(f"{name} cannot be decoded ({reason:.200}): it is no video, or damaged")


@contextmanager
def opened(file: _File, name: str) -> Generator[tuple[InputContainer, VideoStream], None, None]:
    """Open the file at its beginning, with its main video stream.

    Raises:
        PictureInvalid: it is no video that may be decoded.
        FFmpegError: it cannot be read.
    """
    file.seek(0)
    container: InputContainer = av.open(
        file,
        mode="r",
        options=LIMIT,  # of what FFmpeg decodes to learn about the streams
        container_options={
            "format_whitelist": CONTAINERS,
            "codec_whitelist": ",".join(CODECS),
            "protocol_whitelist": "none",
        },
        io_open=_open_nothing,
    )
    with container:
        if len(container.streams) > MAX_STREAMS:
            _refuse(f"{name} has {len(container.streams)} streams, more than {MAX_STREAMS}")
        yield container, _video_stream(container, name)


def _open_nothing(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    del flags, options
    _refuse(f"The video refers to {url!r:.300}; only the file itself is read: {CONVERT}")


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not films:
        kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
        _refuse(f"{name} holds {', '.join(kinds)}, expected moving pictures: pass a video file")
    stream = next((film for film in films if film.disposition & Disposition.default), films[0])
    codec: Any = stream.codec_context  # None where FFmpeg has no decoder
    if codec is None or codec.name not in CODECS:
        kind = "an unknown codec" if codec is None else repr(codec.name)
        _refuse(f"{name} is {kind}, expected one of {', '.join(CODECS.values())}: {CONVERT}")
    codec.options = LIMIT | _STRICT
    return stream


@dataclass
class _Seen:
    """What the packets of a file say."""

    times: set[int] = field(default_factory=set[int])
    keys: list[int] = field(default_factory=list[int])
    last: tuple[int, int] = (0, 0)  # the frame shown last: its time and duration
    ends_s: float = 0.0  # of all streams

    def add(self, packet: Any, name: str) -> None:
        """Note an `av.Packet` of the video."""
        if packet.is_corrupt or packet.pts is None:
            what = "is damaged" if packet.is_corrupt else "does not say when frames are shown"
            _refuse(f"{name} {what} after {len(self.times)} frames: record or convert it again")
        if packet.is_keyframe:
            self.keys.append(packet.pts)
        if not packet.is_discard and self.keys and packet.pts >= self.keys[0]:
            self.times.add(packet.pts)  # what comes before the first key cannot be decoded
            self.last = max(self.last, (packet.pts, packet.duration or 0))


def _scan(file: _File, name: str) -> Timeline:
    """Read when frames are shown, without decoding any."""
    seen = _Seen()
    with opened(file, name) as (container, stream):
        ticks_s = [float(each.time_base or 0) for each in container.streams]
        for number, packet in enumerate(container.demux()):  # all: together they tell the end
            if number == MAX_PACKETS:
                _refuse(f"{name} has more than {MAX_PACKETS} packets: cut out the part you need")
            if not packet.size:
                continue
            at = packet.dts if packet.pts is None else packet.pts
            end = (at or 0) + (packet.duration or 0)
            seen.ends_s = max(seen.ends_s, end * ticks_s[packet.stream_index])
            if packet.stream_index == stream.index:
                seen.add(packet, name)
        return _timeline(container, stream, seen, name)


def _timeline(container: InputContainer, stream: VideoStream, seen: _Seen, name: str) -> Timeline:
    times, tick = sorted(seen.times), stream.time_base
    if not times or not tick:
        _refuse(f"{name} has no frame that can be decoded: record or convert it again")
    if any(later <= earlier for earlier, later in pairwise(seen.keys)):
        _refuse(f"{name} jumps back in time, as if joined from several: {CONVERT}")
    duration = seen.last[1]
    if duration <= 0 and len(times) > 1:
        duration = median_low([later - earlier for earlier, later in pairwise(times)])
    elif duration <= 0:
        duration = max(1, round(1 / (stream.average_rate or Fraction(1)) / tick))
    states = any(each in container.format.name for each in STATES_LENGTH)
    declared_s = (container.duration or 0) / av.time_base if states else 0.0
    return Timeline(
        times=tuple(times),
        end=times[-1] + duration,
        keys=tuple(seen.keys),
        tick=tick,
        size_wh=(stream.codec_context.width, stream.codec_context.height),
        truncated=seen.ends_s < declared_s - TRUNCATED_S,
    )


def _watch(file: _File, timeline: Timeline, name: str) -> Timeline:
    """Correct a timeline by decoding all of it: some packets hold no picture, or two."""
    with opened(file, name) as (container, stream):
        shown = {frame.pts for frame in _frames(container, stream, timeline.keys[0])}
    times = sorted(time for time in shown if time is not None)
    if not times:
        _refuse(f"{name} has no frame that can be decoded: record or convert it again")
    return replace(timeline, times=tuple(times), end=max(timeline.end, times[-1] + 1))


def _take(file: _File, timeline: Timeline, wanted: Wanted, limits: _Limits, *, seek: bool) -> Clip:
    """Decode the frames that are wanted, and no more than is needed for them."""
    taken = choose(timeline, wanted, limits.name)
    limits.check(*timeline.size_wh, len(taken.times))
    needed = np.asarray(taken.times)
    frames: Array | None = None
    with opened(file, limits.name) as (container, stream):
        for start, times in _runs(timeline.keys if seek else timeline.keys[:1], taken.times):
            if start > timeline.keys[0]:
                container.seek(start, stream=stream)
            for frame in _wanted_frames(container, stream, start, times):
                limits.check(frame.width, frame.height, len(needed))
                pixels = upright(frame, limits.name)
                if frames is None:
                    frames = np.empty((len(needed), *pixels.shape), np.uint8)
                if pixels.shape != frames.shape[1:]:
                    shapes = f"{frames.shape[1:]} to {pixels.shape}"
                    _refuse(f"{limits.name} changes its frames' shape from {shapes}: {CONVERT}")
                frames[needed == frame.pts] = pixels
    assert frames is not None
    return Clip(frames, taken.fps)


def _runs(keys: Sequence[int], times: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Return where to begin decoding, and what to take from there: seek where that skips a key."""
    runs: list[tuple[int, list[int]]] = []
    latest = -2
    for time in sorted(set(times)):
        key = bisect_right(keys, time) - 1
        if key > latest + 1:
            runs.append((keys[key], []))
        runs[-1][1].append(time)
        latest = key
    return runs


def _wanted_frames(
    container: InputContainer, stream: VideoStream, start: int, times: Sequence[int]
) -> Iterator[VideoFrame]:
    """Yield the frames of these times, and stop decoding after the last of them."""
    missing = set(times)
    for frame in _frames(container, stream, start):
        if frame.pts in missing:
            yield frame
            missing.remove(frame.pts)
        if not missing:
            return
    raise _Unexpected(f"{len(missing)} frames are missing")


def _frames(container: InputContainer, stream: VideoStream, start: int) -> Iterator[VideoFrame]:
    """Decode from the key at `start` to the end of the file."""
    begun = False
    for packet in container.demux(stream):
        begun = begun or (packet.is_keyframe and packet.pts == start)
        if not (begun and packet.size) or (packet.pts is not None and packet.pts < start):
            continue  # frames before a key that come after it in the file need what was before it
        yield from _sound(packet.decode(), stream)
    if begun:
        codec: Any = stream.codec_context
        yield from _sound(codec.decode(None), stream)  # what it still holds


def _sound(frames: list[VideoFrame], stream: VideoStream) -> list[VideoFrame]:
    for frame in frames:
        if frame.is_corrupt:
            at = (
                ""
                if frame.pts is None
                else f" at {float(frame.pts * (stream.time_base or 0)):.3f} s"
            )
            raise _Unexpected(f"the frame{at} is damaged")
    return frames


def _refuse(message: str) -> NoReturn:
    raise PictureInvalid(message) from None
