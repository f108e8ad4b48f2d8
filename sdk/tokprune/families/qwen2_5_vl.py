"""Qwen2.5-VL: Qwen2-VL with windows in the vision encoder, and a time axis that counts seconds.

Pictures and videos are cut as for Qwen2-VL, whose processors transformers takes here too. Follows
get_vision_window_index and Qwen2_5_VLModel.get_rope_index of transformers (5.23), whose processor
takes the rate of a clip from its metadata (and 24 frames a second where there are none).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from jaxtyping import Int64

from tokprune.errors import RequestInvalid
from tokprune.families import qwen2_vl, qwen_patches
from tokprune.families.family import Family, Processor, Span
from tokprune.looking.ways import Ways
from tokprune.types import Array, Media, Prepared, Region

LATEST = 2**24  # position ids above are not exact in the float32 that angles are computed in


class Encoder(msgspec.Struct, frozen=True):
    """What config.json says of the vision encoder; defaults are those of the HF class."""

    patch_size: int = 14
    spatial_merge_size: int = 2
    window_size: int = 112  # pixels
    tokens_per_second: int = 4  # steps of the time axis

    @property
    def side(self) -> int:
        """Rows and columns of a window, in vision tokens."""
        return self.window_size // self.spatial_merge_size // self.patch_size


class Config(msgspec.Struct, frozen=True):
    """What is read of config.json."""

    vision_config: Encoder | None = None

    def encoder(self) -> Encoder:
        """Return the vision encoder's settings.

        Raises:
            ValueError: no vision token fits into a window.
        """
        encoder = self.vision_config or Encoder()
        if encoder.side < 1:
            unit_px = encoder.patch_size * encoder.spatial_merge_size
            raise ValueError(
                f"window_size is {encoder.window_size} px, expected {unit_px} px or more, the side "
                "of a vision token"
            )
        return encoder


class Windows(NamedTuple):
    """Which patches of a frame attend to each other where attention is local."""

    windows: Int64[Array, "w s"]  # the patches of each window, -1 where it has no more
    places: Int64[Array, " p"]  # of each patch in `windows`, as one row


def open_processor(folder: Path) -> Processor:
    """Read the HF files of a bundle or checkpoint."""
    encoder = msgspec.json.decode((folder / "config.json").read_bytes(), type=Config).encoder()
    plain = qwen2_vl.open_processor(folder)
    halved = plain.ways.halved
    return Processor(
        prepare=partial(prepare, encoder, plain.prepare),
        positions=partial(qwen2_vl.positions, time=partial(time, encoder)),
        ways=Ways(partial(cut, encoder), halved and partial(prepare, encoder, halved)),
        together=plain.together,
    )


def prepare(
    encoder: Encoder, plain: Callable[[Media], tuple[Prepared, ...]], media: Media
) -> tuple[Prepared, ...]:
    """Cut each picture and video into patches: one run of the vision encoder each.

    Args:
        encoder: what the windows are.
        plain: cuts them as for Qwen2-VL.
        media: these.
    """
    return tuple(with_windows(encoder, shown) for shown in plain(media))


def cut(encoder: Encoder, shown: Prepared, tokens: Int64[Array, " m"]) -> Prepared:
    """Show the pixels of some vision tokens alone, each in the window that it has in the whole.

    Patches attend to those of their window that are shown, and elsewhere to all that are.

    Args:
        encoder: what the windows are.
        shown: the whole, with a call for all frames or one for each.
        tokens: ascending.
    """
    return with_windows(encoder, qwen_patches.cut(shown, tokens))


def with_windows(encoder: Encoder, shown: Prepared) -> Prepared:
    """Tell the vision encoder the windows of what was cut as for Qwen2-VL."""
    side, merge = encoder.side, encoder.spatial_merge_size
    tables = [windows(call["positions"], side, merge) for call in shown.calls]
    calls = zip(shown.calls, tables, strict=True)
    return replace(shown, calls=tuple({**call, **table._asdict()} for call, table in calls))


def windows(positions: Int64[Array, "p 2"], side: int, merge: int) -> Windows:
    """Find the windows of patches: squares of the grid, counted from its top left.

    Args:
        positions: row and column of each patch, those of a vision token together.
        side: of a window, in vision tokens. Those at the right and bottom may be smaller.
        merge: patches along a vision token.

    Returns:
        The windows that have any patch. Each patch has the same place in its window, whether
        others are there or not.
    """
    cells: Array = positions[:: merge**2] // merge
    row, column = cells[:, 0], cells[:, 1]
    numbers: Array = row // side * (int(column.max()) // side + 1) + column // side
    found, window = np.unique(numbers, return_inverse=True)
    members: Array = np.full((len(found), side * side, 1), -1)
    members[window, row % side * side + column % side, 0] = np.arange(len(window))
    patches = np.where(members < 0, -1, members * merge**2 + np.arange(merge**2))
    table = np.reshape(patches, (len(members), -1)).astype(np.int64)
    taken = np.flatnonzero(table >= 0)
    places = np.empty(len(taken), np.int64)
    places[np.ravel(table)[taken]] = taken
    return Windows(table, places)


def time(encoder: Encoder, span: Span, region: Region) -> int:
    """Return the place of a frame on the time axis: whole steps, rounded down as float32.

    transformers has the interval as a float32 tensor, and cuts off what follows the point.

    Raises:
        RequestInvalid: the video is so slow that its positions would not be exact.
    """
    given = [encoder.tokens_per_second, span.step_s, region.frame]
    with np.errstate(over="ignore"):  # refused below
        scale, step, frame = np.asarray(given, np.float32)
        steps = float(frame * (scale * step)) if region.frame else 0.0
    if not steps < LATEST:
        raise RequestInvalid(
            f"The video is so slow (temporal patch {region.frame} begins after "
            f"{region.frame * span.step_s:.4g} s) that its positions reach {LATEST}: give a clip "
            "of a higher fps"
        )
    return int(steps)


FAMILY = Family(open=open_processor)
