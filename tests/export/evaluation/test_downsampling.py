"""Smaller pictures: as many vision tokens as there may be, from below, in every family."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tokprune import families
from tokprune.families import Processor, vila
from tokprune.types import KIND, NEWLINE, Clip, Medium
from tokprune_export.evaluation.downsampling import (
    DOWNSAMPLERS,
    fewer_crops,
    grid_within,
    pooled,
    resized,
    shared,
)

CHECKPOINTS = Path(__file__).parents[3] / "samples" / "scenes" / "checkpoints"


def model(family: str) -> Any:
    """A model with nothing but a processor."""
    return SimpleNamespace(processor=processor(family))


def processor(family: str) -> Processor:
    if family != "vila":
        return families.FAMILIES[family].open(CHECKPOINTS / family)
    pictures = vila._Pictures(size=vila._Size(196, 196))
    settings = vila.Settings(pictures, "resize", vila.Grid(7, column_major=True))
    return Processor(prepare=lambda media: vila.prepare(settings, media), positions=vila.positions)


def picture(height: int = 392, width: int = 392) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def film(frames: int = 8) -> Clip:
    return Clip(np.stack([picture(168, 168)] * frames), 4.0)


def count(prepared: Any) -> int:
    return sum(len(shown.where) for shown in prepared)


def test_every_family_has_its_way() -> None:
    assert set(DOWNSAMPLERS) == set(families.FAMILIES)


@pytest.mark.parametrize(
    ("rows", "columns", "k", "grid"),
    [
        (14, 14, 49, (7, 7)),
        (14, 14, 22, (4, 5)),
        (14, 14, 98, (9, 10)),
        (14, 14, 3, (1, 2)),
        (14, 14, 1, (1, 1)),
        (8, 12, 24, (4, 6)),
        (1, 60, 30, (1, 30)),
    ],
)
def test_the_grid_has_the_most_cells_of_about_the_same_shape(
    rows: int, columns: int, k: int, grid: tuple[int, int]
) -> None:
    found = grid_within(rows, columns, k)
    assert found[0] * found[1] <= k
    assert found in (grid, grid[::-1] if rows == columns else grid)


def test_a_budget_is_split_by_size_and_everyone_gets_something() -> None:
    assert shared([100, 300], 40) == [10, 30]
    assert shared([100, 100, 100], 50) == [17, 17, 16]
    assert shared([1000, 1], 5) == [4, 1]


@pytest.mark.parametrize("k", [98, 49, 22, 10, 1])
def test_qwen_gives_what_a_resized_picture_has(k: int) -> None:
    prepared, how = resized(model("qwen2_vl"), [picture()], k)
    assert how == "resized" or k < 4  # its processor enlarges what is smaller than 2 x 2 tokens
    assert 0.7 * k <= count(prepared) <= k
    regions = prepared[0].regions
    assert regions[0].rows * regions[0].columns == count(prepared)


def test_a_large_photo_is_resized_by_its_tokens_and_not_by_its_pixels() -> None:
    prepared, how = resized(model("qwen2_vl"), [picture(1500, 2000)], 100)
    assert (how, prepared[0].regions[0].rows, prepared[0].regions[0].columns) == ("resized", 9, 11)
    assert prepared[0].calls[0]["pixel_values"].shape[1] == 99 * 4


def test_several_pictures_share_the_tokens() -> None:
    media = [picture(280, 280), picture(280, 560)]
    prepared, _ = resized(model("qwen2_vl"), media, 75)
    assert [len(shown.where) for shown in prepared] == [25, 50]


@pytest.mark.parametrize("k", [72, 36, 16, 4, 2])
def test_frames_of_a_qwen_video_are_resized_and_then_left_out(k: int) -> None:
    prepared, _ = resized(model("qwen2_vl"), [film()], k)
    assert 0.7 * k <= count(prepared) <= k
    assert len(prepared[0].regions) == min(4, k)


def test_llava_has_fewer_crops_then_its_base_alone_then_that_pooled() -> None:
    llava, media = model("llava_onevision"), [picture()]
    whole = count(llava.processor.prepare(media))
    base = llava.processor.prepare(media)[0].regions[0]
    ways: dict[str, list[int]] = {}
    cells = base.rows * base.columns
    for k in (*range(1, cells, 29), cells, cells + 1, *range(cells + 2, whole, 29), whole - 1):
        prepared, how = fewer_crops(llava, media, k)
        assert count(prepared) <= k
        ways.setdefault(how, []).append(count(prepared))
    assert list(ways) == ["pooled", "base tile", "fewer crops"]
    assert set(ways["base tile"]) == {cells + 1}
    assert max(ways["fewer crops"]) > cells + 1


def test_the_base_tile_is_the_picture_as_one_of_several_has_it() -> None:
    llava = model("llava_onevision")
    base = llava.processor.prepare([picture()])[0].regions[0]
    cells = base.rows * base.columns
    (alone,), how = fewer_crops(llava, [picture()], cells + 1)
    assert how == "base tile"
    several = llava.processor.prepare([picture(), picture()])[0]
    np.testing.assert_array_equal(alone.where, several.where)
    assert len(alone.calls[0]["pixel_values"]) == 1
    encoded = np.random.default_rng(1).random((1, cells + 1, 3)).astype(np.float32)
    np.testing.assert_array_equal(alone.pack([encoded]), several.pack([encoded]))


@pytest.mark.parametrize("family", ["llava_onevision", "vila"])
@pytest.mark.parametrize("k", [60, 20, 9, 5])
def test_frames_are_pooled_where_the_encoder_cannot_be_told(family: str, k: int) -> None:
    prepared, how = pooled(model(family), [film()], k)
    assert how == "pooled"
    assert 0.5 * k <= count(prepared) <= k
    assert len({r.frame for shown in prepared for r in shown.regions}) == min(8, k)


def test_pooled_tokens_are_means_of_cells_in_the_order_of_the_llm() -> None:
    (whole,) = processor("vila").prepare([picture()])
    (shown,), _ = pooled(model("vila"), [picture()], 4)
    tokens = np.random.default_rng(2).random((49, 3)).astype(np.float32)
    got = shown.pack([tokens[None]])
    rows, columns = whole.where[:, 3], whole.where[:, 4]
    for place, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):  # down the columns
        inside = (rows * 2 // 7 == row) & (columns * 2 // 7 == column)
        assert shown.where[place, 3:5].tolist() == [row, column]
        np.testing.assert_allclose(got[place], tokens[inside].mean(axis=0), rtol=1e-5)


def test_a_pooled_video_ends_with_its_newline_where_there_is_room() -> None:
    (shown,), _ = pooled(model("llava_onevision"), [film()], 33)
    assert np.flatnonzero(shown.where[:, KIND] == NEWLINE).tolist() == [len(shown.where) - 1]
    assert shown.where[-1, 4] == shown.regions[-1].columns


@pytest.mark.parametrize("media", [[picture(196, 196), picture()], [film(), picture()]])
def test_mixed_media_fit_too(media: list[Medium]) -> None:
    for family, shrink in DOWNSAMPLERS.items():
        if family == "qwen2_5_vl":  # no checkpoint of it is shipped; it is resized as qwen2_vl is
            continue
        prepared, _ = shrink(model(family), media, 40)
        assert 20 <= count(prepared) <= 40
        assert {shown.regions[0].picture for shown in prepared} == {0, 1}
