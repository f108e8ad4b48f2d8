"""ONNX Runtime engine, on the CPU and through its CUDA provider.

The CUDA provider is unverified on hardware so far: no NVIDIA GPU was at hand.
"""

import os
import platform
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from tokprune_runtimes.arrays import Array, Carry, Feeds
from tokprune_runtimes.errors import (
    EngineFailed,
    EngineInterrupted,
    EngineUnavailable,
    FeedsInvalid,
    MemoryExhausted,
)
from tokprune_runtimes.interrupt import Interrupt
from tokprune_runtimes.ort_cuda import check_session, refusal
from tokprune_runtimes.ort_errors import is_out_of_memory

# From 1.29 on, ONNX Runtime's Linux wheels send events to Microsoft and keep a device id in the
# user's cache, unless this is set before the first import (microsoft/onnxruntime#27379, #29843).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort  # pyright: ignore[reportMissingTypeStubs]

_onnxruntime: Any = ort  # partly untyped
_onnxruntime.disable_telemetry_events()  # for a program that had imported it before

Device: TypeAlias = Literal["cpu", "cuda"]
_PROVIDERS: dict[Device, list[str | tuple[str, dict[str, str]]]] = {
    "cpu": ["CPUExecutionProvider"],
    # Or float32 products are rounded to 10 bits: worse than what the export's parity gate allows.
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16: numpy has no name for it


class OrtGraph:
    """An ONNX graph on one of ONNX Runtime's providers. Safe to run from several threads."""

    def __init__(self, path: Path, *, threads: int | None, device: Device = "cpu") -> None:
        """Open a file.

        Raises:
            EngineUnavailable: the CUDA provider is asked for, and is not there or leaves the work
                to the CPU.
        """
        if device == "cuda" and (refused := refusal(_onnxruntime.get_available_providers())):
            raise refused
        options: Any = _onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        # Four sessions run one after another; idle pools that spin would steal each other's cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if _saturates():
            options.add_session_config_entry("session.x64quantprecision", "1")
        if device == "cuda":
            # Not session.disable_cpu_ep_fallback: it also refuses the shape arithmetic that the
            # CUDA provider itself leaves to the CPU (microsoft/onnxruntime#4940, #17930).
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self._device: Device = device
        self._name = path.name
        self._session: Any = _open(path, options, device)
        self._outputs: list[str] = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Run once."""
        with _running(self._name, interrupt) as options:
            values: list[Array] = self._session.run(self._outputs, dict(feeds), options)
        return dict(zip(self._outputs, values, strict=True))

    def loop(self, carries: Sequence[Carry]) -> "OrtLoop":
        """Start a loop with empty carried tensors."""
        with _running(self._name, None):
            return OrtLoop(self._session, self._name, self._outputs, carries, self._device)


def _saturates() -> bool:
    """Tell whether sums of 8-bit products overflow here unless weights are made unsigned.

    They do on x86 without VNNI. Where there is VNNI, ONNX Runtime would do it too if told, which
    doubles the time of a prefill. Unverified without: every CPU at hand has it.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return platform.machine() == "x86_64" and "vnni" not in flags


def _open(path: Path, options: Any, device: Device) -> Any:
    providers = _PROVIDERS[device]
    if device == "cpu":
        return _onnxruntime.InferenceSession(str(path), options, providers=providers)
    preload: Any = getattr(_onnxruntime, "preload_dlls", None)
    if preload is not None:  # CUDA's libraries from pip, where they are (tokprune[cuda])
        # cuDNN too: the provider of 1.23 is linked to it. What is missing is printed, and standard
        # output is the answer's.
        with redirect_stdout(sys.stderr):
            preload()
    try:
        session: Any = _onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's own classes have no common root but this
        message = f"ONNX Runtime's CUDA provider cannot open {path.name}: {error}"
        raise EngineUnavailable(message) from error
    check_session(session, path.name)
    return session


class OrtLoop:
    """Steps that keep carried tensors on the device, through IOBinding.

    An in-place carry is bound as input and output at one address; its graph must update it there
    (`com.microsoft.GroupQueryAttention` does, told by `total_sequence_length`).
    """

    def __init__(
        self,
        session: Any,
        name: str,
        outputs: Sequence[str],
        carries: Sequence[Carry],
        device: Device,
    ) -> None:
        self._session = session
        self._name = name
        self._device: Device = device
        self._carries = tuple(carries)
        carried = {carry.output for carry in carries}
        self._returned = [name for name in outputs if name not in carried]
        self._held: dict[str, Any] = {carry.input: _allocate(carry, device) for carry in carries}

    def step(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Run once more and return the outputs that are not carried."""
        with _running(self._name, interrupt) as options:
            values = self._bound_run(feeds, options)
        head = len(self._returned)
        for carry, value in zip(self._carries, values[head:], strict=True):
            if not carry.in_place:
                self._held[carry.input] = value
        return {
            name: value.numpy() for name, value in zip(self._returned, values[:head], strict=True)
        }

    def _bound_run(self, feeds: Feeds, options: Any) -> list[Any]:
        binding: Any = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in self._returned:
            binding.bind_output(name, "cpu")
        for carry in self._carries:
            binding.bind_ortvalue_input(carry.input, self._held[carry.input])
            if carry.in_place:
                binding.bind_ortvalue_output(carry.output, self._held[carry.input])
            else:
                binding.bind_output(carry.output, self._device)
        if self._device == "cuda":
            binding.synchronize_inputs()  # feeds are copied on a stream of their own
        self._session.run_with_iobinding(binding, options)
        if self._device == "cuda":
            binding.synchronize_outputs()
        outputs: list[Any] = binding.get_outputs()
        return outputs

    def rewind(self, length: int) -> None:
        """Forget everything after `length`. In-place buffers need nothing: their graph is told.

        Raises:
            NotImplementedError: a growing tensor is bfloat16, which numpy cannot cut.
        """
        for carry in self._carries:
            if carry.in_place:
                continue
            if not length:
                self._held[carry.input] = _allocate(carry, self._device)
                continue
            if carry.dtype == "bfloat16":
                raise NotImplementedError(
                    f"{carry.input} grows and is bfloat16, which ONNX Runtime does not hand to "
                    "numpy: start a new loop, or use a form whose cache is in place"
                )
            whole: Array = self._held[carry.input].numpy()
            kept = np.take(whole, np.arange(length), axis=carry.axis)
            self._held[carry.input] = _to_device(kept, self._device)


@contextmanager
def _running(name: str, interrupt: Interrupt | None) -> Generator[Any]:
    """Give a run its options, and its errors a class of ours.

    `terminate` makes a run of seconds end within milliseconds, also where it is set beforehand.
    """
    options: Any = _onnxruntime.RunOptions()

    def terminate() -> None:
        options.terminate = True

    try:
        if interrupt is None:
            yield options
        else:
            with interrupt.stopping(terminate):
                yield options
    except Exception as error:  # ONNX Runtime's own classes have no common root but this
        if interrupt is not None and interrupt.is_set:
            raise EngineInterrupted(f"The run of {name} was interrupted") from None
        raise _failure(name, error) from error


def _failure(name: str, error: Exception) -> EngineFailed:
    if is_out_of_memory(error):
        return MemoryExhausted(f"There is no memory left to run {name}: {error}")
    refused = type(error).__name__ == "InvalidArgument" or isinstance(error, ValueError)
    return (FeedsInvalid if refused else EngineFailed)(f"{name}: {error}")


def _allocate(carry: Carry, device: Device) -> Any:
    """Return zeros: a masked row still takes part in products, where 0 times NaN would be NaN."""
    if carry.dtype == "bfloat16":
        value: Any = _onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            list(carry.shape), _BFLOAT16, device, 0
        )
        if carry.in_place:
            value.update_inplace(np.zeros(carry.shape, np.uint16))  # takes the bytes as they are
        return value
    return _to_device(np.zeros(carry.shape, np.dtype(carry.dtype)), device)


def _to_device(array: Array, device: Device) -> Any:
    return _onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
