"""What every answer cost, so that accuracy and kept share can be joined."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokprune.errors import RequestInvalid
from tokprune.types import Answer


@dataclass(frozen=True)
class Record:
    """One answer, as it stands in the answers file. Fields are only ever added."""

    task: str
    split: str
    doc_id: int
    request: str  # "generate_until", "generate_until_multi_round" or "loglikelihood"
    round: int  # of several rounds, or repetition of a drawn answer, from 0
    text: str
    kept: int | None  # vision tokens that entered the LLM; None: the sample could not be asked
    total: int | None
    reason: str | None  # why that many
    selector: str | None
    finish_reason: str | None
    prompt_tokens: int | None  # rows that entered the LLM, kept vision tokens included
    output_tokens: int | None
    ttft_ms: float | None
    total_ms: float | None  # of all stages, the wait before them included
    encoder_runs: int | None
    encoder_hits: int | None  # calls that the vision cache answered: the TTFT lacks them
    ignored: tuple[str, ...] = ()  # generation keywords of the task that change nothing here
    error: str | None = None

    @property
    def share(self) -> float | None:
        """Kept share of the vision tokens; None where nothing was shown or asked."""
        return self.kept / self.total if self.total and self.kept is not None else None


@dataclass(frozen=True)
class Place:
    """Which request an answer belongs to."""

    task: str
    split: str
    doc_id: int
    request: str
    round: int = 0


def record_of(place: Place, answer: Answer, ignored: Sequence[str] = ()) -> Record:
    """Note an answer."""
    return Record(
        **asdict(place),
        text=answer.text,
        kept=answer.kept,
        total=answer.total,
        reason=answer.selection.reason,
        selector=answer.selector,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        output_tokens=len(answer.token_ids),
        ttft_ms=answer.ttft_ms,
        total_ms=sum(answer.timings_ms.values()),
        encoder_runs=answer.encoder_runs,
        encoder_hits=answer.encoder_hits,
        ignored=tuple(ignored),
    )


def failed_record(place: Place, error: Exception, ignored: Sequence[str] = ()) -> Record:
    """Note that a sample could not be asked; it counts as answered with nothing."""
    fields = dict.fromkeys(
        ("kept", "total", "reason", "selector", "finish_reason", "prompt_tokens", "output_tokens",
         "ttft_ms", "total_ms", "encoder_runs", "encoder_hits")
    )  # fmt: skip
    return Record(
        **asdict(place), text="", ignored=tuple(ignored), error=f"{error!s:.500}", **fields
    )


class Ledger:
    """Keeps the records of one evaluation, and writes each to a file as it comes."""

    def __init__(self, path: str | None) -> None:
        """Begin a new file, if one is named.

        Raises:
            RequestInvalid: it is there already, or cannot be written.
        """
        self._path = None if path is None else Path(path)
        self.records: list[Record] = []
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.touch(exist_ok=False)
            except OSError as error:
                raise RequestInvalid(
                    f"answers={path!r} cannot be begun ({error.strerror}): give the name of a new "
                    "file, so that two evaluations are not mixed"
                ) from None

    def add(self, record: Record) -> None:
        """Note one more."""
        self.records.append(record)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def summary(records: Sequence[Record]) -> dict[str, float]:
    """Return means over all answers, and the kept share of each task, for the harness's results.

    `ttft_ms` is over answers for which the whole encoder ran: a picture of the question before is
    in the vision cache.
    """
    found = {
        "kept_share": _mean([r.share for r in records]),
        "kept_tokens": _mean([r.kept for r in records]),
        "vision_tokens": _mean([r.total for r in records]),
        "ttft_ms": _mean([r.ttft_ms for r in records if not r.encoder_hits]),
        "cut_at_max_new_tokens": float(sum(r.finish_reason == "length" for r in records)),
        "not_asked": float(sum(r.error is not None for r in records)),
    }
    for task, own in by_task(records).items():
        found[f"kept_share/{task}"] = _mean([r.share for r in own])
    return {name: value for name, value in found.items() if value is not None}


def table(records: Sequence[Record]) -> str:
    """Return the same for people, a line a task."""
    lines = ["task: answers, vision tokens kept, time to the first token (encoder run)"]
    for task, own in by_task(records).items():
        means = summary(own)
        line = f"{task}: {len(own)}"
        if "kept_share" in means:
            line += (
                f", {means['kept_share']:.1%} ({means['kept_tokens']:.1f} of "
                f"{means['vision_tokens']:.1f})"
            )
        if "ttft_ms" in means:
            line += f", {means['ttft_ms']:.1f} ms"
        for name in ("cut_at_max_new_tokens", "not_asked"):
            if means[name]:
                line += f", {means[name]:.0f} {name.replace('_', ' ')}"
        ignored = sorted({name for record in own for name in record.ignored})
        lines.append(line + (f"; ignored: {', '.join(ignored)}" if ignored else ""))
    return "\n".join(lines)


def by_task(records: Sequence[Record]) -> Mapping[str, list[Record]]:
    """Group records in the order of their tasks."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.task, []).append(record)
    return found


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
