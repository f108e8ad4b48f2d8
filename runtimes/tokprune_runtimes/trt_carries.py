"""Tensors that a loop carries from step to step, and that never leave the GPU."""

from collections.abc import Mapping, Sequence
from math import prod

from tokprune_runtimes.arrays import Carry
from tokprune_runtimes.cuda import Cuda
from tokprune_runtimes.device_memory import Buffer
from tokprune_runtimes.errors import FeedsInvalid
from tokprune_runtimes.trt_engine import Engine, Tensor
from tokprune_runtimes.trt_profiles import Shape
from tokprune_runtimes.trt_replay import Replay

_SPARE = 0.25  # of a growing tensor: so it moves at every fifth of its length, not at every step


class Carried:
    """One carried tensor: a buffer that is read and one that is written; in place they are one."""

    def __init__(self, cuda: Cuda, carry: Carry, tensor: Tensor) -> None:
        self.carry = carry
        self._cuda = cuda
        self._tensor = tensor
        self._source = Buffer(cuda)
        self._target = self._source if carry.in_place else Buffer(cuda)
        self.shape: Shape = carry.shape

    def reserve(self) -> None:
        """Make room for the start."""
        self._source.reserve(self._tensor.size(self.carry.shape))

    def start(self, stream: int) -> None:
        """Begin anew. In place the buffer is zeroed: what a mask hides must still be a number."""
        self.shape = self.carry.shape
        if self.carry.in_place:
            self._cuda.zero(self._source.address, self._tensor.size(self.shape), stream)

    def addresses(self, written: Shape) -> dict[str, int]:
        """Make room for what the step writes, and return where both are."""
        if not self.carry.in_place:
            self._target.reserve(self._tensor.size(written), spare=_SPARE)
        elif written != self.shape:
            raise FeedsInvalid(f"{self.carry.output} is {written}, its buffer {self.shape}")
        return {
            self.carry.input: self._source.address,
            self.carry.output: self._target.address,
        }

    def advance(self, written: Shape) -> None:
        """What was written is read at the next step."""
        self.shape = written
        self._source, self._target = self._target, self._source

    def rewind(self, length: int, stream: int) -> None:
        """Keep the first `length` along the axis, by copying; in place the graph is told."""
        held = self.shape[self.carry.axis]
        if not 0 <= length <= held:
            raise FeedsInvalid(f"Cannot rewind {self.carry.input} to {length}: it holds {held}")
        if self.carry.in_place or length == held:
            return
        if not length:
            self.start(stream)
            return
        axis = self.carry.axis
        kept = (*self.shape[:axis], length, *self.shape[axis + 1 :])
        self._target.reserve(self._tensor.size(kept), spare=_SPARE)
        step = prod(self.shape[axis + 1 :]) * self._tensor.itemsize
        self._cuda.copy_rows(
            (self._target.address, length * step),
            (self._source.address, held * step),
            length * step,
            prod(self.shape[:axis]),
            stream,
        )
        self.advance(kept)

    def free(self) -> None:
        """Give the memory back."""
        self._source.free()
        self._target.free()


class CarrySet:
    """All carried tensors of one loop, and what was captured of its steps.

    When the loop is gone, the next one takes the set over: its memory is there, and so are the
    addresses that the captured step knows.
    """

    def __init__(self, cuda: Cuda, stream: int, engine: Engine, carries: Sequence[Carry]) -> None:
        self.carries = tuple(carries)
        self.replay = Replay(cuda, stream)
        self._stream = stream
        self._carried = [Carried(cuda, each, engine.inputs[each.input]) for each in carries]

    def reserve(self) -> None:
        """Make room for the start."""
        for each in self._carried:
            each.reserve()

    def start(self) -> None:
        """Begin anew."""
        for each in self._carried:
            each.start(self._stream)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Of the inputs."""
        return {each.carry.input: each.shape for each in self._carried}

    def addresses(self, outputs: Mapping[str, Shape]) -> dict[str, int]:
        """Make room for what the step writes, and return where everything is."""
        found: dict[str, int] = {}
        for each in self._carried:
            found |= each.addresses(outputs[each.carry.output])
        return found

    def advance(self, outputs: Mapping[str, Shape]) -> None:
        """The step is done."""
        for each in self._carried:
            each.advance(outputs[each.carry.output])

    def rewind(self, length: int) -> None:
        """Keep the first `length`."""
        for each in self._carried:
            each.rewind(length, self._stream)

    def close(self) -> None:
        """Free everything."""
        self.replay.close()
        for each in self._carried:
            each.free()


def check_carries(engine: Engine, carries: Sequence[Carry]) -> None:
    """Refuse carries that the engine does not have, or does not update where asked.

    Raises:
        FeedsInvalid: says which.
    """
    for carry in carries:
        source, written = engine.inputs.get(carry.input), engine.outputs.get(carry.output)
        if source is None or written is None:
            raise FeedsInvalid(
                f"{engine.name} cannot carry {carry.output} to {carry.input}: it has the inputs "
                f"{', '.join(engine.inputs)} and the outputs {', '.join(engine.outputs)}"
            )
        if (source.dtype, source.itemsize) != (written.dtype, written.itemsize):
            raise FeedsInvalid(f"{engine.name}: {carry.output} and {carry.input} differ in dtype")
        if carry.in_place and written.alias != carry.input:
            raise FeedsInvalid(
                f"{engine.name} does not update {carry.input} in place (TensorRT does from 10.15 "
                "on, from the `trt` form of the graph): use the `portable` form"
            )
        if written.alias == carry.input and not carry.in_place:
            raise FeedsInvalid(f"{engine.name} updates {carry.input} in place: it cannot grow")
