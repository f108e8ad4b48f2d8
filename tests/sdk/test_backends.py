"""Which backend runs a bundle, on machines that are played: no GPU is needed.

Engines are played by ONNX Runtime on the graph that they were built from.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fake_trt_build import FakeBuilder, install

import tokprune
from tokprune import backends, loading
from tokprune.bundle import open_bundle
from tokprune.engines.building import build_engines
from tokprune.engines.plans import BuildOptions
from tokprune.scenes import suite
from tokprune_runtimes import Backend, Graph, load_graph
from tokprune_runtimes.errors import EngineStale, EngineUnavailable

pytestmark = [pytest.mark.torch, pytest.mark.demo]
GRAPHS = {"vision_encoder", "first_layer", "scorer", "llm"}


class Machine:
    """What is plugged in and installed. Notes what was loaded where."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self.loaded: list[tuple[str, Backend, str | None]] = []
        self.cuda: str | None = "This ONNX Runtime has no CUDA provider"  # why it is not there
        self.stale: str | None = None

    def load_graph(
        self, path: Path, backend: Backend, *, threads: int | None, source_sha256: str | None
    ) -> Graph:
        self.loaded.append((path.stem, backend, source_sha256))
        if backend == "cuda" and self.cuda is not None:
            raise EngineUnavailable(self.cuda)
        if backend.startswith("tensorrt"):
            assert path.read_bytes() == f"engine {path.stem}".encode()
            if self.stale == path.stem:
                raise EngineStale(f"The engine {path} was built by another driver")
            name = "llm.portable" if path.stem == "llm" else path.stem
            path = self.bundle / "onnx" / f"{name}.onnx"
        return load_graph(path, "cpu", threads=threads)


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


