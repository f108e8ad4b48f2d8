"""Where the settings of HF's processors are: in one file together, or in files of their own.

Follows get_image_processor_dict and get_video_processor_dict of transformers (5.23).
"""

from pathlib import Path
from typing import NamedTuple

import msgspec

TOGETHER = "processor_config.json"  # older checkpoints lack it, or have other things in it
PICTURES = "preprocessor_config.json"
VIDEOS = "video_preprocessor_config.json"


class Found(NamedTuple):
    """Settings, as JSON."""

    file: str  # where they are, for messages
    json: bytes


def picture_settings(folder: Path) -> Found:
    """Read the settings of the image processor.

    Raises:
        ValueError: there are none.
    """
    return _first(folder, "image_processor", PICTURES)


def video_settings(folder: Path) -> Found:
    """Read the settings of the video processor, those of the image processor's file at last.

    Raises:
        ValueError: there are none.
    """
    return _first(folder, "video_processor", VIDEOS, PICTURES)


def _first(folder: Path, part: str, *files: str) -> Found:
    together = folder / TOGETHER
    if together.is_file():
        parts = msgspec.json.decode(together.read_bytes(), type=dict[str, msgspec.Raw])
        if part in parts and bytes(parts[part]) != b"null":
            return Found(f"{TOGETHER}, {part},", bytes(parts[part]))
    for name in files:
        if (folder / name).is_file():
            return Found(name, (folder / name).read_bytes())
    raise ValueError(
        f"There is neither {' nor '.join(files)}, nor {part} in {TOGETHER}: add the checkpoint's"
    )
