"""Real builds with TensorRT-RTX, which builds (and does not run) engines without a GPU."""

import hashlib
import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tokprune_runtimes import trt_build
from tokprune_runtimes.errors import BuildCancelled, BuildFailed, EngineFailed, EngineStale
from tokprune_runtimes.side_car import checked_engine
from tokprune_runtimes.trt_build import Build, Profile, build_engine, check_side_car
from tokprune_runtimes.trt_engine import Engine
from tokprune_runtimes.trt_target import set_targets

onnx = pytest.importorskip("onnx")
trt = pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.torch

SM = ("sm86", "sm89")
Range = tuple[int, int, int]
GROWING: Profile = {
    "past": ((1, 0, 2), (1, 4, 2), (1, 8, 2)),
    "new": ((1, 1, 2), (1, 4, 2), (1, 8, 2)),
}


def save(path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> Path:
    """Write a graph; an input is (onnx type, shape)."""
    helper = onnx.helper
    made = [
        [helper.make_tensor_value_info(name, *value) for name, value in values.items()]
        for values in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "g", *made)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def growing(path: Path, **more_inputs: Any) -> Path:
    """present = concat(past, new)."""
    kind = onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("Concat", ["past", "new"], ["present"], axis=1)
    inputs = {name: (kind, [1, f"{name}_length", 2]) for name in ("past", "new")}
    return save(path, [node], inputs | more_inputs, {"present": (kind, [1, "length", 2])})


def request(onnx_file: Path, *profiles: Profile, sm: tuple[str, ...] = SM) -> Build:
    source = hashlib.sha256(onnx_file.read_bytes()).hexdigest()
    engine = onnx_file.parent / "device" / f"{onnx_file.stem}.engine"
    return Build(onnx_file, source, engine, profiles, sm)


def test_a_graph_with_an_empty_past_becomes_an_engine_with_its_side_car(tmp_path: Path) -> None:
    build = request(growing(tmp_path / "g.onnx"), GROWING, GROWING)
    phases: set[str] = set()
    made = build_engine("tensorrt-rtx", build, lambda step: phases.add(step.phase) or True)
    assert made.version == trt.__version__
    assert made.sm == ["sm86", "sm89"]
    assert made.bytes == build.engine.stat().st_size > 1000
    assert len(made.profiles) == 2
    assert "Building engine" in phases
    assert check_side_car(build.engine, "tensorrt-rtx", build.source_sha256, "sm89") == made
    with pytest.raises(EngineStale, match="this GPU is sm87"):
        check_side_car(build.engine, "tensorrt-rtx", build.source_sha256, "sm87")


def test_a_build_can_be_cancelled_half_way(tmp_path: Path) -> None:
    build = request(growing(tmp_path / "g.onnx"), GROWING)
    calls: list[int] = []
    with pytest.raises(BuildCancelled):
        build_engine("tensorrt-rtx", build, lambda step: calls.append(0) or len(calls) < 20)
    assert len(calls) == 20
    assert list(build.engine.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("profiles", "faults"),
    [
        ((), ["inputs of dynamic shape need a profile: past, new"]),
        (({"past": GROWING["past"]},), ["profile 0: new is missing"]),
        ((GROWING, {**GROWING, "nwe": GROWING["new"]}), ["profile 1: the graph has no input nwe"]),
        (({**GROWING, "new": ((1, 1), (1, 4), (1, 8))},), ["new: the graph declares (1, -1, 2)"]),
        (({**GROWING, "new": ((1, 1, 2), (1, 9, 2), (1, 8, 2))},), ["min <= opt <= max"]),
        (({**GROWING, "new": ((1, 1, 3), (1, 4, 3), (1, 8, 3))},), ["declares (1, -1, 2), got"]),
        (({**GROWING, "new": ((1, -1, 2), (1, 4, 2), (1, 8, 2))},), ["must be 0 <= min"]),
        (
            ({"past": ((1,), (1,), (1,))},),
            ["profile 0: new is missing", "past: the graph declares (1, -1, 2), of 3 axes"],
        ),
    ],
)
def test_profiles_are_checked_before_the_builder_runs(
    tmp_path: Path, profiles: tuple[Profile, ...], faults: list[str]
) -> None:
    build = request(growing(tmp_path / "g.onnx"), *profiles)
    with pytest.raises(BuildFailed) as caught:
        build_engine("tensorrt-rtx", build, lambda step: pytest.fail("it ran"))
    assert [fault for fault in faults if fault not in str(caught.value)] == []


def test_an_operator_that_is_not_there_is_named(tmp_path: Path) -> None:
    kind, node = onnx.TensorProto.FLOAT, onnx.helper.make_node
    nodes = [node("GroupQueryAttention", ["x"], ["y"], name="attend", domain="com.microsoft")]
    path = save(tmp_path / "g.onnx", nodes, {"x": (kind, [1, 4])}, {"y": (kind, [1, 4])})
    with pytest.raises(BuildFailed, match=r"cannot read .*\nGroupQueryAttention \(attend\): "):
        build_engine("tensorrt-rtx", request(path))


def test_a_file_that_is_no_graph_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"not a protobuf")
    with pytest.raises(BuildFailed, match="cannot read"):
        build_engine("tensorrt-rtx", request(tmp_path / "g.onnx"))
    with pytest.raises(BuildFailed, match=r"There is no ONNX file .*none\.onnx"):
        build_engine("tensorrt-rtx", Build(tmp_path / "none.onnx", "", tmp_path / "e", ()))


