"""LLaVA-OneVision's random prompts for the parity gate."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from tokprune.families import Span, anyres
from tokprune.families.anyres import Hw, Tiler
from tokprune.families.llava_onevision import TileSettings, from_tiles
from tokprune.types import Array, Prepared
from tokprune_export.families.family import Config, Trial

TOKEN_IDS = ("image_token_index", "video_token_index")
MOST_TOKENS = (
    1700  # vision tokens of a trial: HF's attention maps of more would fill a small machine
)


def tiler_of(config: Config) -> Tiler:
    """Return how pictures are cut into tiles; a bad setting is a ValueError or a msgspec one."""
    return msgspec.convert(dict(config), TileSettings).tiler()


class Picture(NamedTuple):
    """A picture, its size in tiles."""

    height: float
    width: float


class Film(NamedTuple):
    """A video."""

    frames: int


# Sizes are odd, so that something of the crops is padding.
TRIALS: dict[str, tuple[Picture | Film, ...]] = {
    "2 tiles": (Picture(0.86, 0.97),),
    "3 tiles": (Picture(0.29, 1.93),),
    "5 tiles": (Picture(3.91, 0.24),),
    "10 tiles": (Picture(2.77, 2.93),),
    "17 tiles, scaled": (Picture(3.59, 3.97),),
    "2 pictures": (Picture(0.5, 1), Picture(1, 1)),
    "3 pictures": (Picture(1, 1), Picture(2, 1), Picture(1, 2)),
    "1 frame": (Film(1),),
    "3 frames": (Film(3),),
    "16 frames": (Film(16),),
    "picture and 2 videos": (Picture(0.97, 0.66), Film(2), Film(2)),
}


def trials(model: Any) -> Iterator[Trial]:
    """Yield prompts of sizes that were not traced, as long as they are not too long."""
    tiler = tiler_of(model.config.to_dict())
    for seed, (name, shown) in enumerate(TRIALS.items()):
        random = torch.Generator().manual_seed(seed)
        pictures = sum(isinstance(each, Picture) for each in shown)
        media = [
            _film(tiler, index, each, random)
            if isinstance(each, Film)
            else _picture(tiler, index, each, random, alone=pictures == 1)
            for index, each in enumerate(shown)
        ]
        if sum(len(each.where) for each in media) <= MOST_TOKENS:
            yield _trial(model, name, media, random)


def _film(tiler: Tiler, index: int, film: Film, random: torch.Generator) -> Prepared:
    layout = anyres.film(tiler, index, film.frames)
    return from_tiles("video", _pixels(tiler, film.frames, random), layout, Hw(1, 1))


def _picture(
    tiler: Tiler, index: int, picture: Picture, random: torch.Generator, *, alone: bool
) -> Prepared:
    size = Hw(int(picture.height * tiler.tile_px), int(picture.width * tiler.tile_px))
    if not alone:
        pixels = _pixels(tiler, 1, random)
        return from_tiles("picture", pixels, anyres.among_others(tiler, index), size)
    crops = tiler.crops(size)
    pixels = _pixels(tiler, 1 + crops.height * crops.width, random)
    return from_tiles("picture", pixels, anyres.alone(tiler, index, size), size)


def _pixels(tiler: Tiler, tiles: int, random: torch.Generator) -> Float32[Array, "t 3 _ _"]:
    return torch.randn(tiles, 3, tiler.tile_px, tiler.tile_px, generator=random).numpy()


def _trial(
    model: Any,
    name: str,
    media: Sequence[Prepared],
    random: torch.Generator,
) -> Trial:
    words = _words(model.config, random, len(media))
    ids = [*next(words)]
    spans, slots = [Span(len(ids))], list[int]()
    for each in media:
        count, said = len(each.where), next(words)
        slots += range(len(ids), len(ids) + count)
        placeholder = "video_token_index" if each.kind == "video" else "image_token_index"
        ids += [getattr(model.config, placeholder)] * count + said
        spans += [Span(count, each.regions), Span(len(said))]
    return Trial(
        name=name,
        ids=torch.tensor(ids),
        slots=torch.tensor(slots),
        spans=tuple(spans),
        positions=torch.arange(len(ids))[None, None],
        next_position=len(ids),
        media=tuple(media),
        inputs=_hf_inputs(ids, media),
    )


def _words(config: Any, random: torch.Generator, media: int) -> Iterator[list[int]]:
    """Yield random text: before everything shown, and after each part of it."""
    special = {getattr(config, name) for name in TOKEN_IDS}
    plain = torch.tensor([i for i in range(config.text_config.vocab_size) if i not in special])
    for length in (4, *[3] * (media - 1), 11):
        yield plain[torch.randint(len(plain), (length,), generator=random)].tolist()


def _hf_inputs(ids: Sequence[int], media: Sequence[Prepared]) -> dict[str, Tensor]:
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
    }
    stills = [each for each in media if each.kind == "picture"]
    videos = [_tiles(each) for each in media if each.kind == "video"]
    if stills:
        inputs["pixel_values"] = torch.stack([_tiles(each) for each in stills])
        inputs["image_sizes"] = torch.tensor([each.size_hw for each in stills])
        inputs["batch_num_images"] = torch.tensor([len(stills)])
    if videos:
        inputs["pixel_values_videos"] = torch.stack(videos)
    return inputs


def _tiles(shown: Prepared) -> Float[Tensor, "t 3 _ _"]:
    return torch.from_numpy(np.concatenate([call["pixel_values"] for call in shown.calls]))
