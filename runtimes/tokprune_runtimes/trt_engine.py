"""A deserialised engine: its tensors, its profiles, and one execution context per profile."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokprune_runtimes.errors import DeviceMemoryExhausted, EngineFailed
from tokprune_runtimes.trt_module import (
    Logger,
    Message,
    TrtModule,
    errors_in,
    logger_of,
)
from tokprune_runtimes.trt_profiles import Profile, Shape, choose_profile

# numpy has no bfloat16 of its own, so such tensors stay on the device: None.
_DTYPES: dict[str, tuple[str | None, int]] = {
    "FLOAT": ("float32", 4),
    "HALF": ("float16", 2),
    "BF16": (None, 2),
    "INT64": ("int64", 8),
    "INT32": ("int32", 4),
    "INT8": ("int8", 1),
    "UINT8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


@dataclass(frozen=True)
class Tensor:
    """One input or output."""

    name: str
    dtype: str | None  # numpy's name; None: bfloat16, which numpy lacks
    itemsize: int  # bytes
    is_input: bool
    alias: str | None = None  # the input at whose address this output is

    def size(self, shape: Shape) -> int:
        """Return the bytes of one of this shape."""
        return int(np.prod(shape, dtype=np.int64)) * self.itemsize


class Context:
    """One profile's execution context. Says nothing twice that TensorRT has to work for."""

    def __init__(self, context: Any, name: str, logger: Logger) -> None:
        self._context = context
        self._name = name
        self._logger = logger
        self._shapes: dict[str, Shape] = {}
        self._scratch = (0, 0)
        self._addresses: dict[str, int] = {}
        self.changes = 0  # so often were shapes changed: what was captured before is void

    def set_shapes(self, shapes: Mapping[str, Shape], outputs: Sequence[str]) -> dict[str, Shape]:
        """Set the inputs' shapes and return those of the outputs."""
        context = self._context
        if dict(shapes) != self._shapes:
            self.changes += 1
            self._shapes = {}
            with self._logger.listeners.listening() as heard:
                for name, shape in shapes.items():
                    if not context.set_input_shape(name, shape):
                        self._fail(f"refuses the shape {shape} of {name}", errors_in(heard))
                missing = context.infer_shapes()
                if missing:
                    self._fail(f"lacks shapes or values of {', '.join(missing)}", errors_in(heard))
            self._shapes = dict(shapes)
        found = {name: tuple(int(n) for n in context.get_tensor_shape(name)) for name in outputs}
        for name, shape in found.items():
            if any(size < 0 for size in shape):
                self._fail(f"gives {name} a shape {shape} that depends on values", "not supported")
        return found

    def set_memory(self, address: int, size: int) -> None:
        """Say where the scratch is."""
        if (address, size) != self._scratch:
            self._context.set_device_memory(address, size)
            self._scratch = address, size

    def set_addresses(self, addresses: Mapping[str, int]) -> None:
        """Say where the tensors are."""
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                if not self._context.set_tensor_address(name, address):
                    self._fail(f"refuses the address of {name}", hex(address))
                self._addresses[name] = address

    def enqueue(self, stream: int) -> None:
        """Queue one run."""
        with self._logger.listeners.listening() as heard:
            if not self._context.execute_async_v3(stream):
                raise _failure(f"The engine {self._name} did not run", heard)

    def is_capturable(self, stream: int) -> bool:
        """Tell whether a run can be captured now; TensorRT-RTX may still be compiling for it."""
        if hasattr(self._context, "is_stream_capturable"):
            return bool(self._context.is_stream_capturable(stream))
        return True

    def _fail(self, what: str, said: str) -> None:
        raise EngineFailed(f"The engine {self._name} {what}:\n{said}")


