"""What stands in `--model_args`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from tokprune.backends import Asked
from tokprune.budgets import Budget, budget_of
from tokprune.errors import RequestInvalid, unknown
from tokprune.types import Clip
from tokprune.video import load_video

OnError = Literal["raise", "empty"]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keywords of `--model_args`, checked."""

    bundle: str
    """The folder that tokprune-export wrote."""
    budget: str | float | int = 0.5
    """Vision tokens that may enter the LLM: 0.25, 128, mass:0.9, ..."""
    selector: str | None = None
    """How they are chosen; the bundle's default if not given."""
    backend: str = "auto"
    """What runs the graphs."""
    threads: Annotated[int, Meta(ge=1)] | None = None
    """Threads of each graph."""
    system: str | None = None
    """A system message, or a file that holds it; takes the place of the task's."""
    fps: float | None = None
    """Take a frame of each video every 1/fps s; of slower videos all frames."""
    max_frames: Annotated[int, Meta(ge=1)] | None = None
    """Where that makes more frames, take this many, evenly spread."""
    num_frames: Annotated[int, Meta(ge=1)] | None = None
    """Take this many frames of each video, evenly spread; of shorter ones all. With none of the
    three: two a second, at most 32."""
    media_first: bool = False
    """Put pictures and videos before the words of their turn, wherever the task put them."""
    until: bool = True
    """End answers before the task's `until` strings. Some of the harness's own models never do."""
    seed: Annotated[int, Meta(ge=0)] = 0
    """Of answers that are drawn (temperature above 0); each repetition takes the next one."""
    answers: str | None = None
    """Write a line of JSON here for every answer; a new file."""
    on_error: OnError = "raise"
    """"empty": a sample that cannot be asked (damaged picture, prompt too long) counts as answered
    with nothing, and its error is written down. Otherwise it ends the evaluation."""

    @property
    def budget_asked(self) -> Budget:
        """The budget as a value.

        Raises:
            RequestInvalid: it makes no sense.
        """
        return budget_of(self.budget)

    def clip(self, path: str | Path, start_s: float, end_s: float | None) -> Clip:
        """Read the frames of a video that are wanted."""
        limit = {} if self.max_frames is None else {"max_frames": self.max_frames}
        return load_video(
            path,
            fps=self.fps,
            num_frames=self.num_frames,
            start_s=start_s,
            end_s=end_s,
            at_most=True,
            **limit,
        )


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Check the model args, and what the harness passes on beside them.

    Raises:
        RequestInvalid: one is unknown, missing or makes no sense.
    """
    options = dict(given)
    _check_harness_options(options)
    for name in options:
        if name not in Settings.__struct_fields__:
            names = list(Settings.__struct_fields__)
            raise RequestInvalid(unknown("model argument", name, names))
    if "bundle" not in options:
        raise RequestInvalid(
            "No bundle is named: give --model_args bundle=FOLDER, the folder that tokprune-export "
            "wrote"
        )
    for name in ("bundle", "system", "answers"):
        if isinstance(options.get(name), int | float):  # the harness turns 2024 into a number
            options[name] = str(options[name])
    try:
        settings = msgspec.convert(options, Settings)
    except msgspec.ValidationError as error:
        raise RequestInvalid(f"The model arguments cannot be read: {error}") from None
    if settings.backend not in get_args(Asked):
        raise RequestInvalid(unknown("backend", settings.backend, list(get_args(Asked))))
    if settings.num_frames is not None and (settings.fps or settings.max_frames):
        raise RequestInvalid("num_frames is a number of its own: leave out fps and max_frames")
    if settings.max_frames is not None and settings.fps is None and settings.max_frames > 32:
        raise RequestInvalid(
            f"max_frames={settings.max_frames} without fps: two frames a second are taken then, at "
            "most 32. Give fps too, or num_frames"
        )
    _ = settings.budget_asked
    return settings


def _check_harness_options(options: dict[str, Any]) -> None:
    """Take out what the harness passes to every model; refuse what is not done here."""
    batch = options.pop("batch_size", None)
    most = options.pop("max_batch_size", None)
    device = options.pop("device", None)
    if batch not in (None, 1, "1") or most not in (None, 1, "1"):
        raise RequestInvalid(
            f"batch_size={batch}, max_batch_size={most}: tokprune answers one question at a time; "
            "leave both out"
        )
    if device is not None:
        raise RequestInvalid(
            f"device={device}: say what runs the graphs with backend=... in --model_args "
            f"({', '.join(get_args(Asked))})"
        )
