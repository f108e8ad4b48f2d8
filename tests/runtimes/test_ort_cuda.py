"""ONNX Runtime's CUDA provider, driven through a fake of the module: no GPU is needed."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokprune_runtimes import Carry, load_graph, ort, ort_cuda
from tokprune_runtimes.errors import EngineUnavailable

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class Value:
    """An OrtValue, and on which device it lies."""

    def __init__(self, array: np.ndarray, device: str) -> None:
        self.array, self.device = array, device

    def numpy(self) -> np.ndarray:
        return self.array

    def update_inplace(self, array: np.ndarray) -> None:
        self.array = array


class OrtValue:
    """The factory; `made` remembers what was asked for."""

    made: list[tuple[str, tuple[int, ...], str]] = []  # noqa: RUF012

    @classmethod
    def ortvalue_from_numpy(cls, array: np.ndarray, device: str, number: int) -> Value:
        cls.made.append((device, array.shape, str(array.dtype)))
        assert number == 0
        return Value(array, device)

    @classmethod
    def ortvalue_from_shape_and_type(
        cls, shape: list[int], kind: int, device: str, number: int
    ) -> Value:
        cls.made.append((device, tuple(shape), f"onnx type {kind}"))
        assert number == 0
        return Value(np.full(shape, 7, np.uint16), device)


class Binding:
    def __init__(self, session: "Session") -> None:
        self.session = session
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}  # a device, or the value that is written to
        self.calls: list[str] = []

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        self.inputs[name] = array

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.inputs[name] = value

    def bind_output(self, name: str, device: str) -> None:
        self.outputs[name] = device

    def bind_ortvalue_output(self, name: str, value: Value) -> None:
        self.outputs[name] = value

    def synchronize_inputs(self) -> None:
        self.calls.append("inputs")

    def synchronize_outputs(self) -> None:
        self.calls.append("outputs")

    def get_outputs(self) -> list[Value]:
        return [
            bound if isinstance(bound, Value) else Value(np.ones((1, 2), np.float32), bound)
            for bound in self.outputs.values()
        ]


class Node:
    def __init__(self, operator: str) -> None:
        self.op_type = operator


class Part:
    def __init__(self, provider: str, *operators: str) -> None:
        self.ep_name = provider
        self.nodes = [Node(operator) for operator in operators]

    def get_nodes(self) -> list[Node]:
        return self.nodes


class Session:
    """What an InferenceSession would answer."""

    def __init__(self, parts: list[Part], providers: list[str]) -> None:
        self.parts, self.providers = parts, providers
        self.fallback = True
        self.bindings: list[Binding] = []

    def disable_fallback(self) -> None:
        self.fallback = False

    def get_providers(self) -> list[str]:
        return self.providers

    def get_provider_graph_assignment_info(self) -> list[Part]:
        return self.parts

    def get_outputs(self) -> list[Node]:
        outputs = [Node(""), Node("")]
        for node, name in zip(outputs, ("logits", "present"), strict=True):
            node.name = name  # type: ignore[attr-defined]
        return outputs

    def io_binding(self) -> Binding:
        self.bindings.append(Binding(self))
        return self.bindings[-1]

    def run_with_iobinding(self, binding: Binding, options: object) -> None:
        binding.calls.append("run")

    def run(
        self, names: list[str], feeds: dict[str, np.ndarray], options: object
    ) -> list[np.ndarray]:
        return [feeds["x"] for _ in names]


class Options:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


class OnnxRuntime:
    """The module."""

    def __init__(self, session: Session | Exception, available: list[str]) -> None:
        self.session, self.available = session, available
        self.asked: list[tuple[str, dict[str, str], list[Any]]] = []
        self.OrtValue = OrtValue
        self.SessionOptions = Options
        self.RunOptions = Options
        self.preloaded: list[dict[str, object]] = []

    def preload_dlls(self, **options: object) -> None:
        self.preloaded.append(options)
        sys.stdout.write("Failed to load libcurand.so.10\n")

    def get_available_providers(self) -> list[str]:
        return self.available

    def InferenceSession(  # noqa: N802
        self, path: str, options: Options, *, providers: list[Any]
    ) -> Session:
        self.asked.append((path, options.entries, providers))
        if isinstance(self.session, Exception):
            raise self.session
        return self.session


Fake = Callable[..., OnnxRuntime]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    def install(
        session: Session | Exception | None = None, available: tuple[str, ...] = (CUDA, CPU)
    ) -> OnnxRuntime:
        parts = [Part(CUDA, "MatMul", "Softmax"), Part(CPU, "Shape", "Gather", "Concat")]
        module = OnnxRuntime(session or Session(parts, [CUDA, CPU]), list(available))
        monkeypatch.setattr(ort, "_onnxruntime", module)
        OrtValue.made.clear()
        return module

    return install


def installed(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    def version(package: str) -> str:
        if package in packages:
            return "1.31.1"
        raise ort_cuda.PackageNotFoundError(package)

    monkeypatch.setattr(ort_cuda, "version", version)


def test_the_cuda_provider_comes_first_and_what_it_leaves_to_the_cpu_is_recorded(
    fake: Fake,
) -> None:
    module = fake()
    graph = load_graph(Path("llm.onnx"), "cuda", threads=3)
    ((path, entries, providers),) = module.asked
    assert path == "llm.onnx"
    assert providers == [(CUDA, {"use_tf32": "0"}), CPU]  # float32 is float32
    assert entries["session.record_ep_graph_assignment_info"] == "1"
    assert not module.session.fallback  # type: ignore[union-attr]
    assert graph.run({"x": np.ones(2)})["logits"].tolist() == [1, 1]


def test_cudas_libraries_and_cudnn_are_loaded_first_and_nothing_of_it_is_printed(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    """The provider of 1.23, the last for Python 3.10, is linked to cuDNN."""
    module = fake()
    load_graph(Path("llm.onnx"), "cuda")
    (options,) = module.preloaded
    assert options.get("cudnn", True)
    printed = capsys.readouterr()
    assert printed.out == ""  # where a command writes its answer as JSON
    assert "libcurand" in printed.err


def test_a_build_without_cuda_is_refused_with_the_line_that_installs_it(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fake(available=("AzureExecutionProvider", CPU))
    installed(monkeypatch, "onnxruntime")
    line = r"pip uninstall -y onnxruntime && pip install --no-deps onnxruntime-gpu$"
    with pytest.raises(EngineUnavailable, match=rf"offers AzureExecutionProvider, .*: {line}"):
        load_graph(Path("llm.onnx"), "cuda")
    assert module.asked == []


def test_both_packages_at_once_are_named_as_the_reason(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(available=(CPU,))
    installed(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    told = (
        "Both onnxruntime and onnxruntime-gpu are installed.*pip uninstall -y onnxruntime-gpu && "
    )
    with pytest.raises(EngineUnavailable, match=told):
        load_graph(Path("llm.onnx"), "cuda")


def test_a_provider_that_did_not_start_is_refused(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(Session([], [CPU]))
    installed(monkeypatch, "onnxruntime-gpu")
    with pytest.raises(EngineUnavailable, match=r"did not start.*onnxruntime-gpu 1\.31\.1"):
        load_graph(Path("llm.onnx"), "cuda")


def test_heavy_nodes_on_the_cpu_are_refused_and_counted(fake: Fake) -> None:
    parts = [
        Part(CUDA, "MatMul"),
        Part(CPU, "GroupQueryAttention"),
        Part(CPU, "GroupQueryAttention"),
        Part(CPU, "Shape"),
    ]
    fake(Session(parts, [CUDA, CPU]))
    with pytest.raises(EngineUnavailable, match=r"leaves 2 GroupQueryAttention of llm\.ort\.onnx"):
        load_graph(Path("llm.ort.onnx"), "cuda")


def test_an_onnx_runtime_that_does_not_tell_placements_is_taken(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Session, "get_provider_graph_assignment_info")
    fake()
    load_graph(Path("llm.onnx"), "cuda")


def test_what_cuda_cannot_open_is_unavailable_with_the_reason(fake: Fake) -> None:
    fake(RuntimeError("CUDA failure 2: out of memory"))
    with pytest.raises(EngineUnavailable, match=r"cannot open llm\.onnx: CUDA failure 2"):
        load_graph(Path("llm.onnx"), "cuda")


def carry(*, in_place: bool, dtype: str = "float32") -> Carry:
    return Carry("present", "past", (1, 2, 8 if in_place else 0, 4), 2, in_place, dtype)


@pytest.mark.parametrize(
    ("dtype", "made"),
    [("float32", "float32"), ("float16", "float16"), ("bfloat16", "onnx type 16")],
)
def test_an_in_place_cache_lies_on_the_gpu_in_its_own_precision(
    fake: Fake, dtype: str, made: str
) -> None:
    module = fake()
    loop = load_graph(Path("llm.onnx"), "cuda").loop([carry(in_place=True, dtype=dtype)])
    assert OrtValue.made == [("cuda", (1, 2, 8, 4), made)]
    assert list(loop.step({"x": np.ones((1, 1))})) == ["logits"]
    loop.step({"x": np.ones((1, 1))})
    loop.rewind(3)
    one, two = module.session.bindings  # type: ignore[union-attr]
    for binding in (one, two):
        assert binding.inputs["past"] is binding.outputs["present"]  # one address
        assert binding.inputs["past"].device == "cuda"
        assert not binding.inputs["past"].array.any()
        assert binding.outputs["logits"] == "cpu"
        assert binding.calls == ["inputs", "run", "outputs"]
    assert one.inputs["past"] is two.inputs["past"]
    assert len(OrtValue.made) == 1  # nothing was copied


def test_a_growing_cache_stays_on_the_gpu_from_step_to_step(fake: Fake) -> None:
    module = fake()
    loop = load_graph(Path("llm.onnx"), "cuda").loop([carry(in_place=False, dtype="float16")])
    assert OrtValue.made == [("cuda", (1, 2, 0, 4), "float16")]
    loop.step({"x": np.ones((1, 1))})
    loop.step({"x": np.ones((1, 1))})
    one, two = module.session.bindings  # type: ignore[union-attr]
    assert one.outputs["present"] == "cuda"
    assert two.inputs["past"].device == "cuda"
    assert two.inputs["past"] is not one.inputs["past"]
    assert len(OrtValue.made) == 1


def test_a_growing_bfloat16_cache_says_that_it_cannot_be_rewound(fake: Fake) -> None:
    fake()
    loop = load_graph(Path("llm.onnx"), "cuda").loop([carry(in_place=False, dtype="bfloat16")])
    with pytest.raises(NotImplementedError, match="past grows and is bfloat16"):
        loop.rewind(1)


def test_on_the_cpu_nothing_is_asked_of_cuda(fake: Fake) -> None:
    module = fake()
    loop = load_graph(Path("llm.onnx"), "cpu").loop([carry(in_place=False)])
    loop.step({"x": np.ones((1, 1))})
    assert module.asked[0][2] == [CPU]
    assert OrtValue.made[0][0] == "cpu"
    assert module.session.bindings[0].calls == ["run"]  # type: ignore[union-attr]


def test_the_real_onnx_runtime_makes_a_bfloat16_cache_of_zeros() -> None:
    value = ort._allocate(carry(in_place=True, dtype="bfloat16"), "cpu")
    assert (value.data_type(), value.shape()) == ("tensor(bfloat16)", [1, 2, 8, 4])
    empty = ort._allocate(carry(in_place=False, dtype="bfloat16"), "cpu")
    assert empty.shape() == [1, 2, 0, 4]


def test_the_real_onnx_runtime_tells_placements_as_the_fake_does(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "x"], ["y"])],
        "product",
        [value("x", kind, ["n", "n"])],
        [value("y", kind, ["n", "n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "product.onnx")
    real: Any = ort._onnxruntime
    options = real.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = real.InferenceSession(str(tmp_path / "product.onnx"), options, providers=[CPU])
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime does not tell placements")
    assert ort_cuda._left_on_the_cpu(session) == {"MatMul": 1}
    with pytest.raises(EngineUnavailable, match="did not start"):
        ort_cuda.check_session(session, "product.onnx")
