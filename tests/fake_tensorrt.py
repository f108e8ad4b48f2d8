"""Stands in for the running half of `tensorrt`: engines are functions of numpy arrays.

They read and write the raw addresses that they are given, at the time when the stream runs, with
the shapes of the time when they were queued, as TensorRT does.
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_cuda import POISON, FakeCuda

Shape = tuple[int, ...]
Arrays = dict[str, np.ndarray]
SIZES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT64": 8, "INT32": 4, "BOOL": 1}
DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class TensorLocation(IntEnum):
    DEVICE = 0
    HOST = 1


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class Strategy(IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = Severity

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


@dataclass
class Plan:
    """What an engine file stands for."""

    inputs: Mapping[str, str]  # name -> TensorRT's dtype
    outputs: Mapping[str, str]
    profiles: list[dict[str, tuple[Shape, Shape, Shape]]]
    shapes: Callable[[Mapping[str, Shape]], Mapping[str, Shape]]  # of the outputs
    compute: Callable[[Arrays], Mapping[str, np.ndarray]]
    aliases: Mapping[str, str] = field(default_factory=dict)  # output -> input
    scratch: int = 1000
    on_host: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()  # names that this version of TensorRT lacks
    failing_runs: int = 0  # so many, from now on
    uncapturable: bool = False
    runs: list[str] = field(default_factory=list)  # "plain" or "captured"; replays do not come here
    budgets: list[int] = field(default_factory=list)


class FakeTensorRT:
    """The module. `plans` are the engines that it can load, by the bytes of their files."""

    __version__ = "10.16.1.11"
    ILogger = ILogger
    Builder = object
    TensorLocation = TensorLocation
    TensorIOMode = TensorIOMode
    ExecutionContextAllocationStrategy = Strategy

    def __init__(self, cuda: FakeCuda, plans: Mapping[bytes, Plan]) -> None:
        self.Runtime: Callable[[ILogger], Any] = lambda logger: Runtime(self, logger)
        self.refusal = "Serialization assertion failed."
        self.cuda = cuda
        self.plans = plans
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()  # engines and contexts


class Runtime:
    def __init__(self, trt: FakeTensorRT, logger: ILogger) -> None:
        self._trt = trt
        self._logger = logger

    def deserialize_cuda_engine(self, data: memoryview) -> "Engine | None":
        plan = self._trt.plans.get(bytes(data))
        if plan is None:
            self._logger.log(Severity.WARNING, "a warning")
            self._logger.log(Severity.ERROR, self._trt.refusal)
            return None
        return Engine(self._trt, self._logger, plan)


class Versioned:
    """Has not what its version of TensorRT lacks."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name in object.__getattribute__(self, "_plan").without:
            raise AttributeError(name)
        return object.__getattribute__(self, name)


class Engine(Versioned):
    weight_streaming_scratch_memory_size = 0

    def __init__(self, trt: FakeTensorRT, logger: ILogger, plan: Plan) -> None:
        self._trt = trt
        self._logger = logger
        self._plan = plan
        self._names = [*plan.inputs, *plan.outputs]
        self.num_io_tensors = len(self._names)
        self.num_optimization_profiles = len(plan.profiles)
        trt.alive.add(self)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self._plan.on_host else TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name={**self._plan.inputs, **self._plan.outputs}[name])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._plan.inputs else TensorIOMode.OUTPUT

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self._plan.aliases.get(name)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[Shape]:
        return list(self._plan.profiles[index][name])

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return self._plan.scratch - index

    def get_weight_streaming_automatic_budget(self) -> int:
        return 12345

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._plan.budgets[-1]

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        self._plan.budgets.append(budget)

    def create_execution_context(self, strategy: Strategy) -> "Context":
        assert strategy == Strategy.USER_MANAGED
        return Context(self._trt, self._logger, self._plan, self)


class Context(Versioned):
    def __init__(self, trt: FakeTensorRT, logger: ILogger, plan: Plan, engine: Engine) -> None:
        self._trt = trt
        self._logger = logger
        self._plan = plan
        self._engine = engine  # as pybind11 keeps it alive
        self._profile = 0
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        trt.alive.add(self)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream in self._trt.cuda.streams
        self._profile = index
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        least, _, most = self._plan.profiles[self._profile][name]
        if not all(low <= n <= high for low, n, high in zip(least, shape, most, strict=True)):
            self._logger.log(Severity.ERROR, f"{name} is out of range")
            return False
        self._shapes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._plan.inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> Shape:
        return self._plan.shapes(self._shapes)[name]

    def set_device_memory(self, address: int, size: int) -> None:
        self._memory = address, size

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in (*self._plan.inputs, *self._plan.outputs)
        self._addresses[name] = address
        return address != 0

    def is_stream_capturable(self, stream: int) -> bool:
        return not self._plan.uncapturable

    def execute_async_v3(self, stream: int) -> bool:
        plan, cuda = self._plan, self._trt.cuda
        capturing = cuda.capturing is not None
        plan.runs.append("captured" if capturing else "plain")
        if plan.failing_runs:
            plan.failing_runs -= 1
            self._logger.log(Severity.ERROR, "the kernel is not to be had")
            return False
        assert self._memory is not None, "no scratch was set"
        address, size = self._memory
        assert size >= plan.scratch - self._profile
        for output, source in plan.aliases.items():
            assert self._addresses[output] == self._addresses[source], "an alias moved"
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        cuda.queue(stream, lambda: self._compute(shapes, addresses, (address, size)))
        return True

    def _compute(
        self, shapes: dict[str, Shape], addresses: dict[str, int], scratch: tuple[int, int]
    ) -> None:
        plan, cuda = self._plan, self._trt.cuda
        cuda.bytes_at(*scratch)[:] = POISON
        feeds = {
            name: self._view(addresses[name], shapes[name], kind)
            for name, kind in plan.inputs.items()
        }
        results = plan.compute(feeds)
        declared = plan.shapes(shapes)
        for name, kind in plan.outputs.items():
            assert results[name].shape == declared[name]
            self._view(addresses[name], declared[name], kind)[...] = results[name]

    def _view(self, address: int, shape: Shape, kind: str) -> np.ndarray:
        size = int(np.prod(shape, dtype=int)) * SIZES[kind]
        dtype = DTYPES.get(kind, "uint16")  # bfloat16: bits
        return self._trt.cuda.bytes_at(address, size).view(dtype).reshape(shape)
