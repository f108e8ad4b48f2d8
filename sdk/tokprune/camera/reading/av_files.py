"""Video files as a source: every frame, in order."""

from collections.abc import Generator
from contextlib import ExitStack

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tokprune.camera.naming.sources import Source
from tokprune.camera.reading.av_errors import words_for
from tokprune.camera.reading.av_frames import Decoder, grabbed, interval_of
from tokprune.camera.reading.reader import Grabbed, SourceGone
from tokprune.errors import PictureInvalid
from tokprune.pictures import open_plain
from tokprune.video_file import opened


def open_file(source: Source) -> "FileReader":
    """Open a video file.

    Raises:
        SourceGone: it cannot or must not be decoded.
    """
    stack = ExitStack()
    try:
        file = stack.enter_context(open_plain(source.address.reveal(), "video"))
        container, stream = stack.enter_context(opened(file, source.shown))
    except PictureInvalid as refused:
        reason = str(refused)
    except Exception as error:  # FFmpeg and PyAV raise almost anything on a broken file
        reason = f"{source.shown}: {words_for(error, 'file')}"
    else:
        return FileReader(source.shown, container, stream, stack)
    stack.close()
    raise SourceGone(reason)


class FileReader:
    """An open video file. Damaged frames are left out and counted in `skipped`."""

    def __init__(
        self, name: str, container: InputContainer, stream: VideoStream, stack: ExitStack
    ) -> None:
        self.interval_s: float | None = interval_of(stream)
        self.skipped = 0
        self._name = name
        self._tick_s = float(stream.time_base or 0)
        self._decoder = Decoder(stream)
        self._frames = self._decoded(container, stream)
        self._stack = stack
        self._first_s: float | None = None
        self._last_s = 0.0
        self._interrupted = False

    def read(self) -> Grabbed | None:
        """Return the next frame. None after the last.

        Raises:
            SourceGone: the file cannot be read further, or has no frame at all.
        """
        try:
            frame = None if self._interrupted else next(self._frames, None)
            reason = "no picture in it can be decoded" if self._first_s is None else ""
        except Exception as error:  # as above
            frame, reason = None, words_for(error, "file")
        if self._interrupted:
            raise SourceGone(f"{self._name}: reading was stopped")
        if frame is not None:
            return grabbed(frame, self._name, self._media_s(frame))
        if reason:
            raise SourceGone(f"{self._name}: {reason}")
        return None

    def interrupt(self) -> None:
        """Forbid later reads. One that runs takes no longer than decoding."""
        self._interrupted = True

    def close(self) -> None:
        """Close the file."""
        self._frames.close()
        self._stack.close()

    def _media_s(self, frame: VideoFrame) -> float:
        if frame.pts is None:  # raw streams in old containers
            at_s = self._last_s + (self.interval_s or 0.0)
        else:
            at_s = frame.pts * self._tick_s
        if self._first_s is None:
            self._first_s = at_s
        self._last_s = at_s
        return max(0.0, at_s - self._first_s)

    def _decoded(
        self, container: InputContainer, stream: VideoStream
    ) -> Generator[VideoFrame, None, None]:
        for packet in container.demux(stream):
            frames = self._decoder.decode(packet)
            self.skipped = self._decoder.skipped
            yield from frames
