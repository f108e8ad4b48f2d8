"""What can run a bundle, and what `auto` takes.

`auto` takes the first that can: TensorRT or TensorRT-RTX with fresh engines for this GPU, ONNX
Runtime's CUDA provider, the CPU. Engines are never built on the way.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from tokprune.errors import RequestInvalid, unknown
from tokprune.manifest import Engine
from tokprune_runtimes import BACKENDS, Backend

Asked: TypeAlias = Literal["auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx"]

ENGINES: dict[Backend, Engine] = {
    "cpu": "onnxruntime-cpu",
    "cuda": "onnxruntime-cuda",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}
AUTO: tuple[Backend, ...] = ("tensorrt", "tensorrt-rtx", "cuda", "cpu")  # fastest first
NO_DEVICE = "there is no NVIDIA GPU here"
# Desktop and server drivers, Jetson (nvgpu, older L4T), WSL 2. A driver makes one of them.
_DEVICES = ("/dev/nvidiactl", "/dev/nvgpu", "/dev/nvhost-gpu", "/dev/nvhost-ctrl-gpu", "/dev/dxg")
_log = logging.getLogger("tokprune")


def candidates(asked: str) -> tuple[Backend, ...]:
    """Return what to try, in order.

    Raises:
        RequestInvalid: there is no such backend.
    """
    if asked == "auto":
        return AUTO
    for backend in BACKENDS:
        if backend == asked:
            return (backend,)
    raise RequestInvalid(unknown("backend", asked, ["auto", *BACKENDS]))


def has_device(root: Path = Path("/")) -> bool:
    """Tell whether a driver shows an NVIDIA GPU, without importing anything."""
    return any((root / device.lstrip("/")).exists() for device in _DEVICES)


def log_choice(backend: Backend, refused: Mapping[Backend, str]) -> None:
    """Say what was taken and why not the others. A GPU that stays idle is worth a warning."""
    reasons = "".join(f"; not {name}: {reason}" for name, reason in refused.items())
    idle = backend == "cpu" and any(reason != NO_DEVICE for reason in refused.values())
    _log.log(logging.WARNING if idle else logging.INFO, "backend %s%s", backend, reasons)
