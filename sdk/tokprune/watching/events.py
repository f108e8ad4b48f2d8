"""What happens while a camera is watched."""

from dataclasses import dataclass
from typing import TypeAlias

from tokprune.camera.health import CameraState, CameraStatus
from tokprune.types import Answer, Clip, Frame, FrameStamp


@dataclass(frozen=True)
class Observation:
    """An answer about a camera, and what it was read from."""

    answer: Answer
    frame: FrameStamp  # of a window, its newest
    age_s: float  # of that frame when the answer was whole
    drops: int  # frames that came since that of the last observation, and were passed over
    state: CameraState  # of the camera when the answer was whole
    question: str
    unchanged: bool  # but for noise: it got the pixels of an earlier frame; False of a window
    number: int  # of this observation, from 0


@dataclass(frozen=True)
class Asked:
    """A question's turn has come: the frame was taken."""

    frame: FrameStamp
    looked: Frame | Clip  # what the model gets
    question: str
    unchanged: bool
    at_s: float  # monotonic time


@dataclass(frozen=True)
class Piece:
    """The answer goes on with this text."""

    text: str


@dataclass(frozen=True)
class Answered:
    """The answer is whole."""

    observation: Observation


@dataclass(frozen=True)
class Failed:
    """There is no answer, and why; or no frame to ask about."""

    error: Exception  # its `code` is stable
    frame: FrameStamp | None  # that was asked about, if it came so far


@dataclass(frozen=True)
class StateChanged:
    """The camera is in another state."""

    status: CameraStatus


WatchEvent: TypeAlias = Asked | Piece | Answered | Failed | StateChanged
