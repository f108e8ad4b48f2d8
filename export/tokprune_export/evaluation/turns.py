"""The two-turn test: a second question about what a first one has chosen tokens of.

Four ways to ask it with a budget: afresh (a new conversation, tokens chosen for it); as the second
turn, tokens chosen again for it; as the second turn from the tokens that the first question chose,
which is what reusing its KV cache amounts to; and from these in a new conversation, which tells
what the wrong tokens cost from what the longer conversation does.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tokprune.budgets import KeepRatio, parse_budget
from tokprune.errors import RequestInvalid
from tokprune.prompting import Conversation, Shown, Turn
from tokprune.selection import keep_all, select, unless_all
from tokprune.types import First, Prompt, Selection
from tokprune_export.errors import placed
from tokprune_export.evaluation.cells import FULL, UNPRUNED, Cell
from tokprune_export.evaluation.methods import build
from tokprune_export.evaluation.opening import Answers, Opened, Setup, opened
from tokprune_export.evaluation.options import is_fixed
from tokprune_export.evaluation.record import Given, Record
from tokprune_export.evaluation.suites import Task
from tokprune_export.media import load

AFRESH, AGAIN, REUSED, REUSED_ALONE = "afresh", "selected again", "reused", "reused alone"
WAYS = (AFRESH, AGAIN, REUSED, REUSED_ALONE)


def named(selector: str, way: str) -> str:
    """Return the name of a selector's cells for one way of asking."""
    return f"{selector}, {way}"


def turn_cells(selectors: Sequence[str], budgets: Sequence[str]) -> list[Cell]:
    """Return the cells of the test: fixed budgets below all tokens, and the unpruned answers."""
    pruned = [budget for budget in budgets if is_fixed(budget) and budget != UNPRUNED]
    found = [Cell(named(FULL, way), UNPRUNED) for way in (AFRESH, AGAIN)]
    found += [Cell(named(s, way), b) for s in selectors for b in pruned for way in WAYS]
    return found


def answer_turns(setup: Setup, task: Task, cells: Sequence[Cell]) -> Record:
    """Ask a second question in each way.

    Raises:
        TokpruneError: the bundle cannot be asked this; says which question and why.
    """
    with placed(task.place):
        return _Turns(opened(setup), task, setup.max_new_tokens).record(cells)


class _Asked(NamedTuple):
    prompt: Prompt
    first: First
    answers: Answers


class _Turns:
    """Two questions about the same media, which are encoded once."""

    def __init__(self, tools: Opened, task: Task, max_new_tokens: int) -> None:
        self._vlm = tools.vlm
        self._task = task
        self._most = max_new_tokens
        self._media = [load(medium) for medium in task.media]
        model = self._vlm.model
        prompt, self._prepared = model.prepare(self._media, task.before)
        self._vision = model.vision(self._prepared)
        self._before = self._asked(prompt)
        self._alone = self._asked(model.prepare(self._media, task.question)[0])
        self._seconds: dict[str, _Asked] = {}  # by what was answered before

    def record(self, cells: Sequence[Cell]) -> Record:
        """Answer."""
        made: dict[str, Given] = {}
        for cell in cells:
            selector, _, way = cell.name.rpartition(", ")
            made[cell.key] = self._given(selector, way, cell.budget)
        return Record(self._task.key, len(self._vision.embeds), made)

    def _given(self, selector: str, way: str, budget: str) -> Given:
        try:
            before = self._select(selector, self._before, budget)
            asked = self._alone
            if way in (AGAIN, REUSED):
                asked = self._second(self._before.answers(before)[0])
            reused = way in (REUSED, REUSED_ALONE)
            selection = before if reused else self._select(selector, asked, budget)
        except RequestInvalid as error:  # no crops, no frames
            return Given("", 0, refused=str(error))
        return Given(asked.answers(selection)[0], selection.kept)

    def _select(self, name: str, asked: _Asked, text: str) -> Selection:
        total = len(self._vision.embeds)
        if name == FULL:
            return select(keep_all(total), self._vision, KeepRatio(1.0))
        model, budget = self._vlm.model, parse_budget(text)
        selector = unless_all(build(name, model, model.scorer), budget)
        ranking = selector(asked.prompt, self._vision, asked.first)
        return select(ranking, self._vision, budget)

    def _second(self, answer: str) -> _Asked:
        if answer not in self._seconds:
            shown = tuple(Shown(index) for index in range(len(self._media)))
            turns = (Turn((*shown, self._task.before), answer), Turn((self._task.question,)))
            prompt = self._vlm.model.prompt(Conversation(turns), self._prepared)
            self._seconds[answer] = self._asked(prompt)
        return self._seconds[answer]

    def _asked(self, prompt: Prompt) -> _Asked:
        first = self._vlm.model.first_layer(prompt, self._vision)
        return _Asked(prompt, first, Answers(self._vlm, prompt, self._vision, self._most))
