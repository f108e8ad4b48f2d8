"""A question about a camera, asked again and again."""

from tokprune.watching.events import (
    Answered,
    Asked,
    Failed,
    Observation,
    Piece,
    StateChanged,
    WatchEvent,
)
from tokprune.watching.gate import ChangeGate
from tokprune.watching.watcher import Watcher
from tokprune.watching.window import Window

__all__ = [
    "Answered",
    "Asked",
    "ChangeGate",
    "Failed",
    "Observation",
    "Piece",
    "StateChanged",
    "WatchEvent",
    "Watcher",
    "Window",
]
