"""Measuring a stream that is followed, beside full looks at the same frames."""

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from tokprune.benching import OF_ONE_BUDGET, Cell, Memory, resident_bytes, row_of, run_of
from tokprune.budgets import Budget
from tokprune.looking import Following
from tokprune.types import Answer, Image

AskFrame: TypeAlias = Callable[[Image, Budget, str | Following], Answer]
FULL = "full"


@dataclass
class StreamCell:
    """All answers with one budget: everything encoded, the first frame followed, and the others."""

    budget: str
    follow: Following
    full: Cell = field(init=False)
    first: Cell = field(init=False)
    later: Cell = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a stream: nothing was seen or measured."""
        self.follow.forget()
        self.full, self.first, self.later = (Cell(self.budget) for _ in range(3))


def measure_stream(
    ask: AskFrame,
    frames: Iterator[Image],
    budgets: Mapping[str, Budget],
    *,
    within: int,
    rounds: int,
    warmup: int,
    after_round: Callable[[], None] = lambda: None,
) -> tuple[list[StreamCell], Memory]:
    """Ask about a frame a round, with every budget: in full and followed, turn by turn.

    The first frame after the warm-up begins the stream again, so it is looked at as a whole, and
    `rounds` frames follow it. Every budget follows for itself.
    """
    cells = [StreamCell(name, Following(within)) for name in budgets]
    warm: int | None = None
    for number in range(warmup + 1 + rounds):
        if number == warmup:
            for cell in cells:
                cell.begin()
            gc.collect()
            warm = resident_bytes()
        frame, turn = next(frames), number % len(cells)
        for cell in (*cells[turn:], *cells[:turn]):
            followed = cell.first if number == warmup else cell.later
            looks = [(FULL, cell.full), (cell.follow, followed)]
            for encode, into in looks[:: 1 if number % 2 else -1]:
                _ask_once(ask, frame, budgets[cell.budget], encode, into)
        after_round()
    gc.collect()
    return cells, Memory(warm, resident_bytes())


def _ask_once(
    ask: AskFrame, frame: Image, budget: Budget, encode: str | Following, into: Cell
) -> None:
    before = resident_bytes()
    try:
        answer = ask(frame, budget, encode)
    except OF_ONE_BUDGET as error:
        into.refused += 1
        into.error = error
        return
    after = resident_bytes()
    growth = None if before is None or after is None else after - before
    into.runs.append(run_of(answer, growth))


def stream_row(cell: StreamCell) -> dict[str, Any]:
    """Sum up one budget as a row for programs: the frames after the first, and the others in it."""
    row = {**row_of(cell.later), "first": row_of(cell.first), "full": row_of(cell.full)}
    if not (cell.later.runs and cell.full.runs):
        return row
    full_ms, later_ms = (
        float(np.mean([run.ttft_ms for run in each.runs])) for each in (cell.full, cell.later)
    )
    share = float(np.mean([run.encoded / run.total for run in cell.later.runs]))
    return {
        **row,
        "encoded_share": round(share, 4),
        "ttft_mean_ms": round(later_ms, 3),
        "full_ttft_mean_ms": round(full_ms, 3),
        "faster": round(full_ms / later_ms, 3),
    }
