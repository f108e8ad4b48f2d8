"""Writes tensorrt_names.json: which of TensorRT's Python names exist in which version.

    python tests/tensorrt_names.py

TensorRT's libraries are not on PyPI, its bindings are. They import against libraries that define
the nine C symbols that they look up, and can then be asked for names, and for nothing else. Needs
a network, gcc and Python 3.11 on Linux x86-64; tensorrt_rtx must be installed.
"""

import inspect
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_suffix(".json")
WHEELS = {  # versions of JetPack 6, JetPack 7, JetPack 7.2, and the newest
    "10.3.0": "tensorrt-cu12-bindings",
    "10.13.3.9": "tensorrt-cu13-bindings",
    "10.16.1.11": "tensorrt-cu13-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
RTX = "tensorrt_rtx 1.7.1"
CLASSES = (  # what the runtimes touch, and their enumerations
    "Builder",
    "BuilderFlag",
    "ComputeCapability",
    "DataType",
    "ExecutionContextAllocationStrategy",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "ITensor",
    "ITimingCache",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "TensorIOMode",
    "TensorLocation",
)
STUB = """
#define S(name) void *name(void) { return 0; }
S(createInferBuilder_INTERNAL) S(createInferRuntime_INTERNAL) S(createInferRefitter_INTERNAL)
S(createNvOnnxParser_INTERNAL) S(createNvOnnxParserRefitter_INTERNAL) S(getNvOnnxParserVersion)
S(getPluginRegistry) S(getBuilderPluginRegistry) S(initLibNvInferPlugins)
"""


def names_of(module: Any) -> list[str]:
    """List `X` and `X.Y`; of `X.Y` those that X itself has."""
    found = [name for name in dir(module) if not name.startswith("_")]
    found = [name for name in found if not inspect.ismodule(getattr(module, name))]
    for name in CLASSES:
        members = dir(getattr(module, name, object)) if hasattr(module, name) else []
        found += [f"{name}.{member}" for member in members if not member.startswith("_")]
    return sorted(set(found))


def names_of_wheel(package: str, version: str, folder: Path) -> list[str]:
    """Download, unpack and import bindings in a process of their own."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*pip, "-d", str(folder), f"{package}=={version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    (folder / "stub.c").write_text(STUB)
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        shared = folder / f"lib{library}.so.{version.partition('.')[0]}"
        command = ["gcc", "-shared", "-fPIC", "-o", str(shared), str(folder / "stub.c")]
        subprocess.run(command, check=True)
    paths = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    command = [sys.executable, __file__, "tensorrt_bindings"]
    listed = subprocess.run(command, env=os.environ | paths, check=True, stdout=subprocess.PIPE)
    return json.loads(listed.stdout)


def write_table() -> None:
    versions: dict[str, list[str]] = {}
    for version, package in WHEELS.items():
        with tempfile.TemporaryDirectory() as folder:
            versions[version] = names_of_wheel(package, version, Path(folder))
    versions[RTX] = names_of(import_module("tensorrt_rtx"))
    every = sorted(set().union(*versions.values()))
    has = {name: [version for version in versions if name in versions[version]] for name in every}
    rows = [f"{json.dumps(name)}: {json.dumps(where)}" for name, where in has.items()]
    body = ",\n".join(rows)
    TABLE.write_text(f'{{"versions": {json.dumps(list(versions))},\n"names": {{\n{body}\n}}}}\n')


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.stdout.write(json.dumps(names_of(import_module(sys.argv[1]))))
    else:
        write_table()
