"""Where does the KV cache live, and what happens when the GPU is full?"""

from collections.abc import Iterator
from typing import Any

from setting import Setting, Skipped, cuda_runtime, free_bytes

from tokprune import TokpruneError
from tokprune.scenes.suite import suite
from tokprune_runtimes.errors import EngineError

ANSWERS = 50
SPARE = 48 << 20  # left free when the GPU is filled
MOST_GROWTH = 8 << 20  # of the GPU's memory over the answers, after the first two


def cache_in_place(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield whether memory stays where it is over many answers of many tokens."""
    _needs_gpu(setting)
    sample = next(iter(suite("dev", 1, tokens=196)))
    for precision in setting.precisions:
        try:
            vlm = setting.open(setting.bundle("qwen2_vl", precision))
        except Skipped as reason:
            yield {"precision": precision, "skipped": str(reason)}
            continue
        free: list[int] = []
        for _ in range(ANSWERS):
            vlm.ask(list(sample.pictures), sample.question, 0.5, max_new_tokens=64)
            free.append(free_bytes())
        growth = free[1] - min(free[2:])
        yield {
            "precision": precision,
            "cache": vlm.model.llm.form.cache,
            "answers": ANSWERS,
            "growth_bytes": growth,
            "ok": growth <= MOST_GROWTH,
        }


def full_gpu(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield what a question gets from a GPU without room, and whether the next one is answered."""
    _needs_gpu(setting)
    cuda = cuda_runtime()
    samples = list(suite("dev", 2, tokens=400))
    bundle = setting.bundle("qwen2_vl", setting.precisions[0])
    vlm = setting.open(bundle)
    before = vlm.ask(list(samples[0].pictures), samples[0].question, 0.25).text
    taken: list[int] = []
    try:
        while (room := free_bytes()) > SPARE:
            error, address = cuda.cudaMalloc(min(room - SPARE // 2, 1 << 30))
            if int(error):
                cuda.cudaGetLastError()
                break
            taken.append(address)
        try:
            vlm.ask(list(samples[1].pictures), samples[1].question, 1.0)
            got = "an answer: what it had was enough"
        except (TokpruneError, EngineError) as refusal:
            got = f"{type(refusal).__name__}: {refusal}"
    finally:
        for address in taken:
            cuda.cudaFree(address)
    after = vlm.ask(list(samples[0].pictures), samples[0].question, 0.25).text
    yield {"when_full": got, "same_answer_afterwards": before == after, "ok": before == after}


def _needs_gpu(setting: Setting) -> None:
    if setting.engine == "cpu":
        raise Skipped("This is about the memory of a GPU")
