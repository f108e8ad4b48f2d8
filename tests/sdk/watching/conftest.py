"""A VLM on a stub and a camera on a script, for what watches one with the other."""

from collections.abc import Iterator

import pytest
from scripted_camera import Script, camera_of
from stub_model import Stub, a_vlm
from watchdog import watchdog

from tokprune.camera.camera import Camera
from tokprune.vlm import VLM


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(60):
        yield


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def vlm(stub: Stub) -> Iterator[VLM]:
    with a_vlm(stub) as made:
        yield made


@pytest.fixture
def camera(script: Script) -> Iterator[Camera]:
    with camera_of(script) as made:
        yield made
