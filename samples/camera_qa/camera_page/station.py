"""One camera, its watcher, the thread that goes on asking, and what the page is told of both."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock, Thread

import msgspec
from msgspec import UNSET

import tokprune
from camera_page.answers import Reuse, Run, answered
from camera_page.event_log import EventLog
from camera_page.events import (
    HINTS,
    Answered,
    Asked,
    CameraSeen,
    Failed,
    Settings,
    Writing,
    explained,
)
from camera_page.layers import layers_of
from camera_page.messages import Mode, Set
from camera_page.photos import ASKED_PX, Photo, sheet_of
from tokprune import watching
from tokprune.looking import stream_way
from tokprune.types import Clip

_log = logging.getLogger("camera_page")
CODES = {"LOST": "camera_lost", "FROZEN": "camera_frozen", "STALE": "frame_too_old"}
CHANGES = ("question", "budget", "selector", "encode", "choices", "max_new_tokens", "mode")
ENDING_S = 1.0  # for a thread to end after its watcher was closed
Told = Settings | CameraSeen | Asked | Writing | Answered | Failed


@dataclass(frozen=True)
class Beginning:
    """What a watcher starts with."""

    question: str
    budget: str = "0.5"
    selector: str | None = None
    encode: str = "full"
    mode: Mode = "continuous"
    max_new_tokens: int = 64
    every_s: float = 0.0
    window: int = 1
    window_fps: float | None = None


class Station:
    """Watches one camera. Its methods are called from the event loop, `tell` from its thread."""

    def __init__(
        self,
        number: int,
        name: str,
        camera: tokprune.Camera,
        vlm: tokprune.VLM,
        beginning: Beginning,
        tell: Callable[["Station", Told], None],
        log: EventLog | None = None,
    ) -> None:
        """Begin to watch.

        Raises:
            RequestInvalid: what it shall begin with makes no sense.
        """
        self.id, self.name, self.camera = number, name, camera
        self.asked: Photo | None = None  # what the newest question is about
        self.settings = _settings(number, beginning)
        self._tell = tell
        self._event_log = log
        self._run = Run(0, beginning.question, beginning.budget)
        self._reuse = Reuse()
        self._live: Photo | None = None
        self._drawing = Lock()
        self._watcher = tokprune.Watcher(
            vlm,
            camera,
            beginning.question,
            mode=self.settings.mode,
            budget=beginning.budget,
            selector=beginning.selector,
            window=beginning.window,
            window_fps=beginning.window_fps,
            every_s=beginning.every_s,
            listener=self._heard,
            max_new_tokens=beginning.max_new_tokens,
            encode=stream_way(beginning.encode),
        )
        self._thread = Thread(target=self._watch, name=f"station-{number}", daemon=True)
        self._thread.start()

    def change(self, asked: Set) -> None:
        """Change what is asked, from the next frame on.

        Raises:
            TokpruneError: a value makes no sense; nothing has changed then.
        """
        given = {name: value for name in CHANGES if (value := getattr(asked, name)) is not UNSET}
        settings = msgspec.structs.replace(self.settings, **given)
        if "choices" in given:
            given["choices"] = tuple(given["choices"]) or None
        if "encode" in given:
            given["encode"] = stream_way(given["encode"])
        self._watcher.update(**given)
        self._set(settings)

    def ask(self, question: str) -> None:
        """Ask on the next frame."""
        self._watcher.update(question=question)
        self._watcher.ask()
        self._set(msgspec.structs.replace(self.settings, question=question))

    def pause(self) -> None:
        """Ask no more by itself."""
        self._watcher.pause()
        self._set(msgspec.structs.replace(self.settings, paused=True))

    def resume(self) -> None:
        """Go on asking."""
        self._watcher.resume()
        self._set(msgspec.structs.replace(self.settings, paused=False))

    def cancel(self) -> None:
        """End the answer that is being written."""
        self._watcher.cancel()

    def close(self) -> None:
        """End the watcher, then the camera."""
        self._watcher.close()
        self.camera.close()
        self._thread.join(ENDING_S)

    def seen(self) -> CameraSeen:
        """Return the camera's state."""
        status = self.camera.status()
        code = CODES.get(status.state)
        return CameraSeen(
            source=self.id,
            shown=status.source,
            state=status.state,
            fps=None if status.fps is None else round(status.fps, 1),
            size=status.size_wh,
            skipped=status.skipped,
            reconnects=status.reconnects,
            error=status.error,
            code=code,
            hint=HINTS.get(code or "", ""),
        )

    def live(self) -> Photo | None:
        """Return the newest picture as JPEG; made once, however many browsers want it."""
        with self._drawing:
            try:
                frame = self.camera.newest
            except tokprune.PictureInvalid:
                return None  # damaged; the camera counts it
            if frame is None:
                return None
            if self._live is None or self._live.stamp != frame.stamp:
                self._live = Photo("live", self.id, frame.stamp, frame.image)
            return self._live

    def _set(self, settings: Settings) -> None:
        self.settings = settings
        self._tell(self, settings)

    def _watch(self) -> None:
        """Go on until the watcher is closed or a file has ended; runs in a thread of its own."""
        try:
            for _ in self._watcher:  # all that happens comes to `_heard`
                pass
        except tokprune.Closed:
            pass
        except Exception as error:
            _log.error("The watcher of %s ended: %s", self.name, type(error).__name__)
            self._fail(*explained(error))

    def _heard(self, event: watching.WatchEvent) -> None:
        """Hear what happens: `Asked` on the thread that runs the model, else on our own."""
        match event:
            case watching.Asked():
                self._begin(event)
            case watching.Piece():
                run = self._run
                run.text += event.text
                self._tell(self, Writing(self.id, run.id, run.question, run.text))
            case watching.Answered():
                self._answer(event.observation)
            case watching.Failed():
                if event.frame is None or event.frame != self._run.stamp:  # nothing was asked
                    self._run = self._next_run(self.settings.question)
                self._fail(*explained(event.error))
            case watching.StateChanged():
                self._report_state()

    def _next_run(self, question: str) -> Run:
        return Run(self._run.id + 1, question, self.settings.budget)

    def _begin(self, event: watching.Asked) -> None:
        self._run = run = self._next_run(event.question)
        looked = event.looked
        run.stamp = event.frame
        run.clip = looked if isinstance(looked, Clip) else None
        image = looked.frames[-1] if isinstance(looked, Clip) else looked.image
        self.asked = run.photo = Photo("asked", self.id, event.frame, image, ASKED_PX, run.id)
        self._tell(self, Asked(self.id, run.id, event.frame.number, run.question, event.unchanged))

    def _answer(self, seen: tokprune.Observation) -> None:
        run, answer, stamp = self._run, seen.answer, seen.frame
        layers = layers_of(answer)
        if run.clip is not None:
            image, sheet = sheet_of(run.clip, len(layers))
            longest_px = max(image.shape[:2])  # cells must lie where the sheet says
            run.photo = Photo("asked", self.id, stamp, image, longest_px, run.id, sheet)
            self.asked = run.photo
        self._reuse = self._reuse.with_answer(answer)
        told = answered(self.id, run, seen, self._reuse, layers)
        self._tell(self, told)
        self._write(told)

    def _fail(self, code: str, message: str, hint: str) -> None:
        run = self._run
        number = None if run.stamp is None else run.stamp.number
        told = Failed(self.id, run.id, number, time.time(), run.question, code, message, hint)
        self._tell(self, told)
        self._write(told)

    def _report_state(self) -> None:
        seen = self.seen()
        self._tell(self, seen)
        if self._event_log is not None:
            named = {"time": time.time(), "camera": self.name}
            told = {"state": seen.state, "code": seen.code, "error": seen.error}
            self._event_log.write({**named, **told})

    def _write(self, told: Answered | Failed) -> None:
        if self._event_log is None:
            return
        record = msgspec.to_builtins(told)
        for unwanted in ("source", "layers", "hint", "age_now_s"):
            record.pop(unwanted, None)
        named = {"time": record.pop("wall_s"), "camera": self.name, "frame": record.pop("number")}
        photo = self._run.photo if self._event_log.keeps_frames else None
        self._event_log.write({**named, **record}, photo and photo.jpeg)


def _settings(number: int, beginning: Beginning) -> Settings:
    return Settings(
        source=number,
        question=beginning.question,
        budget=beginning.budget,
        selector=beginning.selector,
        encode=beginning.encode,
        choices=(),
        max_new_tokens=beginning.max_new_tokens,
        mode=beginning.mode,
        paused=False,
    )
