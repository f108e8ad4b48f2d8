"""How far a build is, and stopping it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokprune_runtimes.errors import BuildCancelled
from tokprune_runtimes.trt_module import TrtModule


@dataclass(frozen=True)
class Progress:
    """A step of one of TensorRT's phases. Phases nest and may interleave; each has its name."""

    phase: str
    step: int  # done; 0 where the phase begins
    steps: int


class Watch:
    """Calls back at every step, and remembers how that ended."""

    def __init__(self, callback: Callable[[Progress], bool]) -> None:
        self._callback = callback
        self._steps: dict[str, int] = {}
        self._error: BaseException | None = None
        self._stopped = False

    def begin(self, phase: str, steps: int) -> None:
        """A phase begins."""
        self._steps[phase] = steps
        self.step(phase, 0)

    def step(self, phase: str, step: int) -> bool:
        """So many steps are done; tells whether to go on. TensorRT would swallow an exception."""
        if not self._stopped:
            try:
                goes_on = self._callback(Progress(phase, step, self._steps.get(phase, step)))
            except BaseException as error:
                self._error = error
                goes_on = False
            self._stopped = not goes_on
        return not self._stopped

    def raise_stop(self) -> None:
        """Raise what the callback raised, or BuildCancelled if it returned False."""
        if self._error is not None:
            raise self._error
        if self._stopped:
            raise BuildCancelled("The build was cancelled; nothing was written")


def monitor_of(trt: TrtModule, watch: Watch) -> Any:
    """Return TensorRT's side of it."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # pybind11 wants this call, not super()'s

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watch.begin(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.step(phase_name, step + 1)

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
