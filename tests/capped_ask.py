"""Questions asked where memory ends at a moment of the test's choice.

Run as a program: `capped_ask.py STAGE BUNDLE SEED COUNT` tries COUNT cases in one process, and
prints what became of each as JSON. A case caps the address space (RLIMIT_AS) at what is taken by
then and a random room, lets the stage run, and asks for less afterwards.

STAGE is `load`, `vision`, `prefill` or `decode` (of the second token). For the last three, what
malloc still has within the cap is taken too, and given back for the small question, which the cap
still holds for. For `load` it is not: without a kilobyte left, ONNX Runtime 1.31.1 can segfault as
it opens a file, and tokenizers aborts. That is why a load is planned, with some memory to spare.
"""

import json
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import tokprune
from tokprune.errors import OutOfMemory
from tokprune_runtimes import ort

ROOM = {"load": 128 << 20, "vision": 24 << 20, "prefill": 2 << 20, "decode": 4096}
LARGE = [np.random.default_rng(one).integers(0, 256, (640, 640, 3), np.uint8) for one in range(2)]
SMALL = LARGE[0][:112, :112]
QUESTION = "what is this?"


def load(bundle: Path) -> Any:
    """Open a bundle, if it fits."""
    return tokprune.load(
        bundle, backend="cpu", threads=1, verify="sizes", kv_slots=1, vision_cache_bytes=0
    )


def cap(room: int) -> None:
    """Take all that malloc has, down to pieces of a page, and leave so many bytes to the kernel."""
    taken = address_space()
    limit(taken)
    size = 1 << 24
    while size >= 1 << 12:
        with suppress(MemoryError):
            while True:
                ballast.append(bytearray(size))
        size //= 2
    limit(taken + room)


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def trial(stage: str, bundle: Path, vlm: Any, random: np.random.Generator) -> dict[str, Any]:
    """Try one case: what came of the large request, and what the small one answered after it."""
    room = int(random.integers(0, ROOM[stage] + 1))
    try:
        outcome = STAGES[stage](bundle, vlm, room, random)
    except OutOfMemory as error:
        outcome = error.code
    ballast.clear()  # whoever had taken it has ended
    after = vlm.ask(SMALL, QUESTION, 0.5, max_new_tokens=4).text
    limit(resource.RLIM_INFINITY)
    return {"stage": stage, "room": room, "outcome": outcome, "after": after}


def loading(bundle: Path, vlm: Any, room: int, random: np.random.Generator) -> str:
    del vlm, random
    limit(address_space() + room)
    try:
        load(bundle)
    finally:
        limit(resource.RLIM_INFINITY)
    return "loaded"


def encoding(bundle: Path, vlm: Any, room: int, random: np.random.Generator) -> str:
    del bundle, random
    return _asked(vlm, ort.OrtGraph, "run", 0, room)


def prefilling(bundle: Path, vlm: Any, room: int, random: np.random.Generator) -> str:
    del bundle, random
    return _asked(vlm, ort.OrtLoop, "step", 0, room)


def decoding(bundle: Path, vlm: Any, room: int, random: np.random.Generator) -> str:
    del bundle, random
    return _asked(vlm, ort.OrtLoop, "step", 1, room)


def _asked(vlm: Any, kind: type, method: str, number: int, room: int) -> str:
    """Ask for much, with memory ending before the call of that number of an engine's method."""
    real = getattr(kind, method)
    calls = 0

    def counted(self: Any, feeds: Any, interrupt: Any = None) -> Any:
        nonlocal calls
        calls += 1
        if calls == number + 1:
            cap(room)
        return real(self, feeds, interrupt)

    setattr(kind, method, counted)
    try:
        text = vlm.ask(LARGE[: 2 - number], QUESTION, 1.0, "uniform", max_new_tokens=6).text
    finally:
        setattr(kind, method, real)
    return f"answered {text}" if calls > number else "never came so far"


STAGES = {
    "load": loading,
    "vision": encoding,
    "prefill": prefilling,
    "decode": decoding,
}
ballast: list[bytearray] = []


def main(stage: str, bundle: Path, seed: int, count: int) -> dict[str, Any]:
    """Try so many cases."""
    vlm = load(bundle)
    before = vlm.ask(SMALL, QUESTION, 0.5, max_new_tokens=4).text
    random = np.random.default_rng(seed)
    cases = [trial(stage, bundle, vlm, random) for _ in range(count)]
    return {"before": before, "cases": cases}


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    arguments = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    sys.stdout.write(json.dumps(main(*arguments)) + "\n")
