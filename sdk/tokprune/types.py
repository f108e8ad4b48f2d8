"""The values that travel through the flow. Frozen, checked, free of behaviour.

Axis names, the same in every signature:
    h w: image pixels           n: vision tokens      k: kept vision tokens
    s: prompt tokens            u: text tokens after the last vision token
    d: LLM hidden size          a: attention heads    p: position axes (3 for M-RoPE, else 1)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Int64, UInt8

from tokprune.errors import PictureInvalid, RequestInvalid
from tokprune.stopwatch import Span

Array: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[Any]]
Image: TypeAlias = UInt8[Array, "h w 3"]  # RGB
Images: TypeAlias = Sequence[UInt8[Array, "_ _ 3"]]  # their sizes may differ
MediumKind = Literal["picture", "video"]
Scores: TypeAlias = Float32[Array, " n"]  # higher is kept first
Feeds: TypeAlias = Mapping[str, Array]
FinishReason = Literal["stop", "length", "cancelled", "deadline", "repetition"]

PATCH, NEWLINE = 0, 1  # `where[:, KIND]`: a patch of a picture, or a row's end
PICTURE, FRAME, TILE, ROW, COLUMN, SCALE, KIND = range(7)  # columns of `where`
WHOLE = 0  # `where[:, TILE]`: the tile that shows the whole picture; others show parts of it


class Region(NamedTuple):
    """The grid of vision tokens of one tile of one frame of one picture, newlines not counted."""

    picture: int
    frame: int
    tile: int
    rows: int
    columns: int


@dataclass(frozen=True)
class FrameStamp:
    """Which picture of a camera this is, and when it came."""

    source: str  # the camera's name; never its address
    number: int  # from 0 since the camera was opened; reconnecting goes on counting
    captured_s: float  # monotonic time (time.monotonic) at which this process got it
    wall_s: float  # the same moment as Unix time; the wall clock may jump
    media_s: float | None = None  # of a file: seconds after its beginning

    def age_s(self, now_s: float | None = None) -> float:
        """Return how old the picture is at a monotonic time, now if not given. Never negative."""
        return max(0.0, (monotonic() if now_s is None else now_s) - self.captured_s)


@dataclass(frozen=True)
class Frame:
    """A picture of a camera. Takes the place of a picture wherever one is asked about."""

    image: UInt8[Array, "h w 3"]  # RGB; not to be written to
    stamp: FrameStamp


@dataclass(frozen=True)
class Clip:
    """A video as the frames that were taken from it, in the order of time."""

    frames: UInt8[Array, "f h w 3"]  # RGB
    fps: float  # of these frames, not of the file
    stamp: FrameStamp | None = None  # of the newest, where a camera gave them

    def __post_init__(self) -> None:
        if not len(self.frames):
            raise PictureInvalid("A video needs one frame or more, got none")
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise RequestInvalid(f"The frames of a video need a rate above 0, got {self.fps}")


@runtime_checkable
class Live(Protocol):
    """What gives the newest picture when it is looked at: a camera, or a window on one."""

    def look(self) -> Frame | Clip:
        """Return the newest picture, or the newest few as a video. Never waits for long.

        Raises:
            CameraUnusable: there is none that a question may be asked about.
        """
        ...


Medium: TypeAlias = UInt8[Array, "_ _ 3"] | Clip  # a picture or a video
Media: TypeAlias = Sequence[Medium]


@dataclass(frozen=True)
class Prepared:
    """A picture or video, cut into what its family's vision encoder takes (before any engine)."""

    kind: MediumKind  # which placeholder of the chat template it takes
    calls: tuple[Feeds, ...]  # one run of the vision encoder each
    pack: Callable[[list[Array]], Array]  # encoder outputs, in order -> embeds [n, d]
    where: Int32[Array, "n 7"]  # pictures and videos counted together within the prompt
    regions: tuple[Region, ...]
    size_hw: tuple[int, int]  # pixels of the picture or frame as given
    # What the encoder takes by itself, counted over all calls (a tile, a frame): which of these
    # each token is made of; a newline of none.
    units: Bool[Array, "n u"]
    step_s: float = 0.0  # of a video: seconds from one frame of `where` to the next
    part: bool = False  # a call is less than the encoder would take at once of the whole


@dataclass(frozen=True)
class Prompt:
    """A conversation as token ids, its vision tokens still placeholders."""

    ids: Int64[Array, " s"]
    slots: Int64[Array, " n"]  # rows of the vision tokens, ascending
    words: Bool[Array, " s"]  # the user's words of this turn, template tokens not
    positions: Int64[Array, "p s"]
    next_position: int  # of the first answer token, whatever is pruned


