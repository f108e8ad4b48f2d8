"""Run as a program below `fake_v4l2.c`: open its camera, and tell what came, as JSON."""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tokprune.camera.naming.sources import parse_source
from tokprune.camera.reading.opening import opener_of
from tokprune.camera.reading.reader import SourceGone

SWITCH = Path(os.environ["FAKE_V4L2"])
TIMEOUT_S = 0.4


def main() -> None:
    """Read, then fall silent, be interrupted, be unplugged and come back, fifty times."""
    result: dict[str, Any] = {}
    SWITCH.write_text("on")
    reader = opened("v4l2:///dev/video0?width=320&height=240&fps=100&format=YUYV")
    result["interval_s"] = reader.interval_s
    pictures = [reader.read() for _ in range(25)]
    result["shape"] = pictures[0].image().shape
    SWITCH.write_text("silent")
    begin = time.monotonic()
    result["silent"] = why(reader)
    result["silent_s"] = time.monotonic() - begin
    SWITCH.write_text("on")
    pictures.append(reader.read())
    SWITCH.write_text("silent")
    threading.Timer(0.1, reader.interrupt).start()
    begin = time.monotonic()
    result["interrupted"] = why(reader)
    result["interrupted_s"] = time.monotonic() - begin
    reader.close()
    result["levels"] = [float(picture.image().mean()) for picture in pictures]
    SWITCH.write_text("on")
    reader = opened("/dev/video0")
    result["default"] = reader.read().image().shape
    SWITCH.write_text("gone")
    begin = time.monotonic()
    result["unplugged"] = why(reader)
    result["unplugged_s"] = time.monotonic() - begin
    reader.close()
    result["absent"] = why(None)
    result["held"] = [cycle() for _ in range(50)]
    result["refused"] = refused("v4l2:///dev/video0?width=320&height=240&format=MJPG")
    sys.stdout.write(json.dumps(result) + "\n")


def opened(text: str) -> Any:
    return opener_of(parse_source(text), read_timeout_s=TIMEOUT_S)()


def why(reader: Any) -> str:
    """Read until there is nothing more, and return the reason."""
    try:
        reader = reader or opened("/dev/video0")
        for _ in range(1000):
            reader.read()
    except SourceGone as gone:
        return str(gone)
    return "it went on"


def refused(text: str) -> str:
    SWITCH.write_text("on")
    try:
        opened(text).close()
    except SourceGone as gone:
        return str(gone)
    return "it was opened"


def cycle() -> int:
    """Plug in, read, unplug, fail to open; return how many descriptors are open then."""
    SWITCH.write_text("on")
    reader = opened("/dev/video0")
    reader.read()
    SWITCH.write_text("gone")
    why(reader)
    reader.close()
    why(None)
    return len(list(Path("/proc/self/fd").iterdir()))


main()
