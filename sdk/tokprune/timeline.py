"""When the frames of a video are shown, and which of them are taken."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil, floor, isfinite
from statistics import median_low
from typing import NamedTuple, NoReturn

from tokprune.errors import PictureInvalid, RequestInvalid

MAX_FRAMES = 768
USUAL_FPS, USUAL_FRAMES = 2.0, 32  # what is taken where nothing is asked


@dataclass(frozen=True)
class Wanted:
    """Which frames of a video are asked for; `load_video` says what the fields mean."""

    fps: float | None = None
    num_frames: int | None = None
    start_s: float = 0.0
    end_s: float | None = None
    max_frames: int = MAX_FRAMES
    at_most: bool = False

    def __post_init__(self) -> None:
        if self.fps is not None and self.num_frames is not None:
            raise RequestInvalid(
                f"Got fps={self.fps} and num_frames={self.num_frames}: give one of the two"
            )
        if self.fps is not None and not (isfinite(self.fps) and _exact(self.fps) > 0):
            raise RequestInvalid(f"fps must be above 0, got {self.fps}")
        if self.max_frames < 1:
            raise RequestInvalid(f"max_frames must be 1 or more, got {self.max_frames}")
        if self.num_frames is not None and not 1 <= self.num_frames <= self.max_frames:
            raise RequestInvalid(
                f"num_frames must be 1 to max_frames={self.max_frames}, got {self.num_frames}"
            )
        end_s = self.start_s + 1 if self.end_s is None else self.end_s
        if not (isfinite(end_s) and 0 <= self.start_s < end_s):
            raise RequestInvalid(
                f"Got start_s={self.start_s} and end_s={self.end_s}: expected 0 <= start_s < "
                "end_s, in seconds after the first frame"
            )


@dataclass(frozen=True)
class Timeline:
    """When each frame of a file is shown. Times are counted in ticks."""

    times: tuple[int, ...]  # ascending, no two the same
    end: int  # of the last frame
    keys: tuple[int, ...]  # where decoding can begin, ascending
    tick: Fraction  # in seconds
    size_wh: tuple[int, int]  # pixels as stored, before any rotation
    truncated: bool = False  # the header says that there is more

    @property
    def length(self) -> int:
        """Time from the first frame to the end of the last one."""
        return self.end - self.times[0]

    @cached_property
    def gaps(self) -> tuple[int, ...]:
        """Times from each frame to the next, the shortest first."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return tuple(sorted(late - early for early, late in pairs)) or (self.length,)

    @cached_property
    def usual_gap(self) -> int:
        """Time that most frames are shown."""
        return median_low(self.gaps)

    @property
    def early(self) -> Fraction:
        """How long before its time a frame counts: containers round times."""
        return Fraction(self.usual_gap, 8)

    def on_screen(self, after: Fraction) -> int:
        """Return which frame is seen so long after the first one."""
        return bisect_right(self.times, self.times[0] + after + self.early) - 1


class Taken(NamedTuple):
    """The frames that are to be decoded."""

    times: tuple[int, ...]  # of a `Timeline`, ascending; a frame that stays on screen is repeated
    fps: float


def choose(timeline: Timeline, wanted: Wanted, name: str) -> Taken:
    """Choose frames by time.

    Raises:
        PictureInvalid: the video called `name` does not have what is asked for.
    """
    start, stop = _window(timeline, wanted, name)
    first, last = timeline.on_screen(start), len(timeline.times)
    if wanted.end_s is not None:
        end = timeline.times[0] + stop - timeline.early
        last = max(first + 1, bisect_left(timeline.times, end))
    held = last - first
    if wanted.at_most:
        wanted = _lowered(timeline, wanted, stop - start, held)
    if wanted.fps is not None:
        _check_rate(timeline, wanted.fps, name)
        count = _count(timeline, stop - start, wanted.fps)
        if count > wanted.max_frames:
            _refuse(
                f"{name}: fps={wanted.fps} takes {count} frames, more than max_frames="
                f"{wanted.max_frames}: ask for fewer, or raise the limit"
            )
        return _every(timeline, start, count, wanted.fps)
    if wanted.num_frames is None:
        most = min(USUAL_FRAMES, wanted.max_frames, held)
        count = _count(timeline, stop - start, USUAL_FPS)
        if count <= most:
            return _every(timeline, start, count, USUAL_FPS)
        return _evenly(timeline, (start, stop), (first, last), most)
    if wanted.num_frames > held:
        _refuse(
            f"{name} has {held} frames between {_seconds(timeline, start)} and "
            f"{_seconds(timeline, stop)}, num_frames={wanted.num_frames} asks for more: ask for "
            f"at most {held}"
        )
    return _evenly(timeline, (start, stop), (first, last), wanted.num_frames)


