"""TensorRT and TensorRT-RTX engines.

Not verified on a GPU: the tests drive this through fakes of TensorRT's and CUDA's Python modules.
"""

import weakref
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from tokprune_runtimes.arrays import Array, Carry, Feeds
from tokprune_runtimes.cuda import device_sm
from tokprune_runtimes.device_memory import Buffer, Workspace, process_workspace
from tokprune_runtimes.errors import (
    DeviceMemoryExhausted,
    EngineFailed,
    EngineInterrupted,
    FeedsInvalid,
)
from tokprune_runtimes.interrupt import Interrupt
from tokprune_runtimes.side_car import checked_engine
from tokprune_runtimes.trt_carries import CarrySet, check_carries
from tokprune_runtimes.trt_engine import Context, Engine
from tokprune_runtimes.trt_module import Kind, load_module
from tokprune_runtimes.trt_profiles import Shape

T = TypeVar("T")


class TrtGraph:
    """An engine on the GPU. Safe to use from several threads: runs take turns.

    All graphs of a workspace share one stream and one scratch buffer. Loops of one graph share
    its input and output buffers, and have their carried tensors to themselves.
    """

    def __init__(
        self, path: Path, kind: Kind, *, source_sha256: str, workspace: Workspace | None = None
    ) -> None:
        """Check the side-car and load the engine.

        Raises:
            EngineStale: the engine is not one of this graph for this GPU.
            EngineUnavailable: `kind`, cuda-bindings or the GPU is missing.
            EngineFailed: TensorRT does not load it.
            DeviceMemoryExhausted: it does not fit into the GPU's memory.
        """
        trt = load_module(kind)
        self._name = path.name
        self._workspace = workspace or process_workspace()
        self._buffers: dict[str, Buffer] = {}  # of inputs and outputs that are not carried
        self._sets: list[CarrySet] = []
        self._idle: deque[CarrySet] = deque()  # those of them that no loop has
        with ExitStack() as stack:
            self._workspace.acquire()
            stack.callback(self._workspace.release)
            with (
                self._workspace.turn(),
                checked_engine(path, kind, source_sha256, device_sm()) as (side_car, data),
            ):
                streaming = side_car.weight_streaming
                self._engine = Engine(trt, data, path.name, weight_streaming=streaming)
                stack.callback(self._engine.close)
                self._workspace.scratch.reserve(self._engine.scratch_size)
            self._cuda_graphs = side_car.cuda_graphs
            stack.callback(_free, self._buffers, self._sets)
            self._closing = weakref.finalize(self, stack.pop_all().close)

    def __enter__(self) -> "TrtGraph":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free everything, that of its loops included. Otherwise done with the last reference."""
        with self._workspace.alone():
            self._closing()

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Run once. An interrupt is seen before the run: the GPU finishes what it was given."""
        return self._execute(feeds, None, interrupt)

    def loop(self, carries: Sequence[Carry]) -> "TrtLoop":
        """Start a loop with empty carried tensors."""
        with self._turn():
            check_carries(self._engine, carries)
            carried = self._take(tuple(carries))
            try:
                self._with_room(carried.reserve)
                carried.start()
            except BaseException:
                self._drop(carried)
                raise
            return TrtLoop(self, carried)

    def step(
        self, feeds: Feeds, carried: CarrySet, interrupt: Interrupt | None
    ) -> dict[str, Array]:
        """Run a loop's next step."""
        return self._execute(feeds, carried, interrupt)

    def rewind(self, carried: CarrySet, length: int) -> None:
        """Rewind a loop's carried tensors."""
        with self._turn():
            carried.rewind(length)

    def give_back(self, carried: CarrySet) -> None:
        """Take what a loop no longer needs. Does nothing to it: this may be any thread."""
        self._idle.append(carried)

    def _execute(
        self, feeds: Feeds, carried: CarrySet | None, interrupt: Interrupt | None
    ) -> dict[str, Array]:
        with self._turn():
            if interrupt is not None and interrupt.is_set:
                raise EngineInterrupted(f"The run of {self._name} was interrupted")
            arrays = self._arrays(feeds, carried)
            shapes: dict[str, Shape] = {name: array.shape for name, array in arrays.items()}
            if carried is not None:
                shapes |= carried.shapes
            context = self._engine.context(shapes, self._workspace.stream)
            outputs = context.set_shapes(shapes, list(self._engine.outputs))
            addresses = self._with_room(lambda: self._place(shapes, outputs, carried))
            self._copy_in(arrays, addresses)
            self._enqueue(context, addresses, carried)
            results = self._copy_out(outputs, addresses, carried)
        if carried is not None:
            carried.advance(outputs)
        return results

    def _arrays(self, feeds: Feeds, carried: CarrySet | None) -> dict[str, Array]:
        """Check names and dtypes. TensorRT would read whatever lies there."""
        held = carried.shapes if carried is not None else {}
        wanted = [name for name in self._engine.inputs if name not in held]
        if set(feeds) != set(wanted):
            raise FeedsInvalid(f"{self._name} takes {sorted(wanted)}, got {sorted(feeds)}")
        arrays: dict[str, Array] = {}
        for name in wanted:
            array = np.asarray(feeds[name], order="C")
            dtype = self._engine.inputs[name].dtype
            if dtype is None or array.dtype != np.dtype(dtype):
                expected = dtype or "bfloat16, which only a loop can carry"
                raise FeedsInvalid(f"{self._name}: {name} must be {expected}, got {array.dtype}")
            arrays[name] = array
        return arrays

    def _place(
        self,
        shapes: Mapping[str, Shape],
        outputs: Mapping[str, Shape],
        carried: CarrySet | None,
    ) -> dict[str, int]:
        """Make room for all tensors, and return their addresses."""
        engine = self._engine
        addresses = carried.addresses(outputs) if carried is not None else {}
        for name, shape in (*shapes.items(), *outputs.items()):
            if name in addresses:
                continue
            tensor = engine.inputs.get(name) or engine.outputs[name]
            if tensor.alias is not None:
                addresses[name] = addresses[tensor.alias]
                continue
            buffer = self._buffers.setdefault(name, Buffer(self._workspace.cuda))
            buffer.reserve(tensor.size(shape))
            addresses[name] = buffer.address
        return addresses

    def _copy_in(self, arrays: Mapping[str, Array], addresses: Mapping[str, int]) -> None:
        cuda, stream = self._workspace.cuda, self._workspace.stream
        for name, array in arrays.items():
            cuda.copy_in(addresses[name], array.ctypes.data, array.nbytes, stream)

    def _enqueue(
        self, context: Context, addresses: Mapping[str, int], carried: CarrySet | None
    ) -> None:
        stream, scratch = self._workspace.stream, self._workspace.scratch
        context.set_memory(scratch.address, scratch.size)
        context.set_addresses(addresses)
        if carried is None or not self._cuda_graphs:
            context.enqueue(stream)
            return
        key = (id(context), context.changes, scratch.address, tuple(addresses.items()))
        carried.replay.run(
            key, lambda: context.enqueue(stream), lambda: context.is_capturable(stream)
        )

    def _copy_out(
        self,
        outputs: Mapping[str, Shape],
        addresses: Mapping[str, int],
        carried: CarrySet | None,
    ) -> dict[str, Array]:
        cuda, stream = self._workspace.cuda, self._workspace.stream
        kept = {carry.output for carry in carried.carries} if carried is not None else set[str]()
        results: dict[str, Array] = {}
        for name, shape in outputs.items():
            if name in kept:
                continue
            dtype = self._engine.outputs[name].dtype
            if dtype is None:
                raise FeedsInvalid(f"{self._name}: {name} is bfloat16, which only a loop can carry")
            results[name] = np.empty(shape, dtype)
            cuda.copy_out(results[name].ctypes.data, addresses[name], results[name].nbytes, stream)
        return results

    def _with_room(self, reserve: Callable[[], T]) -> T:
        """Reserve memory; when there is none left, first give back what other shapes had."""
        try:
            return reserve()
        except DeviceMemoryExhausted:
            while self._idle:
                self._drop(self._idle.popleft())
            for buffer in self._buffers.values():
                buffer.free()
            return reserve()

    def _take(self, carries: tuple[Carry, ...]) -> CarrySet:
        """Return a set that an earlier loop left, or a new one; what else was left is freed."""
        found: CarrySet | None = None
        while self._idle:
            carried = self._idle.popleft()
            if found is None and carried.carries == carries:
                found = carried
            else:
                self._drop(carried)
        if found is None:
            workspace = self._workspace
            found = CarrySet(workspace.cuda, workspace.stream, self._engine, carries)
            self._sets.append(found)
        return found

    def _drop(self, carried: CarrySet) -> None:
        self._sets.remove(carried)
        carried.close()

    @contextmanager
    def _turn(self) -> Generator[None, None, None]:
        if not self._closing.alive:
            raise EngineFailed(f"The graph {self._name} is closed")
        with self._workspace.turn():
            yield


class TrtLoop:
    """Steps that keep carried tensors on the GPU."""

    def __init__(self, graph: TrtGraph, carried: CarrySet) -> None:
        self._graph = graph
        self._carried = carried
        weakref.finalize(self, graph.give_back, carried).atexit = False

    def step(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Run once more and return the outputs that are not carried."""
        return self._graph.step(feeds, self._carried, interrupt)

    def rewind(self, length: int) -> None:
        """Forget everything after `length`. In-place buffers need nothing: their graph is told."""
        self._graph.rewind(self._carried, length)


def _free(buffers: dict[str, Buffer], sets: list[CarrySet]) -> None:
    for carried in sets:
        carried.close()
    for buffer in buffers.values():
        buffer.free()
