"""CSI cameras of a Jetson, through the GStreamer of the system (`gi`), imported when one is opened.

The reader was run with GStreamer 1.22 and its test pictures; the CSI pipeline, which needs a
Jetson's camera stack (nvarguscamerasrc, nvvidconv), was not run.
"""

from fractions import Fraction
from importlib import import_module
from time import monotonic
from typing import Any

import numpy as np

from tokprune.camera.naming.options import CameraOptions
from tokprune.camera.naming.sources import Source
from tokprune.camera.reading.reader import Grabbed, SourceGone
from tokprune.errors import BackendUnavailable
from tokprune.types import Array, Image

SINK = "appsink name=pictures drop=true max-buffers=1 sync=false"
_WAIT_S = 0.05  # how long an interruption may take
_PACKAGES = "python3-gi gstreamer1.0-plugins-base gir1.2-gst-plugins-base-1.0"
_BYTES = {"BGRx": 4, "RGBx": 4, "BGR": 3, "RGB": 3}  # a pixel
_ORDER = {"BGRx": (2, 1, 0), "BGR": (2, 1, 0)}  # of RGB in it
_WORDS = {  # beginnings of error domains and their codes' names
    "NOT_FOUND": "there is no such camera",
    "OPEN_READ": "it cannot be opened",
    "BUSY": "another program uses it",
    "NOT_NEGOTIATED": "it has no such size or rate",
}


def csi_pipeline(number: int, options: CameraOptions) -> str:
    """Return the pipeline of a Jetson's CSI camera: the ISP's pictures, turned, as BGRx."""
    raw = "video/x-raw(memory:NVMM),format=NV12"
    if options.width is not None:
        raw += f",width={options.width},height={options.height}"
    if options.fps is not None:
        rate = Fraction(options.fps).limit_denominator(1001)
        raw += f",framerate={rate.numerator}/{rate.denominator}"
    return (
        f"nvarguscamerasrc sensor-id={number} ! {raw} ! nvvidconv flip-method={options.flip} ! "
        f"video/x-raw,format=BGRx ! {SINK}"
    )


def require_gstreamer() -> Any:
    """Return GStreamer's Python module, ready for use.

    Raises:
        BackendUnavailable: the system has none that this Python can load.
    """
    try:
        gi = import_module("gi")
        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
        gst = import_module("gi.repository.Gst")
        import_module("gi.repository.GstApp")  # gives appsinks their methods
    except (ImportError, ValueError) as error:
        reason = str(error)
    else:
        if not gst.is_initialized():
            gst.init(None)
        return gst
    raise BackendUnavailable(
        f"csi:// needs GStreamer and its Python binding ({reason}): sudo apt install {_PACKAGES}, "
        "and a Python that sees the system's packages (python3 -m venv --system-site-packages)"
    )


def open_csi(source: Source, open_timeout_s: float, read_timeout_s: float) -> "PipelineReader":
    """Open a CSI camera.

    Raises:
        SourceGone: there is none, or it does not start.
    """
    pipeline = csi_pipeline(int(source.address.reveal()), source.options)
    return open_pipeline(pipeline, source.shown, open_timeout_s, read_timeout_s)


def open_pipeline(
    text: str, name: str, open_timeout_s: float, read_timeout_s: float
) -> "PipelineReader":
    """Start a pipeline whose appsink is called `pictures` and gives RGB in some order.

    Raises:
        SourceGone: it cannot be made, or does not start in time.
    """
    gst = require_gstreamer()
    try:
        pipeline = gst.parse_launch(text)
    except Exception:  # GLib.Error: an element is missing
        pipeline = None
    if pipeline is None:
        raise SourceGone(f"{name}: this GStreamer lacks the camera's plugins (nvarguscamerasrc)")
    return PipelineReader(gst, pipeline, name, open_timeout_s, read_timeout_s)


class PipelineReader:
    """A pipeline that runs. It holds one picture, the newest."""

    skipped = 0

    def __init__(
        self, gst: Any, pipeline: Any, name: str, open_timeout_s: float, read_timeout_s: float
    ) -> None:
        """Start it.

        Raises:
            SourceGone: no picture came in time.
        """
        self.interval_s: float | None = None
        self._gst, self._pipeline, self._name = gst, pipeline, name
        self._sink: Any = pipeline.get_by_name("pictures")
        self._read_timeout_s = read_timeout_s
        self._interrupted = False
        pipeline.set_state(gst.State.PLAYING)
        try:
            self._first: Grabbed | None = self._wait(open_timeout_s)
        except SourceGone:
            self.close()
            raise

    def read(self) -> Grabbed | None:
        """Wait for the next picture. None where the pipeline has an end.

        Raises:
            SourceGone: the camera failed or says nothing any more.
        """
        first, self._first = self._first, None
        return first or self._wait(self._read_timeout_s)

    def interrupt(self) -> None:
        """End a read that waits, and forbid later ones."""
        self._interrupted = True

    def close(self) -> None:
        """Stop the pipeline and let the camera go."""
        self._pipeline.set_state(self._gst.State.NULL)
        self._pipeline.get_state(self._gst.SECOND)

    def _wait(self, timeout_s: float) -> Grabbed | None:
        end_s = monotonic() + timeout_s
        while not self._interrupted:
            sample = self._sink.try_pull_sample(int(_WAIT_S * self._gst.SECOND))
            if sample is not None:
                return self._grabbed(sample)
            if self._sink.is_eos():
                return None
            self._check()
            if monotonic() > end_s:
                raise SourceGone(f"{self._name}: nothing came for {timeout_s:g} s")
        raise SourceGone(f"{self._name}: reading was stopped")

    def _check(self) -> None:
        """Raise what the pipeline complains of, in our words."""
        message = self._pipeline.get_bus().pop_filtered(self._gst.MessageType.ERROR)
        if message is None:
            return
        error, _ = message.parse_error()
        found = (
            words
            for name, words in _WORDS.items()
            for domain in (self._gst.ResourceError, self._gst.StreamError, self._gst.CoreError)
            if hasattr(domain, name) and error.matches(domain.quark(), getattr(domain, name))
        )
        raise SourceGone(f"{self._name}: {next(found, 'the camera failed')}")

    def _grabbed(self, sample: Any) -> Grabbed:
        shape = sample.get_caps().get_structure(0)
        form = shape.get_string("format")
        found, top, bottom = shape.get_fraction("framerate")
        if found and top > 0:
            self.interval_s = bottom / top
        buffer = sample.get_buffer()
        if form not in _BYTES:
            raise SourceGone(f"{self._name}: it gives {form}, expected one of {', '.join(_BYTES)}")
        width, height = shape.get_value("width"), shape.get_value("height")
        raw: bytes = buffer.extract_dup(0, buffer.get_size())
        pixels = pixels_of(raw, height, width, _BYTES[form])
        pts = buffer.pts
        media_s = None if pts == self._gst.CLOCK_TIME_NONE else pts / self._gst.SECOND
        order = _ORDER.get(form, (0, 1, 2))
        return Grabbed(lambda: _rgb(pixels, order), pixels, media_s)


def pixels_of(raw: bytes, height: int, width: int, size: int) -> Array:
    """Return the pixels [h, w, size] of a buffer whose rows may be padded."""
    row = len(raw) // height
    rows: Array = np.ndarray((height, width, size), np.uint8, raw, strides=(row, size, 1))
    return rows


def _rgb(pixels: Array, order: tuple[int, int, int]) -> Image:
    return np.ascontiguousarray(pixels[..., list(order)])
