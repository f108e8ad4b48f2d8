"""Broken videos by the thousand.

Run as a program: `video_mutants.py CHUNK COUNT` damages small videos of many kinds, reads each in a
child with limits, and prints as JSON what happened.
"""

import json
import random
import sys
from functools import cache
from typing import Any

import numpy as np
from mutations import damaged
from trials import try_all
from video_files import encoded, numbered

from tokprune import PictureInvalid, load_video

MAX_PIXELS = 2_000_000
FAST: dict[str, Any] = {"cpu-used": "8"}


@cache
def originals() -> tuple[bytes, ...]:
    """Return videos of several kinds."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3)).astype(np.uint8)
    return (
        numbered(12, g="4", bf="2", sound=True),
        numbered(12, container="matroska", sound=True),
        numbered(12, container="mpegts"),
        numbered(12, container="flv"),
        numbered(12, codec="mpeg4", container="avi"),
        numbered(12, codec="mjpeg", container="avi"),
        numbered(12, codec="libvpx", container="webm"),
        numbered(12, codec="libvpx-vp9", container="webm", **FAST),
        numbered(12, codec="mpeg2video", container="mpeg", rate=25),
        encoded(list(noise)),
        encoded(list(noise), "ffv1", "matroska", pixels="bgr0"),
    )


def trial(case: int) -> str:
    """Damage one video and read it."""
    chance = random.Random(case)
    data = chance.choice(originals())
    for _ in range(chance.choice([1, 1, 1, 3])):
        data = damaged(data, chance)
    try:
        clip = load_video(data, num_frames=chance.choice([None, 1, 3]), max_pixels=MAX_PIXELS)
    except PictureInvalid:
        return "refused"
    if clip.frames.dtype != np.uint8 or not 0 < clip.frames.size <= 3 * MAX_PIXELS:
        raise AssertionError(f"{clip.frames.dtype} {clip.frames.shape}")
    return "read"


if __name__ == "__main__":
    chunk, count = int(sys.argv[1]), int(sys.argv[2])
    originals()
    outcomes = try_all(trial, range(chunk * count, (chunk + 1) * count))
    sys.stdout.write(json.dumps(vars(outcomes)) + "\n")
