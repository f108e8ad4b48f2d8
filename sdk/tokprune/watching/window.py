"""The last few frames of a camera, as a video."""

from collections import deque
from threading import Lock

import numpy as np

from tokprune.camera.camera import Camera
from tokprune.camera.shots import Shot
from tokprune.errors import RequestInvalid
from tokprune.types import Clip, Frame, FrameStamp
from tokprune.watching.gate import ChangeGate
from tokprune.watching.listening import listen

MOST_FRAMES = 768
SHORTEST_GAP_S = 0.5
EARLY = 0.1  # of the time between two frames of the window: cameras are not punctual


class Window:
    """A rolling video of a camera's last frames; takes the place of a video in `VLM.ask`.

    Where a vision encoder takes frames in pairs (Qwen), the window begins at an even one, so that
    the pairs stay the same while it rolls, and only the newest is encoded.
    """

    def __init__(
        self,
        camera: Camera,
        frames: int,
        *,
        fps: float | None = None,
        together: int = 1,
        gate: ChangeGate | None = None,
    ) -> None:
        """Begin to collect.

        Args:
            camera: whose frames. Those that come too soon for `fps` are left out.
            frames: how many are held at most.
            fps: frames of the window a second; None: all that come.
            together: frames that the vision encoder takes as one (`Processor.together`).
            gate: gives frames that have not changed the pixels of earlier ones.

        Raises:
            RequestInvalid: a number is out of its range.
        """
        if not together <= frames <= MOST_FRAMES:
            raise RequestInvalid(
                f"A window of this model has {together} to {MOST_FRAMES} frames, got {frames}"
            )
        if fps is not None and not 0 < fps < float("inf"):
            raise RequestInvalid(f"The window's fps must be above 0, got {fps}")
        self._camera = camera
        self._frames = frames
        self._fps = fps
        self._together = together
        self._gate = gate
        self._lock = Lock()
        self._shots: deque[Shot | Frame] = deque()
        self._count = 0  # frames that were ever taken into the window
        self._due_s = float("-inf")
        self._end = listen(camera, self._arrived) if camera.live else None

    def close(self) -> None:
        """Stop collecting. So does letting go of it."""
        if self._end is not None:
            self._end()

    def add(self, shot: Shot | Frame) -> None:
        """Take a frame in, if its time has come."""
        stamp = shot.stamp
        now_s = stamp.captured_s if stamp.media_s is None or self._camera.live else stamp.media_s
        with self._lock:
            if self._shots and self._shots[-1].stamp == stamp:
                return
            self._forget_before_a_gap(stamp)
            if self._fps is not None:
                step_s = 1 / self._fps
                if now_s < self._due_s - EARLY * step_s:
                    return
                late = now_s - self._due_s > step_s
                self._due_s = now_s + step_s if late else self._due_s + step_s
            self._shots.append(self._through(shot) if isinstance(shot, Frame) else shot)
            self._count += 1
            while len(self._shots) > self._frames or (self._first() % self._together):
                self._shots.popleft()

    def look(self) -> Clip:
        """Return the frames that are held; the last is the camera's newest, due or not.

        Raises:
            CameraUnusable: the camera has no frame that may be asked about.
        """
        newest = self._camera.look()
        with self._lock:
            if not self._shots:
                self._shots.append(self._through(newest))
                self._count += 1
            self._shots = deque(self._ready(shot) for shot in self._shots)
            held = [shot for shot in self._shots if isinstance(shot, Frame)]
        if self._camera.live and held[-1].stamp.number < newest.stamp.number:
            held.append(self._through(newest))
            held = held[self._together :] if len(held) > self._frames else held
        size = held[-1].image.shape
        first = max((n + 1 for n, frame in enumerate(held) if frame.image.shape != size), default=0)
        held = held[first:]  # a video's frames are of one size
        return Clip(np.stack([frame.image for frame in held]), self._rate(held), held[-1].stamp)

    def _first(self) -> int:
        return self._count - len(self._shots)

    def _arrived(self) -> None:
        shot = self._camera.held()
        if shot is not None:
            self.add(shot)

    def _forget_before_a_gap(self, stamp: FrameStamp) -> None:
        """Begin anew where the camera was away: what was before would look as if just before."""
        if not self._shots or not self._camera.live:
            return
        gap_s = stamp.captured_s - self._shots[-1].stamp.captured_s
        if (
            gap_s > SHORTEST_GAP_S
            and gap_s > self._camera.status().max_frame_age_s + self._step_s()
        ):
            self._shots.clear()
            self._count += -self._count % self._together

    def _step_s(self) -> float:
        return 0.0 if self._fps is None else 1 / self._fps

    def _ready(self, shot: Shot | Frame) -> Frame:
        """Return a frame in RGB, through the gate once."""
        return shot if isinstance(shot, Frame) else self._through(shot.frame())

    def _through(self, frame: Frame) -> Frame:
        return frame if self._gate is None else self._gate.through(frame)

    def _rate(self, held: list[Frame]) -> float:
        if self._fps is not None:
            return self._fps
        times = [f.stamp.captured_s if self._camera.live else f.stamp.media_s for f in held]
        known = [time for time in times if time is not None]
        span_s = known[-1] - known[0] if len(known) > 1 else 0.0
        usual = self._camera.status().fps or 1.0
        return (len(known) - 1) / span_s if span_s > 0 else usual
