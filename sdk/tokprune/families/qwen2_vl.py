"""Qwen2-VL. Follows transformers' Qwen2VLImageProcessorPil and Qwen2VLModel.get_rope_index."""

from collections.abc import Sequence
from functools import partial
from math import ceil, floor, sqrt
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Float32, Int64
from PIL import Image as Pillow

from tokprune.errors import PictureInvalid
from tokprune.families.family import Family, Positions, Processor, Span
from tokprune.types import COLUMN, PICTURE, ROW, Array, Image, Images, Prepared, Region

MAX_ASPECT = 200  # transformers refuses longer strips


class _Size(msgspec.Struct, frozen=True):
    shortest_edge: int  # pixels of the whole picture, in spite of the name
    longest_edge: int


class Settings(msgspec.Struct, frozen=True):
    """What preprocessor_config.json says; defaults are those of the HF class."""

    size: _Size | None = None
    min_pixels: int | None = None  # older checkpoints
    max_pixels: int | None = None
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    rescale_factor: float = 1 / 255
    resample: int = 3  # PIL's bicubic
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True

    @property
    def unit_px(self) -> int:
        """Side of one vision token."""
        return self.patch_size * self.merge_size

    @property
    def pixel_range(self) -> tuple[int, int]:
        """Fewest and most pixels of a resized picture."""
        low = self.size.shortest_edge if self.size else 56 * 56
        high = self.size.longest_edge if self.size else 28 * 28 * 1280
        return self.min_pixels or low, self.max_pixels or high


def open_processor(folder: Path) -> Processor:
    """Read the HF files of a bundle or checkpoint."""
    data = (folder / "preprocessor_config.json").read_bytes()
    settings = msgspec.json.decode(data, type=Settings)
    if not (settings.do_resize and settings.do_rescale and settings.do_normalize):
        raise ValueError("preprocessor_config.json switches off resize, rescale or normalise")
    return Processor(prepare=partial(prepare, settings), positions=positions)


def resized_hw(settings: Settings, height: int, width: int) -> tuple[int, int]:
    """Return the size that is a multiple of a vision token and within the pixel range."""
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise PictureInvalid(
            f"The picture is {width} x {height} pixels; Qwen2-VL takes an aspect ratio of at most "
            f"{MAX_ASPECT}: cut it into parts"
        )
    unit = settings.unit_px
    low, high = settings.pixel_range
    rows, columns = round(height / unit) * unit, round(width / unit) * unit
    if rows * columns > high:
        shrink = sqrt(height * width / high)
        rows = max(unit, floor(height / shrink / unit) * unit)
        columns = max(unit, floor(width / shrink / unit) * unit)
    elif rows * columns < low:
        grow = sqrt(low / (height * width))
        rows = ceil(height * grow / unit) * unit
        columns = ceil(width * grow / unit) * unit
    return rows, columns


def pixels(settings: Settings, image: Image) -> Float32[Array, "_ _ 3"]:
    """Resize and normalise one picture."""
    height, width = resized_hw(settings, *image.shape[:2])
    if (height, width) != image.shape[:2]:
        picture = Pillow.fromarray(image)
        image = np.asarray(picture.resize((width, height), Pillow.Resampling(settings.resample)))
    mean = np.asarray(settings.image_mean, np.float32)
    std = np.asarray(settings.image_std, np.float32)
    scaled = image.astype(np.float32) * np.float32(settings.rescale_factor)
    return (scaled - mean) / std


def patchify(
    settings: Settings, frames: Sequence[Float32[Array, "_ _ 3"]]
) -> Float32[Array, "f p c"]:
    """Cut frames of one size into patches, 2 x 2 merge units together, frames in temporal pairs.

    A temporal patch that lacks frames repeats the last one, so a picture is its own pair.
    """
    pair, side, merge = settings.temporal_patch_size, settings.patch_size, settings.merge_size
    missing = -len(frames) % pair
    stack = np.stack([*frames, *[frames[-1]] * missing])
    count, height, width, channels = stack.shape
    units_y, units_x = height // side // merge, width // side // merge
    split = (count // pair, pair, units_y, merge, side, units_x, merge, side, channels)
    cut = np.transpose(np.reshape(stack, split), (0, 2, 5, 3, 6, 8, 1, 4, 7))
    flat = np.reshape(cut, (count // pair, units_y * units_x * merge * merge, -1))
    return np.ascontiguousarray(flat, np.float32)


def patch_positions(rows: int, columns: int, merge: int) -> Int64[Array, "p 2"]:
    """Row and column of every patch, in the order of `patchify`. `rows` counts vision tokens."""
    grid = np.moveaxis(np.indices((rows * merge, columns * merge)), 0, -1)
    units = np.swapaxes(np.reshape(grid, (rows, merge, columns, merge, 2)), 1, 2)
    return np.ascontiguousarray(np.reshape(units, (-1, 2)), np.int64)


def prepare(settings: Settings, images: Images) -> tuple[Prepared, ...]:
    """Cut each picture into patches: one run of the vision encoder a picture."""
    return tuple(_prepare_one(settings, index, image) for index, image in enumerate(images))


def _prepare_one(settings: Settings, index: int, image: Image) -> Prepared:
    patches = patchify(settings, [pixels(settings, image)])
    height, width = resized_hw(settings, *image.shape[:2])
    rows, columns = height // settings.unit_px, width // settings.unit_px
    where = np.zeros((rows * columns, 7), np.int32)
    where[:, PICTURE] = index
    where[:, ROW], where[:, COLUMN] = np.divmod(np.arange(rows * columns), columns)
    feeds = {
        "pixel_values": patches,
        "positions": patch_positions(rows, columns, settings.merge_size),
    }
    return Prepared(
        calls=(feeds,),
        pack=_pack,
        where=where,
        regions=(Region(index, 0, 0, rows, columns),),
        size_hw=(image.shape[0], image.shape[1]),
    )


def _pack(outputs: list[Array]) -> Array:
    (tokens,) = outputs
    return np.reshape(tokens, (-1, tokens.shape[-1]))


def positions(spans: Sequence[Span]) -> tuple[Positions, int]:
    """M-RoPE ids [3, s] (time, row, column), and the id of the first answer token.

    Text after a picture starts at the picture's start + max(rows, columns), as transformers >= 5.23
    has it; the answer starts at the largest id + 1.
    """
    parts: list[Array] = []
    start = 0
    for span in spans:
        if not span.regions:
            parts.append(np.broadcast_to(np.arange(span.length) + start, (3, span.length)))
            start += span.length
            continue
        for region in span.regions:
            row, column = np.divmod(np.arange(region.rows * region.columns), region.columns)
            parts.append(np.stack([np.full_like(row, region.frame), row, column]) + start)
        start += max(max(region.rows, region.columns) for region in span.regions)
    joined = np.concatenate(parts, axis=1).astype(np.int64)
    return joined, int(joined.max()) + 1


FAMILY = Family(open=open_processor)
