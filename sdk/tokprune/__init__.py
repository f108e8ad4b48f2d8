"""Answer a question about pictures and videos from the few vision tokens that it needs."""

from tokprune.budgets import Auto, Budget, Deadline, KeepCount, KeepMass, KeepRatio
from tokprune.chat import Chat
from tokprune.control import CancelToken
from tokprune.errors import (
    BackendUnavailable,
    BudgetImpossible,
    BuildRefused,
    BundleInvalid,
    Busy,
    Cancelled,
    Closed,
    ContextOverflow,
    DeadlineExceeded,
    EngineFailed,
    EnginesStale,
    EngineTooSmall,
    ForkDetected,
    NotCalibrated,
    OutOfMemory,
    PictureInvalid,
    RequestInvalid,
    SelectorUnavailable,
    TokpruneError,
)
from tokprune.loading import load
from tokprune.memory_plan import MemoryPlan, memory_plan
from tokprune.overlay import overlay
from tokprune.pinned import Pinned
from tokprune.running.request import AskOptions
from tokprune.running.stream import AnswerStream
from tokprune.stats import Stats
from tokprune.tracing import write_trace
from tokprune.types import Answer, Clip, Ranking, Region, Selection
from tokprune.video import clip_of, load_video
from tokprune.vlm import VLM, Health

__all__ = [
    "VLM",
    "Answer",
    "AnswerStream",
    "AskOptions",
    "Auto",
    "BackendUnavailable",
    "Budget",
    "BudgetImpossible",
    "BuildRefused",
    "BundleInvalid",
    "Busy",
    "CancelToken",
    "Cancelled",
    "Chat",
    "Clip",
    "Closed",
    "ContextOverflow",
    "Deadline",
    "DeadlineExceeded",
    "EngineFailed",
    "EngineTooSmall",
    "EnginesStale",
    "ForkDetected",
    "Health",
    "KeepCount",
    "KeepMass",
    "KeepRatio",
    "MemoryPlan",
    "NotCalibrated",
    "OutOfMemory",
    "PictureInvalid",
    "Pinned",
    "Ranking",
    "Region",
    "RequestInvalid",
    "Selection",
    "SelectorUnavailable",
    "Stats",
    "TokpruneError",
    "clip_of",
    "load",
    "load_video",
    "memory_plan",
    "overlay",
    "write_trace",
]