class Engine:
    """A deserialised engine. `close` needs no order: contexts go before the engine they are of."""

    def __init__(
        self, trt: TrtModule, data: memoryview, name: str, *, weight_streaming: bool
    ) -> None:
        self.name = name
        self._trt = trt
        self._logger = logger_of(trt)
        self._contexts: dict[int, Context] = {}
        with self._logger.listeners.listening() as heard:
            try:
                self._runtime: Any = trt.Runtime(self._logger.trt)
                self._engine: Any = self._runtime.deserialize_cuda_engine(data)
            except (RuntimeError, TypeError) as error:  # "factory function returned nullptr"
                raise _failure(
                    f"TensorRT does not load the engine {name} ({error})", heard
                ) from error
        if self._engine is None:
            raise _failure(f"TensorRT does not load the engine {name}", heard)
        if weight_streaming:
            self._stream_weights()
        tensors = [self._tensor(index) for index in range(self._engine.num_io_tensors)]
        self.inputs = {tensor.name: tensor for tensor in tensors if tensor.is_input}
        self.outputs = {tensor.name: tensor for tensor in tensors if not tensor.is_input}
        self.profiles: list[Profile] = [
            self._profile(index) for index in range(self._engine.num_optimization_profiles)
        ]

    @property
    def scratch_size(self) -> int:
        """Bytes that the hungriest profile needs while it runs."""
        sizes = self._engine.get_device_memory_size_for_profile_v2
        return max((int(sizes(index)) for index in range(len(self.profiles))), default=0)

    def context(self, shapes: Mapping[str, Shape], stream: int) -> Context:
        """Return the context of the profile that holds these shapes.

        Raises:
            FeedsInvalid: none does.
        """
        index = choose_profile(self.name, self.profiles, shapes)
        if index not in self._contexts:
            self._contexts[index] = self._make_context(index, stream)
        return self._contexts[index]

    def close(self) -> None:
        """Free it: contexts first."""
        self._contexts.clear()
        self._engine = None
        self._runtime = None

    def _make_context(self, index: int, stream: int) -> Context:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with self._logger.listeners.listening() as heard:
            context = self._engine.create_execution_context(strategy)
            if context is None or not context.set_optimization_profile_async(index, stream):
                raise _failure(f"The engine {self.name} cannot set up profile {index}", heard)
        return Context(context, self.name, self._logger)

    def _stream_weights(self) -> None:
        """Let TensorRT say how many weights stay on the GPU. Only before there are contexts."""
        self._engine.weight_streaming_budget_v2 = (
            self._engine.get_weight_streaming_automatic_budget()
        )

    def _tensor(self, index: int) -> Tensor:
        engine = self._engine
        name = engine.get_tensor_name(index)
        if engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
            raise EngineFailed(f"The engine {self.name} wants {name} on the host: not supported")
        kind = str(engine.get_tensor_dtype(name).name)
        if kind not in _DTYPES:
            raise EngineFailed(f"The engine {self.name} has {name} in {kind}: not supported")
        is_input = engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
        alias = None if is_input else self._alias(name)
        return Tensor(name, *_DTYPES[kind], is_input, alias)

    def _alias(self, output: str) -> str | None:
        """Return the input that an output shares its address with, since TensorRT 10.15."""
        if hasattr(self._engine, "get_aliased_input_tensor"):
            return self._engine.get_aliased_input_tensor(output) or None
        return None

    def _profile(self, index: int) -> Profile:
        ranges: dict[str, tuple[Shape, Shape, Shape]] = {}
        for name in self.inputs:
            least, opt, most = (
                tuple(int(size) for size in shape)
                for shape in self._engine.get_tensor_profile_shape(name, index)
            )
            ranges[name] = least, opt, most
        return ranges


def _failure(what: str, heard: list[Message]) -> EngineFailed:
    """Return an error with what TensorRT said; where that is of memory, the one for memory."""
    said = errors_in(heard)
    plain = said.lower().replace(" ", "")  # "OutOfMemory (Requested size", "(out of memory)"
    kind = DeviceMemoryExhausted if "outofmemory" in plain else EngineFailed
    return kind(f"{what}:\n{said}")
