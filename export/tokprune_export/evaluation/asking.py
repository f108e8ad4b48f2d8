"""One question asked with many selectors and budgets, the costly parts once."""

from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

from tokprune.budgets import Auto, Budget, Deadline, KeepRatio, parse_budget
from tokprune.errors import RequestInvalid
from tokprune.selection import keep_all, select, unless_all
from tokprune.selectors import Scorer
from tokprune.selectors.baselines import random_tokens
from tokprune.selectors.relevance import relevance
from tokprune.timing.latency import open_latency
from tokprune.timing.plans import Clock, Timing
from tokprune.timing.request_sizes import sizes_of
from tokprune.types import FirstLayer, Prompt, Ranking, Scores, Selection, VisionTokens
from tokprune_export.errors import placed
from tokprune_export.evaluation.cells import (
    AGREEMENT,
    DOWNSAMPLE,
    FULL,
    ORACLE,
    RANDOM,
    SHUFFLED,
    Cell,
)
from tokprune_export.evaluation.downsampling import downsampled
from tokprune_export.evaluation.encoding import asked, row_of
from tokprune_export.evaluation.methods import build
from tokprune_export.evaluation.opening import THREADS, Answers, Opened, Setup, encode, opened
from tokprune_export.evaluation.record import Given, Record
from tokprune_export.evaluation.suites import Task


def answer_cells(setup: Setup, task: Task, cells: Sequence[Cell]) -> Record:
    """Ask one question with the selectors and budgets of some cells.

    Raises:
        TokpruneError: the bundle cannot be asked this; says which question and why.
    """
    with placed(task.place):
        return Asking(opened(setup), task, setup.max_new_tokens).record(cells)


