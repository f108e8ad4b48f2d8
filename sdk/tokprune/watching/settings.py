"""What a watcher asks, and when."""

from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any, Literal, TypeAlias

from typing_extensions import Unpack

from tokprune.budgets import Budget, BudgetLike, budget_of
from tokprune.control import CancelToken
from tokprune.errors import RequestInvalid, unknown
from tokprune.looking import Following
from tokprune.model import Model
from tokprune.running.request import AskOptions, options_of
from tokprune.selectors import Selector
from tokprune.text.choices import choice_tree

Mode: TypeAlias = Literal["continuous", "on_change", "on_demand"]
MODES: tuple[Mode, ...] = ("continuous", "on_change", "on_demand")


class Changes(AskOptions, total=False):
    """Keywords of `Watcher.update`."""

    question: str
    """What is asked."""
    budget: BudgetLike
    """How many vision tokens may enter the LLM."""
    selector: str | Selector | None
    """How they are chosen."""
    system: str | None
    """A system message."""
    mode: Mode
    """When a question is asked."""
    every_s: float
    """At most one question in so many seconds."""


class _Keywords(AskOptions):
    budget: Budget
    selector: str | Selector | None
    system: str | None


@dataclass(frozen=True)
class Settings:
    """What is asked from the next frame on."""

    question: str
    budget: Budget
    selector: str | Selector | None
    system: str | None
    mode: Mode
    every_s: float
    options: AskOptions
    window: int = 1  # frames that are asked about at once, as long as the watcher lives

    @property
    def follows(self) -> bool:
        """Whether the stream is followed: frames are to be seen as they are."""
        return isinstance(self.options.get("encode"), Following)

    def changed(self, model: Model, **changes: Unpack[Changes]) -> "Settings":
        """Return them with changes.

        Raises:
            RequestInvalid, SelectorUnavailable: one makes no sense.
            TypeError: there is no keyword of that name.
        """
        given: dict[str, Any] = dict(changes)
        if "mode" in given:
            check_mode(given["mode"])
        own = {field.name for field in fields(self)} - {"options", "window"}
        if "budget" in given:
            given["budget"] = budget_of(given["budget"])
        options: Any = {**self.options, **{n: v for n, v in given.items() if n not in own}}
        mine = {name: value for name, value in given.items() if name in own}
        made = replace(self, **mine, options=options)
        made.check(model)
        return made

    def asked(self, cancel: CancelToken) -> "_Keywords":
        """Return them as keywords of `VLM.stream`, all but the question."""
        keywords: Any = {**self.options, "cancel": cancel}
        keywords.update(budget=self.budget, selector=self.selector, system=self.system)
        return keywords

    def check(self, model: Model) -> None:
        """Refuse what makes no sense, before any frame is there."""
        options = options_of(self.options)
        options.check()
        if options.choices is not None:
            manifest, longest = model.bundle.manifest, options.max_new_tokens
            choice_tree(options.choices, manifest.chat, manifest.tokens, model.tokenizer, longest)
        model.selector(self.selector)
        model.check_encode(options.encode, self.selector, window=self.window)
        check_mode(self.mode)
        if not (isfinite(self.every_s) and self.every_s >= 0):
            raise RequestInvalid(f"every_s must be 0 seconds or more, got {self.every_s}")
        if self.options.get("cancel") is not None:
            raise RequestInvalid("`Watcher.cancel` ends the running answer: give no `cancel` token")


def check_mode(mode: str) -> None:
    """Refuse what is no mode.

    Raises:
        RequestInvalid: says what is.
    """
    if mode not in MODES:
        raise RequestInvalid(unknown("mode", mode, list(MODES)))
