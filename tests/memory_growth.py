"""Run as a program: ask a VLM very many things of every kind, and see what that leaves behind.

`memory_growth.py BUNDLE REQUESTS SEED [PLANT]` prints JSON: the resident memory after the warm-up
and at the end, the threads and the open files then. BUNDLE may be "stub". PLANT is a fault that
must be found: "cache" (a vision cache without bound), "watchers" (a cancel token keeps what was
cancelled), "threads" (each request leaves one) or "files".
"""

import asyncio
import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from threading import Event, Thread
from threading import enumerate as threads
from typing import Any

import numpy as np

from tokprune import CancelToken, TokpruneError, load
from tokprune.chat import Chat
from tokprune.vlm import VLM

WARM_UP, SAMPLES = 0.25, 200  # share of the requests, and measurements in all
CACHE_BYTES = 2 * 2**20  # full after the warm-up
PAGE = os.sysconf("SC_PAGE_SIZE")


class Caller:
    """Asks at random. Everything that a request may be, and every way in which it may end."""

    def __init__(self, vlm: VLM, seed: int, *, largest: int) -> None:
        self.vlm, self.chance, self.largest = vlm, Random(seed), largest
        self.pixels = np.random.default_rng(seed)
        self.token = CancelToken()  # of a whole mission
        self.chats: list[Chat] = []
        self.ends: Counter[str] = Counter()
        self.most = True  # everything as large as it gets, so that every arena has its size
        self.kinds: list[Callable[[], object]] = [
            *[self.ask] * 8,
            *[self.choose] * 2,
            *[self.chat] * 4,
            self.pin,
            self.cancelled,
            self.late,
            self.dropped,
            self.waiting,
            self.refused,
            self.several,
        ]

    def one(self) -> None:
        kind = self.chance.choice(self.kinds)
        try:
            kind()
            self.ends[kind.__name__] += 1
        except TokpruneError as error:
            self.ends[f"{kind.__name__} {error.code}"] += 1

    def picture(self) -> Any:
        least = self.largest if self.most else self.largest // 8
        height, width = (self.chance.randint(least, self.largest) for _ in range(2))
        return self.pixels.integers(0, 256, (height, width, 3), np.uint8)

    def words(self) -> str:
        return "".join(
            self.chance.choices(
                "abc ?\u00e9\n", k=self.chance.randint(200 if self.most else 1, 200)
            )
        )

    def options(self) -> dict[str, Any]:
        return {
            "budget": self.chance.choice([0.1, 0.5, 1.0, 9, 40, "mass:0.8"]),
            "max_new_tokens": self.chance.randint(1, 12),
            "temperature": self.chance.choice([0.0, 0.0, 1.0]),
            "cancel": self.chance.choice([None, self.token]),
            "deadline_s": self.chance.choice([None, 600.0]),
        }

    def ask(self) -> None:
        self.vlm.ask(self.picture(), self.words(), **self.options())

    def choose(self) -> None:
        choices = [f"{number} {self.chance.random():.3f}" for number in range(5)]
        options = {**self.options(), "max_new_tokens": 16}
        self.vlm.ask(self.picture(), self.words(), choices=choices, **options)

    def chat(self) -> None:
        if len(self.chats) < 2 or self.chance.random() < 0.1:
            made = self.vlm.chat(pin=self.chance.random() < 0.3)
            self.chats = [*self.chats[-1:], made]
        chat = self.chance.choice(self.chats)
        shown = [self.picture()] if self.chance.random() < 0.3 else []
        if len(chat.turns) > 4:
            self.chats.remove(chat)
        chat.ask(self.words()[:30], shown, max_new_tokens=4)

    def pin(self) -> None:
        pinned = self.vlm.pin(self.picture())
        for _ in range(2):
            pinned.ask(self.words(), max_new_tokens=3)

    def cancelled(self) -> None:
        token = CancelToken()
        stream = self.vlm.stream(self.picture(), self.words(), cancel=token, **self.late_options())
        Event().wait(self.chance.random() * 0.01)
        token.cancel()
        stream.result()

    def late(self) -> None:
        deadline_s = self.chance.random() * 0.02 + 1e-4
        options = {**self.late_options(), "deadline_s": deadline_s}
        self.vlm.ask(self.picture(), self.words(), **options)

    def late_options(self) -> dict[str, Any]:
        return {"max_new_tokens": 40, "temperature": 2.0, "seed": self.chance.randint(0, 99)}

    def dropped(self) -> None:
        stream = self.vlm.stream(self.picture(), self.words(), **self.late_options())
        if self.chance.random() < 0.5:
            next(stream, None)

    def waiting(self) -> None:
        """Some at once from a loop."""

        async def ask() -> None:
            await asyncio.gather(
                *(self.vlm.ask_async(self.picture(), "a?", max_new_tokens=2) for _ in range(3))
            )

        asyncio.run(ask())

    def refused(self) -> None:
        wrong: list[dict[str, Any]] = [
            {"max_new_tokens": 10**6},
            {"selector": "divprun"},
            {"budget": "half"},
            {"choices": ["one"]},
            {"question": "\udc00"},
            {"image": b"no picture"},
        ]
        given: dict[str, Any] = {"image": self.picture(), "question": "a?", "cancel": self.token}
        self.vlm.ask(**{**given, **self.chance.choice(wrong)})

    def several(self) -> None:
        self.vlm.ask([self.picture() for _ in range(3)], self.words(), 0.3, max_new_tokens=3)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path keeps the folder open


