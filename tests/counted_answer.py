"""An answer made up for tests of statistics."""

import numpy as np

from tokprune.types import Answer, FinishReason, Region, Selection


def answer(
    *,
    ttft_ms: float = 100.0,
    tokens: int = 5,
    decode_ms: float = 200.0,
    kept: int = 16,
    finish_reason: FinishReason = "stop",
) -> Answer:
    return Answer(
        text="a star",
        finish_reason=finish_reason,
        selection=Selection(np.arange(kept), 64, None, kept, "count"),
        regions=(Region(0, 0, 0, 8, 8),),
        where=np.zeros((64, 7), np.int32),
        selector="uniform",
        timings_ms={"decode": decode_ms},
        ttft_ms=ttft_ms,
        token_ids=tuple(range(tokens)),
        encoder_hits=1,
        encoder_runs=2,
        encoded=32,
    )
