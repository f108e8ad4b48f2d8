"""Videos in, clips of RGB frames out."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from tokprune.errors import BackendUnavailable, PictureInvalid
from tokprune.pictures import PictureSource, load_picture, open_plain
from tokprune.timeline import MAX_FRAMES, Wanted
from tokprune.types import Clip

MAX_CLIP_PIXELS = 300_000_000  # 0.9 GB: 32 frames of 4K, 144 of Full HD


def load_video(
    source: str | Path | bytes,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    max_pixels: int = MAX_CLIP_PIXELS,
    max_frames: int = MAX_FRAMES,
    at_most: bool = False,
) -> Clip:
    """Return frames of a video file, chosen by the time at which they are on screen.

    With neither `fps` nor `num_frames`, two frames a second are taken; where that makes more than
    32, 32 frames evenly spread over the time.

    Rotation and mirroring are applied. Pixels are given as stored: those of another shape than
    square (pixel aspect ratio) are not stretched. Colours without a tag are taken for BT.601, as
    FFmpeg and transformers do; HDR is not mapped to SDR. Sound is ignored.

    Args:
        source: a path, or the bytes of a file: MP4, MOV, Matroska, WebM, AVI, MPEG-TS, MPEG-PS,
            Ogg or FLV.
        fps: take what is on screen every 1/fps s, beginning at `start_s`. A frame that stays on
            screen for longer is repeated.
        num_frames: take this many frames, evenly spread: what is on screen at the start of each of
            so many equal parts of the time, as transformers' video processors do.
        start_s: seconds after the first frame.
        end_s: seconds after the first frame, itself not included; None is the end.
        max_pixels: of all frames together. More are refused before anything is decoded, and so is
            one frame of more than 50,000,000.
        max_frames: more are refused.
        at_most: take what there is where the video has fewer frames, or fewer a second, than asked
            for; and `max_frames` evenly spread where `fps` makes more.

    Raises:
        PictureInvalid: it cannot or must not be decoded, is damaged or truncated, or has fewer
            frames or less time than asked for. Damage that the codec cannot tell is shown.
        RequestInvalid: `fps`, `num_frames`, `start_s` or `end_s` make no sense.
        BackendUnavailable: PyAV is not installed.
    """
    wanted = Wanted(fps, num_frames, start_s, end_s, max_frames, at_most)
    try:
        from tokprune import video_file
    except ImportError as error:
        raise BackendUnavailable(
            f"Reading videos needs PyAV ({error}): pip install 'tokprune[camera]'"
        ) from None
    if isinstance(source, bytes):
        name = f"The video of {len(source)} bytes"
        return video_file.read(BytesIO(source), wanted, max_pixels, name)
    with open_plain(source, "video") as file:
        return video_file.read(file, wanted, max_pixels, f"{str(source)!r:.300}")


def clip_of(pictures: Sequence[PictureSource], fps: float) -> Clip:
    """Return pictures as the frames of a video.

    Args:
        pictures: whatever `ask` takes as a picture, all of one size, in the order of time.
        fps: how many of them a second.

    Raises:
        PictureInvalid: one cannot be decoded or differs in size, or there is none.
        RequestInvalid: `fps` is not above 0.
    """
    frames = [load_picture(picture) for picture in pictures]
    for number, frame in enumerate(frames):
        if frame.shape != frames[0].shape:
            height, width, _ = frame.shape
            given = pictures[number]
            name = f" ({str(given)!r:.300})" if isinstance(given, (str, Path)) else ""
            raise PictureInvalid(
                f"Frame {number} of the video has {width} x {height} pixels{name}, frame 0 has "
                f"{frames[0].shape[1]} x {frames[0].shape[0]}: give all frames in one size"
            )
    return Clip(np.stack(frames) if frames else np.empty((0, 1, 1, 3), np.uint8), fps)
