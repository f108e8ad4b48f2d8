"""Every name of TensorRT's API that the runtimes use exists in every version that they support."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorrt_names

from tokprune_runtimes.trt_engine import _DTYPES

RUNTIMES = Path(__file__).parents[2] / "runtimes" / "tokprune_runtimes"
FILES = sorted(RUNTIMES.glob("trt*.py"))
# What a variable of this name holds. A method that is called on it must be one of that class.
HOLDS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "fault": "ParserError",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "_runtime": "Runtime",
    "tensor": "ITensor",
    "timings": "ITimingCache",
}
OURS = {  # (file, variable): an object of ours, or of numpy's, of a name in that table
    ("trt.py", "_engine"),
    ("trt.py", "engine"),
    ("trt.py", "context"),
    ("trt.py", "tensor"),
    ("trt_carries.py", "engine"),
    ("trt_engine.py", "tensor"),
    ("trt_profiles.py", "tensor"),
}
GUARDED = {  # name -> how the code does without it
    "IBuilderConfig.num_compute_capabilities": "only for tensorrt-rtx in trt_target.set_targets",
    "IBuilderConfig.set_compute_capability": "only for tensorrt-rtx in trt_target.set_targets",
    "ComputeCapability": "only for tensorrt-rtx in trt_target",
    "ComputeCapability.CURRENT": "only for tensorrt-rtx in trt_target.set_targets",
    "ICudaEngine.get_aliased_input_tensor": "hasattr in trt_engine.Engine._alias",
    "IExecutionContext.is_stream_capturable": "hasattr in trt_engine.Context.is_capturable",
}
PYTHON = ("__init__", "__version__", "__members__")  # of every class, module, enumeration


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    return json.loads(tensorrt_names.TABLE.read_text())["names"]


@pytest.fixture(scope="module")
def versions() -> list[str]:
    return json.loads(tensorrt_names.TABLE.read_text())["versions"]


def chain(node: ast.expr) -> list[str]:
    """`a.b.c` -> ["a", "b", "c"]; what is no such chain begins with ""."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [*chain(node.value), node.attr]
    return [""]


def used(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute) or node.attr in PYTHON:
            continue
        *owner, name = chain(node)
        modules = [place for place, each in enumerate(owner) if each in ("trt", "_trt")]
        if modules and (path.name, owner[-1]) not in OURS:
            yield ".".join([*owner[modules[0] + 1 :], name])
        elif owner and owner[-1] in HOLDS and (path.name, owner[-1]) not in OURS:
            yield f"{HOLDS[owner[-1]]}.{name}"


def test_every_name_is_in_every_version_or_behind_a_listed_guard(
    table: dict[str, list[str]], versions: list[str]
) -> None:
    missing: list[str] = []
    for path in FILES:
        for name in used(path):
            lacking = [version for version in versions if version not in table.get(name, [])]
            if lacking and name not in GUARDED:
                missing.append(f"{path.name}: {name} is not in {', '.join(lacking)}")
    assert missing == []


def test_every_dtype_has_the_same_name_everywhere(
    table: dict[str, list[str]], versions: list[str]
) -> None:
    assert [name for name in _DTYPES if table.get(f"DataType.{name}") != versions] == []


def test_the_guards_are_needed_and_used(table: dict[str, list[str]], versions: list[str]) -> None:
    names = {name for path in FILES for name in used(path)}
    for name in GUARDED:
        assert name in names
        assert table[name] != versions


def test_what_the_guarded_names_are_for_exists_somewhere(table: dict[str, list[str]]) -> None:
    assert [name for name in GUARDED if not table.get(name)] == []


def test_the_walk_finds_names_on_modules_and_on_objects() -> None:
    names = {name for path in FILES for name in used(path)}
    assert {
        "Builder",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "Builder.build_serialized_network",
        "IBuilderConfig.progress_monitor",
        "IExecutionContext.execute_async_v3",
        "ICudaEngine.get_device_memory_size_for_profile_v2",
        "OnnxParser.parse_from_file",
    } <= names


def test_the_table_is_of_the_installed_tensorrt_rtx(table: dict[str, list[str]]) -> None:
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
    if not tensorrt_names.RTX.endswith(tensorrt_rtx.__version__.rpartition(".")[0]):
        pytest.skip(f"tensorrt_rtx {tensorrt_rtx.__version__} is installed")
    listed = [name for name, where in table.items() if tensorrt_names.RTX in where]
    assert sorted(listed) == tensorrt_names.names_of(tensorrt_rtx)