def _lowered(timeline: Timeline, wanted: Wanted, span: Fraction, held: int) -> Wanted:
    """Ask for no more than there is, and no more than `max_frames`."""
    if wanted.num_frames is not None:
        return replace(wanted, num_frames=min(wanted.num_frames, held))
    if wanted.fps is None:
        return wanted
    fps = min(wanted.fps, float(_fastest(timeline)))
    if _count(timeline, span, fps) > wanted.max_frames:
        return replace(wanted, fps=None, num_frames=min(wanted.max_frames, held))
    return replace(wanted, fps=fps)


def _window(timeline: Timeline, wanted: Wanted, name: str) -> tuple[Fraction, Fraction]:
    """Return where frames are taken from, in ticks after the first frame."""
    length = Fraction(timeline.length)
    if wanted.end_s is None and timeline.truncated:
        held_s = floor(length * timeline.tick * 100) / 100
        _refuse(
            f"{name} is truncated: it ends after {_seconds(timeline, length)}, its header says "
            f"later. Get the whole file, or pass end_s={held_s} to use what is there"
        )
    start = _exact(wanted.start_s) / timeline.tick
    stop = length if wanted.end_s is None else _exact(wanted.end_s) / timeline.tick
    if start >= length or stop > length + timeline.usual_gap:
        _refuse(
            f"{name} lasts {_seconds(timeline, length)}, and start_s={wanted.start_s}, "
            f"end_s={wanted.end_s} ask for more: choose a part that is there"
        )
    return start, min(stop, length)


def _check_rate(timeline: Timeline, fps: float, name: str) -> None:
    fastest = _fastest(timeline)
    if fps > fastest * Fraction(101, 100):
        _refuse(
            f"{name} has at most {float(fastest):.4g} frames a second, fps={fps} would only repeat "
            f"them: ask for at most fps={float(fastest):.4g}"
        )


def _fastest(timeline: Timeline) -> Fraction:
    """Return frames a second where they follow each other the fastest."""
    return 1 / (max(timeline.gaps[0], 1) * timeline.tick)


def _count(timeline: Timeline, span: Fraction, fps: float) -> int:
    """Return how often 1/fps s begin within a span of ticks."""
    return max(1, ceil((span - timeline.early) * timeline.tick * _exact(fps)))


def _every(timeline: Timeline, start: Fraction, count: int, fps: float) -> Taken:
    """Take what is on screen every 1/fps s."""
    step = 1 / (_exact(fps) * timeline.tick)
    shown = [timeline.on_screen(start + number * step) for number in range(count)]
    return Taken(tuple(timeline.times[index] for index in shown), fps)


def _evenly(
    timeline: Timeline, window: tuple[Fraction, Fraction], frames: tuple[int, int], count: int
) -> Taken:
    """Take what is on screen at the start of each of `count` equal parts.

    Where frames follow each other at a constant rate, that is every (frames / count)th of them, as
    transformers' `default_sample_indices_fn` and Qwen2VLVideoProcessor.sample_frames have it.
    """
    (start, stop), (first, last) = window, frames
    slow, fast = timeline.gaps[-1], timeline.gaps[0]
    if slow == fast or (slow - fast <= 2 and fast >= 20):  # constant, but for rounding
        shown = [first + number * (last - first) // count for number in range(count)]
    else:
        step = (stop - start) / count
        shown = [timeline.on_screen(start + number * step) for number in range(count)]
    seconds = float((stop - start) * timeline.tick)
    return Taken(tuple(timeline.times[index] for index in shown), count / seconds)


def _exact(number: float) -> Fraction:
    """Return the fraction that a float stands for: 0.3 is 3/10, 29.97002997 is 30000/1001."""
    return Fraction(number).limit_denominator(1_000_000)


def _seconds(timeline: Timeline, ticks: Fraction) -> str:
    return f"{float(ticks * timeline.tick):.3f} s"


def _refuse(message: str) -> NoReturn:
    raise PictureInvalid(message)
