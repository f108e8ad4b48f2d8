"""Live sources that FFmpeg decodes: USB cameras (V4L2), RTSP, and video over HTTP."""

from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import av
from av.container import InputContainer
from av.error import BlockingIOError as NothingYet
from av.logging import Capture
from av.video.stream import VideoStream

from tokprune.camera.naming.redaction import Veiled
from tokprune.camera.naming.sources import Kind, Source
from tokprune.camera.reading.av_errors import words_for
from tokprune.camera.reading.av_frames import Decoder, grabbed, interval_of
from tokprune.camera.reading.http_stream import HttpStream, open_http
from tokprune.camera.reading.live_options import (
    CODECS,
    Opening,
    codec_options,
    device_opening,
    http_opening,
    rtsp_opening,
)
from tokprune.camera.reading.plugs import Plug, new_plug, sockets
from tokprune.camera.reading.reader import Grabbed, SourceGone

_POLL_S = 0.002  # how often a camera that does not block is asked
_KEY_FRAME_S = 15.0  # the longest that cameras take from one to the next
_RTSP_PORTS = {"rtsp": 554, "rtsps": 322}


_Line: TypeAlias = Plug | HttpStream  # what another thread can cut


def open_live(source: Source, open_timeout_s: float, read_timeout_s: float) -> "LiveReader":
    """Open a live source.

    Raises:
        SourceGone: it cannot be opened, or gives no video that may be decoded.
    """
    timeouts, opened_s = (open_timeout_s, read_timeout_s), monotonic()
    if source.kind == "device":
        container = _opened(source, source.address.reveal, device_opening(source.options), timeouts)
        return _reader(source, container, None, read_timeout_s, opened_s)
    if source.shown.startswith("rtsp"):
        address = urlsplit(source.address.reveal())
        port = address.port or _RTSP_PORTS[address.scheme]
        del address
        before = sockets()
        container = _opened(source, source.address.reveal, rtsp_opening(), timeouts)
        return _reader(source, container, new_plug(before, port), read_timeout_s, opened_s)
    body = open_http(source, open_timeout_s, read_timeout_s)
    try:
        container = _opened(source, lambda: body, http_opening(body.content_type), timeouts)
    except SourceGone:
        reason = body.failure
        body.close()
        if not reason:
            raise
    else:
        return _reader(source, container, body, read_timeout_s, opened_s)
    raise SourceGone(f"{source.shown}: {reason}")


def _opened(
    source: Source,
    given: Callable[[], str | HttpStream],
    opening: Opening,
    timeouts: tuple[float, float],
) -> Veiled[InputContainer]:
    """Return what `av.open` makes of `given()`. Nothing that FFmpeg says of it gets out."""
    begin_s = monotonic()
    try:
        with Capture():
            return Veiled(_input(given(), timeouts, opening))
    except Exception as error:  # almost anything
        late = monotonic() - begin_s > timeouts[0]
        reason = "no answer in time" if late else words_for(error, source.kind)
    raise SourceGone(f"{source.shown}: {reason}")


def _input(given: str | HttpStream, timeouts: Any, opening: Opening) -> InputContainer:
    return av.open(
        given,
        "r",
        format=opening.format,
        options=opening.options,
        container_options=opening.container_options,
        timeout=timeouts,
    )


def _reader(
    source: Source,
    container: Veiled[InputContainer],
    line: _Line | None,
    read_timeout_s: float,
    opened_s: float,
) -> "LiveReader":
    """Return a reader of a container's video, or close everything."""
    stream = next(iter(container.get().streams.video), None)
    codec: Any = stream.codec_context if stream else None
    if stream is None:
        reason = "it sends no video"
    elif codec is None or codec.name not in CODECS:
        what = codec.name if codec else "an unknown codec"
        reason = f"its video is {what}, expected one of {', '.join(CODECS.values())}"
    else:
        codec.options = codec_options(codec.name)
        codec.thread_type = "SLICE"  # by frame, each thread would hold one back
        return LiveReader(source, container, stream, line, read_timeout_s, opened_s)
    container.get().close()
    if line:
        line.close()
    raise SourceGone(f"{source.shown}: {reason}")


