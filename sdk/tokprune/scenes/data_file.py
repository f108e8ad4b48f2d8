"""Drawn pictures and videos as files, for tokprune-train and the evaluation."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from tokprune.scenes.film_suite import FilmSample
from tokprune.scenes.suite import Sample
from tokprune.types import Image


def write(folder: Path, samples: Iterable[Sample | FilmSample]) -> Path:
    """Write pictures and frames as PNG and questions as `data.jsonl`, the input of tokprune-train.

    A picture or frame that several questions are about is written once: whoever splits the
    questions can keep those of one picture or video together.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    target = folder / "data.jsonl"
    with target.open("w", encoding="utf-8") as lines:
        for sample in samples:
            row = {"question": sample.question, "answer": sample.answer, "group": sample.group}
            lines.write(json.dumps({**_shown(folder, sample), **row}) + "\n")
    return target


def _shown(folder: Path, sample: Sample | FilmSample) -> dict[str, Any]:
    """Write what a question is about, and return the part of its line that names it."""
    if isinstance(sample, FilmSample):
        frames = [_write_picture(folder, frame) for frame in sample.clip.frames]
        return {"frames": frames, "fps": sample.clip.fps}
    names = [_write_picture(folder, picture) for picture in sample.pictures]
    return {"image": names[0]} if len(names) == 1 else {"images": names}


def _write_picture(folder: Path, picture: Image) -> str:
    """Write a picture under the hash of its pixels, and return its name relative to the folder."""
    digest = hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest()
    name = f"pictures/{digest[:24]}.png"
    if not (folder / name).exists():
        Pillow.fromarray(picture).save(folder / name)
    return name
