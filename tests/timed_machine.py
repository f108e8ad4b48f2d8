"""A machine on paper: its stages cost what a curve says, times what goes on beside them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tokprune.budgets import Budget
from tokprune.selection import keep_all, select
from tokprune.timing.calibrations import SCHEMA, STAGES, Calibration, Curve, Stage
from tokprune.timing.latency import Forecast, Latency
from tokprune.timing.plans import Timing, keeps_all
from tokprune.timing.request_sizes import Sizes
from tokprune.types import Ranking, Selection, VisionTokens

CURVES = {
    "vision": Curve(5.0, 3e-4, 0.0, 1.1, []),
    "first_layer": Curve(1.0, 0.01, 0.0, 1.1, []),
    "scorer": Curve(1.0, 0.002, 0.0, 1.1, []),
    "select": Curve(0.2, 0.002, 0.0, 1.1, []),
    "prefill": Curve(8.0, 0.35, 1e-4, 1.1, []),
}


def calibration(spread: float = 1.1) -> Calibration:
    """What calibrating this machine would give."""
    stages: dict[Stage, Curve] = {
        stage: Curve(CURVES[stage].a, CURVES[stage].b, CURVES[stage].c, spread, [])
        for stage in STAGES
    }
    return Calibration(
        schema=SCHEMA,
        manifest_sha256="0" * 64,
        backend="cpu",
        device="paper",
        threads=1,
        selector="relevance-spread",
        stages=stages,
        system="none",
        cores=1,
        versions={},
        date="2026-11-21T00:00:00+00:00",
        seconds=0.0,
    )


def true_ms(stage: Stage, sizes: Sizes, kept: int) -> float:
    """Return what a stage costs when nothing else runs."""
    level = dict.fromkeys(STAGES, 0.0)
    return Forecast(sizes, calibration().stages, level, 0.0).stage_ms(stage, kept)


@dataclass
class Machine:
    """Runs requests in time of its own. `slower` tells how much slower it is now."""

    sizes: Sizes
    vision: VisionTokens
    ranking: Ranking
    slower: Callable[[], float] = lambda: 1.0
    noise: float = 0.0
    seed: int = 0
    pause_s: float = 0.1  # between requests
    latency: Latency = field(init=False)
    random: np.random.Generator = field(init=False)
    now_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.latency = Latency(calibration(), clock=lambda: self.now_s)

    def ask(self, budget: Budget, *, learn: bool = True) -> tuple[Selection, float]:
        """Return what was kept, and the time to the first token."""
        forecast = self.latency.forecast(self.sizes)
        took: dict[str, float] = {}

        def run(stage: Stage, kept: int = 0) -> None:
            factor = self.slower() * np.exp(self.random.normal(0, self.noise))
            took[stage] = true_ms(stage, self.sizes, kept) * float(factor)

        def clock() -> Timing:
            return Timing(forecast, sum(took.values()), dict(took))

        kept = 0
        try:
            forecast.check(budget)
            run("vision")
            if keeps_all(budget, len(self.vision.embeds), clock):
                selection = select(keep_all(len(self.vision.embeds)), self.vision, budget, clock)
            else:
                run("first_layer")
                run("scorer")
                selection = select(self.ranking, self.vision, budget, clock)
                run("select", selection.kept)
            kept = selection.kept
            run("prefill", kept)
        finally:
            self.now_s += sum(took.values()) / 1000 + self.pause_s
            if learn and took:
                self.latency.learn(self.sizes, kept, took)
        return selection, sum(took.values())
