"""Does decoding copy the KV cache over the host?

TensorRT's runtime calls CUDA by itself, so all its copies can be counted: what crosses in a step
must be, byte by byte, what the step was fed and what it returned, and none of that is the cache.
ONNX Runtime calls CUDA where nobody can look, but says where each tensor of the cache lies.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
from absence import TENSORRT
from setting import Row, Setting, Skipped, cuda_runtime, each_bundle

from tokprune.llm import Access, LanguageModel
from tokprune.model import Model
from tokprune.scenes.suite import suite
from tokprune.types import Array, Selection
from tokprune_runtimes import Feeds, Interrupt, Loop

STEPS = 40
TOKENS = 196
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Where a copying function has its bytes (their product) and its direction.
ARGUMENTS: dict[str, tuple[tuple[int, ...], int]] = {
    "cudaMemcpy": ((2,), 3),
    "cudaMemcpyAsync": ((2,), 3),
    "cudaMemcpy2D": ((4, 5), 6),
    "cudaMemcpy2DAsync": ((4, 5), 6),
}


@dataclass
class Traffic:
    """Bytes that crossed between host and GPU, and calls that do not say whether they did."""

    to_device: int = 0
    to_host: int = 0
    unknown: list[str] = field(default_factory=list[str])

    def copied(self, name: str, kinds: Any, args: tuple[Any, ...]) -> None:
        """Count a call of a copying function."""
        if name not in ARGUMENTS:
            self.unknown.append(name)
            return
        sizes, direction = ARGUMENTS[name]
        size, kind = prod(int(args[index]) for index in sizes), args[direction]
        if kind == kinds.cudaMemcpyHostToDevice:
            self.to_device += size
        elif kind == kinds.cudaMemcpyDeviceToHost:
            self.to_host += size
        elif kind != kinds.cudaMemcpyDeviceToDevice:
            self.unknown.append(f"{name}: {kind}")


@contextmanager
def counted(cuda: Any) -> Generator[Traffic, None, None]:
    """Count what all copying functions of CUDA's Python module move meanwhile."""
    traffic = Traffic()
    names = [name for name in dir(cuda) if name.startswith("cudaMemcpy")]
    functions = {name: getattr(cuda, name) for name in names}
    functions = {name: each for name, each in functions.items() if _is_function(each)}

    def counting(name: str, function: Callable[..., Any], *args: Any) -> Any:
        traffic.copied(name, cuda.cudaMemcpyKind, args)
        return function(*args)

    for name, function in functions.items():
        setattr(cuda, name, partial(counting, name, function))
    try:
        yield traffic
    finally:
        for name, function in functions.items():
            setattr(cuda, name, function)


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)  # kinds, parameters and nodes are types


class Step(NamedTuple):
    """One run of a loop: bytes that it was fed and returned, and bytes that crossed."""

    fed: int
    returned: int
    to_device: int
    to_host: int


class Metered:
    """A loop whose steps are measured."""

    def __init__(self, loop: Loop, traffic: Traffic) -> None:
        self.steps: list[Step] = []
        self._loop = loop
        self._traffic = traffic

    def step(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Run once more."""
        before = self._traffic.to_device, self._traffic.to_host
        outputs = self._loop.step(feeds, interrupt)
        fed, returned = (
            sum(np.asarray(each).nbytes for each in arrays.values()) for arrays in (feeds, outputs)
        )
        after = self._traffic.to_device, self._traffic.to_host
        self.steps.append(Step(fed, returned, after[0] - before[0], after[1] - before[1]))
        return outputs

    def rewind(self, length: int) -> None:
        """Forget everything after `length`."""
        self._loop.rewind(length)


def host_copies(setting: Setting) -> Iterator[Row]:
    """Yield, for every family and precision, whether a decode step takes the cache to the host."""
    if setting.engine == "cpu":
        raise Skipped("This is about what crosses between host and GPU")
    yield from each_bundle(setting, _copies)


def _copies(setting: Setting, family: str, precision: str) -> Iterator[Row]:
    model = setting.open(setting.bundle(family, precision)).model
    form = model.llm.form
    about: Row = {"form": form.form, "cache": form.cache, "steps": STEPS}
    if setting.engine in TENSORRT:
        with counted(cuda_runtime()) as traffic:
            steps = _decoded(model, lambda loop: Metered(loop, traffic)).steps
        yield {**about, **judged(steps, row_bytes(model.llm), traffic.unknown)}
    else:
        yield {**about, **placed(_decoded(model, Placed).devices)}


class Placed:
    """A loop of ONNX Runtime's; after each step it is noted where its cache lies."""

    def __init__(self, loop: Any) -> None:
        self.devices: list[str] = []
        self._loop = loop

    def step(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Run once more. What was written is what the next step reads, so both are looked at."""
        outputs = self._loop.step(feeds, interrupt)
        held = self._loop._held.values()
        self.devices += sorted({str(value.device_name()).lower() for value in held})
        return outputs

    def rewind(self, length: int) -> None:
        """Forget everything after `length`."""
        self._loop.rewind(length)


def _decoded(model: Model, wrap: Callable[[Loop], Any]) -> Any:
    """Prefill and decode with a loop that is wrapped; return what wraps it."""
    sample = next(iter(suite("dev", 1, tokens=TOKENS)))
    prompt, media = model.prepare(list(sample.pictures), sample.question)
    vision, total = model.vision(media), len(prompt.slots)
    everything = Selection(np.arange(total), total, None, None, "all")
    written = model.llm.start(prompt, vision, everything, STEPS + 1, Access())
    wrapped = wrap(written._cache.loop)
    written._cache.loop = wrapped
    for _ in range(STEPS):
        written.extend([int(written.logits.argmax())])
    return wrapped


def row_bytes(llm: LanguageModel) -> int:
    """Return the bytes of one row of the whole cache."""
    dtypes = {tensor.name: tensor.dtype for tensor in llm.form.graph.inputs}
    item = ITEM_BYTES[dtypes.get("past_key_values.0.key", "float32")]
    return 2 * llm.shape.layers * llm.shape.kv_heads * llm.shape.head_dim * item


def judged(steps: list[Step], row: int, unknown: list[str]) -> Row:
    """Say what crossed in the first and last step, and whether it was theirs alone.

    A mask or bias grows by a few bytes with each row; the cache would by `row` bytes.
    """
    strangers = [
        step for step in steps if (step.to_device, step.to_host) != (step.fed, step.returned)
    ]
    first, last = steps[0], steps[-1]
    growth = (last.to_device + last.to_host - first.to_device - first.to_host) / (len(steps) - 1)
    return {
        "to_device_bytes": [first.to_device, last.to_device],
        "to_host_bytes": [first.to_host, last.to_host],
        "growth_bytes_a_step": growth,
        "cache_bytes_a_row": row,
        "steps_with_other_copies": len(strangers),
        "copies_not_understood": sorted(set(unknown)),
        "ok": not strangers and not unknown and growth < row,
    }


def placed(devices: list[str]) -> Row:
    """Say where the cache lay in all steps."""
    found = sorted(set(devices))
    return {"cache_on": found, "ok": found == ["cuda"]}
