"""The node's parameters. Needs no ROS."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tokprune import RequestInvalid
from tokprune.budgets import budget_of
from tokprune.looking import stream_way


@dataclass(frozen=True)
class Settings:
    """What the node reads when it is configured; config/tokprune.yaml says what each means."""

    bundle: str = ""
    backend: str = "auto"
    threads: int = 0
    budget: str = "0.5"
    selector: str = ""
    encode: str = "full"
    system: str = ""
    max_new_tokens: int = 64
    deadline_s: float = 5.0
    warmup: tuple[str, ...] = ("0.5",)
    admission: str = "reject"
    max_waiting: int = 0
    compressed: bool = False
    max_rate_hz: float = 10.0
    max_frame_age_s: float = 1.0
    frozen_after_s: float = 2.0
    result_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what the SDK would not.

        Raises:
            RequestInvalid: says which parameter.
        """
        if not self.bundle:
            raise RequestInvalid("The parameter bundle is empty: name the exported folder")
        if self.admission not in ("reject", "latest"):
            raise RequestInvalid(
                f"The parameter admission is 'reject' or 'latest', got {self.admission!r}: goals "
                "that wait before the door would hold the executor's threads"
            )
        for name in ("deadline_s", "max_rate_hz", "max_frame_age_s", "result_timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise RequestInvalid(f"The parameter {name} must be above 0")
        for name in ("threads", "max_waiting", "frozen_after_s"):
            if getattr(self, name) < 0:
                raise RequestInvalid(f"The parameter {name} must be 0 or more")
        for budget in (self.budget, *self.warmup):
            budget_of(budget)
        stream_way(self.encode)

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "Settings":
        """Read ROS's parameters, where a list is what a tuple is here.

        Raises:
            RequestInvalid: says which parameter.
        """
        return cls(**{**parameters, "warmup": tuple(parameters["warmup"])})


def most_goals(admission: str, max_waiting: int) -> int:
    """Return how many goals are there at one time: with "latest" one that is being replaced too."""
    return 3 if admission == "latest" else 1 + max_waiting


def defaults() -> dict[str, Any]:
    """Return name and default of each parameter, in ROS's types."""
    return {
        field.name: list(field.default) if isinstance(field.default, tuple) else field.default
        for field in fields(Settings)
    }
