"""What a robot's processor has to do besides: other programs, and heat."""

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokprune.types import Array
from tokprune_runtimes import Carry, Graph, Interrupt, Loop

LOAD = "import numpy as np\na = np.ones((600, 600))\nwhile True: a @ a"


class Slowed:
    """A graph that can be told to take longer."""

    factor = 1.0  # of all

    def __init__(self, graph: Graph | Loop) -> None:
        self._graph: Any = graph

    def run(
        self, feeds: Mapping[str, Array], interrupt: Interrupt | None = None
    ) -> dict[str, Array]:
        return self._timed(lambda: self._graph.run(feeds, interrupt))

    def step(
        self, feeds: Mapping[str, Array], interrupt: Interrupt | None = None
    ) -> dict[str, Array]:
        return self._timed(lambda: self._graph.step(feeds, interrupt))

    def loop(self, carries: Sequence[Carry]) -> "Slowed":
        return Slowed(self._graph.loop(carries))

    def rewind(self, length: int) -> None:
        self._graph.rewind(length)

    def _timed(self, run: Callable[[], dict[str, Array]]) -> dict[str, Array]:
        began = time.perf_counter()
        found = run()
        time.sleep((time.perf_counter() - began) * (Slowed.factor - 1))
        return found


class Busy:
    """Something that comes for 4 to 15 seconds, goes for as long, and ends with the block."""

    def __init__(self, seed: int) -> None:
        self.on = False
        self._random = random.Random(seed)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Busy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.turn(on=False)

    def _run(self) -> None:
        while not self._ended.wait(self._random.uniform(4, 15)):
            self.turn(on=not self.on)

    def turn(self, *, on: bool) -> None:
        self.on = on


class Load(Busy):
    """Other programs that calculate."""

    def __init__(self, processes: int) -> None:
        super().__init__(seed=1)
        command = [sys.executable, "-c", LOAD]
        self._programs = [subprocess.Popen(command) for _ in range(processes)]
        self.turn(on=False)

    def turn(self, *, on: bool) -> None:
        super().turn(on=on)
        for program in self._programs:
            program.send_signal(signal.SIGCONT if on else signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for program in self._programs:
            program.kill()
            program.wait()


class Slowdown(Busy):
    """The hook: every graph takes twice as long."""

    def turn(self, *, on: bool) -> None:
        super().turn(on=on)
        Slowed.factor = 2.0 if on else 1.0
