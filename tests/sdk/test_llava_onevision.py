"""The numpy half of LLaVA-OneVision against transformers' own processors."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llava_checkpoint import PINPOINTS, TILE_PX, write_texts

from tokprune.canvas import canvas, row_ends
from tokprune.families import FAMILIES, Processor, Span, anyres
from tokprune.families import llava_onevision as family
from tokprune.families.anyres import Hw, Layout, Tiler
from tokprune.types import FRAME, KIND, NEWLINE, PATCH, Clip, Prepared, Region, VisionTokens

SIDE = TILE_PX // 4
SIZES = [(1, 300), (300, 1), (2, 399), (37, 36), (30, 30), (31, 180), (400, 390), (57, 23)]
SETTINGS = {"size": {"height": TILE_PX, "width": TILE_PX}, "image_mean": [0.5, 0.4, 0.3]}
PUBLISHED = Tiler(384, 27, family.PINPOINTS, 9)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(0, 256, (*shape, 3), np.uint8)


def odd_sizes(count: int, most: int) -> list[tuple[int, int]]:
    drawn = np.random.default_rng(7).integers(1, most, (count, 2)).tolist()
    return SIZES + [(height, width) for height, width in drawn]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {
        "vision_config": {"image_size": TILE_PX, "patch_size": 4},
        "image_grid_pinpoints": PINPOINTS,
    }
    settings = {**SETTINGS, "image_grid_pinpoints": PINPOINTS}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return tmp_path


@pytest.fixture
def processor(folder: Path) -> Processor:
    return open_llava(folder)


def open_llava(folder: Path) -> Processor:
    return FAMILIES["llava_onevision"].open(folder)


def tiles(shown: Prepared) -> np.ndarray:
    assert max(len(call["pixel_values"]) for call in shown.calls) <= family.TILES_A_CALL
    return np.concatenate([call["pixel_values"] for call in shown.calls])


def hf_pictures() -> Any:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    return LlavaOnevisionImageProcessorPil(**SETTINGS, image_grid_pinpoints=PINPOINTS)


@pytest.mark.torch
def test_the_tiles_of_a_single_picture_equal_the_pil_processor(processor: Processor) -> None:
    reference = hf_pictures()
    counts = set[int]()
    for height, width in odd_sizes(60, 400):
        picture = noise(height, width)
        (ours,) = processor.prepare([picture])
        theirs = reference([[picture]], input_data_format="channels_last", return_tensors="np")
        assert np.abs(tiles(ours) - theirs["pixel_values"][0]).max() <= 1e-5
        assert theirs["image_sizes"].tolist() == [list(ours.size_hw)]
        counts.add(len(tiles(ours)))
    assert {2, 3, 5, 37} <= counts


@pytest.mark.torch
def test_several_pictures_are_one_tile_each_and_equal_the_pil_processor(
    processor: Processor,
) -> None:
    reference = hf_pictures()
    sizes = odd_sizes(20, 200)
    pictures = [noise(*size) for size in sizes]
    theirs = reference([pictures], input_data_format="channels_last", return_tensors="np")
    assert theirs["batch_num_images"].tolist() == [len(pictures)]
    for ours, expected in zip(processor.prepare(pictures), theirs["pixel_values"], strict=True):
        assert np.abs(tiles(ours) - expected).max() <= 1e-5
        assert len(ours.where) == SIDE**2 + 1


@pytest.mark.torchvision
def test_frames_equal_the_video_processor_but_for_its_rounding(processor: Processor) -> None:
    """Torchvision rounds between the two passes of its bicubic, PIL between others."""
    from transformers.models.llava_onevision.video_processing_llava_onevision import (
        LlavaOnevisionVideoProcessor,
    )

    reference: Any = LlavaOnevisionVideoProcessor(**SETTINGS)
    grey_level = 1 / (255 * np.asarray(reference.image_std))[:, None, None]
    for count, height, width in ((1, 30, 30), (3, 41, 67), (16, 200, 11), (2, 7, 15), (2, 31, 29)):
        y, x = np.mgrid[:height, :width, :3][:2] / 9
        drawn = 128 + 90 * np.sin(x + np.arange(count)[:, None, None, None]) * np.cos(y)
        frames = (0.9 * drawn + 0.1 * noise(count, height, width)).clip(0, 255).astype(np.uint8)
        (ours,) = processor.prepare([Clip(frames, 1.0)])
        theirs = reference([frames], input_data_format="channels_last", return_tensors="np")
        apart = np.abs(tiles(ours) - theirs["pixel_values_videos"][0]) / grey_level
        assert apart.max() <= 1.01
        assert apart.mean() <= 0.25


@pytest.mark.torchvision
def test_token_counts_equal_the_processor_on_sizes_up_to_3000_px(
    demo_checkpoint: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, LlavaOnevisionProcessor
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )
    from transformers.models.llava_onevision.video_processing_llava_onevision import (
        LlavaOnevisionVideoProcessor,
    )

    write_texts(tmp_path, demo_checkpoint)
    reference: Any = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(),
        AutoTokenizer.from_pretrained(tmp_path),
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=PUBLISHED.side**2,
        vision_feature_select_strategy="full",
    )
    sizes = odd_sizes(300, 3000)
    films = [1, 3, 16]
    expected = reference._get_num_multimodal_tokens(
        image_sizes=sizes, video_sizes=[(count, 1, 1) for count in films]
    )
    ours = [anyres.alone(PUBLISHED, 0, Hw(*size)) for size in sizes]
    assert [len(layout.tokens.where) for layout in ours] == expected["num_image_tokens"]
    filmed = [anyres.film(PUBLISHED, 0, count) for count in films]
    assert [len(layout.tokens.where) for layout in filmed] == expected["num_video_tokens"]


def packed(layout: Layout, side: int, tiles: int) -> list[float]:
    """Pack numbers: 100 times the tile, plus the patch; a newline is -1."""
    patches = 100 * np.arange(tiles)[:, None] + np.arange(side**2)
    numbered = np.concatenate([patches, np.full((tiles, 1), -1)], axis=1)[..., None]
    outputs = np.array_split(numbered.astype(np.float32), 2)
    return layout.pack(outputs)[:, 0].tolist()


def test_crops_stand_row_by_row_across_tiles_with_a_newline_after_each_row() -> None:
    layout = anyres.alone(Tiler(10, 2, (Hw(20, 20),), 9), 0, Hw(40, 40))
    assert packed(layout, 2, 5) == [
        0, 1, 2, 3,
        100, 101, 200, 201, -1,
        102, 103, 202, 203, -1,
        300, 301, 400, 401, -1,
        302, 303, 402, 403, -1,
    ]  # fmt: skip
    assert layout.regions == (Region(0, 0, 0, 2, 2), Region(0, 0, 1, 4, 4))


def test_padding_is_cut_off() -> None:
    layout = anyres.alone(Tiler(30, 3, (Hw(30, 60),), 9), 0, Hw(10, 60))
    assert packed(layout, 3, 3)[9:] == [103, 104, 105, 203, 204, 205, -1]


def test_a_larger_grid_is_scaled_down_to_the_bound() -> None:
    layout = anyres.alone(Tiler(10, 2, (Hw(20, 20),), 1), 0, Hw(20, 20))
    assert layout.regions[1] == Region(0, 0, 1, 2, 2)
    assert packed(layout, 2, 5)[4:] == [101.5, 201.5, -1, 301.5, 401.5, -1]


def test_a_video_has_pooled_frames_and_one_newline() -> None:
    layout = anyres.film(Tiler(10, 2, (Hw(10, 10),), 9), 4, 3)
    assert packed(layout, 2, 3) == [1.5, 101.5, 201.5, -1]
    assert layout.tokens.where[:, FRAME].tolist() == [0, 1, 2, 2]
    assert layout.regions == tuple(Region(4, frame, 0, 1, 1) for frame in range(3))


LAYOUTS = {
    "alone": anyres.alone(PUBLISHED, 0, Hw(333, 760)),
    "scaled": anyres.alone(PUBLISHED, 0, Hw(2300, 2100)),
    "among others": anyres.among_others(PUBLISHED, 2),
    "video": anyres.film(PUBLISHED, 1, 5),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_patch_has_its_cell_and_the_rest_are_newlines(layout: Layout) -> None:
    where = layout.tokens.where
    vision = VisionTokens(np.zeros((len(where), 1), np.float32), where, layout.regions)
    cells = canvas(vision.where, vision.regions)
    patches = np.flatnonzero(where[:, KIND] == PATCH)
    assert cells.tokens.ravel()[cells.cells[patches]].tolist() == patches.tolist()
    assert set(where[:, KIND].tolist()) == {PATCH, NEWLINE}


@pytest.mark.parametrize(
    ("name", "newlines", "ended"),
    [("alone", 23, 23 * 54), ("among others", 1, 729), ("video", 1, 5 * 196)],
)
def test_a_newline_ends_its_row_of_crops_or_all_that_is_shown(
    name: str, newlines: int, ended: int
) -> None:
    where = LAYOUTS[name].tokens.where
    ends = row_ends(where)
    assert (where[:, KIND] == NEWLINE).sum() == newlines
    assert (ends >= 0).sum() == ended
    rows = where[ends >= 0][:, :5]
    theirs = where[ends[ends >= 0]]
    assert (theirs[:, KIND] == NEWLINE).all()
    if name == "alone":
        assert (rows[:, :4] == theirs[:, :4]).all()


def test_a_strip_of_no_cells_keeps_its_newlines_and_has_no_region() -> None:
    layout = anyres.alone(Tiler(12, 4, (Hw(12, 12),), 9), 0, Hw(300, 1))
    assert layout.regions == (Region(0, 0, 0, 4, 4),)
    assert packed(layout, 4, 2)[16:] == [-1] * 4


def test_one_picture_beside_a_video_still_gets_crops(processor: Processor) -> None:
    film, picture = Clip(noise(2, 20, 20), 1.0), noise(59, 29)
    kinds = [(each.kind, len(each.regions)) for each in processor.prepare([film, picture])]
    assert kinds == [("video", 2), ("picture", 2)]
    _, first, second = processor.prepare([film, picture, picture])
    assert len(first.regions) == len(second.regions) == 1
    assert [each.regions[0].picture for each in (first, second)] == [1, 2]


def test_positions_count_all_tokens(processor: Processor) -> None:
    spans = [Span(3), Span(50, (Region(0, 0, 0, 7, 7),)), Span(2)]
    ours, following = processor.positions(spans)
    assert ours.tolist() == [list(range(55))]
    assert following == 55


def test_a_checkpoint_without_video_settings_shows_frames_as_pictures(folder: Path) -> None:
    (folder / "video_preprocessor_config.json").unlink()
    (film,) = FAMILIES["llava_onevision"].open(folder).prepare([Clip(noise(1, 30, 30), 1.0)])
    assert len(tiles(film)) == 1


def test_settings_together_in_one_file_win_and_suffice(folder: Path) -> None:
    """As in transformers; older files of that name hold other things."""
    film, picture = Clip(noise(1, 30, 30), 1.0), noise(30, 30)
    together = folder / "processor_config.json"
    together.write_text('{"num_image_tokens": 49, "video_processor": null}')
    before = [tiles(each) for each in open_llava(folder).prepare([picture, film])]
    stills = json.loads((folder / "preprocessor_config.json").read_text())
    parts = {"image_processor": {**stills, "rescale_factor": 0.5}, "video_processor": SETTINGS}
    together.write_text(json.dumps(parts))
    for path in folder.glob("*preprocessor_config.json"):
        path.unlink()
    after = [tiles(each) for each in open_llava(folder).prepare([picture, film])]
    assert np.abs(after[0]).max() > 10 * np.abs(before[0]).max()
    assert (after[1] == before[1]).all()
    together.write_text(json.dumps({"image_processor": stills}))
    with pytest.raises(ValueError, match=r"nor video_processor in processor_config\.json"):
        open_llava(folder)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("preprocessor_config", {"do_normalize": False}, "switches off resize, rescale or norm"),
        ("preprocessor_config", {"do_center_crop": True}, "switches on centre crop"),
        (
            "video_preprocessor_config",
            {"size": {"shortest_edge": 31}},
            "but the vision encoder takes 30 px",
        ),
        ("preprocessor_config", {"image_grid_pinpoints": [[30, 30]]}, "differ in image_grid_pin"),
        ("config", {"image_grid_pinpoints": [[30, 31]]}, r"\[\(30, 31\)\] are no multiples .* 30"),
        ("config", {"vision_aspect_ratio": "pad"}, "vision_aspect_ratio is 'pad', expected"),
    ],
)
def test_settings_that_the_code_would_ignore_are_refused(
    folder: Path, file: str, changes: dict[str, Sequence[Any]], message: str
) -> None:
    path = folder / f"{file}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        FAMILIES["llava_onevision"].open(folder)


def test_crops_of_a_stream_may_be_left_out(processor: Processor) -> None:
    assert processor.ways.follows
    assert processor.ways.names == ("full", "lazy", "repeats", "auto")