@pytest.fixture
def machine(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    monkeypatch.setenv("TOKPRUNE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(backends, "_DEVICES", (str(tmp_path),))  # there is one
    played = Machine(bundle)
    monkeypatch.setattr(loading, "load_graph", played.load_graph)
    return played


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> FakeBuilder:
    return install(monkeypatch, FakeBuilder({"tensorrt": "10.3.0", "tensorrt-rtx": "1.7.1"}))


def build(bundle: Path, **options: Any) -> None:
    build_engines(open_bundle(bundle), BuildOptions("tensorrt", **options))


def picture() -> np.ndarray:
    (sample,) = suite("dev", 1, tokens=64, groups=["color"])
    return sample.pictures[0]


def test_a_machine_without_a_gpu_takes_the_cpu_at_once(
    bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(backends, "_DEVICES", ("/no/such/device",))
    monkeypatch.setattr(loading, "find_engines", lambda *_: pytest.fail("engines were looked for"))
    with caplog.at_level(logging.INFO, logger="tokprune"):
        vlm = tokprune.load(bundle)
    assert vlm.backend == "cpu"
    assert vlm.backends_refused == dict.fromkeys(
        ("tensorrt", "tensorrt-rtx", "cuda"), "there is no NVIDIA GPU here"
    )
    assert {backend for _, backend, _ in machine.loaded} == {"cpu"}
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "backend cpu; not tensorrt: there is no NVIDIA GPU here" in record.getMessage()


def test_fresh_engines_for_this_gpu_come_first_and_answer_as_the_cpu_does(
    bundle: Path, machine: Machine, builder: FakeBuilder
) -> None:
    expected = tokprune.load(bundle, backend="cpu", llm_form="portable")
    build(bundle)
    machine.loaded.clear()
    vlm = tokprune.load(bundle)
    assert (vlm.backend, vlm.backends_refused) == ("tensorrt", {})
    sources = {build.engine.stem: build.source_sha256 for build in builder.built}
    assert {name: source for name, _, source in machine.loaded} == sources
    assert set(sources) == GRAPHS
    question = ("what color is the star?", 0.5)
    for shown in (picture(), tokprune.clip_of([picture()] * 20, fps=4.0)):
        answers = [each.ask(shown, *question, max_new_tokens=6) for each in (vlm, expected)]
        assert answers[0].token_ids == answers[1].token_ids
        np.testing.assert_array_equal(answers[0].selection.keep, answers[1].selection.keep)


def test_stale_engines_leave_a_gpu_to_cuda_and_the_reason_is_kept(
    bundle: Path, machine: Machine, builder: FakeBuilder, caplog: Any
) -> None:
    build(bundle)
    builder.versions["tensorrt"] = "10.16.1"
    machine.cuda = None
    vlm = tokprune.load(bundle)
    assert vlm.backend == "cuda"
    assert "was built by 10.3.0, 10.16.1 is installed" in vlm.backends_refused["tensorrt"]
    assert f"tokprune build {bundle} --engine tensorrt" in vlm.backends_refused["tensorrt"]
    assert "has no fresh engines for tensorrt-rtx" in vlm.backends_refused["tensorrt-rtx"]


def test_a_gpu_that_stays_idle_is_worth_a_warning(
    bundle: Path, machine: Machine, builder: FakeBuilder, caplog: Any
) -> None:
    vlm = tokprune.load(bundle)
    assert vlm.backend == "cpu"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "not cuda: This ONNX Runtime has no CUDA provider" in record.getMessage()


def test_a_backend_that_was_asked_for_and_is_absent_is_an_error_not_another_backend(
    bundle: Path, machine: Machine, builder: FakeBuilder
) -> None:
    with pytest.raises(tokprune.BackendUnavailable, match="no CUDA provider"):
        tokprune.load(bundle, backend="cuda")
    with pytest.raises(tokprune.EnginesStale, match=r"tokprune build .*bundle --engine tensorrt$"):
        tokprune.load(bundle, backend="tensorrt")
    del builder.versions["tensorrt-rtx"]
    with pytest.raises(tokprune.BackendUnavailable, match=r"'tokprune\[tensorrt-rtx\]'"):
        tokprune.load(bundle, backend="tensorrt-rtx")
    build(bundle)
    machine.stale = "scorer"
    with pytest.raises(tokprune.EnginesStale, match="built by another driver"):
        tokprune.load(bundle, backend="tensorrt")


@pytest.mark.parametrize(
    ("asked", "hint"),
    [("tensort", "'tensorrt'"), ("gpu", ""), ("CUDA", ""), ("tensorrt_rtx", "'tensorrt-rtx'")],
)
def test_a_misspelt_backend_is_told_the_nearest(bundle: Path, asked: Any, hint: str) -> None:
    load: Callable[..., Any] = tokprune.load
    undecorated = getattr(load, "__wrapped__", load)  # past the types that these tests check
    with pytest.raises(tokprune.RequestInvalid, match=f"Unknown backend '{asked}'") as caught:
        undecorated(bundle, backend=asked)
    assert f"Did you mean {hint}" in str(caught.value) or not hint
    assert "Known: auto, cpu, cuda, tensorrt, tensorrt-rtx." in str(caught.value)


def test_a_form_that_nothing_here_runs_is_an_error_with_every_reason(
    bundle: Path, machine: Machine, builder: FakeBuilder
) -> None:
    with pytest.raises(tokprune.BackendUnavailable, match="Nothing here can run") as caught:
        tokprune.load(bundle, llm_form="trt")
    for name in ("tensorrt: ", "tensorrt-rtx: ", "cuda: ", "cpu: "):
        assert name in str(caught.value)


def test_a_picture_beyond_the_engines_is_refused_before_any_engine_runs(
    bundle: Path, machine: Machine, builder: FakeBuilder
) -> None:
    build(bundle, max_vision_tokens=40)
    vlm = tokprune.load(bundle, backend="tensorrt")
    with pytest.raises(tokprune.EngineTooSmall) as caught:
        vlm.stream(picture(), "what color is the star?")
    assert "64 vision tokens in a picture or frame (built for 40)" in str(caught.value)
    assert str(caught.value).endswith(
        f"tokprune build {bundle} --engine tensorrt --max-vision-tokens 64"
    )
    two = [picture()[:112], picture()[:112]]  # 32 each, 64 together
    with pytest.raises(tokprune.EngineTooSmall, match=r"64 vision tokens \(built for 40\)"):
        vlm.ask(two, "what color is the star?", selector="relevance", max_new_tokens=1)
    assert vlm.ask(two, "what color is it?", selector="uniform", max_new_tokens=1).total == 64


def test_a_question_beyond_the_engines_names_the_option_for_longer_ones(
    bundle: Path, machine: Machine, builder: FakeBuilder
) -> None:
    build(bundle, max_question_tokens=8)
    vlm = tokprune.load(bundle, backend="tensorrt")
    with pytest.raises(tokprune.EngineTooSmall, match=r"8\).*--max-question-tokens \d+$"):
        vlm.ask(picture(), "what color is the star? " * 4, max_new_tokens=1)


def test_an_llm_engine_of_other_limits_is_stale(
    bundle: Path, machine: Machine, builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(bundle)
    opened = open_bundle(bundle)
    limits = msgspec.structs.replace(opened.manifest.limits, max_kv_len=9999)
    larger = msgspec.structs.replace(opened.manifest, limits=limits)
    monkeypatch.setattr(loading, "open_bundle", lambda *_, **__: type(opened)(bundle, larger))
    with pytest.raises(tokprune.EnginesStale, match=r"other limits than the bundle's 4096 .* 9999"):
        tokprune.load(bundle, backend="tensorrt")