class LiveReader:
    """An open live source. `read` gives pictures as they come; who is late misses some.

    Some streams do not say where a picture ends, so that FFmpeg gives it only when the next begins,
    or the one after. It is then said to have come when the one before it was given, which is right
    but for the time that its own bytes took.
    """

    def __init__(
        self,
        source: Source,
        container: Veiled[InputContainer],
        stream: VideoStream,
        line: _Line | None,
        read_timeout_s: float,
        opened_s: float,
    ) -> None:
        """Take over what is open.

        Args:
            source: what it is.
            container: its packets.
            stream: the one that is decoded.
            line: by which it is cut.
            read_timeout_s: longest silence.
            opened_s: when its opening began. No picture is older.
        """
        # A stream of single JPEGs says no rate; FFmpeg then takes 25.
        form = container.get().format.name
        self.interval_s: float | None = interval_of(stream) if "mpjpeg" not in form else None
        self.skipped = 0  # damaged frames
        self._name = source.shown
        self._kind: Kind = source.kind
        self._container, self._stream, self._line = container, stream, line
        self._read_timeout_s = read_timeout_s
        self._tick_s = float(stream.time_base or 0)
        self._decoder = Decoder(stream)
        held = line.held if isinstance(line, HttpStream) else int(form == "rtsp")
        self._came_s = deque([opened_s], held + 1)  # when the last packets were there
        self._packets: Iterator[Any] = iter(())
        self._interrupted = False
        self._restart()

    def read(self) -> Grabbed:
        """Wait for the next picture.

        Raises:
            SourceGone: the source has ended or says nothing any more, or `interrupt` was called.
        """
        end_s = monotonic() + _KEY_FRAME_S
        while monotonic() < end_s:
            packet = self._packet()
            with Capture():
                frames = self._decoder.decode(packet)
            self.skipped = self._decoder.skipped
            self._came_s.append(monotonic())
            if frames:
                pts = frames[-1].pts
                media_s = None if pts is None else pts * self._tick_s
                return grabbed(frames[-1], self._name, media_s, self._came_s[0])
        raise SourceGone(f"{self._name}: no picture that is whole came in {_KEY_FRAME_S:.0f} s")

    def interrupt(self) -> None:
        """End a read that waits, and forbid later ones."""
        self._interrupted = True
        if self._line:
            self._line.cut()

    def close(self) -> None:
        """Let the source go."""
        with Capture():
            self._packets = iter(())
            self._container.get().close()
        if self._line:
            self._line.close()

    def _packet(self) -> Any:
        """Return the next packet of the video.

        Raises:
            SourceGone: there is none.
        """
        end_s = monotonic() + self._read_timeout_s
        reason = ""
        while not reason:
            if self._interrupted:
                reason = "reading was stopped"
            elif monotonic() > end_s:
                reason = f"nothing came for {self._read_timeout_s:g} s"
            else:
                packet, reason = self._try()
                # What FFmpeg held back comes out when it gives up: it is old by then.
                if packet is not None and monotonic() <= end_s and not self._failure():
                    return packet
        raise SourceGone(f"{self._name}: {reason}")

    def _try(self) -> tuple[Any, str]:
        """Return a packet, or none and why there will be no more, or nothing yet."""
        try:
            with Capture():
                packet = next(self._packets, None)
        except NothingYet:
            sleep(_POLL_S)
            self._restart()
            return None, ""
        except Exception as error:  # almost anything
            return None, self._failure() or words_for(error, self._kind)
        if packet is None or not packet.size:  # FFmpeg's sign of the end
            return None, self._failure() or "the stream has ended"
        if packet.stream_index != self._stream.index:
            return None, ""
        return (_copied(packet) if self._kind == "device" else packet), ""

    def _failure(self) -> str:
        if self._interrupted:
            return "reading was stopped"
        return self._line.failure if isinstance(self._line, HttpStream) else ""

    def _restart(self) -> None:
        self._packets = iter(self._container.get().demux())


def _copied(packet: Any) -> Any:
    """Return a packet in memory of its own: the driver's goes away with the camera."""
    copy = av.Packet(bytes(packet))
    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
    copy.is_keyframe, copy.is_corrupt = packet.is_keyframe, packet.is_corrupt
    return copy
