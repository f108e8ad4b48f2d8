"""How long a build will still take."""

from dataclasses import dataclass, field
from time import perf_counter


@dataclass
class BuildClock:
    """Estimates the time that is left: this phase goes on as it did, later engines by weight."""

    all_bytes: int  # weights of all engines to be built
    began: float = field(default_factory=perf_counter)
    done_bytes: int = 0
    phase_began: dict[str, float] = field(default_factory=dict[str, float])

    def finished(self, weight_bytes: int) -> None:
        """An engine is there."""
        self.done_bytes += weight_bytes
        self.phase_began.clear()

    def eta_s(self, weight_bytes: int, phase: str, step: int, steps: int) -> float | None:
        """Return the seconds left, None while nothing is known.

        Args:
            weight_bytes: of the engine that is being built.
            phase: of its builder. Phases nest; each is timed from its first step.
            step: steps of the phase that are done.
            steps: of how many.
        """
        now = perf_counter()
        began = self.phase_began.setdefault(phase, now)
        if not step:
            return None
        this = (now - began) / step * max(0, steps - step)
        so_far = self.done_bytes + weight_bytes
        later = max(0, self.all_bytes - so_far)
        return this + (now - self.began + this) * later / so_far
