"""The same slice of an LLM in transformers: SDPA, fp16, nothing pruned."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from setting import Row, Skipped

WARM_UP = 2  # rounds that do not count


class Times(NamedTuple):
    """Of one answer."""

    prefill_ms: float  # until the first token's id is on the host
    decode_token_ms: float


def baseline(
    checkpoint: Path, rows: int, new_tokens: int, rounds: int, device: str
) -> Iterator[Row]:
    """Yield time to first token and decoding time of a slice.

    The first token is what the whole prompt's prefill and the head over its last row give.

    Args:
        checkpoint: the slice's.
        rows: of the unpruned prompt.
        new_tokens: of an answer.
        rounds: that are timed.
        device: "cuda", or "cpu" to try this program: in float32 there.

    Raises:
        Skipped: torch or transformers are not here, or torch sees no GPU.
    """
    try:
        import torch
        from transformers import Qwen2VLForConditionalGeneration
    except ImportError as error:
        raise Skipped(str(error)) from None
    if device == "cuda" and not torch.cuda.is_available():
        raise Skipped("torch sees no CUDA device here")
    dtype = torch.float16 if device == "cuda" else torch.float32
    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(
        checkpoint, dtype=dtype, attn_implementation="sdpa"
    )
    model = model.to(device).eval()
    hidden = model.config.get_text_config().hidden_size
    embeds = torch.randn(1, rows, hidden, dtype=dtype, device=device)
    with torch.inference_mode():
        times = [_timed(model, embeds, new_tokens) for _ in range(rounds + WARM_UP)][WARM_UP:]
    del model, embeds
    if device == "cuda":
        torch.cuda.empty_cache()
    yield {
        "rows": rows,
        "prefill_ms": round(median(each.prefill_ms for each in times), 4),
        "decode_token_ms": round(median(each.decode_token_ms for each in times), 4),
    }


def _timed(model: Any, embeds: Any, new_tokens: int) -> Times:
    """Answer once, greedily. Reading a token's id waits for the GPU."""
    text, table, head = model.model.language_model, model.get_input_embeddings(), model.lm_head
    start = perf_counter()
    state = text(inputs_embeds=embeds, use_cache=True)
    token = head(state.last_hidden_state[:, -1:]).argmax(-1)
    int(token)
    first = perf_counter()
    for _ in range(new_tokens - 1):
        state = text(
            inputs_embeds=table(token), past_key_values=state.past_key_values, use_cache=True
        )
        token = head(state.last_hidden_state[:, -1:]).argmax(-1)
        int(token)
    steps = max(new_tokens - 1, 1)
    return Times((first - start) * 1000, (perf_counter() - first) * 1000 / steps)
