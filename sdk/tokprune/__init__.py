"""Answer a question about pictures and videos from the few vision tokens that it needs."""

from tokprune.budgets import Auto, Budget, Deadline, KeepCount, KeepMass, KeepRatio
from tokprune.camera.camera import Camera
from tokprune.camera.connecting import open_camera
from tokprune.camera.health import CameraState, CameraStatus
from tokprune.camera.reading.pushed import PushedFrames
from tokprune.chat import Chat
from tokprune.control import CancelToken
from tokprune.errors import (
    BackendUnavailable,
    BudgetImpossible,
    BuildRefused,
    BundleInvalid,
    Busy,
    CameraFrozen,
    CameraLost,
    CameraUnusable,
    Cancelled,
    Closed,
    ContextOverflow,
    DeadlineExceeded,
    EngineFailed,
    EnginesStale,
    EngineTooSmall,
    ForkDetected,
    FrameTooOld,
    NotCalibrated,
    OutOfMemory,
    PictureInvalid,
    RequestInvalid,
    SelectorUnavailable,
    TokpruneError,
)
from tokprune.loading import load
from tokprune.looking import Following
from tokprune.memory_plan import MemoryPlan, memory_plan
from tokprune.overlay import overlay
from tokprune.pinned import Pinned
from tokprune.running.request import AskOptions
from tokprune.running.stream import AnswerStream
from tokprune.stats import Stats
from tokprune.tracing import write_trace
from tokprune.types import Answer, Clip, Frame, FrameStamp, Ranking, Region, Selection
from tokprune.video import clip_of, load_video
from tokprune.vlm import VLM, Health
from tokprune.watching.events import Observation, WatchEvent
from tokprune.watching.gate import ChangeGate
from tokprune.watching.watcher import Watcher
from tokprune.watching.window import Window

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
    "Camera",
    "CameraFrozen",
    "CameraLost",
    "CameraState",
    "CameraStatus",
    "CameraUnusable",
    "CancelToken",
    "Cancelled",
    "ChangeGate",
    "Chat",
    "Clip",
    "Closed",
    "ContextOverflow",
    "Deadline",
    "DeadlineExceeded",
    "EngineFailed",
    "EngineTooSmall",
    "EnginesStale",
    "Following",
    "ForkDetected",
    "Frame",
    "FrameStamp",
    "FrameTooOld",
    "Health",
    "KeepCount",
    "KeepMass",
    "KeepRatio",
    "MemoryPlan",
    "NotCalibrated",
    "Observation",
    "OutOfMemory",
    "PictureInvalid",
    "Pinned",
    "PushedFrames",
    "Ranking",
    "Region",
    "RequestInvalid",
    "Selection",
    "SelectorUnavailable",
    "Stats",
    "TokpruneError",
    "WatchEvent",
    "Watcher",
    "Window",
    "clip_of",
    "load",
    "load_video",
    "memory_plan",
    "open_camera",
    "overlay",
    "write_trace",
]
