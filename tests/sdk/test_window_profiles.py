"""Optimisation profiles of Qwen2.5-VL's vision encoder, which is told windows of patches."""

import numpy as np
import pytest

from tokprune.engines.bounds import Bounds, bounds_of
from tokprune.engines.profiles import profile, sizes, vision_axes
from tokprune.errors import EngineTooSmall
from tokprune.families.qwen2_5_vl import windows
from tokprune.families.qwen_patches import patch_positions
from tokprune.manifest import GraphSpec, Limits, Tensor

LIMITS = Limits(max_input_len=4096, max_kv_len=4096)
SHAPES = {
    "pixel_values": ["F", "4*q", 1176],
    "positions": ["4*q", 2],
    "windows": ["W", 64],
    "places": ["4*q"],
}
QWEN2_5 = GraphSpec(
    "onnx/graph.onnx", 18, [Tensor(name, "float32", list(SHAPES[name])) for name in SHAPES], []
)


def test_qwen2_5_vl_has_a_range_of_windows_too() -> None:
    one, several = vision_axes(QWEN2_5, sizes(LIMITS, vision_tokens=1024), few=False)
    assert one == {"F": (1, 1, 1), "q": (1, 256, 1024), "W": (1, 16, 256)}
    assert several == {"F": (2, 8, 8), "q": (1, 32, 128), "W": (1, 2, 32)}


def test_no_grid_has_more_windows_than_its_range() -> None:
    for rows in range(1, 22):
        for columns in range(1, 22):
            tokens = rows * columns
            (axes, *_) = vision_axes(QWEN2_5, sizes(LIMITS, vision_tokens=tokens), few=True)
            assert len(windows(patch_positions(rows, columns, 2), 4, 2).windows) <= axes["W"][2]


def bounds(tokens: int, *, few: bool) -> Bounds:
    boxes = vision_axes(QWEN2_5, sizes(LIMITS, vision_tokens=tokens), few=few)
    profiles = [profile(QWEN2_5.inputs, axes) for axes in boxes]
    return bounds_of("encoder", QWEN2_5.inputs, profiles, "tokprune build B")


def shapes(rows: int, columns: int, shown: np.ndarray) -> dict[str, tuple[int, ...]]:
    """What the encoder is fed of some vision tokens of a picture."""
    positions = patch_positions(rows, columns, 2)[np.repeat(shown, 4)]
    tables = windows(positions, 4, 2)
    feeds = {"pixel_values": np.zeros((1, len(positions), 1176)), "positions": positions}
    return {name: each.shape for name, each in (feeds | tables._asdict()).items()}


@pytest.mark.parametrize("few", [False, True])
def test_every_part_of_a_picture_that_an_engine_takes_has_a_profile(few: int) -> None:
    """Even one vision token of each window: it has no more windows than the whole picture."""
    random = np.random.default_rng(0)
    for row_count, column_count in np.ndindex(13, 13):
        grid = (row_count + 1, column_count + 1)
        tokens = grid[0] * grid[1]
        built = bounds(tokens, few=bool(few))
        row, column = np.divmod(np.arange(tokens), grid[1])
        one_of_each = (row % 4 == 0) & (column % 4 == 0)
        diagonal = row == column
        for shown in (one_of_each, diagonal, random.random(tokens) < 0.2, row >= 0):
            if shown.any():
                built.check(shapes(*grid, shown))
        assert shapes(*grid, one_of_each)["windows"] == (one_of_each.sum(), 64)


def test_more_windows_than_an_engine_takes_are_called_windows() -> None:
    told = r"17 windows \(built for 16\).*--max-vision-tokens 65$"
    with pytest.raises(EngineTooSmall, match=told):
        bounds(64, few=False).check(shapes(1, 65, np.ones(65, np.bool_)))
