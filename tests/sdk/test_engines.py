"""Engines of a bundle: where they lie, what makes them stale, and building all four."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import small_bundle
from fake_trt_build import FakeBuilder, install

from tokprune.bundle import Bundle, open_bundle
from tokprune.commands.build import Build, duration, run_build
from tokprune.engines import building
from tokprune.engines.building import build_engines
from tokprune.engines.clock import BuildClock
from tokprune.engines.folders import engine_folders
from tokprune.engines.plans import BuildOptions, BuildStep
from tokprune.engines.states import engine_form, find_engines, list_engines, source_sha256
from tokprune.errors import (
    BackendUnavailable,
    BuildRefused,
    EnginesStale,
    RequestInvalid,
)
from tokprune.manifest import Limits, LlmForm, Tensor

pytestmark = pytest.mark.torch
NAMES = ["vision_encoder", "first_layer", "scorer", "llm"]
TRT = BuildOptions("tensorrt")
RTX = BuildOptions("tensorrt-rtx")
Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("TOKPRUNE_STATE", str(tmp_path / "state"))
    small_bundle.write(tmp_path / "bundle")
    with small_bundle.edited(tmp_path / "bundle") as raw:
        raw["graphs"]["llm"][0]["serves"] = ["onnxruntime-cpu", "tensorrt", "tensorrt-rtx"]
    return open_bundle(tmp_path / "bundle")


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> FakeBuilder:
    versions = {"tensorrt": "10.3.0", "tensorrt-rtx": "1.7.1.116"}
    return install(monkeypatch, FakeBuilder(versions))


def states(bundle: Bundle) -> dict[str, str]:
    return {engine.name: engine.state for engine in list_engines(bundle)}


def test_four_engines_are_built_into_a_folder_of_gpu_engine_and_version(
    bundle: Bundle, builder: FakeBuilder
) -> None:
    steps: list[BuildStep] = []
    built = build_engines(bundle, TRT, steps.append)
    folder = bundle.path / "device" / "sm87-trt10.3.0"
    assert [engine.path for engine in built] == [folder / f"{name}.engine" for name in NAMES]
    assert not any(engine.skipped for engine in built)
    assert built[-1].warnings == ("kernels are slow",)
    assert [step.engine for step in steps if step.step == 0] == NAMES
    assert [(step.number, step.engines) for step in steps[-3:]] == [(4, 4)] * 3
    assert steps[0].eta_s is None
    assert steps[-1].eta_s == pytest.approx(0, abs=1)
    for build in builder.built:
        assert build.sm == ("sm87",)
        assert build.timing_cache == folder / "timing.cache"
        assert build.onnx.parent == bundle.path / "onnx"
    found = find_engines(bundle, "tensorrt")
    assert (found.form.form, found.folder.path) == ("portable", folder)
    assert states(bundle) == dict.fromkeys(NAMES, "fresh")
    assert open_bundle(bundle.path).manifest == bundle.manifest  # the manifest knows nothing of it


def test_only_what_is_not_fresh_is_built_again(bundle: Bundle, builder: FakeBuilder) -> None:
    first = build_engines(bundle, TRT)
    first[1].path.with_suffix(".json").unlink()
    first[2].path.unlink()
    builder.built.clear()
    again = build_engines(bundle, TRT)
    assert [build.engine.stem for build in builder.built] == ["first_layer", "scorer"]
    assert [engine.skipped for engine in again] == [True, False, False, True]
    builder.built.clear()
    build_engines(bundle, BuildOptions("tensorrt", force=True))
    assert len(builder.built) == 4


def test_engines_of_other_sizes_are_built_again_where_the_size_matters(
    bundle: Bundle, builder: FakeBuilder
) -> None:
    build_engines(bundle, TRT)
    builder.built.clear()
    build_engines(bundle, BuildOptions("tensorrt", max_vision_tokens=99))
    assert [build.engine.stem for build in builder.built] == NAMES[:3]
    builder.built.clear()
    streamed = BuildOptions("tensorrt", max_vision_tokens=99, weight_streaming=True)
    build_engines(bundle, streamed)
    assert [build.weight_streaming for build in builder.built] == [True] * 4


def with_both_forms(bundle: Bundle) -> Bundle:
    """The bundle with a second form of its LLM, which newer versions take by themselves."""
    portable = bundle.manifest.graphs.llm[0]
    inputs = [Tensor("inputs_embeds", "float32", [1, "T", 16]), Tensor("mask", "float32", ["S"])]
    graph = msgspec.structs.replace(portable.graph, inputs=inputs)
    trt = LlmForm("trt", "in_place", ["tensorrt"], graph)
    graphs = msgspec.structs.replace(bundle.manifest.graphs, llm=[portable, trt])
    return replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, graphs=graphs))


def test_another_form_of_the_llm_lies_beside_and_is_found(
    bundle: Bundle, builder: FakeBuilder
) -> None:
    builder.versions["tensorrt"] = "10.16.1"
    bundle = with_both_forms(bundle)
    portable = BuildOptions("tensorrt", llm_form="portable")
    build_engines(bundle, portable)
    assert [folder.path.name for folder in engine_folders(bundle)] == ["sm87-trt10.16.1-portable"]
    assert states(bundle) == dict.fromkeys(NAMES, "fresh")
    assert find_engines(bundle, "tensorrt").form.form == "portable"  # nothing better was built
    assert find_engines(bundle, "tensorrt", "portable").form.form == "portable"
    with pytest.raises(EnginesStale, match=r"tokprune build .*--engine tensorrt --llm-form trt$"):
        find_engines(bundle, "tensorrt", "trt")
    assert {engine.as_json()["llm_form"] for engine in list_engines(bundle)} == {"portable"}
    build_engines(bundle, TRT)
    assert find_engines(bundle, "tensorrt").form.form == "trt"
    assert [engine.llm_form for engine in list_engines(bundle)] == [None] * 4 + ["portable"] * 4
    assert find_engines(bundle, "tensorrt", "portable").form.form == "portable"
    builder.built.clear()
    assert all(engine.skipped for engine in build_engines(bundle, portable))


def test_a_form_that_is_refused_names_the_other(bundle: Bundle, builder: FakeBuilder) -> None:
    builder.versions["tensorrt"] = "10.16.1"
    builder.fails = "llm"
    with pytest.raises(BuildRefused, match=r"has another form of it: --llm-form portable$"):
        build_engines(with_both_forms(bundle), TRT)
    with pytest.raises(BackendUnavailable, match="no LLM graph 'ort' for tensorrt"):
        build_engines(bundle, BuildOptions("tensorrt", llm_form="ort"))


def test_an_interrupted_build_is_taken_up_where_it_was(
    bundle: Bundle, builder: FakeBuilder
) -> None:
    builder.fails = "scorer"
    with pytest.raises(BuildRefused, match=r"The engine scorer was not built.*nobody knows"):
        build_engines(bundle, TRT)
    assert states(bundle) == {
        "vision_encoder": "fresh",
        "first_layer": "fresh",
        "scorer": "missing",
        "llm": "missing",
    }
    with pytest.raises(EnginesStale, match=r"scorer.engine is missing.*tokprune build .*tensorrt"):
        find_engines(bundle, "tensorrt")
    builder.fails = None
    builder.built.clear()
    build_engines(bundle, TRT)
    assert [build.engine.stem for build in builder.built] == ["scorer", "llm"]


def test_rtx_builds_without_a_gpu_for_all_that_it_offers_or_for_the_ones_named(
    bundle: Bundle, builder: FakeBuilder
) -> None:
    builder.gpu = None
    build_engines(bundle, RTX)
    build_engines(bundle, BuildOptions("tensorrt-rtx", sm=("sm89", "sm120", "sm89")))
    assert [folder.path.name for folder in engine_folders(bundle)] == [
        "all-rtx1.7.1.116",
        "sm89+sm120-rtx1.7.1.116",
    ]
    assert all(build.timing_cache is None for build in builder.built)
    with pytest.raises(BackendUnavailable, match=r"on the GPU that runs them.*on the device"):
        build_engines(bundle, TRT)
    builder.gpu = "sm89"  # the folder for fewer GPUs comes first
    assert find_engines(bundle, "tensorrt-rtx").folder.sm == ("sm89", "sm120")
    builder.gpu = "sm80"
    assert find_engines(bundle, "tensorrt-rtx").folder.target == "all"
    builder.gpu = "sm90"
    with pytest.raises(EnginesStale, match=r"for \['sm80', 'sm89'\], this GPU is sm90"):
        find_engines(bundle, "tensorrt-rtx")


def test_another_gpu_version_or_graph_makes_engines_stale_and_says_which(
    bundle: Bundle, builder: FakeBuilder
) -> None:
    with pytest.raises(EnginesStale, match="it has none at all") as caught:
        find_engines(bundle, "tensorrt")
    assert caught.value.code == "engines_stale"
    build_engines(bundle, TRT)
    builder.gpu = "sm110"
    with pytest.raises(EnginesStale, match=r"on sm110: it has sm87-trt10\.3\.0"):
        find_engines(bundle, "tensorrt")
    builder.gpu, builder.versions["tensorrt"] = "sm87", "10.16.1"
    with pytest.raises(EnginesStale, match=r"was built by 10\.3\.0, 10\.16\.1 is installed"):
        find_engines(bundle, "tensorrt")
    builder.versions["tensorrt"] = "10.3.0"
    with small_bundle.edited(bundle.path) as raw:
        raw["files"]["onnx/llm.onnx.data"]["sha256"] = "2" * 64
    changed = open_bundle(bundle.path, verify="sizes")
    assert states(changed) == {**dict.fromkeys(NAMES, "fresh"), "llm": "stale"}
    with pytest.raises(EnginesStale, match=r"llm\.engine was built from another graph"):
        find_engines(changed, "tensorrt")


def test_an_engine_that_is_a_link_is_never_looked_into(
    bundle: Bundle, builder: FakeBuilder, tmp_path: Path
) -> None:
    llm = build_engines(bundle, TRT)[-1].path
    llm.rename(tmp_path / "elsewhere")
    llm.symlink_to(tmp_path / "elsewhere")
    (found,) = [engine for engine in list_engines(bundle) if engine.state != "fresh"]
    assert (found.name, found.state) == ("llm", "stale")
    assert "is a link" in str(found.reason)


def test_without_the_engine_freshness_cannot_be_told(bundle: Bundle, builder: FakeBuilder) -> None:
    build_engines(bundle, TRT)
    del builder.versions["tensorrt"]
    assert set(states(bundle).values()) == {"unchecked"}
    with pytest.raises(BackendUnavailable, match=r"pip install 'tokprune\[tensorrt\]'"):
        find_engines(bundle, "tensorrt")
    with pytest.raises(BackendUnavailable, match=r"pip install 'tokprune\[tensorrt\]'"):
        build_engines(bundle, TRT)
    builder.versions["tensorrt"], builder.gpu = "10.3.0", None
    with pytest.raises(BackendUnavailable, match="there is no NVIDIA GPU"):
        find_engines(bundle, "tensorrt")


def test_engines_of_a_bundle_that_cannot_be_written_lie_in_the_state_folder(
    bundle: Bundle, builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != bundle.path and access(path, mode)
    )
    built = build_engines(bundle, TRT)
    digest = small_bundle.sha256_file(bundle.path / "manifest.json")
    assert built[0].path.parent == tmp_path / "state" / digest / "sm87-trt10.3.0"
    assert not (bundle.path / "device").exists()
    assert find_engines(bundle, "tensorrt").folder.path == built[0].path.parent
    assert states(bundle) == dict.fromkeys(NAMES, "fresh")


def test_the_form_of_the_llm_goes_by_engine_and_version(bundle: Bundle) -> None:
    portable = bundle.manifest.graphs.llm[0]
    trt = LlmForm("trt", "in_place", ["tensorrt", "tensorrt-rtx"], portable.graph)
    graphs = msgspec.structs.replace(bundle.manifest.graphs, llm=[portable, trt])
    both = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, graphs=graphs))
    found = {
        version: engine_form(both, "tensorrt", version).form
        for version in ("10.3.0", "10.13.3.9", "10.15.1", "10.16.1.11", "11.4.0")
    }
    assert list(found.values()) == ["portable", "portable", "trt", "trt", "trt"]
    assert engine_form(both, "tensorrt-rtx", "1.7.1").form == "trt"
    assert engine_form(both, "tensorrt-rtx", "1.7.1", "portable").form == "portable"
    assert engine_form(bundle, "tensorrt", "11.4.0").form == "portable"
    with pytest.raises(BackendUnavailable, match=r"'trt' for tensorrt 10\.3\.0; it has portable"):
        engine_form(both, "tensorrt", "10.3.0", "trt")


def test_the_source_hash_covers_the_data_beside_the_graph(bundle: Bundle) -> None:
    spec = bundle.manifest.graphs.llm[0].graph
    before = source_sha256(bundle, spec)
    data = bundle.manifest.files["onnx/llm.onnx.data"]
    files = {
        **bundle.manifest.files,
        "onnx/llm.onnx.data": msgspec.structs.replace(data, sha256="1" * 64),
    }
    other = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, files=files))
    assert source_sha256(other, spec) != before
    scorer = bundle.manifest.graphs.scorer
    assert source_sha256(other, scorer) == source_sha256(bundle, scorer)


def test_too_little_disk_or_memory_is_told_with_numbers_before_anything_is_built(
    bundle: Bundle, builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(building.shutil, "disk_usage", lambda _: Usage(10, 1, 1 << 20))
        with pytest.raises(
            BuildRefused, match=r"disk at .*needs 0.06 GiB \(671\d+ bytes\), available"
        ):
            build_engines(bundle, TRT)
    with monkeypatch.context() as patch:
        patch.setattr(building, "available_memory", lambda: 1 << 20)
        with pytest.raises(BuildRefused, match=r"memory for the engine .*--low-memory") as caught:
            build_engines(bundle, RTX)
        assert caught.value.code == "build_refused"
        with pytest.raises(BuildRefused, match=r"in fp16 or int4$"):
            build_engines(bundle, BuildOptions("tensorrt", low_memory=True))
    assert builder.built == []
    build_engines(bundle, TRT)
    monkeypatch.setattr(building, "available_memory", lambda: 0)
    assert all(engine.skipped for engine in build_engines(bundle, TRT))  # nothing is needed


def test_little_memory_makes_one_profile_of_prompts_and_answers(
    bundle: Bundle, builder: FakeBuilder
) -> None:
    def of_llm(options: BuildOptions) -> int:
        build_engines(bundle, options)
        return len(builder.built[-1].profiles)

    assert of_llm(TRT) == 3  # max_input_len is 64: one bucket, decoding, and going on after a past
    assert of_llm(BuildOptions("tensorrt", low_memory=True)) == 1
    assert builder.built[-1].workspace_bytes == 512 << 20
    assert of_llm(RTX) == 1


def test_little_memory_bounds_the_vision_tokens_unless_told_otherwise() -> None:
    limits = Limits(max_input_len=4096, max_kv_len=4096)
    assert TRT.sizes(limits).vision_tokens == 4096
    assert BuildOptions("tensorrt", low_memory=True).sizes(limits).vision_tokens == 1024
    small = msgspec.structs.replace(limits, max_input_len=700)
    assert BuildOptions("tensorrt", low_memory=True).sizes(small).vision_tokens == 700
    told = BuildOptions("tensorrt", low_memory=True, max_vision_tokens=3000)
    assert told.sizes(limits).vision_tokens == 3000


@pytest.mark.parametrize("sm", ["87", "sm8.7", "../sm87", "SM87", ""])
def test_a_gpu_that_is_none_is_refused(bundle: Bundle, builder: FakeBuilder, sm: str) -> None:
    with pytest.raises(RequestInvalid, match="such as sm87"):
        build_engines(bundle, BuildOptions("tensorrt-rtx", sm=(sm,)))


def test_the_time_left_counts_engines_to_come_by_their_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("tokprune.engines.clock.perf_counter", lambda: now[0])
    clock = BuildClock(400, began=100.0)
    assert clock.eta_s(100, "tactics", 0, 10) is None
    now[0] = 105.0
    assert clock.eta_s(100, "tactics", 5, 10) == 5 + 10 * 3  # 10 s for 100 of 400 bytes
    clock.finished(100)
    now[0] = 110.0
    assert clock.eta_s(300, "tactics", 0, 4) is None
    now[0] = 115.0
    assert clock.eta_s(300, "tactics", 1, 4) == 15


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.4, "3 s"), (89.0, "89 s"), (120.0, "2 min"), (7200.0, "2.0 h")]
)
def test_durations_are_told_in_fitting_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_command_builds_and_ends_with_a_table(
    bundle: Bundle, builder: FakeBuilder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_build(Build(bundle.path, "tensorrt")) == 0
    output = capsys.readouterr()
    for name in NAMES:
        assert name in output.out
    assert "built" in output.out
    assert "kernels are slow" in output.out
    assert run_build(Build(bundle.path, "tensorrt")) == 0
    assert "was fresh" in capsys.readouterr().out


CLI = """
import sys, pytest, fake_trt_build
patch = pytest.MonkeyPatch()
fake_trt_build.install(patch, fake_trt_build.FakeBuilder())
sys.path_importer_cache.clear()
from tokprune.cli import main
main()
"""


def tokprune(*arguments: object) -> subprocess.CompletedProcess[str]:
    paths = f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}\n"
    command = [sys.executable, "-c", paths + CLI, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_build_inspect_and_verify_from_the_shell(bundle: Bundle) -> None:
    built = tokprune("build", bundle.path, "--engine", "tensorrt", "--max-vision-tokens", "32")
    assert built.returncode == 0, built.stderr
    inspected = json.loads(tokprune("inspect", bundle.path, "--json").stdout)
    assert [row["name"] for row in inspected["engines"]] == NAMES
    assert {row["state"] for row in inspected["engines"]} == {"fresh"}
    shutil.copy(bundle.path / "config.json", bundle.path / "device/sm87-trt10.3.0/llm.engine")
    verified = tokprune("verify", bundle.path, "--json")
    assert verified.returncode == 0  # the bundle is as exported, whatever its device made of it
    report = json.loads(verified.stdout)
    assert report["engines"][-1]["state"] == "stale"
    assert "damaged" in report["engines"][-1]["reason"]
    assert "stale" in tokprune("verify", bundle.path).stdout
    wrong = tokprune("build", bundle.path, "--engine", "tensorrt-rtx")
    assert wrong.returncode == 2
    assert "error [backend_unavailable]: The tensorrt-rtx engine is not installed" in wrong.stderr
