"""Building with `tensorrt`, which needs a GPU: on a fake of its module. No library is needed."""

import os
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import Severity
from fake_trt_builder import GOOD_CACHE, FakeTrtBuilder

from tokprune_runtimes.errors import (
    BuildCancelled,
    BuildFailed,
    EngineStale,
    EngineUnavailable,
)
from tokprune_runtimes.trt_build import Build, Progress, build_engine, check_side_car

SOURCE = "5" * 64
PROFILE = {"x": ((1, 1), (1, 4), (1, 8))}


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Generator[FakeTrtBuilder, None, None]:
    module, cuda = FakeTrtBuilder(), FakeCuda()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    yield module
    assert cuda.leaks == []


@pytest.fixture
def build(tmp_path: Path) -> Build:
    onnx = tmp_path / "llm.onnx"
    onnx.write_bytes(b"the fake parser does not look")
    return Build(onnx, SOURCE, tmp_path / "device" / "llm.engine", (PROFILE,))


def changed(build: Build, **changes: object) -> Build:
    return Build(**{**vars(build), **changes})  # pyright: ignore[reportArgumentType]


def files(build: Build) -> list[str]:
    return sorted(path.name for path in build.engine.parent.iterdir())


def test_the_side_car_says_what_the_engine_was_made_from_and_for(
    trt: FakeTrtBuilder, build: Build
) -> None:
    trt.messages = [(Severity.WARNING, "slow"), (Severity.WARNING, "slow"), (Severity.INFO, "x")]
    made = build_engine("tensorrt", changed(build, cuda_graphs=False))
    assert build.engine.read_bytes() == b"an engine"
    assert files(build) == ["llm.engine", "llm.json"]
    assert check_side_car(build.engine, "tensorrt", SOURCE, "sm87") == made
    assert (made.engine, made.version, made.sm) == ("tensorrt", "10.3.0", ["sm87"])
    assert (made.cuda, made.driver) == ("12.6", "12.8")
    assert made.gpu == "Orin, 8 multiprocessors"
    assert made.profiles == [{"x": [[1, 1], [1, 4], [1, 8]]}]
    assert made.warnings == ["slow"]
    assert not made.cuda_graphs
    assert trt.configs[0].profiles[0].ranges == PROFILE
    assert trt.configs[0].flags == []
    assert trt.configs[0].limits == {}


