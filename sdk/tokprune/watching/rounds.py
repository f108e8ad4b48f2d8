"""The rounds of a watcher: when one begins, what it asks, and how it ended."""

import logging
from collections.abc import Callable
from threading import Lock
from time import monotonic

from tokprune.camera.camera import Camera
from tokprune.camera.health import CameraState
from tokprune.control import CancelToken
from tokprune.errors import (
    BackendUnavailable,
    BudgetImpossible,
    CameraLost,
    Closed,
    ContextOverflow,
    DeadlineExceeded,
    ForkDetected,
    NotCalibrated,
    RequestInvalid,
    SelectorUnavailable,
    TokpruneError,
)
from tokprune.types import Answer, Clip, Frame
from tokprune.watching.events import (
    Answered,
    Asked,
    Failed,
    Observation,
    StateChanged,
    WatchEvent,
)
from tokprune.watching.eye import Eye, Looked
from tokprune.watching.pacing import Pacing
from tokprune.watching.settings import Settings

LONGEST_SLEEP_S = 0.25  # so soon a state is noticed that comes with time alone
OVER = (Closed, ForkDetected)  # nothing can be asked any more
STANDING = (  # nothing will be better at the next frame
    RequestInvalid, ContextOverflow, SelectorUnavailable, NotCalibrated, BackendUnavailable,
)  # fmt: skip
_log = logging.getLogger("tokprune")


class Rounds:
    """What a watcher knows from one question to the next.

    Controls (`change`, `demand`, `close`, the flags) come from any thread, all else from the one
    that iterates.
    """

    def __init__(
        self,
        camera: Camera,
        pacing: Pacing,
        settings: Settings,
        listener: Callable[[WatchEvent], object] | None,
        make_eye: Callable[..., Eye],
        *,
        gated: bool,
    ) -> None:
        """Begin before the first round.

        Args:
            camera: what is watched.
            pacing: tells when a question is due.
            settings: what is asked.
            listener: hears of everything.
            make_eye: makes what looks, once a round, of what it tells and whether it may `reuse`
                pixels.
            gated: frames that have not changed are shown with the pixels of earlier ones.
        """
        self.settings = settings
        self.paused = self.closed = False
        self.running: CancelToken | None = None
        self._camera = camera
        self._pacing = pacing
        self._listener = listener
        self._make_eye = make_eye
        self._gated = gated
        self._lock = Lock()
        self._demanded = self._stuck = False
        self._state: CameraState | None = None
        self._last = -1  # number of the last observation's frame
        self._count = 0

    def change(self, changed: Callable[[Settings], Settings]) -> None:
        """Take other settings, from the next round on."""
        with self._lock:
            self.settings = changed(self.settings)
            self._stuck = False
            if self.settings.mode == "on_change":
                self._demanded = True  # another question about the same picture

    def demand(self) -> None:
        """Have a round whatever the mode."""
        with self._lock:
            self._demanded, self._stuck = True, False

    def wait_s(self, due_s: float | None) -> float | None:
        """Return how long to wait for news at most; None: a round is due.

        Args:
            due_s: monotonic time at which nobody waits any longer.

        Raises:
            Closed, CameraUnusable, DeadlineExceeded: there will be none, or not in time.
        """
        if self.closed:
            raise Closed("The watcher is closed")
        self._report_state()
        forced = self._demanded
        by_itself = not (self.paused or self._stuck or self.settings.mode == "on_demand")
        if (forced or by_itself) and self._pacing.due(self.settings, forced=forced):
            return None
        left_s = LONGEST_SLEEP_S if due_s is None else due_s - monotonic()
        if left_s > 0:
            return min(left_s, LONGEST_SLEEP_S)
        if (forced or by_itself) and self._camera.live:
            self._camera.look()  # raises its own error, if it has one
        raise DeadlineExceeded("There was nothing to ask within the time given to `next`")

    def begin(self) -> tuple[Settings, CancelToken, Eye]:
        """Begin a round: return what is asked, what cancels it, and what will look."""
        with self._lock:
            settings, self._demanded = self.settings, False
        token = self.running = CancelToken()
        if self.closed:  # meanwhile
            token.cancel()

        def looked(seen: Looked, shown: Frame | Clip) -> None:
            self._pacing.asked(seen.stamp)
            self.tell(Asked(seen.stamp, shown, settings.question, seen.unchanged, seen.at_s))

        # A Following sees to it that every part is encoded in turn: old pixels would defeat that.
        reuse = self._gated and not settings.follows
        return settings, token, self._make_eye(looked, reuse=reuse)

    def answered(self, answer: Answer, settings: Settings, eye: Eye) -> Observation:
        """End a round with an answer."""
        looked = eye.looked
        if looked is None or answer.frame_age_s is None:
            raise TypeError("an answer about a camera that nobody looked at")
        seen = Observation(
            answer=answer,
            frame=looked.stamp,
            age_s=answer.frame_age_s,
            drops=max(0, looked.stamp.number - self._last - 1),
            state=self._camera.state,
            question=settings.question,
            unchanged=looked.unchanged,
            number=self._count,
        )
        self._last, self._count, self.running = looked.stamp.number, self._count + 1, None
        self.tell(Answered(seen))
        return seen

    def failed(self, error: BaseException, eye: Eye) -> None:
        """End a round without an answer."""
        self.running = None
        if isinstance(error, STANDING) and not isinstance(error, BudgetImpossible):
            self._stuck = True
        if isinstance(error, Exception) and not self.closed:
            self.tell(Failed(error, eye.looked and eye.looked.stamp))

    def ends(self, error: Exception) -> bool:
        """Tell whether the iteration is over; raise what nobody would hear of otherwise."""
        if self.closed or (isinstance(error, CameraLost) and self._camera.state == "ENDED"):
            return True
        unheard = self._stuck and self._listener is None
        if isinstance(error, OVER) or unheard or not isinstance(error, TokpruneError):
            raise error
        return False

    def tell(self, event: WatchEvent) -> None:
        """Tell the listener."""
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception:
            _log.exception("the listener of camera %s failed", self._camera.name)

    def _report_state(self) -> None:
        state = self._camera.state
        if state != self._state:
            self._state = state
            self.tell(StateChanged(self._camera.status()))
