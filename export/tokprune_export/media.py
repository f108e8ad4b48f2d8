"""Pictures and videos that data files name: decoded when they are asked about, known by content."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tokprune.files import sha256_file
from tokprune.manifest import Modality
from tokprune.pictures import load_picture
from tokprune.types import Clip, Image, Medium
from tokprune.video import clip_of, load_video


@dataclass(frozen=True)
class VideoFile:
    """Frames of a video file; `tokprune.load_video` says which."""

    path: Path
    fps: float | None = None
    num_frames: int | None = None


@dataclass(frozen=True)
class FrameFiles:
    """A video whose frames are picture files, in the order of time."""

    paths: tuple[Path, ...]
    fps: float  # of these frames


Source: TypeAlias = Path | VideoFile | FrameFiles  # a path is a picture's


class Identity(NamedTuple):
    """What a picture or video is, wherever it lies."""

    content: str  # hash of a picture's file, or of the frames and their rate as they are decoded
    parts: tuple[str, ...]  # hashes of files: who shares one of them shows the same


def load(source: Source | Medium) -> Medium:
    """Decode a picture or video; what is decoded already is returned as it is.

    Raises:
        PictureInvalid: it cannot be decoded, or has not the frames that are asked for.
        RequestInvalid: `fps` or `num_frames` make no sense.
        BackendUnavailable: it is a video file, and PyAV is not installed.
    """
    match source:
        case Path():
            return load_picture(source)
        case VideoFile():
            return load_video(source.path, fps=source.fps, num_frames=source.num_frames)
        case FrameFiles():
            return clip_of(source.paths, source.fps)
        case _:
            return source


def modality(media: Iterable[Source | Medium]) -> Modality:
    """Tell questions about videos, with pictures beside them or not, from those about pictures."""
    films = (VideoFile, FrameFiles, Clip)
    return "video" if any(isinstance(medium, films) for medium in media) else "picture"


@lru_cache(maxsize=1 << 20)
def identity(source: Source) -> Identity:
    """Hash what is shown; a video is decoded for that. Raises what `load` does."""
    if isinstance(source, Path):
        digest = sha256_file(source)
        return Identity(digest, (digest,))
    clip = load(source)
    assert isinstance(clip, Clip)
    content = hashlib.sha256(f"{clip.frames.shape} {clip.fps}".encode())
    content.update(clip.frames.data)
    if isinstance(source, VideoFile):
        return Identity(content.hexdigest(), (sha256_file(source.path),))
    # A frame of one colour shows nothing: many videos begin with the same black one.
    shown = zip(source.paths, clip.frames, strict=True)
    parts = tuple(sha256_file(path) for path, frame in shown if not _is_plain(frame))
    return Identity(content.hexdigest(), parts or (content.hexdigest(),))


def _is_plain(frame: Image) -> bool:
    return bool((frame == frame[0, 0]).all())
