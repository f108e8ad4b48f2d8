"""An answer with all its numbers, as the page and the event log get it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tokprune
from camera_page.events import Answered
from camera_page.layers import Layer
from camera_page.photos import Photo
from tokprune.types import Clip, FrameStamp

TTFT_STAGES = ("wait", "preprocess", "vision", "first_layer", "scorer", "select", "prefill")


@dataclass
class Run:
    """A question on its way: what it is about, and what was written so far."""

    id: int
    question: str
    budget: str
    stamp: FrameStamp | None = None
    clip: Clip | None = None
    photo: Photo | None = None
    text: str = ""


@dataclass(frozen=True)
class Reuse:
    """How many calls of the vision encoder the vision cache answered, and how many ran."""

    hits: int = 0
    runs: int = 0

    def with_answer(self, answer: tokprune.Answer) -> "Reuse":
        """Count those of an answer too."""
        return Reuse(self.hits + answer.encoder_hits, self.runs + answer.encoder_runs)


def answered(
    source: int,
    run: Run,
    seen: tokprune.Observation,
    reuse: Reuse,
    layers: Sequence[Layer],
) -> Answered:
    """Return what the page is told of an answer."""
    answer, stamp = seen.answer, seen.frame
    return Answered(
        source=source,
        id=run.id,
        number=stamp.number,
        wall_s=stamp.wall_s,
        media_s=stamp.media_s,
        frames=1 if run.clip is None else len(run.clip.frames),
        age_s=round(seen.age_s, 4),
        age_now_s=round(stamp.age_s(), 4),
        question=seen.question,
        text=answer.text,
        choice=answer.choice,
        probabilities=answer.probabilities,
        finish_reason=answer.finish_reason,
        budget=run.budget,
        selector=answer.selector,
        drops=seen.drops,
        unchanged=seen.unchanged,
        encoder_hits_total=reuse.hits,
        encoder_runs_total=reuse.runs,
        layers=layers,
        **_figures(answer),
    )


def _figures(answer: tokprune.Answer) -> dict[str, Any]:
    """Return what an answer was read from, and what it cost."""
    return {
        "kept": answer.kept,
        "total": answer.total,
        "encode": answer.encode,
        "encoded": answer.encoded,
        "encode_reason": answer.encode_reason,
        "need": answer.selection.need,
        "cap": answer.selection.cap,
        "reason": answer.selection.reason,
        "ttft_ms": round(answer.ttft_ms, 3),
        "stages": stages_of(answer),
        "decode_ms": round(answer.timings_ms.get("decode", 0.0), 3),
        "tokens": len(answer.token_ids),
        "tokens_per_s": tokens_per_s(answer),
        "prompt_tokens": answer.prompt_tokens,
        "reused_rows": answer.reused,
        "encoder_hits": answer.encoder_hits,
        "encoder_runs": answer.encoder_runs,
    }


def stages_of(answer: tokprune.Answer) -> list[tuple[str, float]]:
    """Return the time to the first token by stage, in the order of the flow; they sum up to it."""
    times = answer.timings_ms
    stages = [(name, round(times[name], 3)) for name in TTFT_STAGES if times.get(name, 0) > 0]
    rest = answer.ttft_ms - sum(value for _, value in stages)
    return [*stages, ("other", round(rest, 3))] if rest > 0.1 else stages


def tokens_per_s(answer: tokprune.Answer) -> float | None:
    """Return the rate of decoding; None where no token was decoded after the first."""
    decode_ms, steps = answer.timings_ms.get("decode", 0.0), len(answer.token_ids) - 1
    return round(1000 * steps / decode_ms, 1) if steps > 0 and decode_ms > 0 else None
