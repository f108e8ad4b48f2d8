"""Answer a question about pictures and videos from the few vision tokens that it needs."""

from tokprune.budgets import Budget, KeepCount, KeepRatio
from tokprune.errors import (
    BackendUnavailable,
    BuildRefused,
    BundleInvalid,
    ContextOverflow,
    EnginesStale,
    EngineTooSmall,
    PictureInvalid,
    RequestInvalid,
    SelectorUnavailable,
    TokpruneError,
)
from tokprune.loading import load
from tokprune.overlay import overlay
from tokprune.stream import AnswerStream
from tokprune.types import Answer, Clip, Ranking, Region, Selection
from tokprune.video import clip_of, load_video
from tokprune.vlm import VLM

__all__ = [
    "VLM",
    "Answer",
    "AnswerStream",
    "BackendUnavailable",
    "Budget",
    "BuildRefused",
    "BundleInvalid",
    "Clip",
    "ContextOverflow",
    "EngineTooSmall",
    "EnginesStale",
    "KeepCount",
    "KeepRatio",
    "PictureInvalid",
    "Ranking",
    "Region",
    "RequestInvalid",
    "Selection",
    "SelectorUnavailable",
    "TokpruneError",
    "clip_of",
    "load",
    "load_video",
    "overlay",
]
