"""The machine that tests of TensorRT run on."""

import gc
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from fake_machine import Machine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Machine, None, None]:
    """Whatever a test does: when its graphs are gone, nothing is left on the GPU."""
    made = Machine(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", made.trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", made.cuda)
    yield made
    gc.collect()
    assert made.cuda.leaks == []
    assert len(made.trt.alive) == 0
