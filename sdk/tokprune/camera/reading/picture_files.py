"""A folder or pattern of pictures as a source, in natural order."""

import re
from glob import glob
from pathlib import Path

from tokprune.camera.naming.sources import PICTURES, Source
from tokprune.camera.reading.reader import Grabbed, SourceGone
from tokprune.errors import PictureInvalid
from tokprune.pictures import load_picture
from tokprune.types import Image

_DIGITS = re.compile(r"([0-9]+)")


def picture_paths(source: Source) -> list[Path]:
    """Return the pictures of a folder or pattern, or the one that was named: 2.png before 10.png.

    What does not end in .jpg, .jpeg, .png or .webp is left out, and so is what has a dot in front.
    """
    path = Path(source.address.reveal())
    if path.is_file():
        return [path]
    found = path.iterdir() if path.is_dir() else map(Path, glob(str(path)))  # noqa: PTH207 - absolute ones too
    paths = [each for each in found if each.suffix.lower() in PICTURES]
    return sorted((each for each in paths if each.name[0] != "."), key=_natural)


class PictureReader:
    """Pictures, one after another. What cannot be decoded is left out, counted in `skipped`."""

    interval_s: float | None = None

    def __init__(self, source: Source) -> None:
        """List the pictures.

        Raises:
            SourceGone: there is none.
        """
        self.skipped = 0
        self._name = source.shown
        self._paths = picture_paths(source)
        self._at = 0
        self._interrupted = False
        if not self._paths:
            raise SourceGone(f"{self._name}: no JPEG, PNG or WebP file is there")

    def read(self) -> Grabbed | None:
        """Return the next picture. None after the last.

        Raises:
            SourceGone: none of them can be decoded; says why the last one cannot.
        """
        reason = ""
        while self._at < len(self._paths):
            if self._interrupted:
                raise SourceGone(f"{self._name}: reading was stopped")
            path = self._paths[self._at]
            self._at += 1
            try:
                image = load_picture(path)
            except PictureInvalid as refused:
                reason = str(refused)
                self.skipped += 1
            else:
                return _grabbed(image)
        if reason and self.skipped == len(self._paths):
            raise SourceGone(reason)
        return None

    def interrupt(self) -> None:
        """Forbid later reads. One that runs takes no longer than decoding."""
        self._interrupted = True

    def close(self) -> None:
        """Nothing is held open between reads."""


def _grabbed(image: Image) -> Grabbed:
    return Grabbed(lambda: image, image)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Return what to sort by: numbers count as numbers, whatever the case of letters."""
    parts = _DIGITS.split(str(path).casefold())
    key = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]
    return [*key, (2, 0, str(path))]
