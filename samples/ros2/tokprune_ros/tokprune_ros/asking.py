"""From pictures and questions to answers: what the node does. Needs no ROS.

Any thread may call anything here. The VLM's own thread does the work, so whoever waits for an
answer only waits.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition
from time import monotonic
from typing import Any, Generic, TypeVar

import tokprune
from tokprune import Answer, CancelToken, FrameTooOld, PictureInvalid, RequestInvalid, Stats
from tokprune.looking import stream_way
from tokprune.types import Frame
from tokprune_ros.images import Image
from tokprune_ros.settings import Settings, most_goals

Header = TypeVar("Header")  # std_msgs/Header: kept, never looked into
HEADERS = 1024  # pictures whose headers are kept: an answer may take so many
CANCELLED = 64  # goals that were cancelled before they began
_CUT = {"cancelled": "was cancelled", "deadline": "took longer than its deadline"}


@dataclass(frozen=True)
class Question:
    """A goal. What is empty or 0 is as the node's parameters say."""

    prompt: str
    budget: str = ""
    choices: tuple[str, ...] = ()
    deadline_s: float = 0.0
    max_frame_age_s: float = 0.0
    max_new_tokens: int = 0
    encode: str = ""


@dataclass(frozen=True)
class Outcome(Generic[Header]):
    """What came of a goal. There may be both: the part of an answer, and why it was cut."""

    answer: Answer | None = None
    header: Header | None = None  # of the picture that was asked about
    error_code: str = ""  # empty where the answer is whole
    error: str = ""


@dataclass(frozen=True)
class Situation:
    """How the node is, for diagnostics."""

    active: bool
    camera: tokprune.CameraStatus | None
    health: tokprune.Health
    stats: Stats
    goals: int
    refused_pictures: int
    refused_why: str  # of the latest


