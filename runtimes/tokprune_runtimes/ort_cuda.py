"""Whether ONNX Runtime's CUDA provider is there, and does the work that it was asked for.

ONNX Runtime goes on with the CPU where the provider's libraries do not load or a node has no CUDA
kernel, and says so in a log line at most. Here both are refused.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tokprune_runtimes.errors import EngineUnavailable

PROVIDER = "CUDAExecutionProvider"
_log = logging.getLogger("tokprune.onnxruntime")
INSTALL = "pip uninstall -y onnxruntime && pip install --no-deps onnxruntime-gpu"
REINSTALL = f"pip uninstall -y onnxruntime-gpu && {INSTALL}"
# What a decoder or encoder spends its time in. Shapes, indices and the like may stay on the CPU.
_WORK = frozenset(
    {
        "Attention",
        "Conv",
        "FusedMatMul",
        "Gemm",
        "GroupQueryAttention",
        "LayerNormalization",
        "MatMul",
        "MatMulNBits",
        "MultiHeadAttention",
        "QuickGelu",
        "ReduceMean",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "Softmax",
    }
)


def refusal(providers: Sequence[str]) -> EngineUnavailable | None:
    """Return why the CUDA provider cannot be asked for, None where it can.

    Args:
        providers: what this build of ONNX Runtime offers.
    """
    if PROVIDER in providers:
        return None
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        return EngineUnavailable(
            "Both onnxruntime and onnxruntime-gpu are installed; they overwrite each other's "
            f"files, and the build without CUDA has won: {REINSTALL}"
        )
    return EngineUnavailable(
        f"This ONNX Runtime has no CUDA provider (it offers {', '.join(providers)}): {INSTALL}"
    )


def check_session(session: Any, name: str) -> None:
    """Refuse a session of the graph `name` that would run on the CPU after all.

    Raises:
        EngineUnavailable: the provider did not start, or heavy nodes are not on it.
    """
    session.disable_fallback()  # or a failed run is repeated on the CPU
    if PROVIDER not in session.get_providers():
        raise EngineUnavailable(
            "ONNX Runtime's CUDA provider did not start: its log above names the library that is "
            "missing, or the driver is too old. It needs an NVIDIA GPU, its driver, and CUDA and "
            f"cuDNN of the versions that onnxruntime-gpu {_version()} was built for"
        )
    left = _left_on_the_cpu(session)
    if left is None:
        _log.warning("ONNX Runtime here does not tell whether all of %s runs on CUDA", name)
    elif left:
        nodes = ", ".join(f"{count} {operator}" for operator, count in sorted(left.items()))
        raise EngineUnavailable(
            f"ONNX Runtime's CUDA provider leaves {nodes} of {name} to the CPU, so that every "
            "step would copy between both: use --backend cpu, or a bundle in another precision "
            "(GroupQueryAttention runs on CUDA in fp16 and bf16 only)"
        )


def _left_on_the_cpu(session: Any) -> Counter[str] | None:
    """Count the heavy nodes that the CUDA provider did not take; None: this version cannot tell."""
    assigned: Any = getattr(session, "get_provider_graph_assignment_info", None)
    if assigned is None:
        return None
    return Counter(
        node.op_type
        for part in assigned()
        if part.ep_name != PROVIDER
        for node in part.get_nodes()
        if node.op_type in _WORK
    )


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _version() -> str:
    return version("onnxruntime-gpu") if _installed("onnxruntime-gpu") else "here"
