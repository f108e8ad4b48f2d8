"""What the page is told. Nothing here holds a camera's address."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from camera_page.layers import Layer
from camera_page.messages import Mode
from tokprune.errors import TokpruneError


class _Event(msgspec.Struct, frozen=True, tag_field="type"):
    """One text message to browsers."""


class Hello(_Event, frozen=True, tag="hello"):
    """What is the same as long as the server runs."""

    bundle: str
    family: str
    backend: str
    selectors: Sequence[str]
    default_selector: str
    encodes: Sequence[str]
    presets: Sequence[Mapping[str, Any]]
    longest: int  # answer, in tokens
    logging: str  # whether events are written down, in words


class Sources(_Event, frozen=True, tag="sources"):
    """All cameras, in the order of their tabs."""

    sources: Sequence[Mapping[str, Any]]  # id, name, shown


class Settings(_Event, frozen=True, tag="settings"):
    """What is asked, and how."""

    source: int
    question: str
    budget: str
    selector: str | None
    encode: str
    choices: Sequence[str]
    max_new_tokens: int
    mode: Mode
    paused: bool


class CameraSeen(_Event, frozen=True, tag="camera"):
    """A camera's state."""

    source: int
    shown: str
    state: str
    fps: float | None
    size: tuple[int, int] | None
    skipped: int
    reconnects: int
    error: str | None
    code: str | None  # of the error that a question would get now
    hint: str


class Asked(_Event, frozen=True, tag="asked"):
    """A question about a frame began."""

    source: int
    id: int
    number: int
    question: str
    unchanged: bool


class Writing(_Event, frozen=True, tag="writing"):
    """An answer as far as it was written."""

    source: int
    id: int
    question: str
    text: str


class Answered(_Event, frozen=True, tag="answered"):
    """An answer with all that belongs to it."""

    source: int
    id: int
    number: int
    wall_s: float
    media_s: float | None
    frames: int
    age_s: float  # of the frame when the answer was whole
    age_now_s: float  # when this is sent
    question: str
    text: str
    choice: str | None
    probabilities: Mapping[str, float] | None
    finish_reason: str
    kept: int
    total: int
    encode: str
    encoded: int
    encode_reason: str
    need: int | None
    cap: int | None
    reason: str
    budget: str
    selector: str
    ttft_ms: float
    stages: Sequence[tuple[str, float]]
    decode_ms: float
    tokens: int
    tokens_per_s: float | None
    prompt_tokens: int
    reused_rows: int
    drops: int
    unchanged: bool
    encoder_hits: int
    encoder_runs: int
    encoder_hits_total: int
    encoder_runs_total: int
    layers: Sequence[Layer]


class Failed(_Event, frozen=True, tag="failed"):
    """Why there is no answer."""

    source: int
    id: int
    number: int | None
    wall_s: float
    question: str
    code: str
    message: str
    hint: str


class Refused(_Event, frozen=True, tag="refused"):
    """Why something that this browser asked for was not done."""

    about: str
    code: str
    message: str
    hint: str


class Calibrating(_Event, frozen=True, tag="calibrating"):
    """The device is being measured, or was."""

    running: bool


class Machine(_Event, frozen=True, tag="machine"):
    """How busy and how hot the machine is."""

    figures: Mapping[str, str]


class WebcamReady(_Event, frozen=True, tag="webcam"):
    """The browser's own camera is this source now."""

    source: int


class Taken(_Event, frozen=True, tag="taken"):
    """The picture of the browser's camera was taken: the next may come."""


HINTS = {
    "camera_lost": "It is tried again by itself. Check its cable, address and power.",
    "camera_frozen": "Restart the camera if this lasts; no question is answered until it moves.",
    "frame_too_old": "Questions go on with the next picture.",
    "not_calibrated": "A budget in time needs this device's speed: measure it, or take a share.",
    "budget_impossible": "Give more time, or take a share.",
    "selector_unavailable": "Choose another selector.",
    "context_overflow": "Keep fewer vision tokens, or ask a shorter question.",
    "engine_too_small": "Keep fewer vision tokens, ask something shorter, or build larger engines.",
    "out_of_memory": "Keep fewer vision tokens, or end other programs.",
    "busy": "Others ask too; try again.",
    "deadline_exceeded": "Keep fewer vision tokens, or allow more time.",
    "engine_failed": "If it happens again: tokprune doctor.",
    "event_log": "Make room on its disk; questions go on.",
    "closed": "Start the server again.",
    "internal": "The server's log has the details.",
}


def explained(error: BaseException) -> tuple[str, str, str]:
    """Return code, message and what to do. Only what was raised on purpose shows its text."""
    if isinstance(error, TokpruneError):
        return error.code, str(error)[:1000], HINTS.get(error.code, "")
    return "internal", "The server failed in a way that it does not know.", HINTS["internal"]


def packed(event: _Event) -> str:
    """Return an event as text."""
    return msgspec.json.encode(event).decode()
