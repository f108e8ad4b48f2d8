"""ONNX Runtime engine."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokprune_runtimes.arrays import Array, Carry, Feeds

# From 1.29 on, ONNX Runtime's Linux wheels send events to Microsoft and keep a device id in the
# user's cache, unless this is set before the first import (microsoft/onnxruntime#27379, #29843).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort  # pyright: ignore[reportMissingTypeStubs]

_onnxruntime: Any = ort  # partly untyped
_onnxruntime.disable_telemetry_events()  # for a program that had imported it before


class OrtGraph:
    """An ONNX graph on ONNX Runtime's CPU provider. Safe to run from several threads."""

    def __init__(self, path: Path, *, threads: int | None) -> None:
        options: Any = _onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        # Four sessions run one after another; idle pools that spin would steal each other's cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = _onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._outputs: list[str] = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once."""
        values: list[Array] = self._session.run(self._outputs, dict(feeds))
        return dict(zip(self._outputs, values, strict=True))

    def loop(self, carries: Sequence[Carry]) -> "OrtLoop":
        """Start a loop with empty carried tensors."""
        return OrtLoop(self._session, self._outputs, carries)


class OrtLoop:
    """Steps that keep carried tensors inside ONNX Runtime, through IOBinding.

    An in-place carry is bound as input and output at one address; its graph must update it there
    (`com.microsoft.GroupQueryAttention` does, told by `total_sequence_length`).
    """

    def __init__(self, session: Any, outputs: Sequence[str], carries: Sequence[Carry]) -> None:
        self._session = session
        self._carries = tuple(carries)
        carried = {carry.output for carry in carries}
        self._returned = [name for name in outputs if name not in carried]
        self._held: dict[str, Any] = {carry.input: _allocate(carry) for carry in carries}

    def step(self, feeds: Feeds) -> dict[str, Array]:
        """Run once more and return the outputs that are not carried."""
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
                binding.bind_output(carry.output, "cpu")
        self._session.run_with_iobinding(binding)
        values: list[Any] = binding.get_outputs()
        head = len(self._returned)
        for carry, value in zip(self._carries, values[head:], strict=True):
            if not carry.in_place:
                self._held[carry.input] = value
        return {
            name: value.numpy() for name, value in zip(self._returned, values[:head], strict=True)
        }

    def rewind(self, length: int) -> None:
        """Forget everything after `length`. In-place buffers need nothing: their graph is told."""
        for carry in self._carries:
            if not carry.in_place:
                whole: Array = self._held[carry.input].numpy()
                kept = np.take(whole, np.arange(length), axis=carry.axis)
                self._held[carry.input] = _onnxruntime.OrtValue.ortvalue_from_numpy(kept)


def _allocate(carry: Carry) -> Any:
    if carry.in_place:
        return _onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            list(carry.shape), np.float32, "cpu"
        )
    return _onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(carry.shape, np.float32))