class Asking:
    """One question: encoder, first layer and scorers run once, for all cells."""

    def __init__(self, tools: Opened, task: Task, max_new_tokens: int) -> None:
        """Read the pictures, and encode them."""
        self._vlm, self._truth = tools
        self._task = task
        self._most = max_new_tokens
        model = self._vlm.model
        encoded = encode(self._vlm, task)
        self._media, self._prompt, self._prepared, self._vision, self._first = encoded
        self._twin = self._prompt
        if task.other_question:
            self._twin, _ = model.prepare(self._media, task.other_question)
        self._other_first = model.first_layer(self._twin, self._vision)
        self._answers = Answers(self._vlm, self._prompt, self._vision, max_new_tokens)
        self._scores: dict[tuple[str, int], Scores] = {}
        self._rankings: dict[str, Ranking] = {}

    def record(self, cells: Sequence[Cell]) -> Record:
        """Answer, and compare scores with the oracle where a cell asks for that."""
        made: dict[str, Given] = {}
        agreement: dict[str, list[float]] = {}
        for cell in sorted(cells, key=lambda cell: cell.name):
            if cell.name not in self._rankings:
                self._rankings.clear()  # orders may be large, and come name by name
            if cell.budget == AGREEMENT:
                agreement[cell.key] = self._agreement(cell.name)
            else:
                made[cell.key] = self._given(cell)
        return Record(self._task.key, len(self._vision.embeds), made, agreement)

    def _given(self, cell: Cell) -> Given:
        total = len(self._vision.embeds)
        if cell.name == FULL:
            return Given(self._full()[0], total)
        budget = parse_budget(cell.budget)
        if cell.name == DOWNSAMPLE:
            return self._smaller(budget)
        row = row_of(cell.name)
        try:
            if row is not None:
                question, most, seen = self._task.question, self._most, self._task.seen
                answer = asked(self._vlm, self._media, question, row, budget, most, seen)
                return Given(answer.text, answer.kept, encoded=answer.encoded)
            selection = self._selection(cell.name, budget)
        except RequestInvalid as error:  # no scores, no crops, no frames
            return Given("", 0, refused=str(error))
        return Given(self._answers(selection)[0], selection.kept)

    def _full(self) -> tuple[str, list[int]]:
        everything = keep_all(len(self._vision.embeds))
        return self._answers(select(everything, self._vision, KeepRatio(1.0)))

    def _selection(self, name: str, budget: Budget) -> Selection:
        clock = self._clock(budget)
        if isinstance(budget, (Deadline, Auto)):
            budget = replace(budget, best_effort=True)

        def ranked(prompt: Prompt, vision: VisionTokens, first: object) -> Ranking:
            del prompt, vision, first
            return self._ranking(name)

        ranking = unless_all(ranked, budget, clock)(self._prompt, self._vision, self._first)
        return select(ranking, self._vision, budget, clock)

    def _clock(self, budget: Budget) -> Clock | None:
        """Return a clock that goes as this device was calibrated: processes disturb each other."""
        if not isinstance(budget, (Deadline, Auto)):
            return None
        forecast = open_latency(self._vlm.bundle, "cpu", THREADS).forecast(
            sizes_of(self._prompt, self._prepared)
        )
        gone_ms = sum(forecast.stage_ms(stage, 0) for stage in ("vision", "first_layer", "scorer"))
        return lambda: Timing(forecast, gone_ms, {})

    def _ranking(self, name: str) -> Ranking:
        if name not in self._rankings:
            self._rankings[name] = self._ranked(name)
        return self._rankings[name]

    def _ranked(self, name: str) -> Ranking:
        prompt, first = self._prompt, self._first
        plain = name.removesuffix(SHUFFLED)
        if plain != name:
            prompt, first = self._twin, self._other_first
            if not self._task.other_question:
                raise RequestInvalid("Every question is the same: a twin has none to read")
        if plain.startswith(f"{RANDOM}/"):
            seed = crc32(f"{self._task.key} {plain.partition('/')[2]}".encode())
            return random_tokens(seed)(prompt, self._vision, first)
        if plain == ORACLE:
            return relevance(lambda vision, first: self._oracle())(prompt, self._vision, first)
        plain, _, label = plain.partition(" (")
        scorer = self._scorer(label.removesuffix(")"))
        return build(plain, self._vlm.model, scorer)(prompt, self._vision, first)

    def _scorer(self, label: str) -> Scorer:
        """Return the bundle's scorer (no label) or that of a file; each runs once a first layer."""

        def score(vision: VisionTokens, first: FirstLayer) -> Scores:
            key = (label, id(first))
            if key not in self._scores:
                self._scores[key] = self._run_scorer(label, vision, first)
            return self._scores[key]

        return score

    def _run_scorer(self, label: str, vision: VisionTokens, first: FirstLayer) -> Scores:
        if not label:
            return self._vlm.model.scorer(vision, first)
        from tokprune_export.evaluation.truth import scored

        assert self._truth is not None
        return scored(self._truth.scorers[label], vision, first)

    def _oracle(self) -> Scores:
        from tokprune_export.evaluation.truth import oracle_scores

        key = (ORACLE, 0)
        if key not in self._scores:
            assert self._truth is not None
            assert self._truth.teacher is not None
            asked = (self._prompt, self._vision, *self._full())
            self._scores[key] = oracle_scores(self._truth.teacher, *asked)
        return self._scores[key]

    def _agreement(self, name: str) -> list[float]:
        from tokprune_export.evaluation.truth import agreement

        try:
            scores = self._ranking(name).scores
        except RequestInvalid:
            return []
        return [] if scores is None else agreement(scores, self._oracle())

    def _smaller(self, budget: Budget) -> Given:
        """Answer from pictures that have so few tokens by themselves."""
        k = select(keep_all(len(self._vision.embeds)), self._vision, budget).kept
        model = self._vlm.model
        if k == len(self._vision.embeds):
            return Given(self._full()[0], k, "as it is")
        smaller = downsampled(model, self._media, self._task.question, k)
        vision = model.vision(smaller.prepared)
        count = len(vision.embeds)
        answers = Answers(self._vlm, smaller.prompt, vision, self._most)
        text, _ = answers(select(keep_all(count), vision, KeepRatio(1.0)))
        pooled = smaller.how == "pooled"  # after the encoder
        return Given(text, count, smaller.how, encoded=None if pooled else count)
