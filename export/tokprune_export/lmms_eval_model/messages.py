"""From what the harness shows and says to what `vlm.chat` takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL.Image import Image as Picture

from tokprune.chat import Part
from tokprune.errors import RequestInvalid
from tokprune.serving.data_urls import PictureReader
from tokprune_export.lmms_eval_model.settings import Settings

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tiff")
SOUNDS = (".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus")
_PLACES = ("url", "path", "image", "video", "text")  # where a part keeps what it shows
_TIMES = ("start_time", "end_time", "video_start", "video_end")


@dataclass(frozen=True)
class Asked:
    """A question with what was said before it; pictures and videos are read or named."""

    question: tuple[Part, ...]
    earlier: tuple[tuple[tuple[Part, ...], str], ...] = ()
    system: str | None = None


def asked_of(messages: Sequence[Mapping[str, Any]], settings: Settings) -> Asked:
    """Read messages as a task's `doc_to_messages` gives them.

    Raises:
        RequestInvalid: their order, or what one shows, is not taken here.
        PictureInvalid: a video cannot be read.
    """
    system = settings.system
    turns: list[tuple[tuple[Part, ...], str | None]] = []
    for number, message in enumerate(messages):
        role, parts = message.get("role"), _parts(message.get("content", ""), settings)
        open_turn = bool(turns) and turns[-1][1] is None
        if role == "system" and number == 0:
            system = system if system is not None else _words(parts)
        elif role == "user" and not open_turn:
            turns.append((parts, None))
        elif role == "assistant" and open_turn:
            turns[-1] = (turns[-1][0], _words(parts))
        else:
            _refuse_order(f"message {number} has the role {role!r}")
    if not turns or turns[-1][1] is not None:
        _refuse_order(f"the last of {len(messages)} is not the user's")
    earlier = tuple((parts, answer) for parts, answer in turns if answer is not None)
    return Asked(turns[-1][0], earlier, system)


def shown_first(visuals: object, text: str, settings: Settings) -> Asked:
    """Read what a simple task's `doc_to_visual` gives; it stands before the words."""
    parts = [_part(visual, settings) for visual in _flat(visuals)]
    return Asked((*parts, text), system=settings.system)


def check_order(asked: Asked, *, media_first: bool) -> None:
    """Refuse words before a picture, where the bundle's chat would move them behind it.

    Raises:
        RequestInvalid: says how to have them moved.
    """
    turns = (asked.question, *(parts for parts, _ in asked.earlier))
    if media_first and any(_interleaved(parts) for parts in turns):
        raise RequestInvalid(
            "The task puts words before a picture or video, and this checkpoint's chat template "
            "shows these first, whatever their place. Give media_first=True in --model_args to "
            "have it so, or --force_simple where the task has a simple form"
        )


def _interleaved(parts: Sequence[Part]) -> bool:
    words = [isinstance(part, str) for part in parts]
    return words != sorted(words)


def _parts(content: object, settings: Settings) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, Sequence):
        _refuse_part(content)
    parts = [_part(part, settings, typed=True) for part in content]
    if settings.media_first:
        parts.sort(key=lambda part: isinstance(part, str))
    return tuple(parts)


def _part(given: Any, settings: Settings, *, typed: bool = False) -> Part:
    """Read one picture, video or text. In messages every part names its type."""
    if isinstance(given, Mapping):
        return _named_part(given, settings)
    if typed:
        _refuse_part(given)
    return _medium(given, None, settings, ())


def _named_part(given: Mapping[str, Any], settings: Settings) -> Part:
    kind = given.get("type")
    extra = [name for name in given if name not in (*_PLACES, *_TIMES, "type", "bytes")]
    if extra:
        raise RequestInvalid(f"A task's {kind} part asks for {extra}, which is not done here")
    if kind == "text":
        return str(given.get("text", ""))
    data = given.get("bytes")
    place = next((given[name] for name in _PLACES if given.get(name) is not None), None)
    start = given.get("start_time", given.get("video_start"))
    end = given.get("end_time", given.get("video_end"))
    if isinstance(place, Mapping):  # the harness wraps a visual that has times of its own
        return _named_part({"type": kind, **place}, settings)
    if place is None and data is None:
        _refuse_part(dict(given))
    return _medium(place if data is None else data, kind, settings, (start, end))


def _medium(given: Any, kind: object, settings: Settings, times: Sequence[float | None]) -> Part:
    """Read a picture or video; a bare file is told by its name, as the harness does."""
    suffix = Path(given).suffix.lower() if isinstance(given, str | Path) else ""
    if kind is None:
        file = suffix and suffix not in PICTURES
        kind = "audio" if suffix in SOUNDS else "video" if file else "image"
    if kind == "audio":
        raise RequestInvalid("The task gives sound, which no bundle takes: choose another task")
    if kind == "image" and isinstance(given, str) and given.startswith("data:"):
        return PictureReader().read(given, "The task's picture")
    if kind == "image" and isinstance(given, str):
        return Path(given)
    if kind == "image" and isinstance(given, Picture | Path | bytes | np.ndarray):
        return given
    if kind == "video" and isinstance(given, str | Path):
        start, end = (*times, None, None)[:2]
        return settings.clip(given, float(start or 0), None if end is None else float(end))
    return _refuse_part(given)


def _flat(visuals: object) -> list[Any]:
    """Return visuals as one list: tasks give none, one, a list, or a list in a list."""
    if visuals is None:
        return []
    if not isinstance(visuals, list | tuple):
        return [visuals]
    return [each for visual in visuals for each in _flat(visual)]


def _words(parts: Sequence[Part]) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise RequestInvalid("The task shows a picture in a message that is not the user's")
    return "".join(part for part in parts if isinstance(part, str))


def _refuse_part(given: object) -> NoReturn:
    shown = f"{type(given).__name__} {given!s:.100}"
    raise RequestInvalid(
        f"The task shows a {shown}: expected text, a picture (Pillow image, path, bytes, data URL "
        "or array) or the path of a video"
    )


def _refuse_order(problem: str) -> NoReturn:
    raise RequestInvalid(
        f"The task's messages are out of order: {problem}. Expected at most one of the system, "
        "first; then user and assistant in turn, and the user's last"
    )
