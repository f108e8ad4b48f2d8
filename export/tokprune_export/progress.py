"""How far a long command is: a bar on a terminal, a line now and then in a log."""

from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_EVERY_S = 30.0


class Counting:
    """Counts work done out of a known total, with the time that is left."""

    def __init__(self, what: str, total: int, *, shown: bool = True) -> None:
        self._console = Console(stderr=True, quiet=not shown)
        self._what = what
        self._total = total
        self._done = self._known = 0
        self._started = self._logged = monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._bar.add_task(what, total=total, note="")

    def __enter__(self) -> "Counting":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def pass_over(self) -> None:
        """Count what was finished before: it tells nothing of the time that is left."""
        self._known += 1
        self.advance()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add finished work; `note` says more about it."""
        self._done += count
        self._bar.update(self._task, advance=count, note=note)
        now = monotonic()
        due = now - self._logged >= LOG_EVERY_S or self._done == self._total
        if due and not self._console.is_terminal:
            self._logged = now
            elapsed = now - self._started
            left = elapsed * (self._total - self._done) / max(self._done - self._known, 1)
            self._console.print(
                f"{self._what}: {self._done}/{self._total}, {elapsed:.0f} s, {left:.0f} s left"
                + (f", {note}" if note else ""),
                highlight=False,
                soft_wrap=True,
            )
