"""What is not here, or not offered: the only reasons for which a case is skipped.

All else that goes wrong with an engine (a graph that it rejects, an engine that does not load, too
little memory to build) is what this program is to find, and a failure.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tokprune.bundle import Bundle
from tokprune.engines.states import trt_build
from tokprune_runtimes.cuda import Cuda
from tokprune_runtimes.errors import EngineUnavailable
from tokprune_runtimes.ort_cuda import PROVIDER, refusal

TENSORRT = ("tensorrt", "tensorrt-rtx")


class NotOffered(NamedTuple):
    """A precision that an engine has not, or that its versions up to one have not."""

    engine: str
    precision: str
    reason: str
    last: tuple[int, ...] | None = None  # None: whatever the version


NOT_OFFERED = (
    NotOffered("cpu", "bf16", "ONNX Runtime's CPU has no products in bf16"),
    NotOffered("tensorrt", "int4", "TensorRT 10.3 takes fp32 and fp16 (docs/install.md)", (10, 3)),
)


def absence(engine: str, bundle: Bundle) -> str | None:
    """Say why an engine cannot be tried with a bundle at all; None where it is to work."""
    precision = bundle.manifest.precision
    match engine:
        case "cpu":
            return _not_offered(engine, precision, ())
        case "cuda":
            return _without_cuda(bundle.file(bundle.manifest.graphs.scorer.file))
        case _:
            return _without_tensorrt(engine, precision)


def _not_offered(engine: str, precision: str, version: tuple[int, ...]) -> str | None:
    for each in NOT_OFFERED:
        old = each.last is None or version <= each.last
        if (each.engine, each.precision) == (engine, precision) and old:
            return f"{engine} offers no {precision}: {each.reason}"
    return None


def _without_tensorrt(engine: str, precision: str) -> str | None:
    try:
        version = str(trt_build().engine_version(engine))
        Cuda()
    except EngineUnavailable as absent:
        return str(absent)
    numbers = tuple(int(part) for part in version.split(".")[:2])
    return _not_offered(engine, precision, numbers)


def _without_cuda(graph: Path) -> str | None:
    """Ask ONNX Runtime, which goes on with the CPU where its CUDA provider does not start."""
    ort: Any = import_module("onnxruntime")
    if refused := refusal(ort.get_available_providers()):
        return str(refused)
    if preload := getattr(ort, "preload_dlls", None):
        preload()
    providers = [PROVIDER, "CPUExecutionProvider"]
    try:
        session = ort.InferenceSession(str(graph), providers=providers)
    except Exception:  # a graph that it does not take: loading the bundle will say so
        return None
    if PROVIDER in session.get_providers():
        return None
    return "ONNX Runtime's CUDA provider does not start: CUDA's or cuDNN's libraries are not here"