class Asking(Generic[Header]):
    """A VLM, the newest picture of a topic, and the goals that are asked about it."""

    def __init__(self, settings: Settings) -> None:
        """Load the bundle. Raises what `tokprune.load` does, or says what it cannot do."""
        backend: Any = settings.backend  # load says which there are
        admission: Any = settings.admission
        self.settings = settings
        self._vlm = tokprune.load(
            settings.bundle,
            backend=backend,
            threads=settings.threads or None,
            admission=admission,
            max_waiting=settings.max_waiting,
        )
        self._changed = Condition()
        self._pushed = tokprune.PushedFrames()
        self._camera: tokprune.Camera | None = None  # while active
        self._headers: OrderedDict[float, Header] = OrderedDict()
        self._running: dict[bytes, CancelToken] = {}
        self._cancelled: deque[bytes] = deque(maxlen=CANCELLED)
        self._next_s = 0.0  # before this, another picture comes too soon
        self._refused = 0
        self._refused_why = ""
        self._followed: tokprune.Following | None = None
        self._check()

    def activate(self) -> None:
        """Warm up, then take pictures and goals. Raises what `VLM.warmup` does."""
        settings = self.settings
        self._vlm.warmup(list(dict.fromkeys((settings.budget, *settings.warmup))))
        pushed = tokprune.PushedFrames()
        camera = tokprune.open_camera(
            pushed,
            name="image",
            max_frame_age_s=settings.max_frame_age_s,
            frozen_after_s=settings.frozen_after_s or None,
        )
        with self._changed:
            self._pushed, self._camera, self._followed = pushed, camera, None

    def deactivate(self, timeout_s: float = 10.0) -> bool:
        """Refuse goals, cancel those that run, and wait for them; tell whether they ended."""
        with self._changed:
            camera, self._camera = self._camera, None
            tokens = list(self._running.values())
        for token in tokens:
            token.cancel()
        with self._changed:
            ended = self._changed.wait_for(lambda: not self._running, timeout_s)
            self._headers.clear()
        if camera is not None:
            camera.close()
        return ended

    def close(self) -> None:
        """Free everything."""
        self.deactivate()
        self._vlm.close()

    def see(self, header: Header, picture: Callable[[], Image]) -> None:
        """Take the picture of a message, unless the last one came just before.

        Args:
            header: of the message.
            picture: decodes it; called at most `max_rate_hz` times a second.
        """
        arrived_s = monotonic()  # the sender's clock may be another one
        with self._changed:
            if self._camera is None or arrived_s < self._next_s:
                return
            self._next_s = arrived_s + 0.9 / self.settings.max_rate_hz
        try:
            image = picture()
        except PictureInvalid as error:
            with self._changed:
                self._refused, self._refused_why = self._refused + 1, str(error)
            return
        with self._changed:
            self._headers[arrived_s] = header
            while len(self._headers) > HEADERS:
                self._headers.popitem(last=False)
        self._pushed.push(image, arrived_s)

    def unplugged(self) -> None:
        """Say that nobody publishes pictures."""
        self._pushed.end()

    @property
    def has_room(self) -> bool:
        """Whether another goal may come now."""
        settings = self.settings
        with self._changed:
            if self._camera is None or settings.admission == "latest":
                return self._camera is not None
            return len(self._running) < most_goals(settings.admission, settings.max_waiting)

    def ask(self, goal: bytes, question: Question, give: Callable[[str], None]) -> Outcome[Header]:
        """Answer, and give out the text as it grows. Waits; never raises an error of tokprune's.

        Args:
            goal: its id, to be cancelled by.
            question: about the newest picture.
            give: takes all that is written so far, each time that there is more.
        """
        token = CancelToken()
        with self._changed:
            camera = self._camera
            self._running[goal] = token
            if goal in self._cancelled:
                self._cancelled.remove(goal)
                token.cancel()
        try:
            if camera is None:
                return Outcome(error_code="inactive", error="The node is not active")
            return self._answer(camera, question, token, give)
        except tokprune.TokpruneError as error:
            return Outcome(error_code=error.code, error=str(error))
        finally:
            with self._changed:
                del self._running[goal]
                self._changed.notify_all()

    def cancel(self, goal: bytes) -> None:
        """Stop a goal, also one that has not begun."""
        with self._changed:
            token = self._running.get(goal)
            if token is None:
                self._cancelled.append(goal)
        if token is not None:
            token.cancel()

    def situation(self) -> Situation:
        """Return how things are. Never waits for an answer."""
        with self._changed:
            camera, goals = self._camera, len(self._running)
            refused, why = self._refused, self._refused_why
        return Situation(
            active=camera is not None,
            camera=camera.status() if camera is not None else None,
            health=self._vlm.health(),
            stats=self._vlm.stats(),
            goals=goals,
            refused_pictures=refused,
            refused_why=why,
        )

    def _check(self) -> None:
        """Refuse what no goal could be answered with; the node fails to be configured then."""
        settings = self.settings
        try:
            encode = stream_way(settings.encode)
            self._vlm.model.check_encode(encode, settings.selector or None)
        except tokprune.TokpruneError:
            self._vlm.close()
            raise

    def _way(self, encode: str) -> str | tokprune.Following:
        """Return what the encoder is shown; the goals that follow the topic share a memory.

        Another prompt begins it anew: it has the vision tokens of one question.
        """
        way = stream_way(encode)
        if isinstance(way, str):
            return way
        with self._changed:
            if self._followed is None or self._followed.within != way.within:
                self._followed = way
            return self._followed

    def _answer(
        self,
        camera: tokprune.Camera,
        question: Question,
        token: CancelToken,
        give: Callable[[str], None],
    ) -> Outcome[Header]:
        settings = self.settings
        written = ""
        with self._vlm.stream(
            _Young(camera, _limit_s(question, settings)),
            question.prompt,
            question.budget or settings.budget,
            settings.selector or None,
            system=settings.system or None,
            choices=question.choices or None,
            max_new_tokens=question.max_new_tokens or settings.max_new_tokens,
            deadline_s=question.deadline_s or settings.deadline_s,
            encode=self._way(question.encode or settings.encode),
            cancel=token,
        ) as stream:
            for piece in stream:
                written += piece
                give(written)
            answer = stream.answer
        with self._changed:
            header = self._headers.get(answer.frames[0].captured_s)
        cut = _CUT.get(answer.finish_reason)
        if cut is None:
            return Outcome(answer, header)
        code = "cancelled" if answer.finish_reason == "cancelled" else "deadline_exceeded"
        return Outcome(answer, header, code, f"The answer {cut}; the text is what was written")


class _Young:
    """A camera whose pictures must be younger than one goal wants."""

    def __init__(self, camera: tokprune.Camera, limit_s: float) -> None:
        self._camera = camera
        self._limit_s = limit_s

    def look(self) -> Frame:
        """Return the newest picture when the goal's turn has come."""
        frame = self._camera.look()
        if frame.stamp.age_s() > self._limit_s:
            raise FrameTooOld(
                f"The newest picture is {frame.stamp.age_s():.2f} s old, the goal's limit "
                f"max_frame_age_s is {self._limit_s:.2f} s"
            )
        return frame


def _limit_s(question: Question, settings: Settings) -> float:
    wanted_s = question.max_frame_age_s or settings.max_frame_age_s
    if not 0 < wanted_s <= settings.max_frame_age_s:
        raise RequestInvalid(
            f"max_frame_age_s must be above 0 and up to the node's {settings.max_frame_age_s:g}, "
            f"got {wanted_s:g}"
        )
    return wanted_s