@dataclass(frozen=True)
class VisionTokens:
    """The pictures as the LLM would get them, in its order."""

    embeds: Float[Array, "n d"]
    where: Int32[Array, "n 7"]  # picture, frame, tile, row, column, scale, kind
    regions: tuple[Region, ...]
    # Attention that each gets inside the vision encoder, 0 of newlines; None: its graph tells none.
    # Only comparable within a frame or tile: each shares out 1 a layer among its patches.
    saliency: Float32[Array, " n"] | None = None
    glance: bool = False  # the first of two looks: it only tells where to look

    def __post_init__(self) -> None:
        patches = int((self.where[:, KIND] == PATCH).sum())
        cells = sum(region.rows * region.columns for region in self.regions)
        if len(self.embeds) != len(self.where) or patches > cells:  # some cells may be unseen
            raise ValueError(
                f"{len(self.embeds)} vision tokens, {len(self.where)} rows in `where` "
                f"({patches} patches), {cells} cells in the regions: these must agree"
            )
        if self.saliency is not None and len(self.saliency) != len(self.where):
            raise ValueError(
                f"{len(self.where)} vision tokens, {len(self.saliency)} values of saliency: these "
                "must agree"
            )


@dataclass(frozen=True)
class FirstLayer:
    """What the first LLM layer's attention tells of the prompt (method.md section 3)."""

    attention: Float32[Array, "a u n"]  # rows of text after the last vision token
    question: Bool[Array, " u"]  # which of them are the user's words
    words: Float32[Array, "u d"]  # the LLM's inputs of these rows


First: TypeAlias = Callable[[], FirstLayer]  # lazy: the graph runs when a selector reads it
Take: TypeAlias = Callable[[int], Int64[Array, " k"]]  # k -> positions, in any order, newlines last


def no_size_bias(kept_share: float) -> bool:
    """Never correct attention for the size of what a kept token stands for."""
    del kept_share
    return False


@dataclass(frozen=True)
class Merged:
    """What kept tokens become that stand for others too."""

    embeds: Float32[Array, "k d"]
    at: Int64[Array, " k"] | None  # the token whose position each carries; None: its own
    sizes: Int64[Array, " k"]  # tokens that each stands for, itself among them


@dataclass(frozen=True)
class Ranking:
    """How a selector would spend any budget."""

    take: Take
    scores: Scores | None = None  # where they mean a share of relevance
    size_bias: Callable[[float], bool] = no_size_bias  # of the kept share
    unranked: bool = False  # no selector ran, as all tokens were going to be kept
    merge: Callable[[Int64[Array, " k"]], Merged] | None = None  # of kept tokens, ascending


@dataclass(frozen=True)
class Selection:
    """Which vision tokens stay, and why that many."""

    keep: Int64[Array, " k"]  # ascending, indexes the LLM's order
    total: int
    need: int | None  # what the question needs, where the budget asked
    cap: int | None  # what the budget allowed
    reason: str  # "ratio", "count", "all", "mass", "floor", "cap", "deadline", "late", "encoded"
    scores: Scores | None = None
    embeds: Float[Array, "k d"] | None = None  # set only by merging
    bias: Float32[Array, " k"] | None = None  # set only by size bias; added to attention logits
    at: Int64[Array, " k"] | None = None  # the token whose position each carries; None: its own

    def __post_init__(self) -> None:
        for tokens in (self.keep, self.keep if self.at is None else self.at):
            if len(tokens) and (tokens.min() < 0 or tokens.max() >= self.total):
                raise ValueError(f"kept tokens must lie in 0..{self.total - 1}")
        if (np.diff(self.keep) <= 0).any():
            raise ValueError("kept tokens must be strictly ascending")

    @property
    def kept(self) -> int:
        """Number of vision tokens that enter the LLM."""
        return len(self.keep)


@dataclass(frozen=True)
class Answer:
    """The reply, with what it was read from and what it cost."""

    text: str
    finish_reason: FinishReason
    selection: Selection
    regions: tuple[Region, ...]
    where: Int32[Array, "n 7"]
    selector: str
    timings_ms: Mapping[str, float]
    ttft_ms: float  # from the call, the wait for other requests included
    token_ids: tuple[int, ...]
    encoder_hits: int = 0  # calls of the vision encoder that the vision cache answered
    encoder_runs: int = 0  # calls that ran
    encode: str = "full"  # how the pictures were looked at (tokprune.looking)
    # Vision tokens that were encoded for it, or came from the vision cache; those of a first small
    # look included
    encoded: int = 0
    encode_reason: str = ""  # why as many
    reused: int = 0  # prompt rows whose keys and values were there already (chat, pin)
    prompt_tokens: int = 0  # rows that entered the LLM, the reused ones included
    choice: str | None = None  # of `choices`
    probabilities: Mapping[str, float] | None = None  # of all choices; they sum to 1
    choice_mass: float | None = None  # of the model's free probability, what the choices have
    frames: tuple[FrameStamp, ...] = ()  # the pictures of cameras it was read from, in order
    frame_age_s: float | None = None  # of the oldest of them when the answer was whole
    spans: tuple[Span, ...] = ()  # when each stage ran, for `tokprune.write_trace`
    began_s: float = 0.0  # monotonic time of the call

    @property
    def kept(self) -> int:
        """Number of vision tokens that entered the LLM."""
        return self.selection.kept

    @property
    def total(self) -> int:
        """Number of vision tokens of the whole pictures, newlines included."""
        return self.selection.total
