"""VILA1.5: each picture becomes a square for SigLIP; the frames of a video are pictures.

Follows process_image, run_vila.py and DownSampleBlock of NVlabs/VILA, and transformers'
SiglipImageProcessorPil.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float32
from PIL import Image as Pillow

from tokprune.families.family import Family, Positions, Processor, Span
from tokprune.types import (
    COLUMN,
    FRAME,
    PICTURE,
    ROW,
    Array,
    Clip,
    Image,
    Media,
    Prepared,
    Region,
)


class Arrangement(NamedTuple):
    """How a projector makes one sequence of a square of patches."""

    unit: int  # patches a side that become one vision token; zeros fill an odd edge
    column_major: bool  # whether the tokens of a column follow one another


# By mm_projector_type. "mlp_downsample" takes the grid's axes for width and height, in that order,
# which turns it: the tokens run down its columns. The later "fix" types turn it back.
ARRANGEMENTS: dict[str, Arrangement] = {
    "linear": Arrangement(1, column_major=False),
    "mlp2x_gelu": Arrangement(1, column_major=False),
    "mlp_downsample": Arrangement(2, column_major=True),
    "mlp_downsample_2x2_fix": Arrangement(2, column_major=False),
    "mlp_downsample_3x3_fix": Arrangement(3, column_major=False),
}
RESIZED, PADDED = "resize", "pad"  # values of image_aspect_ratio; null leaves it to SigLIP


class _Size(msgspec.Struct, frozen=True):
    height: int
    width: int


class _Pictures(msgspec.Struct, frozen=True):
    """What preprocessor_config.json says; defaults are those of the HF class."""

    size: _Size
    rescale_factor: float = 1 / 255
    resample: int = 3  # PIL's bicubic
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)


class _Vision(msgspec.Struct, frozen=True):
    image_size: int
    patch_size: int


class _Config(msgspec.Struct, frozen=True):
    """What the config.json says that the exporter put together."""

    vision_config: _Vision
    mm_projector_type: str
    image_aspect_ratio: str | None = None


class Grid(NamedTuple):
    """The vision tokens of one picture."""

    side: int  # tokens a side
    column_major: bool


@dataclass(frozen=True)
class Settings:
    """How pictures are cut."""

    pictures: _Pictures
    aspect: str | None
    grid: Grid


def open_processor(folder: Path) -> Processor:
    """Read the text files of a bundle or checkpoint. The exporter has checked them."""
    data = (folder / "preprocessor_config.json").read_bytes()
    config = msgspec.json.decode((folder / "config.json").read_bytes(), type=_Config)
    vision = config.vision_config
    settings = Settings(
        pictures=msgspec.json.decode(data, type=_Pictures),
        aspect=config.image_aspect_ratio,
        grid=grid_of(vision.image_size // vision.patch_size, config.mm_projector_type),
    )
    return Processor(prepare=partial(prepare, settings), positions=positions)


def grid_of(patches: int, projector: str) -> Grid:
    """Return the grid that a projector makes of a square with `patches` patches a side."""
    unit, column_major = ARRANGEMENTS[projector]
    return Grid(-(-patches // unit), column_major)


def pixels(settings: Settings, image: Image) -> Float32[Array, "3 side side"]:
    """Make a square of a picture or frame, and normalise it."""
    pictures = settings.pictures
    picture = Pillow.fromarray(image)
    resample = Pillow.Resampling(pictures.resample)
    if settings.aspect == RESIZED:  # before SigLIP's processor sees it, in PIL's usual way
        resample = Pillow.Resampling.BICUBIC
    elif settings.aspect == PADDED:
        picture = _padded(picture, pictures.image_mean)
    square = np.asarray(picture.resize((pictures.size.width, pictures.size.height), resample))
    mean = np.asarray(pictures.image_mean, np.float32)
    std = np.asarray(pictures.image_std, np.float32)
    scaled = square.astype(np.float32) * np.float32(pictures.rescale_factor)
    return np.ascontiguousarray(np.transpose((scaled - mean) / std, (2, 0, 1)))


def _padded(picture: Pillow.Image, mean: tuple[float, float, float]) -> Pillow.Image:
    """Put a picture in the middle of a square of the mean colour."""
    width, height = picture.size
    side = max(width, height)
    red, green, blue = (int(value * 255) for value in mean)
    square = Pillow.new("RGB", (side, side), (red, green, blue))
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


def prepare(settings: Settings, media: Media) -> tuple[Prepared, ...]:
    """Make one run of the vision encoder of each picture and of each frame."""
    return tuple(
        from_pixels(
            settings.grid,
            index,
            number,
            pixels(settings, frame)[None],
            (frame.shape[0], frame.shape[1]),
        )
        for index, medium in enumerate(media)
        for number, frame in enumerate(medium.frames if isinstance(medium, Clip) else [medium])
    )


def from_pixels(
    grid: Grid,
    index: int,
    frame: int,
    pixel_values: Float32[Array, "1 3 side side"],
    size_hw: tuple[int, int],
) -> Prepared:
    """Lay out one square: picture or video `index` of the prompt, and the number of its frame."""
    fast, slow = np.arange(grid.side**2) % grid.side, np.arange(grid.side**2) // grid.side
    where = np.zeros((grid.side**2, 7), np.int32)
    where[:, PICTURE], where[:, FRAME] = index, frame
    where[:, ROW], where[:, COLUMN] = (fast, slow) if grid.column_major else (slow, fast)
    return Prepared(
        kind="picture",
        calls=({"pixel_values": pixel_values},),
        pack=_pack,
        where=where,
        regions=(Region(index, frame, 0, grid.side, grid.side),),
        size_hw=size_hw,
        units=np.ones((len(where), 1), np.bool_),
    )


def _pack(outputs: list[Array]) -> Array:
    (tokens,) = outputs
    return tokens[0]


def positions(spans: Sequence[Span]) -> tuple[Positions, int]:
    """Count the rows: Llama knows of no grid."""
    length = sum(span.length for span in spans)
    return np.arange(length, dtype=np.int64)[None], length


FAMILY = Family(open=open_processor)
