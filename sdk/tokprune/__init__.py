"""Answer a question about a picture from the few vision tokens that it needs."""

from tokprune.budgets import Budget, KeepCount, KeepRatio
from tokprune.errors import (
    BackendUnavailable,
    BundleInvalid,
    ContextOverflow,
    PictureInvalid,
    RequestInvalid,
    SelectorUnavailable,
    TokpruneError,
)
from tokprune.loading import load
from tokprune.overlay import overlay
from tokprune.stream import AnswerStream
from tokprune.types import Answer, Ranking, Region, Selection
from tokprune.vlm import VLM

__all__ = [
    "VLM",
    "Answer",
    "AnswerStream",
    "BackendUnavailable",
    "Budget",
    "BundleInvalid",
    "ContextOverflow",
    "KeepCount",
    "KeepRatio",
    "PictureInvalid",
    "Ranking",
    "Region",
    "RequestInvalid",
    "Selection",
    "SelectorUnavailable",
    "TokpruneError",
    "load",
    "overlay",
]
