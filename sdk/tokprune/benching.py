"""Measuring a loaded bundle: time to the first token by stage, decode speed, memory."""

import gc
import os
import platform
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from tokprune.budgets import Budget
from tokprune.errors import BudgetImpossible, ContextOverflow, NotCalibrated, TokpruneError
from tokprune.types import Answer, Image

Ask: TypeAlias = Callable[[Image, Budget], Answer]
Rows: TypeAlias = list[dict[str, Any]]

OF_ONE_BUDGET: Final = (BudgetImpossible, ContextOverflow, NotCalibrated)  # others go on
PACKAGES: Final = ("tokprune", "onnxruntime", "onnxruntime-gpu", "tensorrt", "numpy")


@dataclass(frozen=True)
class Run:
    """One answer, as far as it is measured."""

    kept: int
    total: int
    tokens: int
    ttft_ms: float
    stages_ms: Mapping[str, float]  # up to the first token
    decode_ms: float
    decode_steps: int  # runs of the LLM after the first token; the one that ends the answer too
    rss_growth_bytes: int | None
    encoded: int = 0


@dataclass
class Cell:
    """All answers with one budget, and the error of those that were none."""

    budget: str
    runs: list[Run] = field(default_factory=list[Run])
    refused: int = 0
    error: TokpruneError | None = None  # the last one


@dataclass(frozen=True)
class Memory:
    """Resident memory of this process, in bytes; None where there is no /proc."""

    warm: int | None  # after the warm-up
    end: int | None

    @property
    def growth(self) -> int | None:
        """What the measured rounds added."""
        return None if self.warm is None or self.end is None else self.end - self.warm


def measure(
    ask: Ask,
    picture: Image,
    budgets: Mapping[str, Budget],
    *,
    rounds: int,
    warmup: int,
    after_round: Callable[[], None] = lambda: None,
) -> tuple[list[Cell], Memory]:
    """Ask about a picture with every budget in every round, so that all meet the same machine.

    The order turns from round to round. Nothing of the first `warmup` rounds counts. One pixel
    differs from answer to answer, so that no cache of pictures or prompts takes work away.
    """
    cells = {name: Cell(name) for name in budgets}
    names = list(budgets)
    asked = 0
    warm: int | None = None
    for number in range(warmup + rounds):
        if number == warmup:
            cells = {name: Cell(name) for name in budgets}
            gc.collect()
            warm = resident_bytes()
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            asked += 1
            _ask_once(ask, marked(picture, asked), budgets[name], cells[name])
        after_round()
    gc.collect()
    return list(cells.values()), Memory(warm, resident_bytes())


def _ask_once(ask: Ask, picture: Image, budget: Budget, cell: Cell) -> None:
    before = resident_bytes()
    try:
        answer = ask(picture, budget)
    except OF_ONE_BUDGET as error:
        cell.refused += 1
        cell.error = error
        return
    after = resident_bytes()
    growth = None if before is None or after is None else after - before
    cell.runs.append(run_of(answer, growth))


def marked(picture: Image, number: int) -> Image:
    """Return a copy whose first pixel is the number."""
    copy = np.array(picture)
    copy[0, 0] = [number >> shift & 255 for shift in (16, 8, 0)]
    return copy


def run_of(answer: Answer, rss_growth_bytes: int | None) -> Run:
    """Take from an answer what is measured."""
    stages = dict(answer.timings_ms)
    decode_ms = stages.pop("decode", 0.0)
    tokens = len(answer.token_ids)
    # The first token is prefill's. An answer that ended by itself took a run to say so.
    steps = tokens if answer.finish_reason == "stop" else tokens - 1
    return Run(
        kept=answer.kept,
        total=answer.total,
        tokens=tokens,
        ttft_ms=answer.ttft_ms,
        stages_ms=stages,
        decode_ms=decode_ms,
        decode_steps=max(0, steps),
        rss_growth_bytes=rss_growth_bytes,
        encoded=answer.encoded,
    )


def row_of(cell: Cell) -> dict[str, Any]:
    """Sum up one budget as a row for programs."""
    row: dict[str, Any] = {
        "budget": cell.budget,
        "rounds": len(cell.runs),
        "refused": cell.refused,
        "error": None
        if cell.error is None
        else {"code": cell.error.code, "message": str(cell.error)},
    }
    runs = cell.runs
    if not runs:
        return row
    each_ms = [run.decode_ms / run.decode_steps for run in runs if run.decode_steps]
    growth = [run.rss_growth_bytes for run in runs if run.rss_growth_bytes is not None]
    stages = dict.fromkeys(name for run in runs for name in run.stages_ms)
    return {
        **row,
        "kept": _spread([run.kept for run in runs]),
        "encoded": _spread([run.encoded for run in runs]),
        "total": runs[0].total,
        "answer_tokens": round(float(np.mean([run.tokens for run in runs])), 1),
        "ttft_ms": percentiles([run.ttft_ms for run in runs]),
        "stages_ms": {
            name: percentiles([run.stages_ms.get(name, 0.0) for run in runs]) for name in stages
        },
        "decode_steps": sum(run.decode_steps for run in runs),
        "decode_ms_per_token": percentiles(each_ms) if each_ms else None,
        "decode_tokens_per_s": round(1000 / float(np.median(each_ms)), 2) if any(each_ms) else None,
        "rss_growth_bytes": sum(growth) if growth else None,
    }


def _spread(counts: Sequence[int]) -> dict[str, float]:
    mean = round(float(np.mean(counts)), 1)
    return {"mean": mean, "min": min(counts), "max": max(counts)}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the 95th percentile, between neighbours linearly."""
    p50, p95 = np.percentile(np.asarray(values, np.float64), [50, 95])
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}


def fastest(rows: Mapping[str, Rows]) -> Rows:
    """Return, for each budget that several bundles were measured with, which is fastest at what.

    Args:
        rows: by bundle.
    """
    ranks: Rows = []
    budgets = dict.fromkeys(row["budget"] for each in rows.values() for row in each)
    for budget in budgets:
        found = {
            bundle: row for bundle, each in rows.items() for row in each if row["budget"] == budget
        }
        for stage, ms in (("prefill", _prefill_ms), ("decode", _decode_ms)):
            times = {bundle: time for bundle, row in found.items() if (time := ms(row))}
            if len(times) < 2:
                continue
            first, second, *_ = sorted(times, key=lambda bundle: times[bundle])
            lead = round(times[second] / times[first], 3)
            ranks.append(
                {"budget": budget, "stage": stage, "bundle": first, "next": second, "lead": lead}
            )
    return ranks


def _prefill_ms(row: Mapping[str, Any]) -> float | None:
    stage = row.get("stages_ms", {}).get("prefill")
    return stage and stage["p50"]


def _decode_ms(row: Mapping[str, Any]) -> float | None:
    each = row.get("decode_ms_per_token")
    return each and each["p50"]


def resident_bytes() -> int | None:
    """Return this process' resident memory, where /proc tells it."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else None


def machine() -> dict[str, Any]:
    """Return what figures depend on: date, processor, memory, load, versions."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in PACKAGES if (found := _version(name))},
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the board's name where it has one (a Jetson), else the processor's."""
    board = Path("/proc/device-tree/model")
    if board.exists():
        return board.read_text().rstrip("\0\n")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
