"""Answers as OpenAI's clients read them, with what tokprune tells beside.

Follows https://platform.openai.com/docs/api-reference/chat/object and chat/streaming.
"""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from tokprune.types import Answer, FinishReason

_FINISH: dict[FinishReason, str] = {  # OpenAI knows these two; the true one is in `tokprune`
    "stop": "stop",
    "repetition": "stop",
    "length": "length",
    "deadline": "length",
    "cancelled": "length",
}


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def _now() -> int:
    return int(time.time())


@dataclass(frozen=True)
class Reply:
    """What all pieces of one reply share."""

    model: str
    received_ms: float  # to receive and read the request
    include_usage: bool = False
    id: str = field(default_factory=_new_id)
    created: int = field(default_factory=_now)

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return a reply that comes at once."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": _FINISH[answer.finish_reason],
            "logprobs": None,
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage(answer),
            "tokprune": extra(answer, self.received_ms),
        }

    def first(self) -> dict[str, Any]:
        """Return the chunk that begins a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> dict[str, Any]:
        """Return a chunk of text."""
        return self._chunk({"content": text})

    def last(self, answer: Answer) -> list[dict[str, Any]]:
        """Return the chunks behind the text: why it ended, and the usage where it was wanted."""
        told = {"tokprune": extra(answer, self.received_ms)}
        chunks = [{**self._chunk({}, _FINISH[answer.finish_reason]), **told}]
        if self.include_usage:
            head = self._head("chat.completion.chunk")
            chunks.append({**head, "choices": [], "usage": usage(answer)})
        return chunks

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        empty = {"usage": None} if self.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **empty}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(answer: Answer) -> dict[str, Any]:
    """Count tokens: of the prompt what entered the LLM, after pruning."""
    prompt, completion = answer.prompt_tokens, len(answer.token_ids)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": answer.reused},
    }


def extra(answer: Answer, received_ms: float) -> dict[str, Any]:
    """Return what OpenAI has no field for. Keys are only ever added.

    Times count from the arrival of the request: `receive` is what came before the call.
    """
    selection = answer.selection
    return {
        "kept": answer.kept,
        "total": answer.total,
        "need": selection.need,
        "cap": selection.cap,
        "reason": selection.reason,
        "selector": answer.selector,
        "finish_reason": answer.finish_reason,
        "timings_ms": {"receive": received_ms, **answer.timings_ms},
        "ttft_ms": received_ms + answer.ttft_ms,
        "choice": answer.choice,
        "probabilities": None if answer.probabilities is None else dict(answer.probabilities),
        "choice_mass": answer.choice_mass,
        "encoder_runs": answer.encoder_runs,
        "encoder_hits": answer.encoder_hits,
        "encode": answer.encode,
        "encoded": answer.encoded,
        "encode_reason": answer.encode_reason,
    }
