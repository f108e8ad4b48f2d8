"""What came of the questions, and the file that keeps it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from tokprune.errors import RequestInvalid
from tokprune.files import atomic_write
from tokprune_export.evaluation.cells import AGREEMENT, Cell


class Given(msgspec.Struct, frozen=True, array_like=True):
    """An answer."""

    text: str
    kept: int  # vision tokens that entered the LLM
    note: str = ""  # how the picture became smaller
    refused: str = ""  # why there is no answer
    encoded: int | None = None  # vision tokens that were encoded; None: all


class Record(msgspec.Struct, frozen=True):
    """What came of one question: all of it, or what one run added."""

    key: str
    total: int  # vision tokens
    cells: dict[str, Given]
    agreement: dict[str, list[float]] = {}  # recall at 50, at 25 %, Spearman; none without scores

    def has(self, cell: Cell) -> bool:
        """Tell whether a cell is answered."""
        return cell.key in (self.agreement if cell.budget == AGREEMENT else self.cells)

    def with_more(self, other: "Record") -> "Record":
        """Add what another run answered."""
        agreement = self.agreement | other.agreement
        return Record(self.key, self.total, self.cells | other.cells, agreement)


class Store:
    """Records in a file of JSON lines, one line for each time that a question was asked."""

    def __init__(self, path: Path) -> None:
        """Read what earlier runs left, and drop a last line that was cut off.

        Raises:
            RequestInvalid: something else stands in the file.
        """
        self._path = path
        self._records: dict[str, Record] = {}
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            atomic_write(path, whole)
        for number, line in enumerate(whole.splitlines(), start=1):
            self._remember(_record(line, f"{path}, line {number}"))

    @property
    def records(self) -> Mapping[str, Record]:
        """What is known, by key."""
        return self._records

    def missing(self, key: str, cells: Iterable[Cell]) -> tuple[Cell, ...]:
        """Return those cells of a question that are not answered."""
        known = self._records.get(key)
        return tuple(cell for cell in cells if known is None or not known.has(cell))

    def add(self, record: Record) -> None:
        """Keep an answered question: in the file when this returns."""
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")
        self._remember(record)

    def _remember(self, record: Record) -> None:
        known = self._records.get(record.key)
        self._records[record.key] = record if known is None else known.with_more(record)


def _record(line: bytes, place: str) -> Record:
    try:
        return msgspec.json.decode(line, type=Record)
    except msgspec.MsgspecError as error:
        raise RequestInvalid(
            f"{place}: {error}. Delete the line, and its question is asked again"
        ) from None
