"""Random prompts in the format that the Qwen-VL models share, for the parity gate."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tokprune.families import Span
from tokprune.families.qwen_patches import from_patches
from tokprune.types import Prepared, Region
from tokprune_export.families.family import Trial

TOKEN_IDS = (
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)


class Clip(NamedTuple):
    """A picture (1 temporal patch) or a video (more), its size counted in vision tokens."""

    frames: int
    rows: int
    columns: int
    step_s: float = 1.0  # seconds from one temporal patch to the next


Finish: TypeAlias = Callable[[Prepared], Prepared]  # adds what a family's vision encoder takes


def make_trials(
    model: Any, shown: Mapping[str, tuple[Clip, ...]], finish: Finish, *, timed: bool
) -> Iterator[Trial]:
    """Yield one prompt for each row of `shown`, pictures or videos but not both.

    Args:
        model: the HF module.
        shown: pictures or videos, by the trial's name.
        finish: completes what is cut as for Qwen2-VL.
        timed: whether the HF module is told how many seconds lie between temporal patches.
    """
    for seed, (name, clips) in enumerate(shown.items()):
        random = torch.Generator().manual_seed(seed)
        yield _trial(model, name, clips, random, finish, timed=timed)


def _trial(
    model: Any,
    name: str,
    clips: Sequence[Clip],
    random: torch.Generator,
    finish: Finish,
    *,
    timed: bool,
) -> Trial:
    ids, kinds, spans = _rows(model.config, clips, random)
    media = tuple(finish(_random(model, index, clip, random)) for index, clip in enumerate(clips))
    inputs = _hf_inputs(ids, kinds, clips, media, model, timed=timed)
    grids = {key: inputs[key] for key in inputs if "_grid_" in key}
    positions, delta = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], **grids
    )
    return Trial(
        name=name,
        ids=inputs["input_ids"][0],
        slots=torch.tensor(kinds).nonzero()[:, 0],
        spans=spans,
        positions=positions,
        next_position=len(ids) + int(delta),
        media=media,
        inputs=inputs,
    )


def _rows(
    config: Any, clips: Sequence[Clip], random: torch.Generator
) -> tuple[list[int], list[int], tuple[Span, ...]]:
    """Lay out a prompt: ids, their kinds as HF counts them (text, picture, video), and spans."""
    kind = 2 if clips[0].frames > 1 else 1
    token = config.video_token_id if kind == 2 else config.image_token_id
    words = _words(config, random, len(clips))
    said = [*next(words), config.vision_start_token_id]
    ids, kinds, spans = [*said], [0] * len(said), [Span(len(said))]
    for index, clip in enumerate(clips):
        count = clip.frames * clip.rows * clip.columns
        regions = (Region(index, f, 0, clip.rows, clip.columns) for f in range(clip.frames))
        following = [config.vision_start_token_id] if index + 1 < len(clips) else []
        said = [config.vision_end_token_id, *next(words), *following]
        ids += [token] * count + said
        kinds += [kind] * count + [0] * len(said)
        spans += [Span(count, tuple(regions), clip.step_s), Span(len(said))]
    return ids, kinds, tuple(spans)


def _words(config: Any, random: torch.Generator, clips: int) -> Iterator[list[int]]:
    """Yield random text: before the first clip, and after each one."""
    special = {getattr(config, name) for name in TOKEN_IDS}
    plain = torch.tensor([i for i in range(config.text_config.vocab_size) if i not in special])
    for length in (4, *[3] * (clips - 1), 11):
        yield plain[torch.randint(len(plain), (length,), generator=random)].tolist()


def _random(model: Any, index: int, clip: Clip, random: torch.Generator) -> Prepared:
    merge = model.config.vision_config.spatial_merge_size
    channels = model.model.visual.patch_embed.proj.weight[0].numel()
    patches = clip.rows * clip.columns * merge**2
    pixels = torch.randn(clip.frames, patches, channels, generator=random).numpy()
    kind = "video" if clip.frames > 1 else "picture"
    grid = (clip.rows, clip.columns)
    return from_patches(kind, index, pixels, grid, merge, size_hw=(1, 1))


def _hf_inputs(
    ids: list[int],
    kinds: list[int],
    clips: Sequence[Clip],
    media: Sequence[Prepared],
    model: Any,
    *,
    timed: bool,
) -> dict[str, Tensor]:
    merge, video = model.config.vision_config.spatial_merge_size, clips[0].frames > 1
    patches = [shown.calls[0]["pixel_values"] for shown in media]
    pixels = np.concatenate([each.reshape(-1, each.shape[-1]) for each in patches])
    grids = torch.tensor([(c.frames, c.rows * merge, c.columns * merge) for c in clips])
    seconds = {"second_per_grid_ts": torch.tensor([clip.step_s for clip in clips])}
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
        "mm_token_type_ids": torch.tensor([kinds], dtype=torch.int32),
        "pixel_values_videos" if video else "pixel_values": torch.from_numpy(pixels),
        "video_grid_thw" if video else "image_grid_thw": grids,
        **(seconds if timed and video else {}),
    }
