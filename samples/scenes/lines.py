"""What a training row says, and a row while it is written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from cells import IGNORED

from tokprune.families import Span
from tokprune.scenes import Page, Scene
from tokprune.scenes.film import Film
from tokprune.types import Medium, Prepared

Drawn: TypeAlias = Scene | Film | Page | Medium  # to be drawn, or drawn


@dataclass(frozen=True)
class Answered:
    """The end of a turn: the last words of it, and the answer that the model is to give."""

    text: str
    answer: str
    group: int
    about: int | None = None  # the picture whose things are meant, where a task may ask for them


Part: TypeAlias = str | Answered | int  # an int is a picture or video, by its index in the row


@dataclass(frozen=True)
class Row:
    """Pictures, what all branches share, and the branches (without pictures)."""

    media: tuple[Drawn, ...]
    prefix: tuple[Part, ...]
    branches: tuple[tuple[Part, ...], ...]
    system: str | None = None


@dataclass
class Line:
    """A row while it is written, one list entry a token."""

    media: list[list[Prepared]]  # of each picture; of a video, a family may make several
    drawn: tuple[Drawn, ...]
    ids: list[int] = field(default_factory=list)
    slots: list[bool] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    questions: list[int] = field(default_factory=list)
    referents: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    shown: list[Prepared] = field(default_factory=list)  # in the order of the slots
    pending: str = ""  # text not tokenised yet, as what follows may belong to its last token
    marks: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)  # characters of it
    letters: list[tuple[int, int]] = field(default_factory=list)  # who looks for one, and where
    starts: dict[int, int] = field(default_factory=dict)  # of what is shown, by its id
    asked: int = 0
    segment: int = 0
    ended: bool = False  # whether a turn was answered last

    def add(self, ids: Sequence[int]) -> None:
        """Append tokens that are read, not answered."""
        count = len(ids)
        self.ids += ids
        self.slots += [False] * count
        self.labels += [IGNORED] * count
        self.segments += [self.segment] * count
        self.groups += [0] * count
        self.questions += [-1] * count
        self.spans.append(Span(count))

    def answer(self, ids: Sequence[int], group: int) -> None:
        """Append an answer; the token before it predicts its first token."""
        first = len(self.ids) - 1
        self.add(ids)
        last = first + len(ids)
        self.labels[first:last] = ids
        self.groups[first:last] = [group] * len(ids)
        self.questions[first:last] = [self.asked] * len(ids)
        self.asked += 1

    def show(self, prepared: Prepared, token: int) -> None:
        """Append the vision tokens of a picture."""
        count = len(prepared.where)
        self.starts[id(prepared)] = len(self.ids)
        self.add([token] * count)
        self.slots[-count:] = [True] * count
        self.spans[-1] = Span(count, prepared.regions)
        self.shown.append(prepared)