def test_an_engine_of_a_larger_gpu_of_the_family_is_refused(
    trt: FakeTrtBuilder, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engine("tensorrt", build)
    nano = FakeCuda()
    nano.multiprocessors = 4
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", nano)
    said = "was built on Orin, 8 multiprocessors, this is Orin, 4 multiprocessors"
    with pytest.raises(EngineStale, match=said):
        check_side_car(build.engine, "tensorrt", SOURCE, "sm87")


def test_the_workspace_of_a_kernel_can_be_limited(trt: FakeTrtBuilder, build: Build) -> None:
    build_engine("tensorrt", changed(build, workspace_bytes=1 << 29))
    assert trt.configs[0].limits == {"workspace": 1 << 29}


def test_weight_streaming_is_asked_of_the_builder(trt: FakeTrtBuilder, build: Build) -> None:
    assert build_engine("tensorrt", changed(build, weight_streaming=True)).weight_streaming
    assert trt.configs[0].flags == ["streaming"]


def test_progress_counts_the_steps_of_every_phase(trt: FakeTrtBuilder, build: Build) -> None:
    trt.phases = [("Parsing", 1), ("Building", 2)]
    steps: list[Progress] = []
    build_engine("tensorrt", build, lambda step: steps.append(step) or True)
    expected = [("Parsing", 0, 1), ("Parsing", 1, 1)]
    expected += [("Building", step, 2) for step in (0, 1, 2)]
    assert [(step.phase, step.step, step.steps) for step in steps] == expected


def test_false_cancels_and_leaves_nothing(trt: FakeTrtBuilder, build: Build) -> None:
    with pytest.raises(BuildCancelled):
        build_engine("tensorrt", build, lambda step: step.step < 2)
    assert files(build) == []


def test_what_the_callback_raises_is_raised(trt: FakeTrtBuilder, build: Build) -> None:
    def interrupt(step: Progress) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine("tensorrt", build, interrupt)
    assert files(build) == []


def test_a_build_that_fails_says_all_errors_and_keeps_the_old_engine(
    trt: FakeTrtBuilder, build: Build
) -> None:
    old = build_engine("tensorrt", build)
    trt.engine = None
    trt.messages = [(Severity.ERROR, "no kernel"), (Severity.ERROR, "no memory")]
    with pytest.raises(BuildFailed, match=r"built no engine of .*llm\.onnx:\nno kernel\nno memory"):
        build_engine("tensorrt", build)
    assert files(build) == ["llm.engine", "llm.json"]
    assert check_side_car(build.engine, "tensorrt", SOURCE, "sm87") == old


def test_an_input_that_the_engine_ignores_ends_the_build_at_once(
    trt: FakeTrtBuilder, build: Build
) -> None:
    trt.messages = [(Severity.WARNING, "Unused Input: nonpad"), (Severity.WARNING, "slow")]
    trt.phases = [("Building", 1000)]
    steps: list[Progress] = []
    with pytest.raises(BuildFailed, match=r"ignores these inputs of .*: nonpad\. Its answers"):
        build_engine("tensorrt", build, lambda step: steps.append(step) or True)
    assert steps == []
    assert files(build) == []


def test_a_full_disk_leaves_nothing(
    trt: FakeTrtBuilder, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = build_engine("tensorrt", build)

    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            build_engine("tensorrt", build)
    assert files(build) == ["llm.engine", "llm.json"]
    assert check_side_car(build.engine, "tensorrt", SOURCE, "sm87") == old


def test_a_rebuild_replaces_both_and_reuses_what_a_killed_one_left(
    trt: FakeTrtBuilder, build: Build
) -> None:
    build_engine("tensorrt", build)
    build.engine.with_name(".llm.engine.tmp").write_bytes(b"half of an engine that is longer")
    trt.engine = b"a better engine"
    made = build_engine("tensorrt", changed(build, source_sha256="6" * 64))
    assert build.engine.read_bytes() == b"a better engine"
    assert check_side_car(build.engine, "tensorrt", "6" * 64, "sm87") == made
    assert files(build) == ["llm.engine", "llm.json"]


def test_two_builds_of_one_engine_do_not_write_into_each_other(
    trt: FakeTrtBuilder, build: Build
) -> None:
    errors: list[str] = []

    def second() -> None:
        try:
            build_engine("tensorrt", build)
        except BuildFailed as error:
            errors.append(str(error))

    def during() -> None:
        trt.during = lambda: None
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    trt.during = during
    build_engine("tensorrt", build)
    assert len(errors) == 1
    assert "Another process is building" in errors[0]
    assert files(build) == ["llm.engine", "llm.json"]


def test_a_folder_that_cannot_be_written_is_found_before_the_build(
    trt: FakeTrtBuilder, build: Build
) -> None:
    build.engine.parent.write_bytes(b"a file is in the way")
    trt.during = lambda: pytest.fail("it was built")
    with pytest.raises(OSError, match="device"):
        build_engine("tensorrt", build)


def test_the_timing_cache_is_read_and_written(trt: FakeTrtBuilder, build: Build) -> None:
    cache = build.engine.parent / "timing.cache"
    build = changed(build, timing_cache=cache)
    assert build_engine("tensorrt", build).warnings == []
    assert cache.read_bytes() == GOOD_CACHE
    build_engine("tensorrt", build)
    assert [config.timings for config in trt.configs] == [b"", GOOD_CACHE]
    assert files(build) == ["llm.engine", "llm.json", "timing.cache"]


@pytest.mark.parametrize("data", [b"broken", b"another GPU", b"raise"])
def test_a_broken_timing_cache_is_replaced_and_that_is_said(
    trt: FakeTrtBuilder, build: Build, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache = build.onnx.with_name("timing.cache")
    cache.write_bytes(data)
    made = build_engine("tensorrt", changed(build, timing_cache=cache))
    assert "will be replaced" in made.warnings[0]
    assert "will be replaced" in caplog.text
    assert trt.configs[0].timings == b""
    assert cache.read_bytes() == GOOD_CACHE


def test_a_timing_cache_that_cannot_be_written_loses_no_engine(
    trt: FakeTrtBuilder, build: Build
) -> None:
    cache = build.onnx / "timing.cache"  # llm.onnx is a file
    made = build_engine("tensorrt", changed(build, timing_cache=cache))
    assert "was not written" in made.warnings[-1]
    assert build.engine.exists()


def test_tensorrt_builds_only_for_the_gpu_that_is_here(trt: FakeTrtBuilder, build: Build) -> None:
    assert build_engine("tensorrt", changed(build, sm=("sm87",))).sm == ["sm87"]
    with pytest.raises(BuildFailed, match="it runs on, sm87, not for sm110"):
        build_engine("tensorrt", changed(build, sm=("sm110",)))


def test_without_a_gpu_tensorrt_says_where_to_build(
    trt: FakeTrtBuilder, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt.has_gpu = False
    with pytest.raises(EngineUnavailable, match=r"cannot build here .*nullptr.*\n.*error: 35"):
        build_engine("tensorrt", build)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EngineUnavailable, match=r"there is none here .*Run tokprune build on the"):
        build_engine("tensorrt", build)
    assert not build.engine.exists()
