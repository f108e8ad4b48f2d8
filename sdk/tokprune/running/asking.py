"""A request before it comes to the worker: what it asks, and what its pictures were read to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from tokprune.budgets import BudgetLike
from tokprune.kv import KvOwner
from tokprune.looking import Small
from tokprune.running.request import Options
from tokprune.running.task import Task
from tokprune.selectors import Selector
from tokprune.types import Answer, FrameStamp, Prepared, Prompt, Selection, VisionTokens


@dataclass(frozen=True)
class Layout:
    """A prompt, its pictures cut, and their vision tokens where they were encoded before."""

    prompt: Prompt
    media: tuple[Prepared, ...]
    seen: VisionTokens | None = None
    pinned: Selection | None = None  # what was chosen of them before, by the same rule
    frames: tuple[FrameStamp, ...] = ()  # which pictures of cameras are among them
    small: Callable[[], Small] | None = None  # the same at half their size, where the family can


Done: TypeAlias = Callable[[Answer, Layout, VisionTokens], None]


def _nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Ask:
    """A request before its pictures are read."""

    layout: Callable[[], Layout]  # reads them; runs on the caller's thread, or the worker's
    budget: BudgetLike
    selector: str | Selector | None
    options: Options
    owner: KvOwner | None = None  # who will ask again about the same rows
    each_alone: bool = False  # the budget is for each picture, whatever is beside it
    late: bool = False  # read them when the request's turn has come: a camera's newest
    done: Done = _nothing  # called on the worker's thread with the answer, before it is handed out
    ended: Callable[[], None] = _nothing  # called once, answered or not


class Ready(NamedTuple):
    """A request whose pictures were read."""

    layout: Layout
    task: Task
