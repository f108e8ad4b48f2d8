"""Questions about pictures and videos with known answers: one JSON object a line.

    {"image": "kitchen.png", "question": "Is the tap running?", "answer": "no"}
    {"images": ["left.png", "right.png"], "question": "Which is fuller?", "answer": "the left one"}
    {"video": "door.mp4", "num_frames": 8, "question": "Does the door close?", "answer": "yes"}
    {"frames": ["000.png", "001.png"], "fps": 4.0, "question": "What fell?", "answer": "a cup"}
    {"stream": ["000.png", "001.png"], "question": "Is the path free?", "answer": "yes"}

A stream is what a camera saw, picture by picture; asked about is the last, and an evaluation can
follow it there (`--encode follow:8`).
Paths are relative to the file. Beside "video" may stand "fps" or "num_frames", as `load_video`
takes them; without, two frames a second are taken, at most 32. "group" may name the type of
question, for tables; other keys are not read. An evaluation can do without answers, if no line has
one.
"""

from codecs import BOM_UTF8
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from PIL import Image as Pillow

from tokprune.errors import RequestInvalid
from tokprune.manifest import Modality
from tokprune.pictures import MAX_PIXELS, load_picture
from tokprune.timeline import Wanted
from tokprune_export.errors import placed
from tokprune_export.media import FrameFiles, Source, VideoFile, identity, modality
from tokprune_export.progress import Counting

Answers = Literal["needed", "all or none"]
_ONE_OF = (
    'give one of "image" (a path), "images" (paths), "video" (a path), "frames" (paths), "stream" '
    "(paths)"
)


@dataclass(frozen=True)
class Example:
    """A question, the pictures and videos that stand before it, and the right answer."""

    media: tuple[Source, ...]
    question: str
    answer: str  # "" where it is not known
    line: int  # of its file, counted from 1
    group: str = ""  # the type of question, for evaluation
    file: Path | None = None
    seen: tuple[Source, ...] = ()  # of a stream, the pictures before the one that is asked about

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"line {self.line}" if self.file is None else f"{self.file}, line {self.line}"

    @property
    def modality(self) -> Modality:
        """Whether it is about a video."""
        return modality(self.media)


class _Line(msgspec.Struct, frozen=True):
    question: str
    answer: str | None = None
    image: str | None = None
    images: list[str] | None = None
    video: str | None = None
    frames: list[str] | None = None
    stream: list[str] | None = None
    fps: float | None = None
    num_frames: int | None = None
    group: str = ""


def read_examples(
    path: Path, limit: int | None = None, *, answers: Answers = "needed", shown: bool = True
) -> list[Example]:
    """Read the first `limit` examples, or all, and check what they are about.

    Pictures are looked at, videos are decoded: what is wrong with them is found here.

    Args:
        path: the file.
        limit: how many examples.
        answers: whether every line needs one, or none has to.
        shown: whether to show how far the videos are.

    Raises:
        RequestInvalid: the file is missing or empty, or a line is bad; says which line and why.
        PictureInvalid: so does this, of a video that cannot be decoded or a picture that is too
            large.
        BackendUnavailable: there is a video file, and PyAV is not installed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestInvalid(f"Cannot read {path}: {error.strerror or error}") from None
    whole = data.removeprefix(BOM_UTF8)
    lines = [(n, line) for n, line in enumerate(whole.splitlines(), start=1) if line.strip()]
    examples = [_example(line, number, path) for number, line in lines[:limit]]
    if not examples:
        raise RequestInvalid(f"{path} holds no examples: give one JSON object a line")
    _check_answers(examples, answers)
    _check_media(examples, shown=shown)
    return examples


def _example(line: bytes, number: int, path: Path) -> Example:
    try:
        given = msgspec.json.decode(line, type=_Line)
        if not given.question.strip():
            raise ValueError('"question" is empty')
        if given.answer is not None and not given.answer.strip():
            raise ValueError('"answer" is empty')
        media = _media(given, path.parent)
    except ValueError as error:  # msgspec's errors and RequestInvalid are such
        raise RequestInvalid(f"{path}, line {number}: {error}") from None
    count = len(media) - 1 if given.stream is not None else 0
    answer = given.answer or ""
    return Example(media[count:], given.question, answer, number, given.group, path, media[:count])


def _check_answers(examples: list[Example], answers: Answers) -> None:
    """Refuse lines without an answer, where some have one or all must."""
    missing = [example for example in examples if not example.answer]
    if not missing or (answers == "all or none" and len(missing) == len(examples)):
        return
    rule = "" if answers == "needed" else ", which other lines have: give all of them or none"
    raise RequestInvalid(f"{missing[0].place}: missing required field `answer`{rule}")


def _media(given: _Line, folder: Path) -> tuple[Source, ...]:
    """Return what a line is about. Raises ValueError."""
    kinds = (given.image, given.images, given.video, given.frames, given.stream)
    if sum(kind is not None for kind in kinds) != 1:
        raise ValueError(_ONE_OF)
    if given.video is not None:
        Wanted(given.fps, given.num_frames)  # raises what makes no sense
        return (VideoFile(folder / given.video, given.fps, given.num_frames),)
    if given.num_frames is not None:
        raise ValueError('"num_frames" is for "video": it has no meaning here')
    if given.frames is not None:
        if not given.frames:
            raise ValueError('"frames" is empty: give one frame or more')
        if given.fps is None:
            raise ValueError('"frames" needs "fps": how many of them a second')
        return (FrameFiles(tuple(folder / name for name in given.frames), given.fps),)
    if given.fps is not None:
        raise ValueError('"fps" is for "video" and "frames": it has no meaning here')
    names = given.images or given.stream if given.image is None else [given.image]
    if not names:
        which = "images" if given.stream is None else "stream"
        raise ValueError(f'"{which}" is empty: give one picture or more')
    return tuple(folder / name for name in names)


def _check_media(examples: list[Example], *, shown: bool) -> None:
    """See that everything can be read, each thing once."""
    check = _once(_check)
    films = sum(example.modality == "video" for example in examples)
    with Counting("checking videos", films, shown=shown and films > 0) as counting:
        for example in examples:
            with placed(example.place):
                for source in (*example.seen, *example.media):
                    check(source)
            if example.modality == "video":
                counting.advance()


def _check(source: Source) -> None:
    if not isinstance(source, Path):
        identity(source)
        return
    try:
        with Pillow.open(source, formats=("JPEG", "PNG", "WEBP")) as picture:  # as load_picture
            pixels = picture.width * picture.height
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
        pixels = MAX_PIXELS + 1
    except (OSError, ValueError) as error:  # Pillow's other errors are both
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RequestInvalid(f"{source}: {reason}") from None
    if pixels > MAX_PIXELS:
        load_picture(source)  # says why not


def _once(check: Callable[[Source], None]) -> Callable[[Source], None]:
    """Return `check` for what it has not passed yet."""
    passed: set[Source] = set()

    def run(source: Source) -> None:
        if source not in passed:
            check(source)
            passed.add(source)

    return run
