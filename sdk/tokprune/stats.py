"""What a VLM has done since it was loaded: counters, and percentiles of the latest requests."""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from threading import RLock
from time import monotonic
from typing import Any, NamedTuple

from tokprune.types import Answer

LATEST = 512  # requests that percentiles are taken of
TTFT_BUCKETS_S = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)
_MAX_CODES = 64  # errors of our own have about 30; a user's code cannot fill the memory
_OTHER = "other"


class Percentiles(NamedTuple):
    """Of the latest requests that had such a value. Nearest rank: each is one that was measured."""

    samples: int
    p50: float
    p95: float


class Histogram(NamedTuple):
    """Of all requests."""

    buckets: tuple[tuple[float, int], ...]  # upper bound, how many were that or less
    samples: int
    sum: float


@dataclass(frozen=True)
class Stats:
    """A snapshot. Counters only ever grow; percentiles are None until there is a value."""

    uptime_s: float
    answers: Mapping[str, int]  # by finish reason
    errors: Mapping[str, int]  # by code, "busy" included
    tokens_out: int
    vision_tokens: int  # of the whole pictures
    vision_tokens_kept: int
    vision_tokens_encoded: int  # or taken from the vision cache
    encoder_hits: int
    encoder_runs: int
    decode_s: float
    ttft_s: Histogram
    ttft_ms: Percentiles | None
    decode_tokens_per_s: Percentiles | None
    kept_share: Percentiles | None

    @property
    def answered(self) -> int:
        """Requests that ended with an answer, a cut one included."""
        return sum(self.answers.values())

    @property
    def failed(self) -> int:
        """Requests that ended with an error."""
        return sum(self.errors.values())

    @property
    def busy_refusals(self) -> int:
        """Requests that were not admitted."""
        return self.errors.get("busy", 0)

    def as_json(self) -> dict[str, Any]:
        """Return the snapshot as JSON. Keys are only ever added."""
        latest = {
            "ttft_ms": self.ttft_ms,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "kept_share": self.kept_share,
        }
        return {
            "uptime_s": self.uptime_s,
            "answered": self.answered,
            "failed": self.failed,
            "busy_refusals": self.busy_refusals,
            "answers": dict(self.answers),
            "errors": dict(self.errors),
            "tokens_out": self.tokens_out,
            "vision_tokens": self.vision_tokens,
            "vision_tokens_kept": self.vision_tokens_kept,
            "vision_tokens_encoded": self.vision_tokens_encoded,
            "encoder_hits": self.encoder_hits,
            "encoder_runs": self.encoder_runs,
            "decode_s": self.decode_s,
            **{name: value and value._asdict() for name, value in latest.items()},
        }


class StatsRecorder:
    """Counts what a VLM does. Safe to use from several threads; its memory is bounded."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._lock = RLock()  # a signal handler may cancel a request within `snapshot`
        self._answers: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self._decode_s = 0.0
        self._ttft_s = 0.0
        self._buckets = [0] * (len(TTFT_BUCKETS_S) + 1)
        self._ttfts: deque[float] = deque(maxlen=LATEST)
        self._speeds: deque[float] = deque(maxlen=LATEST)
        self._shares: deque[float] = deque(maxlen=LATEST)

    def record(self, answer: Answer) -> None:
        """Count an answer."""
        decode_s = answer.timings_ms.get("decode", 0.0) / 1000
        following = len(answer.token_ids) - 1  # the first is prefill's
        with self._lock:
            self._answers[answer.finish_reason] += 1
            self._sums["tokens"] += len(answer.token_ids)
            self._sums["total"] += answer.total
            self._sums["kept"] += answer.kept
            self._sums["encoded"] += answer.encoded
            self._sums["hits"] += answer.encoder_hits
            self._sums["runs"] += answer.encoder_runs
            self._decode_s += decode_s
            self._ttft_s += answer.ttft_ms / 1000
            self._buckets[bisect_left(TTFT_BUCKETS_S, answer.ttft_ms / 1000)] += 1
            self._ttfts.append(answer.ttft_ms)
            if following > 0 and decode_s > 0:
                self._speeds.append(following / decode_s)
            if answer.total:
                self._shares.append(answer.kept / answer.total)

    def record_error(self, code: str) -> None:
        """Count a request that ended with an error, by the error's code."""
        with self._lock:
            known = code in self._errors or len(self._errors) < _MAX_CODES
            self._errors[code if known else _OTHER] += 1

    def snapshot(self) -> Stats:
        """Return the figures as they are now, all of one moment."""
        with self._lock:
            sums = self._sums
            return Stats(
                uptime_s=self._clock() - self._began,
                answers=dict(self._answers),
                errors=dict(self._errors),
                tokens_out=sums["tokens"],
                vision_tokens=sums["total"],
                vision_tokens_kept=sums["kept"],
                vision_tokens_encoded=sums["encoded"],
                encoder_hits=sums["hits"],
                encoder_runs=sums["runs"],
                decode_s=self._decode_s,
                ttft_s=self._histogram(),
                ttft_ms=percentiles(self._ttfts),
                decode_tokens_per_s=percentiles(self._speeds),
                kept_share=percentiles(self._shares),
            )

    def _histogram(self) -> Histogram:
        rows: list[tuple[float, int]] = []
        below = 0
        for bound, count in zip(TTFT_BUCKETS_S, self._buckets, strict=False):
            below += count
            rows.append((bound, below))
        return Histogram(tuple(rows), sum(self._buckets), self._ttft_s)


def percentiles(values: Iterable[float]) -> Percentiles | None:
    """Return the 50th and 95th percentile by nearest rank, None of nothing."""
    ranked = sorted(values)
    if not ranked:
        return None
    p50, p95 = (ranked[ceil(share * len(ranked)) - 1] for share in (0.5, 0.95))
    return Percentiles(len(ranked), p50, p95)
