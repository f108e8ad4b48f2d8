"""What engines were built for, held against a request before they run.

ONNX Runtime takes any shape; a TensorRT engine takes those of its profiles. The sizes are told in
the manifest's words (`q` vision tokens of a picture, `u` text tokens after it), and the command
that builds larger engines with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tokprune.engines.profiles import Shape, axis_of, named_sizes
from tokprune.errors import EngineTooSmall
from tokprune.manifest import Tensor
from tokprune.types import Array, Feeds
from tokprune_runtimes import Carry, Graph, Interrupt, Loop

Box: TypeAlias = Mapping[str, tuple[int, int]]  # axis -> least and most
_WORDS = {
    "q": "vision tokens in a picture or frame",
    "n": "vision tokens",
    "s": "tokens in the prompt before pruning",
    "u": "text tokens after the last picture",
    "r": "pictures, frames and tiles",
    "H": "rows of vision tokens",
    "W": "columns of vision tokens",
    "T": "prompt tokens after pruning",
}
_QUESTION = "u"  # all others grow with --max-vision-tokens


@dataclass(frozen=True)
class Bounds:
    """The shapes that one engine takes."""

    engine: str
    inputs: tuple[Tensor, ...]
    boxes: tuple[Box, ...]
    rebuild: str  # the command that builds engines

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Refuse shapes that no profile holds.

        Raises:
            EngineTooSmall: with what was given, what was built, and what to do.
        """
        given = named_sizes(self.inputs, shapes)
        if any(_holds(box, given) for box in self.boxes):
            return
        raise EngineTooSmall(self._message(given))

    def _message(self, given: Mapping[str, int]) -> str:
        mosts = {
            axis: max(box[axis][1] for box in self.boxes if axis in box)
            for axis in given
            if any(axis in box for box in self.boxes)
        }
        above = {axis: most for axis, most in mosts.items() if given[axis] > most}
        if above:
            number = " and ".join(
                f"{given[axis]} {_word(axis, given)} (built for {most})"
                for axis, most in above.items()
            )
        else:  # each fits somewhere, together they fit nowhere
            boxes = "; ".join(_listed({axis: box[axis][1] for axis in box}) for box in self.boxes)
            number = f"{_listed(given)}, built for at most {boxes}"
        option = "--max-vision-tokens, and a larger number"
        if set(above) == {_QUESTION}:
            option = f"--max-question-tokens {given[_QUESTION]}"
        elif tokens := [given[axis] for axis in ("q", "n") if axis in above]:
            option = f"--max-vision-tokens {max(tokens)}"
        return (
            f"The engine {self.engine} is too small for this request: {number}. Use fewer or "
            f"smaller pictures and frames, or build larger engines: {self.rebuild} {option}"
        )


def bounds_of(
    engine: str, inputs: Sequence[Tensor], profiles: Sequence[Any], rebuild: str
) -> Bounds:
    """Return the bounds of an engine from its profiles, as its side-car has them."""
    boxes: list[Box] = []
    for profile in profiles:
        least = named_sizes(inputs, {name: tuple(shapes[0]) for name, shapes in profile.items()})
        most = named_sizes(inputs, {name: tuple(shapes[2]) for name, shapes in profile.items()})
        boxes.append({axis: (least[axis], most[axis]) for axis in least})
    return Bounds(engine, tuple(inputs), tuple(boxes), rebuild)


@dataclass(frozen=True)
class BoundedGraph:
    """An engine that says what is too large for it before it runs."""

    graph: Graph
    bounds: Bounds

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Run once."""
        self.bounds.check(_shapes(feeds))
        return self.graph.run(feeds, interrupt)

    def loop(self, carries: Sequence[Carry]) -> Loop:
        """Start a loop. Its lengths are the bundle's limits, which were checked when it loaded."""
        return self.graph.loop(carries)


@dataclass(frozen=True)
class BatchedEncoder:
    """A vision encoder whose frames or tiles are fed as many a time as its engine takes.

    They lie along the first axis of `pixel_values` and of all outputs, and do not attend to each
    other, in every family.
    """

    graph: Graph
    bounds: Bounds

    def check(self, feeds: Feeds) -> None:
        """Refuse what the engine does not take, one frame or tile at a time either.

        Raises:
            EngineTooSmall: with the numbers.
        """
        self.bounds.check(_shapes(_frames(feeds, 0, 1)))

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Encode all frames or tiles."""
        self.check(feeds)
        count = len(feeds["pixel_values"])
        most = self._most(_shapes(feeds))
        parts = [
            self.graph.run(_frames(feeds, start, min(start + most, count)), interrupt)
            for start in range(0, count, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def loop(self, carries: Sequence[Carry]) -> Loop:
        """Start a loop, which no vision encoder has."""
        return self.graph.loop(carries)

    def _most(self, shapes: Mapping[str, Shape]) -> int:
        """Return how many frames of this size go at once. Fewer than that fit too."""
        given = named_sizes(self.bounds.inputs, shapes)
        pixels = next(tensor for tensor in self.bounds.inputs if tensor.name == "pixel_values")
        batch = axis_of(pixels.shape[0])
        if batch is None:
            return 1
        others = {axis: size for axis, size in given.items() if axis != batch[1]}
        return max(
            (box[batch[1]][1] for box in self.bounds.boxes if _holds(box, others)), default=1
        )


def _frames(feeds: Feeds, start: int, end: int) -> dict[str, Array]:
    return {**feeds, "pixel_values": feeds["pixel_values"][start:end]}


def _shapes(feeds: Feeds) -> dict[str, Shape]:
    return {name: tuple(array.shape) for name, array in feeds.items()}


def _holds(box: Box, given: Mapping[str, int]) -> bool:
    return all(box[axis][0] <= size <= box[axis][1] for axis, size in given.items() if axis in box)


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{size} {_word(axis, sizes)}" for axis, size in sizes.items())


def _word(axis: str, sizes: Mapping[str, int]) -> str:
    """Say what an axis counts: `W` are columns to the scorer, windows to a vision encoder."""
    return "windows" if axis == "W" and "q" in sizes else _WORDS.get(axis, axis)
