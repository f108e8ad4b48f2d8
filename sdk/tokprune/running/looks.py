"""How the pictures of a request are looked at, and how its looks are timed."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokprune.looking import FULL, Asked, Look, Looking, looking_of, way_of
from tokprune.model import Model
from tokprune.pipeline import Rank
from tokprune.running.task import Task
from tokprune.selection import unless_all
from tokprune.selectors import SCORING, Selector
from tokprune.stopwatch import Stopwatch
from tokprune.timing.plans import Clock
from tokprune.types import First, Ranking, VisionTokens


def looking_for(model: Model, task: Task) -> tuple[str, Looking]:
    """Return how the pictures are looked at."""
    if task.seen is not None or task.each_alone or not task.media:
        return "full", FULL
    way, scores = way_of(task.options.encode), task.selector_name in SCORING
    seal = model.bundle.manifest.seal
    return looking_of(way, model.processor.ways, task.small, task.asked, scores=scores, model=seal)


@dataclass(frozen=True)
class TimedLooking:
    """Times what a way to look does on the host."""

    looking: Looking
    watch: Stopwatch
    begun: Look | None = None  # the first look, where a budget in time had it made before

    def first(self, asked: Asked) -> Look:
        """Return the first look: cutting pictures is preprocessing."""
        if self.begun is not None:
            return self.begun
        with self.watch.stage("preprocess"):
            return self.looking.first(asked)

    def next(
        self, asked: Asked, looks: Sequence[Look], vision: VisionTokens, ranking: Ranking
    ) -> Look | None:
        """Return the next look: to choose it is selection."""
        with self.watch.stage("select"):
            return self.looking.next(asked, looks, vision, ranking)


def ranked(selector: Selector, clock: Clock | None) -> Rank:
    """Return what ranks the tokens of a look, if any may be dropped or more is to be looked at."""

    def rank(look: Look, vision: VisionTokens, first: First) -> Ranking:
        chosen = unless_all(selector, look.budget, clock) if look.last else selector
        return chosen(look.prompt, vision, first)

    return rank
