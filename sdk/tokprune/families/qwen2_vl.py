"""Qwen2-VL, pictures and videos.

Follows transformers' Qwen2VLImageProcessorPil, Qwen2VLVideoProcessor and
Qwen2VLModel.get_rope_index.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import ceil, floor, sqrt
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Float32
from PIL import Image as Pillow

from tokprune.errors import PictureInvalid
from tokprune.families.family import Family, Positions, Processor, Span
from tokprune.families.processor_files import Found, picture_settings, video_settings
from tokprune.families.qwen_patches import cut, from_patches
from tokprune.looking.ways import Ways
from tokprune.types import Array, Clip, Image, Media, Prepared, Region

MAX_ASPECT = 200  # transformers refuses longer strips


class _Size(msgspec.Struct, frozen=True):
    shortest_edge: int | None = None  # pixels of the whole picture, in spite of the name
    longest_edge: int | None = None


class Settings(msgspec.Struct, frozen=True):
    """What the files say of pictures; defaults are those of HF's Qwen2VLImageProcessor."""

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
    cap_pixels_per_frame: bool | None = None  # of videos: also bound all frames together
    max_video_tokens: int = 128_000

    @property
    def unit_px(self) -> int:
        """Side of one vision token."""
        return self.patch_size * self.merge_size

    @property
    def pixel_range(self) -> tuple[int, int]:
        """Fewest and most pixels of a resized picture or frame."""
        size = self.size or _Size(*self.usual_range)
        return self.min_pixels or size.shortest_edge or 0, self.max_pixels or size.longest_edge or 0

    @property
    def usual_range(self) -> tuple[int, int]:
        """What the HF class takes where the file says nothing."""
        return 56 * 56, 28 * 28 * 1280

    @property
    def across_first(self) -> bool:
        """Resize rows before columns, with whole grey levels between."""
        return False


class FilmSettings(Settings, frozen=True):
    """What the files say of videos; defaults are those of HF's Qwen2VLVideoProcessor."""

    @property
    def usual_range(self) -> tuple[int, int]:
        """What the HF class takes where the file says nothing."""
        return 128 * 28 * 28, 768 * 28 * 28

    @property
    def across_first(self) -> bool:
        """As torchvision does, HF's only way for videos; Pillow >= 13 takes the cheaper order."""
        return True


def open_processor(folder: Path) -> Processor:
    """Read the HF files of a bundle or checkpoint."""
    stills = _settings(picture_settings(folder), Settings)
    films = _settings(video_settings(folder), FilmSettings)
    return Processor(
        prepare=partial(prepare, stills, films),
        positions=positions,
        ways=Ways(cut, partial(prepare, stills, films, halved=True)),
        together=films.temporal_patch_size,
    )


def _settings(found: Found, kind: type[Settings]) -> Settings:
    settings = msgspec.json.decode(found.json, type=kind)
    if not (settings.do_resize and settings.do_rescale and settings.do_normalize):
        raise ValueError(f"{found.file} switches off resize, rescale or normalise")
    if not all(settings.pixel_range):
        raise ValueError(f"{found.file} gives a size without shortest_edge and longest_edge")
    return settings


def resized_hw(settings: Settings, height: int, width: int, *, frames: int = 1) -> tuple[int, int]:
    """Return the size that is a multiple of a vision token and within the pixel range."""
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise PictureInvalid(
            f"The picture is {width} x {height} pixels; Qwen's models take an aspect ratio of at "
            f"most {MAX_ASPECT}: cut it into parts"
        )
    unit = settings.unit_px
    low, high = settings.pixel_range
    if settings.cap_pixels_per_frame:
        share = int(settings.max_video_tokens * unit * unit * 0.9) * settings.temporal_patch_size
        high = max(min(high, share // frames), int(low * 1.05))
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


def pixels(settings: Settings, image: Image, target_hw: tuple[int, int]) -> Float32[Array, "_ _ 3"]:
    """Resize and normalise one picture or frame."""
    height, width = target_hw
    if (height, width) != image.shape[:2]:
        picture, resample = Pillow.fromarray(image), Pillow.Resampling(settings.resample)
        if settings.across_first:
            picture = picture.resize((width, picture.height), resample)
        image = np.asarray(picture.resize((width, height), resample))
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


def prepare(
    stills: Settings, films: Settings, media: Media, *, halved: bool = False
) -> tuple[Prepared, ...]:
    """Cut each picture and video into patches: one run of the vision encoder each.

    Args:
        stills: of pictures.
        films: of videos.
        media: these.
        halved: show them at half their size: one vision token in place of four.
    """

    def prepared(index: int, medium: Image | Clip) -> Prepared:
        if isinstance(medium, Clip):
            return _film(films, index, medium, halved=halved)
        return _still(stills, index, medium, halved=halved)

    return tuple(prepared(index, medium) for index, medium in enumerate(media))


def _target(
    settings: Settings, hw: tuple[int, int], frames: int, *, halved: bool
) -> tuple[int, int]:
    target = resized_hw(settings, *hw, frames=frames)
    if not halved:
        return target
    unit = settings.unit_px
    return ceil(target[0] / unit / 2) * unit, ceil(target[1] / unit / 2) * unit


def _still(settings: Settings, index: int, image: Image, *, halved: bool) -> Prepared:
    target = _target(settings, (image.shape[0], image.shape[1]), 1, halved=halved)
    patches = patchify(settings, [pixels(settings, image, target)])
    grid = (target[0] // settings.unit_px, target[1] // settings.unit_px)
    return from_patches(
        "picture", index, patches, grid, settings.merge_size, (image.shape[0], image.shape[1])
    )


def _film(settings: Settings, index: int, clip: Clip, *, halved: bool) -> Prepared:
    count, height, width = clip.frames.shape[:3]
    target = _target(settings, (height, width), count, halved=halved)
    patches = patchify(settings, [pixels(settings, frame, target) for frame in clip.frames])
    grid = (target[0] // settings.unit_px, target[1] // settings.unit_px)
    shown = from_patches("video", index, patches, grid, settings.merge_size, (height, width))
    return replace(shown, step_s=settings.temporal_patch_size / clip.fps)


def frame_number(span: Span, region: Region) -> int:
    """Return the place of a frame on the time axis."""
    del span
    return region.frame


def positions(
    spans: Sequence[Span], time: Callable[[Span, Region], int] = frame_number
) -> tuple[Positions, int]:
    """M-RoPE ids [3, s] (time, row, column), and the id of the first answer token.

    Text after a picture starts at the picture's start + max(rows, columns), as transformers >= 5.23
    has it; the answer starts at the largest id + 1.

    Args:
        spans: text, pictures and videos, in their order.
        time: of a frame, counted from the start of its picture or video.
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
            parts.append(np.stack([np.full_like(row, time(span, region)), row, column]) + start)
        start += max(max(region.rows, region.columns) for region in span.regions)
    joined = np.concatenate(parts, axis=1).astype(np.int64)
    return joined, int(joined.max()) + 1


FAMILY = Family(open=open_processor)