def test_an_input_that_the_engine_would_ignore_is_an_error(tmp_path: Path) -> None:
    unused = (onnx.TensorProto.INT64, [1])
    path = growing(tmp_path / "g.onnx", nonpad_kv_seqlen=unused)
    with pytest.raises(BuildFailed, match=r"ignores these inputs of .*: nonpad_kv_seqlen"):
        build_engine("tensorrt-rtx", request(path, GROWING))
    assert list((tmp_path / "device").iterdir()) == []


def test_valid_lengths_that_the_parser_drops_are_an_error(tmp_path: Path) -> None:
    """The parser reads `nonpad_kv_seqlen` and forgets it: attention would see what is masked."""
    helper, kind = onnx.helper, onnx.TensorProto
    inputs = [helper.make_tensor_value_info(n, kind.FLOAT16, [1, 2, 8, 64]) for n in "qkv"]
    inputs.append(helper.make_tensor_value_info("lengths", kind.INT64, [1]))
    output = helper.make_tensor_value_info("y", kind.FLOAT16, [1, 2, 8, 64])
    node = helper.make_node("Attention", ["q", "k", "v", "", "", "", "lengths"], ["y"])
    graph = helper.make_graph([node], "g", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.save(model, tmp_path / "g.onnx")
    with pytest.raises(BuildFailed, match=r"ignores these inputs of .*: lengths"):
        build_engine("tensorrt-rtx", request(tmp_path / "g.onnx"))


def test_the_range_of_an_input_that_is_a_shape_is_one_of_values(tmp_path: Path) -> None:
    kind, node = onnx.TensorProto, onnx.helper.make_node
    nodes = [node("TopK", ["scores", "k"], ["best", "places"])]
    inputs = {"scores": (kind.FLOAT, [1, "n"]), "k": (kind.INT64, [1])}
    outputs = {"best": (kind.FLOAT, [1, "K"]), "places": (kind.INT64, [1, "K"])}
    path = save(tmp_path / "g.onnx", nodes, inputs, outputs)
    scores = ((1, 16), (1, 64), (1, 256))
    made = build_engine("tensorrt-rtx", request(path, {"scores": scores, "k": ((1,), (8,), (16,))}))
    assert made.profiles[0]["k"] == [[1], [8], [16]]
    two = ((1, 1), (1, 1), (1, 1))
    with pytest.raises(BuildFailed, match="k: a shape input of 1 values got"):
        build_engine("tensorrt-rtx", request(path, {"scores": scores, "k": two}))


def test_gpus_that_are_not_offered_are_refused_by_name(tmp_path: Path) -> None:
    path = growing(tmp_path / "g.onnx")
    with pytest.raises(BuildFailed, match=r"does not build for 'sm87'\. It offers sm75, sm80"):
        build_engine("tensorrt-rtx", request(path, GROWING, sm=("sm89", "sm87")))


def test_without_a_gpu_or_a_wish_all_are_built_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_build, "device_sm", lambda: None)
    made = build_engine("tensorrt-rtx", request(growing(tmp_path / "g.onnx"), GROWING, sm=()))
    assert set(made.sm) >= {"sm80", "sm86", "sm89", "sm120"}
    assert "sm75" not in made.sm


