"""What every engine offers, and how one is chosen by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from tokprune_runtimes.arrays import Array, Carry, Feeds

Backend = Literal["cpu"]
BACKENDS: tuple[Backend, ...] = ("cpu",)


@runtime_checkable
class Loop(Protocol):
    """A graph that is run again and again, some of its outputs fed back."""

    def step(self, feeds: Feeds) -> dict[str, Array]:
        """Run once more and return the outputs that are not carried."""
        ...

    def rewind(self, length: int) -> None:
        """Forget everything after `length` along the growing axis."""
        ...


@runtime_checkable
class Graph(Protocol):
    """A loaded graph. Any object with these methods will do; no base class is needed."""

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once, with the names and dtypes that the file declares."""
        ...

    def loop(self, carries: Sequence[Carry]) -> Loop:
        """Start a loop with empty carried tensors."""
        ...


def load_graph(path: Path, backend: Backend, *, threads: int | None = None) -> Graph:
    """Load `path` on `backend`, importing only that engine.

    Args:
        path: an ONNX file.
        backend: what runs it.
        threads: of this graph; None lets the engine choose.
    """
    match backend:
        case "cpu":
            from tokprune_runtimes.ort import OrtGraph

            return OrtGraph(path, threads=threads)
