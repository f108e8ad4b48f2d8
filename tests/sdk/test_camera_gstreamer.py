"""CSI cameras: the pipeline's text, and the reader on GStreamer's test pictures."""

import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tokprune import BackendUnavailable
from tokprune.camera.naming.options import CameraOptions
from tokprune.camera.naming.sources import parse_source
from tokprune.camera.reading import gstreamer
from tokprune.camera.reading.opening import opener_of
from tokprune.camera.reading.reader import SourceGone

# Of older PyGObject itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:DynamicImporter.exec_module:ImportWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gi"),
]
needs_gi = pytest.mark.skipif(
    find_spec("gi") is None, reason="gi (PyGObject) is not installed for this Python"
)


def test_a_pipeline_asks_the_camera_for_what_was_asked() -> None:
    options = CameraOptions(width=1280, height=720, fps=29.97, flip=2)
    assert gstreamer.csi_pipeline(1, options) == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),format=NV12,width=1280,height=720,"
        "framerate=2997/100 ! nvvidconv flip-method=2 ! video/x-raw,format=BGRx ! "
        "appsink name=pictures drop=true max-buffers=1 sync=false"
    )


def test_a_pipeline_leaves_to_the_camera_what_was_not_asked() -> None:
    assert gstreamer.csi_pipeline(0, CameraOptions()).startswith(
        "nvarguscamerasrc sensor-id=0 ! video/x-raw(memory:NVMM),format=NV12 ! nvvidconv flip-"
    )


def test_padded_rows_are_cut() -> None:
    rows = np.arange(2 * 16, dtype=np.uint8).reshape(2, 16)
    pixels = gstreamer.pixels_of(rows.tobytes(), height=2, width=3, size=4)
    assert pixels[1].ravel().tolist() == list(range(16, 28))


def test_where_gstreamer_is_missing_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(gstreamer, "import_module", missing)
    with pytest.raises(BackendUnavailable, match=r"sudo apt install python3-gi .*system-site"):
        opener_of(parse_source("csi://0"))


@needs_gi
def test_pictures_come_in_their_colours() -> None:
    caps = "video/x-raw,format={},width=99,height=33,framerate=30/1"
    for form in ("BGRx", "RGBx", "RGB", "BGR"):
        text = "videotestsrc pattern=solid-color foreground-color=0xffc86432 is-live=true ! "
        reader = gstreamer.open_pipeline(
            text + caps.format(form) + " ! " + gstreamer.SINK, "csi://0", 5.0, 5.0
        )
        grabbed = reader.read()
        assert grabbed is not None
        image = grabbed.image()
        assert image.shape == (33, 99, 3)
        assert np.abs(image.astype(int) - (0xC8, 0x64, 0x32)).max() <= 2
        assert reader.interval_s == pytest.approx(1 / 30)
        reader.close()


@needs_gi
def test_who_reads_late_gets_the_newest_picture() -> None:
    reader = _test_pictures("pattern=ball is-live=true", fps="100/1")
    first = reader.read()
    time.sleep(0.3)
    reader.read()  # what was there when the wait began may be one older
    late = reader.read()
    assert first
    assert late
    assert (late.media_s or 0) - (first.media_s or 0) > 0.2
    reader.close()


@needs_gi
def test_a_pipeline_with_an_end_ends() -> None:
    reader = _test_pictures("num-buffers=3")
    seen = 0
    while reader.read() is not None:
        seen += 1
    assert 1 <= seen <= 3
    reader.close()


@needs_gi
def test_a_silent_camera_is_gone_after_the_timeout_and_can_be_interrupted() -> None:
    text = f"appsrc format=time ! video/x-raw,format=RGB,width=8,height=8 ! {gstreamer.SINK}"
    with pytest.raises(SourceGone, match=r"csi://0: nothing came for 0\.2 s"):
        gstreamer.open_pipeline(text, "csi://0", 0.2, 0.2)
    reader = _test_pictures("is-live=true", fps="1/60")
    reader.read()
    threading.Timer(0.1, reader.interrupt).start()
    begin = time.monotonic()
    with pytest.raises(SourceGone, match="reading was stopped"):
        reader.read()
    assert time.monotonic() - begin < 0.5
    reader.close()


@needs_gi
def test_a_failure_of_the_camera_is_said_in_our_words(tmp_path: Path) -> None:
    text = f"filesrc location={tmp_path}/secret-name ! rawvideoparse format=rgb ! {gstreamer.SINK}"
    with pytest.raises(SourceGone, match=r"^csi://0: ") as refused:
        gstreamer.open_pipeline(text, "csi://0", 2.0, 2.0)
    assert "secret-name" not in str(refused.value)


@needs_gi
def test_missing_plugins_are_named() -> None:
    with pytest.raises(SourceGone, match="nvarguscamerasrc"):
        opener_of(parse_source("csi://0"))()


@needs_gi
def test_no_descriptor_stays_open() -> None:
    def cycle() -> int:
        reader = _test_pictures("is-live=true")
        reader.read()
        reader.close()
        del reader
        return len(list(Path("/proc/self/fd").iterdir()))

    counts = [cycle() for _ in range(8)]
    assert counts[-1] <= counts[2], counts  # what earlier tests served may still be closing


def _test_pictures(options: str, fps: str = "30/1") -> gstreamer.PipelineReader:
    caps = f"video/x-raw,format=BGRx,width=64,height=48,framerate={fps}"
    text = f"videotestsrc {options} ! {caps} ! {gstreamer.SINK}"
    return gstreamer.open_pipeline(text, "csi://0", 5.0, 5.0)
