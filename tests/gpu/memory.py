"""Where does the KV cache live, and what happens when the GPU is full?"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from setting import Row, Setting, Skipped, case, cuda_runtime, free_bytes
from stopping import cancelled

from tokprune import OutOfMemory
from tokprune.scenes.suite import Sample, suite
from tokprune.vlm import VLM

ANSWERS = 50
MOST_GROWTH = 8 << 20  # of the GPU's memory over the answers, after the first two
LARGEST_BLOCK, LEAST_BLOCK = 1 << 30, 16 << 10  # with which the GPU is filled


def cache_in_place(setting: Setting) -> Iterator[Row]:
    """Yield whether memory stays where it is over many answers of many tokens."""
    _needs_gpu(setting)
    for precision in setting.precisions:
        yield from case(
            {"precision": precision}, lambda precision=precision: _growth(setting, precision)
        )


def _growth(setting: Setting, precision: str) -> Iterator[Row]:
    sample = next(iter(suite("dev", 1, tokens=196)))
    vlm = setting.open(setting.bundle("qwen2_vl", precision))
    free: list[int] = []
    for _ in range(ANSWERS):
        vlm.ask(list(sample.pictures), sample.question, 0.5, max_new_tokens=64)
        free.append(free_bytes())
    growth = free[1] - min(free[2:])
    yield {
        "cache": vlm.model.llm.form.cache,
        "answers": ANSWERS,
        "growth_bytes": growth,
        "ok": growth <= MOST_GROWTH,
    }


def full_gpu(setting: Setting) -> Iterator[Row]:
    """Yield what a question gets from a GPU without room, and what the VLM is good for afterwards.

    It must be OutOfMemory and nothing else; then the VLM answers as before, and a request that is
    cancelled between two decode steps keeps what was written and leaves it usable.
    """
    _needs_gpu(setting)
    cuda = cuda_runtime()
    if shares_memory(cuda):
        raise Skipped("This GPU's memory is the host's: filling it would have processes killed")
    small, large = (next(iter(suite("dev", 1, tokens=tokens))) for tokens in (100, 400))
    vlm = setting.open(setting.bundle("qwen2_vl", setting.precisions[0]))
    about = {"precision": setting.precisions[0]}
    yield from case(about, lambda: refused_when_full(vlm, cuda, small, large))
    yield from case(about, lambda: cancelled(vlm, small))


def refused_when_full(vlm: VLM, cuda: Any, small: Sample, large: Sample) -> Iterator[Row]:
    """Ask a large question of a full GPU, between two small ones."""
    before = vlm.ask(list(small.pictures), small.question, 0.25).text
    error: OutOfMemory | None = None
    with filled(cuda) as taken:
        try:
            vlm.ask(list(large.pictures), large.question, 1.0)
        except OutOfMemory as refusal:
            error = refusal
    after = vlm.ask(list(small.pictures), small.question, 0.25).text
    found: Row = {"filled_bytes": taken, "same_answer_afterwards": before == after}
    if error is not None:
        yield {**found, "when_full": f"OutOfMemory: {error}", "ok": before == after}
    elif before != after:
        yield {**found, "when_full": "an answer", "ok": False}
    else:
        yield {**found, "skipped": "It was answered: what it had was enough, so nothing was shown"}


@contextmanager
def filled(cuda: Any) -> Generator[int, None, None]:
    """Take all of the GPU's memory, in smaller and smaller blocks; yield how many bytes."""
    taken: dict[int, int] = {}
    size = LARGEST_BLOCK
    try:
        while size >= LEAST_BLOCK:
            error, address = cuda.cudaMalloc(size)
            if int(error):
                cuda.cudaGetLastError()
                size //= 2
            else:
                taken[address] = size
        yield sum(taken.values())
    finally:
        for address in taken:
            cuda.cudaFree(address)


def shares_memory(cuda: Any) -> bool:
    """Tell whether the GPU has no memory of its own, as a Jetson's."""
    attribute = cuda.cudaDeviceAttr.cudaDevAttrIntegrated
    error, integrated = cuda.cudaDeviceGetAttribute(attribute, 0)
    if int(error):
        raise RuntimeError(f"cudaDeviceGetAttribute says {error}")
    return bool(integrated)


def _needs_gpu(setting: Setting) -> None:
    if setting.engine == "cpu":
        raise Skipped("This is about the memory of a GPU")
