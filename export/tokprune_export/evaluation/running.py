"""Questions spread over processes, answers kept as they come."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from threading import Thread
from typing import NamedTuple, TypeAlias

from tokprune.errors import TokpruneError
from tokprune_export.evaluation.cells import Cell
from tokprune_export.evaluation.opening import Setup
from tokprune_export.evaluation.record import Record, Store
from tokprune_export.evaluation.suites import Task
from tokprune_export.progress import Counting

WAITING = 3  # tasks a process has in store
Work: TypeAlias = Callable[[Setup, Task, Sequence[Cell]], Record]


def end_with_parent() -> None:
    """Let this process end when the one that started it does, however that ended.

    Else processes of a command that was killed would wait for work for ever, with a bundle open.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


class Ask(NamedTuple):
    """A question, and the cells that are wanted of it."""

    task: Task
    cells: Sequence[Cell]


class EvaluationBroken(TokpruneError):
    """The evaluation stopped half way; what is done is kept."""

    code = "evaluation_broken"


class Crew(NamedTuple):
    """Who answers."""

    setup: Setup
    processes: int

    def answer(self, work: Work, asks: Iterable[Ask], store: Store, shown: Counting) -> None:
        """Answer what is missing in the store.

        Raises:
            EvaluationBroken: a process died.
        """

        def missing() -> Iterator[Ask]:
            for task, cells in asks:
                left = store.missing(task.key, cells)
                if left:
                    yield Ask(task, left)
                else:
                    shown.pass_over()

        try:
            for record in self._answered(work, missing()):
                store.add(record)
                shown.advance()
        except BrokenProcessPool:
            raise EvaluationBroken(
                "A process died, for lack of memory perhaps. Run the same command again, with "
                "fewer --processes: it goes on where it was"
            ) from None

    def _answered(self, work: Work, asks: Iterator[Ask]) -> Iterator[Record]:
        """Yield records as they come; few questions are in memory at once."""
        first = next(asks, None)
        if first is None:
            return
        if self.processes == 1:
            yield work(self.setup, *first)
            yield from (work(self.setup, *ask) for ask in asks)
            return
        # Forked engines would share thread pools that are not there: start afresh.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            self.processes, mp_context=context, initializer=end_with_parent
        ) as pool:
            running: set[Future[Record]] = {pool.submit(work, self.setup, *first)}
            try:
                for ask in asks:
                    running.add(pool.submit(work, self.setup, *ask))
                    if len(running) >= self.processes * WAITING:
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in done)
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            finally:  # an error of one question need not wait for the others
                for future in running:
                    future.cancel()
