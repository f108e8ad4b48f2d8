"""How the next token is drawn from logits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32

from tokprune.errors import RequestInvalid
from tokprune.types import Array

Sampler: TypeAlias = Callable[[Float32[Array, " v"]], int]


@dataclass(frozen=True)
class Sampling:
    """Greedy by default; with a temperature, drawn from the smallest set that holds `top_p`."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise RequestInvalid(f"temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise RequestInvalid(f"top_p must be above 0 and up to 1, got {self.top_p}")
        if self.seed < 0:
            raise RequestInvalid(f"seed must be 0 or more, got {self.seed}")

    def start(self) -> Sampler:
        """Return a sampler for one answer. Equal seeds draw equal answers."""
        if self.temperature == 0:
            return lambda logits: int(logits.argmax())
        rng = np.random.default_rng(self.seed)
        return lambda logits: self._draw(logits, rng)

    def _draw(self, logits: Float32[Array, " v"], rng: np.random.Generator) -> int:
        scaled = logits.astype(np.float64) / self.temperature
        order = np.argsort(-scaled, kind="stable")
        chances = np.exp(scaled[order] - scaled[order[0]])
        chances /= chances.sum()
        # Nucleus sampling (arXiv:1904.09751): the token that crosses top_p still belongs to it.
        count = int(np.searchsorted(chances.cumsum(), self.top_p * (1 - 1e-12))) + 1
        nucleus = chances[:count] / chances[:count].sum()
        return int(order[rng.choice(count, p=nucleus)])


GREEDY = Sampling()
