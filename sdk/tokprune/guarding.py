"""Graphs whose runs can be stopped, and whose errors are ours."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tokprune.control import Control
from tokprune.errors import EngineFailed, OutOfMemory, TokpruneError
from tokprune_runtimes import Array, Carry, Feeds, Graph, Interrupt, Loop
from tokprune_runtimes.errors import EngineError, EngineInterrupted, MemoryExhausted
from tokprune_runtimes.ort_errors import is_out_of_memory


@contextmanager
def guarded(control: Control) -> Generator[Interrupt]:
    """Give the work of an engine its interrupt, and its errors a class and code of ours.

    Raises:
        Cancelled, DeadlineExceeded, Closed: the request was stopped, before or meanwhile.
        OutOfMemory: there is no memory left for this.
        EngineFailed: anything else that the engine says.
    """
    control.check()
    try:
        yield control.interrupt
    except EngineInterrupted:
        control.check()
        raise
    except (MemoryExhausted, MemoryError) as error:
        raise _out_of_memory(error) from error
    except EngineError as error:
        raise EngineFailed(" ".join(str(error).split())) from error


@contextmanager
def memory_guarded() -> Generator[None]:
    """Give the end of memory a class of ours, wherever it strikes: numpy, threads, tokenizers.

    Raises:
        OutOfMemory: there is no memory left for this.
    """
    try:
        yield
    except TokpruneError:
        raise
    except Exception as error:  # what says so has no common class (ort_errors.py)
        if not is_out_of_memory(error):
            raise
        raise _out_of_memory(error) from error


def _out_of_memory(error: Exception) -> OutOfMemory:
    return OutOfMemory(
        f"{str(error) or 'Memory ended'}. Ask with a smaller budget or smaller pictures, or free "
        "memory; a VLM that is loaded stays usable"
    )


@dataclass(frozen=True)
class GuardedGraph:
    """A graph as one request sees it."""

    graph: Graph
    control: Control

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Run once, unless and until the request is stopped."""
        with guarded(self.control) as own:
            return self.graph.run(feeds, interrupt or own)

    def loop(self, carries: Sequence[Carry]) -> Loop:
        """Start a loop. Its steps are guarded where they are made: it outlives the request."""
        with guarded(self.control):
            return self.graph.loop(carries)
