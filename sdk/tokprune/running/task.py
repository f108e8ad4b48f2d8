"""A checked request."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from tokprune.budgets import Budget, KeepCount, KeepRatio, floor_of
from tokprune.kv import KvOwner
from tokprune.llm import check_length
from tokprune.looking import Asked, Small
from tokprune.manifest import Limits
from tokprune.model import MakeSelector
from tokprune.running.request import Options
from tokprune.text.choices import ChoiceTree
from tokprune.types import FrameStamp, Prepared, Prompt, Selection, VisionTokens


@dataclass(frozen=True)
class Task:
    """A checked request, its pictures cut and its prompt laid out."""

    prompt: Prompt
    media: tuple[Prepared, ...]
    budget: Budget
    selector_name: str
    make_selector: MakeSelector
    options: Options
    tree: ChoiceTree | None = None  # of the choices
    owner: KvOwner | None = None  # who will ask again about the same rows
    each_alone: bool = False  # the budget is for each picture, whatever is beside it
    seen: VisionTokens | None = None  # these media, encoded before
    pinned: Selection | None = None  # what was chosen of them before, by the same rule
    frames: tuple[FrameStamp, ...] = ()  # which pictures of cameras are among them
    small: Callable[[], Small] | None = None  # the same at half their size, where the family can

    @cached_property
    def asked(self) -> Asked:
        """What is to be looked at. One, so that all looks at it share calls, and their hashes."""
        return Asked(self.prompt, self.media, self.budget)


def check_fits(task: Task, limits: Limits) -> None:
    """Refuse what the LLM would refuse, as far as it is known before any graph runs.

    Raises:
        ContextOverflow: with the numbers.
    """
    total, budget = len(task.prompt.slots), task.budget
    if isinstance(budget, (KeepRatio, KeepCount)):
        alone = [len(shown.where) for shown in task.media] if task.each_alone else [total]
        kept = sum(budget.plan(count).keep for count in alone)
    else:
        frames = {(region.picture, region.frame) for m in task.media for region in m.regions}
        kept = floor_of(budget, len(frames), total)
    new = task.options.max_new_tokens if task.tree is None else max(task.tree.rows, 1)
    check_length(len(task.prompt.ids) - total + kept, new, limits)
