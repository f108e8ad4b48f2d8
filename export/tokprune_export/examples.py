"""Questions about pictures with known answers: one JSON object a line.

    {"image": "kitchen.png", "question": "Is the tap running?", "answer": "no"}
    {"images": ["left.png", "right.png"], "question": "Which is fuller?", "answer": "the left one"}

Paths are relative to the file. "group" may name the type of question, for tables; other keys are
not read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from PIL import Image as Pillow

from tokprune.errors import RequestInvalid


@dataclass(frozen=True)
class Example:
    """A question, the pictures that stand before it, and the right answer."""

    pictures: tuple[Path, ...]
    question: str
    answer: str
    line: int  # of its file, counted from 1
    group: str = ""  # the type of question, for evaluation


class _Line(msgspec.Struct, frozen=True):
    question: str
    answer: str
    image: str | None = None
    images: list[str] | None = None
    group: str = ""


def read_examples(path: Path, limit: int | None = None) -> list[Example]:
    """Read the first `limit` examples, or all, and check that their pictures are pictures.

    Raises:
        RequestInvalid: the file is missing or empty, or a line is bad; says which line and why.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestInvalid(f"Cannot read {path}: {error.strerror or error}") from None
    check = _once(_check_picture)
    examples: list[Example] = []
    for number, line in enumerate(data.splitlines(), start=1):
        if limit is not None and len(examples) == limit:
            break
        if line.strip():
            try:
                examples.append(_example(line, number, path.parent, check))
            except ValueError as error:
                raise RequestInvalid(f"{path}, line {number}: {error}") from None
    if not examples:
        raise RequestInvalid(f"{path} holds no examples: give one JSON object a line")
    return examples


def _example(line: bytes, number: int, folder: Path, check: Callable[[Path], None]) -> Example:
    """Read one line. Raises ValueError, and msgspec's errors are such."""
    given = msgspec.json.decode(line, type=_Line)
    if (given.image is None) == (given.images is None):
        raise ValueError('give either "image" (a path) or "images" (a list of paths)')
    names = given.images if given.image is None else [given.image]
    if not names:
        raise ValueError('"images" is empty: give one picture or more')
    if not given.question.strip():
        raise ValueError('"question" is empty')
    if not given.answer.strip():
        raise ValueError('"answer" is empty')
    pictures = tuple(folder / name for name in names)
    for picture in pictures:
        check(picture)
    return Example(pictures, given.question, given.answer, number, given.group)


def _check_picture(path: Path) -> None:
    try:
        with Pillow.open(path, formats=("JPEG", "PNG", "WEBP")):  # what load_picture reads
            return
    except (OSError, ValueError) as error:  # Pillow's own errors are both
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{path}: {reason}") from None


def _once(check: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return `check` for paths that it has not passed yet."""
    passed: set[Path] = set()

    def run(path: Path) -> None:
        if path not in passed:
            check(path)
            passed.add(path)

    return run
