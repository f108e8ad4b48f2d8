"""CUDA graphs: a step whose shapes and addresses repeat is captured once and then replayed."""

import logging
from collections.abc import Callable, Hashable
from typing import Any

from tokprune_runtimes.cuda import Cuda
from tokprune_runtimes.errors import EngineFailed

_log = logging.getLogger("tokprune.tensorrt")


class Replay:
    """Runs steps, and captures one when it comes the second time in a row.

    The first time has to be a plain run anyway: TensorRT puts work off to it that must not be
    captured. Where capturing fails, steps are run plainly from then on.
    """

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self._cuda = cuda
        self._stream = stream
        self._last: Hashable = None
        self._captured: Hashable = None
        self._executable: Any = None
        self._refused = False

    def run(
        self, key: Hashable, enqueue: Callable[[], None], is_capturable: Callable[[], bool]
    ) -> None:
        """Queue one step. Of the same key is what queues the same work at the same addresses."""
        if self._executable is not None and key == self._captured:
            self._cuda.launch(self._executable, self._stream)
        else:
            is_due = key == self._last and not self._refused and is_capturable()
            if not is_due or not self._capture(key, enqueue):
                enqueue()
        self._last = key

    def close(self) -> None:
        """Free what was captured."""
        executable, self._executable, self._captured = self._executable, None, None
        if executable is not None:
            self._cuda.destroy_executable(executable)

    def _capture(self, key: Hashable, enqueue: Callable[[], None]) -> bool:
        """Capture a step and run it; False if that cannot be done."""
        self.close()
        try:
            executable = self._cuda.instantiate(self._record(enqueue))
        except EngineFailed as error:
            self._refused = True
            _log.warning("No CUDA graph could be captured; steps run one by one: %s", str(error))
            return False
        self._executable, self._captured = executable, key
        self._cuda.launch(executable, self._stream)
        return True

    def _record(self, enqueue: Callable[[], None]) -> Any:
        self._cuda.begin_capture(self._stream)
        try:
            enqueue()
        except BaseException:
            self._abandon()
            raise
        return self._cuda.end_capture(self._stream)

    def _abandon(self) -> None:
        """End a capture that came to nothing; what ends it may be an error, too."""
        try:
            graph = self._cuda.end_capture(self._stream)
        except EngineFailed:
            return
        self._cuda.destroy_graph(graph)
