"""LLaVA-OneVision: a picture as tiles of any resolution, several pictures, and videos.

Follows transformers' LlavaOnevisionImageProcessorPil and LlavaOnevisionVideoProcessor (5.23): a
picture that is alone in its prompt is cut into tiles, one among others is padded to a square, as
`apply_chat_template` has it. (A processor that is called with a flat list of pictures takes each
for the only one of a prompt.)
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image as Pillow

from tokprune.families import anyres
from tokprune.families.anyres import Hw, Layout, Tiler
from tokprune.families.family import Family, Positions, Processor, Span
from tokprune.families.processor_files import Found, picture_settings, video_settings
from tokprune.looking.ways import Ways
from tokprune.types import Array, Clip, Image, Media, MediumKind, Prepared

TILES_A_CALL = 4  # in an encoder of the published size, the attention map of one takes 34 MB
PINPOINTS = tuple(Hw(384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))


class _Size(msgspec.Struct, frozen=True):
    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None  # older checkpoints


class Settings(msgspec.Struct, frozen=True):
    """What the files say of pictures or videos; defaults are those of the HF class."""

    size: _Size = _Size(384, 384)
    image_grid_pinpoints: tuple[Hw, ...] = PINPOINTS
    rescale_factor: float = 1 / 255
    resample: int = 3  # PIL's bicubic
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    do_center_crop: bool | None = None


class _Encoder(msgspec.Struct, frozen=True):
    image_size: int = 224
    patch_size: int = 16


class TileSettings(msgspec.Struct, frozen=True):
    """What config.json says of tiles; defaults are those of the HF classes."""

    vision_config: _Encoder = _Encoder(384, 14)
    image_grid_pinpoints: tuple[Hw, ...] | None = None
    vision_aspect_ratio: str = "anyres_max_9"

    def tiler(self) -> Tiler:
        """Return how pictures are cut.

        Raises:
            ValueError: with the setting that makes no tiles.
        """
        tile_px = self.vision_config.image_size
        bound = re.fullmatch(r"anyres_max_([1-9]\d*)", self.vision_aspect_ratio)
        if bound is None:
            raise ValueError(
                f"vision_aspect_ratio is {self.vision_aspect_ratio!r}, expected 'anyres_max_9' "
                "or another number of tiles"
            )
        sizes = self.image_grid_pinpoints or PINPOINTS
        odd = [tuple(size) for size in sizes if size.height % tile_px or size.width % tile_px]
        if odd:
            raise ValueError(f"image_grid_pinpoints {odd} are no multiples of a tile's {tile_px}")
        return Tiler(tile_px, tile_px // self.vision_config.patch_size, sizes, int(bound[1]))


def open_processor(folder: Path) -> Processor:
    """Read the HF files of a bundle or checkpoint."""
    config = msgspec.json.decode((folder / "config.json").read_bytes(), type=TileSettings)
    tiler = config.tiler()
    found = picture_settings(folder)
    stills, films = _settings(found, tiler), _settings(video_settings(folder), tiler)
    if stills.image_grid_pinpoints != tiler.pinpoints:
        raise ValueError(f"config.json and {found.file} differ in image_grid_pinpoints")
    return Processor(
        prepare=partial(prepare, tiler, stills, films),
        positions=positions,
        ways=Ways(crops=True),
    )


def _settings(found: Found, tiler: Tiler) -> Settings:
    settings = msgspec.json.decode(found.json, type=Settings)
    if not (settings.do_resize and settings.do_rescale and settings.do_normalize):
        raise ValueError(f"{found.file} switches off resize, rescale or normalise")
    if settings.do_center_crop:
        raise ValueError(f"{found.file} switches on centre crop, which LLaVA-OneVision has not")
    size = settings.size
    if {size.shortest_edge or size.height, size.shortest_edge or size.width} != {tiler.tile_px}:
        raise ValueError(f"{found.file}: {size}, but the vision encoder takes {tiler.tile_px} px")
    return settings


def prepare(tiler: Tiler, stills: Settings, films: Settings, media: Media) -> tuple[Prepared, ...]:
    """Cut pictures and videos into tiles. Only a picture that no other one is with gets crops."""
    pictures = sum(not isinstance(medium, Clip) for medium in media)

    def prepared(index: int, medium: Image | Clip) -> Prepared:
        if isinstance(medium, Clip):
            return _film(tiler, films, index, medium)
        size = Hw(*medium.shape[:2])
        if pictures > 1:
            tile = _resized(stills, squared(stills, medium), Hw(tiler.tile_px, tiler.tile_px))
            layout = anyres.among_others(tiler, index)
            return from_tiles("picture", pixels(stills, tile[None]), layout, size)
        tiles = pixels(stills, cut(tiler, stills, medium))
        return from_tiles("picture", tiles, anyres.alone(tiler, index, size), size)

    return tuple(prepared(index, medium) for index, medium in enumerate(media))


def _film(tiler: Tiler, settings: Settings, index: int, clip: Clip) -> Prepared:
    count, height, width = clip.frames.shape[:3]
    tile = Hw(tiler.tile_px, tiler.tile_px)
    tiles = np.stack([_resized(settings, frame, tile) for frame in clip.frames])
    layout = anyres.film(tiler, index, count)
    shown = from_tiles("video", pixels(settings, tiles), layout, Hw(height, width))
    return replace(shown, step_s=1 / clip.fps)


def cut(tiler: Tiler, settings: Settings, image: Image) -> UInt8[Array, "t px px 3"]:
    """Return the whole picture as one tile, then its crops row by row, black where it is not."""
    size, side = Hw(*image.shape[:2]), tiler.tile_px
    target = anyres.best_resolution(size, tiler.pinpoints)
    inner = anyres.fitted(size, target)
    top, left = (target.height - inner.height) // 2, (target.width - inner.width) // 2
    canvas = np.zeros((*target, 3), np.uint8)
    canvas[top : top + inner.height, left : left + inner.width] = _resized(settings, image, inner)
    split = (target.height // side, side, target.width // side, side, 3)
    crops = np.reshape(np.swapaxes(np.reshape(canvas, split), 1, 2), (-1, side, side, 3))
    return np.concatenate([_resized(settings, image, Hw(side, side))[None], crops])


def squared(settings: Settings, image: Image) -> UInt8[Array, "side side 3"]:
    """Pad to a square with the mean colour, the picture in its middle."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = [int(mean * 255) for mean in settings.image_mean]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def pixels(settings: Settings, tiles: UInt8[Array, "t h w 3"]) -> Float32[Array, "t 3 h w"]:
    """Normalise, and put the channels first."""
    mean = np.asarray(settings.image_mean, np.float32)
    std = np.asarray(settings.image_std, np.float32)
    scaled = tiles.astype(np.float32) * np.float32(settings.rescale_factor)
    return np.ascontiguousarray(np.moveaxis((scaled - mean) / std, -1, 1))


def from_tiles(
    kind: MediumKind, tiles: Float32[Array, "t 3 _ _"], layout: Layout, size: Hw
) -> Prepared:
    """Return a picture or video of `size` pixels whose normalised tiles are these."""
    starts = range(0, len(tiles), TILES_A_CALL)
    return Prepared(
        kind=kind,
        calls=tuple({"pixel_values": tiles[start : start + TILES_A_CALL]} for start in starts),
        pack=layout.pack,
        where=layout.tokens.where,
        regions=layout.regions,
        size_hw=(size.height, size.width),
        units=layout.tiles(len(tiles)),
    )


def positions(spans: Sequence[Span]) -> tuple[Positions, int]:
    """Return the rotary ids [1, s], one axis for text and tokens alike, and the answer's first."""
    count = sum(span.length for span in spans)
    return np.arange(count)[None], count


def _resized(settings: Settings, image: Image, target: Hw) -> UInt8[Array, "_ _ 3"]:
    resample = Pillow.Resampling(settings.resample)
    return np.asarray(Pillow.fromarray(image).resize((target.width, target.height), resample))


FAMILY = Family(open=open_processor)