def test_a_gpu_without_a_name_is_built_for_where_it_is() -> None:
    class Config:
        num_compute_capabilities = 0

        def __init__(self) -> None:
            self.set: list[Any] = []

        def set_compute_capability(self, value: Any, index: int) -> bool:
            assert index == len(self.set)
            self.set.append(value)
            return True

    config = Config()
    set_targets(trt, "tensorrt-rtx", config, ["sm90", "sm89"])
    assert config.set == [trt.ComputeCapability.CURRENT, trt.ComputeCapability.SM89]
    assert config.num_compute_capabilities == 2


def test_a_timing_cache_is_said_not_to_be_used(tmp_path: Path) -> None:
    build = request(growing(tmp_path / "g.onnx"), GROWING)
    cache = tmp_path / "timing.cache"
    build = Build(**{**vars(build), "timing_cache": cache})
    assert "tensorrt-rtx has no timing cache" in build_engine("tensorrt-rtx", build).warnings[-1]
    assert not cache.exists()


@pytest.mark.skipif(trt_build.device_sm() is not None, reason="there is a GPU to load it on")
def test_a_real_engine_that_cannot_be_loaded_says_what_tensorrt_says(tmp_path: Path) -> None:
    build = request(growing(tmp_path / "g.onnx"), GROWING)
    build_engine("tensorrt-rtx", build)
    with checked_engine(build.engine, "tensorrt-rtx", build.source_sha256, None) as (_, data):  # noqa: SIM117
        with pytest.raises(EngineFailed, match=r"does not load the engine g\.engine:\n.*[Cc]uda"):
            Engine(trt, data, "g.engine", weight_streaming=False)


SIZES: dict[str, list[dict[str, Range]]] = {  # of the named axes, one profile each
    "vision_encoder": [{"F": (1, 1, 2), "q": (4, 16, 64)}],
    "first_layer": [{"s": (8, 64, 256), "u": (1, 8, 64), "n": (4, 64, 256)}],
    "scorer": [
        {"u": (1, 8, 64), "n": (4, 64, 256), "r": (1, 1, 2), "H": (1, 8, 32), "W": (1, 8, 32)}
    ],
    "llm": [
        {"T": (1, 64, 256), "P": (0, 0, 0)},  # prefill, its past empty
        {"T": (1, 1, 1), "P": (1, 128, 511)},  # decode
    ],
}


def size(axis: int | str, sizes: dict[str, Range], which: int) -> int:
    """`P+T`, `4*q`, `n` or a number -> a number."""
    factors = [part.strip().split("*") for part in str(axis).split("+")]
    return sum(
        prod(int(name) if name.isdigit() else sizes[name][which] for name in part)
        for part in factors
    )


def profile(inputs: list[Any], sizes: dict[str, Range]) -> Profile:
    def shape(axes: list[int | str], which: int) -> tuple[int, ...]:
        return tuple(size(axis, sizes, which) for axis in axes)

    return {
        each["name"]: (shape(each["shape"], 0), shape(each["shape"], 1), shape(each["shape"], 2))
        for each in inputs
    }


@pytest.mark.demo
@pytest.mark.parametrize("name", list(SIZES))
def test_the_graphs_of_a_bundle_become_engines(
    demo_bundle: Path, tmp_path: Path, name: str
) -> None:
    graphs = json.loads((demo_bundle / "manifest.json").read_text())["graphs"]
    forms = {form["form"]: form["graph"] for form in graphs["llm"]}
    spec = forms["portable"] if name == "llm" else graphs[name]
    profiles = tuple(profile(spec["inputs"], sizes) for sizes in SIZES[name])
    engine = tmp_path / f"{name}.engine"
    build = Build(demo_bundle / spec["file"], "5" * 64, engine, profiles, SM)
    made = build_engine("tensorrt-rtx", build)
    assert check_side_car(engine, "tensorrt-rtx", "5" * 64, "sm89") == made
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    with pytest.raises(EngineStale, match="is damaged"):
        check_side_car(engine, "tensorrt-rtx", "5" * 64, "sm89")
