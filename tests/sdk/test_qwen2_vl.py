"""The numpy half of Qwen2-VL against transformers' own processors and positions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokprune import PictureInvalid
from tokprune.families import FAMILIES, Span
from tokprune.families.qwen2_vl import Settings, patchify, positions, resized_hw
from tokprune.families.qwen_patches import patch_positions
from tokprune.types import Region

SIZES = {"longest_edge": 448 * 448, "shortest_edge": 56 * 56}


def odd_pictures(count: int) -> list[np.ndarray]:
    """Smooth pictures with noise, sides 9 to 700 px, some of extreme aspect."""
    rng = np.random.default_rng(7)
    pictures = []
    for number in range(count):
        height, width = rng.integers(9, 700, 2)
        if number % 10 == 0:
            height, width = max(height // 20, 3), width
        y, x = np.mgrid[:height, :width] / 40
        base = 128 + 90 * np.sin(x[..., None] + rng.uniform(0, 6, 3)) * np.cos(y[..., None])
        noisy = base + rng.normal(0, 25, (height, width, 3))
        pictures.append(noisy.clip(0, 255).astype(np.uint8))
    return pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": SIZES}))
    return tmp_path


@pytest.mark.torch
def test_patches_equal_the_pil_processor_on_200_pictures_of_odd_sizes(folder: Path) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    reference = Qwen2VLImageProcessorPil(size=SIZES)
    processor = FAMILIES["qwen2_vl"].open(folder)
    per_unit = 1 / (255 * min(reference.image_std))  # one grey level after normalising
    for picture in odd_pictures(200):
        (ours,) = processor.prepare([picture])
        theirs = reference(images=[picture], input_data_format="channels_last", return_tensors="np")
        (region,) = ours.regions
        assert theirs["image_grid_thw"].tolist() == [[1, 2 * region.rows, 2 * region.columns]]
        values = ours.calls[0]["pixel_values"][0]
        assert np.abs(values - theirs["pixel_values"]).max() <= per_unit


@pytest.mark.torch
def test_positions_equal_get_rope_index_for_several_pictures() -> None:
    import torch
    from transformers import Qwen2VLConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    model: Any = Qwen2VLModel.__new__(Qwen2VLModel)
    torch.nn.Module.__init__(model)
    model.config = Qwen2VLConfig()
    grids = [(3, 8), (14, 14), (1, 1)]
    spans, types = [Span(5)], [0] * 5
    for index, (rows, columns) in enumerate(grids):
        spans += [Span(rows * columns, (Region(index, 0, 0, rows, columns),)), Span(2 + index)]
        types += [1] * (rows * columns) + [0] * (2 + index)
    theirs, delta = model.get_rope_index(
        torch.zeros(1, len(types), dtype=torch.long),
        torch.tensor([types]),
        image_grid_thw=torch.tensor([[1, 2 * r, 2 * c] for r, c in grids]),
    )
    ours, next_position = positions(spans)
    assert ours.tolist() == theirs[:, 0].tolist()
    assert next_position == len(types) + int(delta)


def test_patch_positions_follow_the_merge_units() -> None:
    rows, columns = patch_positions(2, 3, 2).T
    picture = np.zeros((56, 84, 3), np.float32)
    picture[..., 0] = np.repeat(np.arange(4), 14)[:, None]
    picture[..., 1] = np.repeat(np.arange(6), 14)[None]
    patches = patchify(Settings(), [picture])[0].reshape(24, 3, 2, 14, 14)
    assert patches[:, 0, 0, 0, 0].tolist() == rows.tolist()
    assert patches[:, 1, 1, 13, 13].tolist() == columns.tolist()


def test_an_odd_number_of_frames_repeats_the_last() -> None:
    frames = [np.full((28, 28, 3), value, np.float32) for value in (1, 2, 3)]
    patches = patchify(Settings(), frames).reshape(2, 4, 3, 2, 14, 14)
    assert patches[:, 0, 0, :, 0, 0].tolist() == [[1, 2], [3, 3]]


def test_a_strip_longer_than_200_to_1_is_refused_with_its_size() -> None:
    with pytest.raises(PictureInvalid, match=r"2010 x 10 pixels.*at most 200"):
        resized_hw(Settings(), 10, 2010)
