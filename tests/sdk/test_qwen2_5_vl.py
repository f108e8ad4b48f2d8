"""The numpy half of Qwen2.5-VL against transformers' own windows, positions and processors."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokprune import Clip
from tokprune.errors import RequestInvalid
from tokprune.families import FAMILIES, Processor, Span
from tokprune.families.qwen2_5_vl import Encoder, time, windows
from tokprune.families.qwen_patches import patch_positions
from tokprune.looking.parts import apart
from tokprune.types import Medium, Region

SIZES = {"longest_edge": 252 * 252, "shortest_edge": 56 * 56}
ENCODER = {"window_size": 84, "tokens_per_second": 2}
RATES = (0.3, 1.0, 1.7, 2.0, 4.0, 7.5, 23.976, 24.0, 29.97, 60.0, 1000.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": ENCODER}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": SIZES}))
    return tmp_path


@pytest.fixture
def processor(folder: Path) -> Processor:
    return FAMILIES["qwen2_5_vl"].open(folder)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.torch
@pytest.mark.parametrize("merge", [1, 2, 3])
def test_windows_are_those_of_transformers_for_every_small_grid(merge: int) -> None:
    import torch
    from transformers.vision_utils import get_vision_window_index

    for rows, columns, side in np.ndindex(5, 7, 3):
        grid = (rows + 1, columns + 1)
        order, borders = get_vision_window_index(
            torch.tensor([[1, grid[0] * merge, grid[1] * merge]]), merge, (side + 1) * merge * 7, 7
        )
        patches = (order[:, None] * merge**2 + torch.arange(merge**2)).flatten().tolist()
        expected = [patches[a:b] for a, b in pairwise(borders.tolist())]
        table, places = windows(patch_positions(*grid, merge), side + 1, merge)
        assert table.shape[1] == ((side + 1) * merge) ** 2
        assert [[patch for patch in window if patch >= 0] for window in table.tolist()] == expected
        assert table.ravel()[places].tolist() == list(range(len(patches)))


def test_a_picture_is_cut_as_for_qwen2_vl_and_its_windows_are_told(
    folder: Path, processor: Processor
) -> None:
    picture = noise(150, 95)
    (plain,) = FAMILIES["qwen2_vl"].open(folder).prepare([picture])
    (shown,) = processor.prepare([picture])
    (call,) = shown.calls
    assert (call["pixel_values"] == plain.calls[0]["pixel_values"]).all()
    assert shown.regions == plain.regions == (Region(0, 0, 0, 5, 3),)
    assert call["windows"].shape == (2, 36)
    assert (call["windows"] < 0).sum(axis=1).tolist() == [0, 12]  # 3 x 3, and 2 x 3 below
    assert shown.step_s == 0


FEEDS = ("pixel_values", "positions", "windows", "places")


@pytest.mark.parametrize("medium", [noise(150, 251), Clip(noise(5, 200, 95), 2.0)])
def test_all_tokens_shown_by_a_cut_are_fed_as_the_whole_is(
    processor: Processor, medium: Medium
) -> None:
    (shown,) = processor.prepare([medium])
    assert processor.ways.cut is not None
    made = processor.ways.cut(shown, np.arange(len(shown.where)))
    for one, other in zip(made.calls, apart(shown).calls, strict=True):
        assert set(one) == set(other) == set(FEEDS)
        for name in FEEDS:
            np.testing.assert_array_equal(one[name], other[name])
            assert one[name].dtype == other[name].dtype
    np.testing.assert_array_equal(made.where, shown.where)
    assert made.regions == shown.regions


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("medium", [noise(252, 251), noise(59, 999), Clip(noise(5, 200, 95), 2.0)])
def test_tokens_that_are_shown_keep_their_place_in_their_window(
    processor: Processor, medium: Medium, share: float
) -> None:
    (shown,) = processor.prepare([medium])
    assert processor.ways.cut is not None
    random = np.random.default_rng(0)
    tokens = np.flatnonzero(random.random(len(shown.where)) < share)
    made = processor.ways.cut(shown, tokens)
    frames, cells = apart(shown).calls, shown.regions[0].rows * shown.regions[0].columns
    numbers = sorted(set((tokens // cells).tolist()))
    for number, call in zip(numbers, made.calls, strict=True):
        whole = frames[number]
        chosen = np.flatnonzero(np.isin(np.arange(4 * cells) // 4 + number * cells, tokens))
        np.testing.assert_array_equal(call["pixel_values"], whole["pixel_values"][:, chosen])
        np.testing.assert_array_equal(call["positions"], whole["positions"][chosen])
        new = np.full(4 * cells + 1, -1)  # of each patch, its number among the shown; -1 has none
        new[chosen] = np.arange(len(chosen))
        expected = new[whole["windows"]]
        np.testing.assert_array_equal(call["windows"], expected[(expected >= 0).any(axis=1)])
        back = np.ravel(call["windows"])[call["places"]]
        np.testing.assert_array_equal(back, np.arange(len(chosen)))


@pytest.mark.parametrize("medium", [noise(150, 95), noise(28, 28), Clip(noise(5, 140, 84), 2.0)])
def test_pictures_at_half_their_size_are_those_of_qwen2_vl_with_windows_of_their_own(
    folder: Path, processor: Processor, medium: Medium
) -> None:
    plain = FAMILIES["qwen2_vl"].open(folder)
    assert plain.ways.halved is not None
    assert processor.ways.halved is not None
    (whole,), (small,) = processor.prepare([medium]), processor.ways.halved([medium])
    (theirs,) = plain.ways.halved([medium])
    rows, columns = small.regions[0].rows, small.regions[0].columns
    assert (rows, columns) == (-(-whole.regions[0].rows // 2), -(-whole.regions[0].columns // 2))
    assert small.regions == theirs.regions
    assert small.step_s == whole.step_s
    (call,) = small.calls
    assert call["pixel_values"].shape[1] == 4 * rows * columns  # whole vision tokens of 28 px
    np.testing.assert_array_equal(call["pixel_values"], theirs.calls[0]["pixel_values"])
    tables = windows(patch_positions(rows, columns, 2), 3, 2)
    np.testing.assert_array_equal(call["windows"], tables.windows)
    np.testing.assert_array_equal(call["places"], tables.places)


def rope_model(vision: dict[str, Any]) -> Any:
    import torch
    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    model: Any = Qwen2_5_VLModel.__new__(Qwen2_5_VLModel)
    torch.nn.Module.__init__(model)
    model.config = Qwen2_5_VLConfig(vision_config=vision)
    return model


@pytest.mark.torch
@pytest.mark.parametrize("tokens_per_second", [2, 4, 25])
def test_positions_equal_get_rope_index_at_every_rate(folder: Path, tokens_per_second: int) -> None:
    """A picture, then two videos of unlike rates, the second of up to 300 temporal patches."""
    import torch

    vision = {"tokens_per_second": tokens_per_second}
    (folder / "config.json").write_text(json.dumps({"vision_config": vision}))
    processor, model = FAMILIES["qwen2_5_vl"].open(folder), rope_model(vision)
    picture = Span(6, (Region(0, 0, 0, 2, 3),))
    for number, rate in enumerate(RATES):
        frames, other = (1, 3, 8, 300)[number % 4], 2 / RATES[number - 1]
        films = [
            Span(8, tuple(Region(1, frame, 0, 1, 4) for frame in range(2)), other),
            Span(2 * frames, tuple(Region(2, f, 0, 2, 1) for f in range(frames)), 2 / rate),
        ]
        spans = [Span(5), picture, Span(2), films[0], Span(3), films[1], Span(4)]
        kinds = [0] * 5 + [1] * 6 + [0] * 2 + [2] * 8 + [0] * 3 + [2] * 2 * frames + [0] * 4
        theirs, delta = model.get_rope_index(
            torch.zeros(1, len(kinds), dtype=torch.long),
            torch.tensor([kinds]),
            image_grid_thw=torch.tensor([[1, 4, 6]]),
            video_grid_thw=torch.tensor([[2, 2, 8], [frames, 4, 2]]),
            second_per_grid_ts=torch.tensor([other, 2 / rate]),
        )
        ours, following = processor.positions(spans)
        assert ours.tolist() == theirs[:, 0].tolist()
        assert following == len(kinds) + int(delta)


@pytest.mark.torch
@pytest.mark.torchvision
@pytest.mark.parametrize("frames", [1, 3, 16])
def test_seconds_and_patches_are_those_of_the_real_processor(
    demo_checkpoint: Path, folder: Path, processor: Processor, frames: int
) -> None:
    """With metadata that tell a rate. Without, transformers assumes 24 frames a second."""
    from transformers import AutoTokenizer, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    reference: Any = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(demo_checkpoint),
        Qwen2VLVideoProcessor.from_pretrained(folder),
    )
    film, level = noise(frames, 84, 112), 1 / (255 * 0.26)
    for rate in RATES:
        made = reference(
            text=["<|video_pad|>"],
            videos=[film],
            video_metadata=[{"fps": rate, "total_num_frames": frames}],
            input_data_format="channels_last",
            return_tensors="pt",
        )
        (shown,) = processor.prepare([Clip(film, rate)])
        assert made["second_per_grid_ts"].numpy().tolist() == [np.float32(shown.step_s)]
        grid = [len(shown.regions), 2 * shown.regions[0].rows, 2 * shown.regions[0].columns]
        assert made["video_grid_thw"].tolist() == [grid]
        patches = shown.calls[0]["pixel_values"]
        theirs = made["pixel_values_videos"].numpy().reshape(patches.shape)
        assert np.abs(patches - theirs).max() < 1e-3 * level  # no resizing: rounding alone
    unknown = reference(text=["<|video_pad|>"], videos=[film], input_data_format="channels_last")
    assert list(unknown["second_per_grid_ts"]) == [2 / 24]


@pytest.mark.parametrize("step_s", [1e7, 1e40, float("inf")])
def test_a_video_whose_time_cannot_be_counted_is_refused(step_s: float) -> None:
    encoder, span = Encoder(), Span(1, (), step_s)
    assert time(encoder, span, Region(0, 0, 0, 1, 1)) == 0
    with pytest.raises(RequestInvalid, match=r"so slow .* reach 16777216: give a clip of a"):
        time(encoder, span, Region(0, 1, 0, 1, 1))


def test_a_window_smaller_than_a_vision_token_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"vision_config": {"window_size": 27}}')
    with pytest.raises(ValueError, match="window_size is 27 px, expected 28 px or more"):
        FAMILIES["qwen2_5_vl"].open(folder)
