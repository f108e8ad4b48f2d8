"""What every engine offers, and how one is chosen by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from tokprune_runtimes.arrays import Array, Carry, Feeds
from tokprune_runtimes.interrupt import Interrupt

Backend = Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"]
BACKENDS: tuple[Backend, ...] = ("cpu", "cuda", "tensorrt", "tensorrt-rtx")


@runtime_checkable
class Loop(Protocol):
    """A graph that is run again and again, some of its outputs fed back."""

    def step(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Run once more and return the outputs that are not carried.

        An interrupted step leaves the carried tensors as they were up to their length before it.
        """
        ...

    def rewind(self, length: int) -> None:
        """Forget everything after `length` along the growing axis."""
        ...


@runtime_checkable
class Graph(Protocol):
    """A loaded graph. Any object with these methods will do; no base class is needed."""

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Run once, with the names and dtypes that the file declares.

        Raises:
            EngineInterrupted: `interrupt` was set, before or meanwhile.
            EngineFailed: the engine refused the feeds, ran out of memory or broke down.
        """
        ...

    def loop(self, carries: Sequence[Carry]) -> Loop:
        """Start a loop with empty carried tensors."""
        ...


def load_graph(
    path: Path,
    backend: Backend,
    *,
    threads: int | None = None,
    source_sha256: str | None = None,
) -> Graph:
    """Load `path` on `backend`, importing only that engine.

    Args:
        path: an ONNX file for "cpu" and "cuda", an engine with its side-car for the others.
        backend: what runs it.
        threads: of this graph on the host; None lets the engine choose. TensorRT has none to set.
        source_sha256: of the ONNX file and its data that an engine must have been built from.

    Raises:
        EngineUnavailable: the engine's package or the GPU is missing.
        EngineStale: the engine is not one of this graph, version and GPU.
    """
    match backend:
        case "cpu" | "cuda":
            from tokprune_runtimes.ort import OrtGraph

            return OrtGraph(path, threads=threads, device=backend)
        case "tensorrt" | "tensorrt-rtx":
            from tokprune_runtimes.trt import TrtGraph

            if source_sha256 is None:
                raise ValueError(f"{backend} needs source_sha256, to check the engine against")
            return TrtGraph(path, backend, source_sha256=source_sha256)