def opened(bundle: str) -> tuple[VLM, int]:
    if bundle == "stub":
        from stub_model import a_vlm

        return a_vlm(vision_cache_bytes=50_000), 64
    return load(bundle, backend="cpu", threads=1, vision_cache_bytes=CACHE_BYTES), 320


def plant(fault: str, caller: Caller) -> Callable[[], object]:
    """Return what each request does wrong from now on."""
    kept: list[Any] = []
    if fault == "cache":
        caller.vlm._runtime.state.vision_cache.max_bytes = 2**40
    if fault == "watchers":
        caller.token.watch = lambda watcher: kept.append((watcher, bytearray(100_000))) or list  # type: ignore[method-assign]
    if fault == "threads":
        return lambda: Thread(target=Event().wait, daemon=True).start()
    if fault == "files":
        return lambda: kept.append(Path("/dev/null").open())
    return lambda: None


def main(bundle: str, requests: int, seed: int, fault: str = "") -> dict[str, Any]:
    """Ask, and measure."""
    vlm, largest = opened(bundle)
    caller = Caller(vlm, seed, largest=largest)
    also = plant(fault, caller)
    every = max(requests // SAMPLES, 1)
    memory: list[int] = []
    counts: list[tuple[int, int]] = []
    for number in range(requests):
        caller.most = number < WARM_UP * requests / 2
        caller.one()
        also()
        if number % every == every - 1:
            while vlm.health().state != "ready" or vlm.health().waiting:
                Event().wait(0.001)
            gc.collect()
            memory.append(resident_bytes())
            counts.append((len(threads()), open_files()))
    warm = int(len(memory) * WARM_UP)
    tail = max(len(memory) // 10, 1)
    before, after = median(memory[warm : warm + tail]), median(memory[-tail:])
    vlm.close()
    return {
        "before": before,
        "after": after,
        "growth": after - before,
        "share": (after - before) / before,
        "threads": [min(count for count, _ in counts[warm:]), max(c for c, _ in counts[warm:])],
        "files": [min(count for _, count in counts[warm:]), max(c for _, c in counts[warm:])],
        "ends": dict(sorted(caller.ends.items())),
        "memory_mb": [round(each / 2**20, 2) for each in memory[:: max(len(memory) // 20, 1)]],
    }


if __name__ == "__main__":
    bundle, requests, seed, *fault = sys.argv[1:]
    sys.stdout.write(json.dumps(main(bundle, int(requests), int(seed), *fault)) + "\n")
