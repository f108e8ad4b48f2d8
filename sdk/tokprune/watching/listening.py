"""Hearing of a camera's pictures without being kept alive by it."""

import weakref
from collections.abc import Callable
from typing import Any

from tokprune.camera.camera import Camera


def listen(camera: Camera, heard: Callable[[], object]) -> "weakref.finalize[[], Any]":
    """Call a method of an object on every change of a camera, as long as the object lives.

    Args:
        camera: what is listened to.
        heard: a bound method; it runs on the capture thread, and must be quick.

    Returns:
        What ends it earlier.
    """
    method = weakref.WeakMethod(heard)

    def tell() -> None:
        known = method()
        if known is not None:
            known()

    return weakref.finalize(heard.__self__, camera.listen(tell))  # type: ignore[attr-defined]
