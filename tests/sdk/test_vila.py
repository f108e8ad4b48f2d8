"""The numpy half of VILA1.5: order of tokens by hand, pictures against transformers' SigLIP."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from tokprune.families import FAMILIES, Processor, Span
from tokprune.families.vila import from_pixels, grid_of, positions
from tokprune.types import COLUMN, FRAME, PICTURE, ROW, Clip, Region

SIDE, PATCH = 70, 14  # 5 x 5 patches, padded to 6 x 6: 3 x 3 tokens
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
PICTURES: dict[str, Any] = {
    "size": {"height": SIDE, "width": SIDE},
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
}


def processor(folder: Path, aspect: str | None = "resize", **pictures: Any) -> Processor:
    config = {
        "vision_config": {"image_size": SIDE, "patch_size": PATCH},
        "mm_projector_type": "mlp_downsample",
        "image_aspect_ratio": aspect,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({**PICTURES, **pictures}))
    return FAMILIES["vila"].open(folder)


def odd_pictures(count: int) -> list[np.ndarray]:
    """Smooth pictures with noise, sides 3 to 500 px, some of extreme aspect."""
    rng = np.random.default_rng(7)
    pictures = []
    for number in range(count):
        height, width = rng.integers(9, 500, 2)
        if number % 10 == 0:
            height, width = max(height // 40, 3), width
        y, x = np.mgrid[:height, :width] / 40
        base = 128 + 90 * np.sin(x[..., None] + rng.uniform(0, 6, 3)) * np.cos(y[..., None])
        noisy = base + rng.normal(0, 25, (height, width, 3))
        pictures.append(noisy.clip(0, 255).astype(np.uint8))
    return pictures


def squared(picture: np.ndarray) -> np.ndarray:
    """Centre a picture in a square of the mean colour, by slices."""
    height, width = picture.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = [int(255 * mean) for mean in MEAN]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square


@pytest.mark.torch
@pytest.mark.parametrize(
    ("aspect", "resample"), [("resize", 3), ("resize", 2), ("pad", 3), ("pad", 2), (None, 2)]
)
def test_pixels_equal_the_pil_processor_on_odd_sizes(
    tmp_path: Path, aspect: str | None, resample: int
) -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    reference = SiglipImageProcessorPil(**{**PICTURES, "resample": resample})
    ours = processor(tmp_path, aspect, resample=resample)
    per_level = 1 / (255 * np.asarray(STD))[:, None, None]  # one grey level after normalising
    pictures = odd_pictures(40)
    for picture, prepared in zip(pictures, ours.prepare(pictures), strict=True):
        given = picture
        if aspect == "pad":
            given = squared(picture)
        elif aspect == "resize":  # what VILA does before: PIL's usual way, whatever the file says
            given = np.asarray(Pillow.fromarray(picture).resize((SIDE, SIDE)))
        theirs = reference(images=[given], input_data_format="channels_last", return_tensors="np")
        (call,) = prepared.calls
        assert (np.abs(call["pixel_values"] - theirs["pixel_values"]) <= per_level + 1e-6).all()
        assert prepared.size_hw == picture.shape[:2]


@pytest.mark.parametrize(
    ("patches", "projector", "side", "places"),
    [
        (4, "mlp_downsample", 2, [(0, 0), (1, 0), (0, 1), (1, 1)]),
        (4, "mlp_downsample_2x2_fix", 2, [(0, 0), (0, 1), (1, 0), (1, 1)]),
        (3, "mlp_downsample", 2, [(0, 0), (1, 0), (0, 1), (1, 1)]),
        (4, "mlp_downsample_3x3_fix", 2, [(0, 0), (0, 1), (1, 0), (1, 1)]),
        (2, "linear", 2, [(0, 0), (0, 1), (1, 0), (1, 1)]),
        (27, "mlp_downsample", 14, None),
        (27, "mlp_downsample_3x3_fix", 9, None),
        (27, "mlp2x_gelu", 27, None),
    ],
)
def test_the_grid_follows_the_projector(
    patches: int, projector: str, side: int, places: list[tuple[int, int]] | None
) -> None:
    grid = grid_of(patches, projector)
    shown = from_pixels(grid, 0, 0, np.zeros((1, 3, 4, 4), np.float32), (4, 4))
    assert shown.regions == (Region(0, 0, 0, side, side),)
    assert len(shown.where) == side * side
    if places:
        assert shown.where[:, [ROW, COLUMN]].tolist() == [list(place) for place in places]


def test_frames_of_a_video_are_pictures_with_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture, *frames = rng.integers(0, 256, (4, 30, 50, 3), np.uint8)
    prepared = processor(tmp_path).prepare([picture, Clip(np.stack(frames), 2.0), picture])
    assert [shown.kind for shown in prepared] == ["picture"] * 5
    assert [set(shown.where[:, PICTURE]) for shown in prepared] == [{0}, {1}, {1}, {1}, {2}]
    assert [set(shown.where[:, FRAME]) for shown in prepared] == [{0}, {0}, {1}, {2}, {0}]
    assert [shown.regions for shown in prepared] == [
        (Region(0, 0, 0, 3, 3),),
        (Region(1, 0, 0, 3, 3),),
        (Region(1, 1, 0, 3, 3),),
        (Region(1, 2, 0, 3, 3),),
        (Region(2, 0, 0, 3, 3),),
    ]
    alone = processor(tmp_path).prepare(frames)
    for frame, shown in zip(alone, prepared[1:4], strict=True):
        assert (frame.calls[0]["pixel_values"] == shown.calls[0]["pixel_values"]).all()


def test_positions_count_rows() -> None:
    ours, following = positions([Span(4), Span(9, (Region(0, 0, 0, 3, 3),)), Span(2)])
    assert ours.tolist() == [list(range(15))]
    assert following == 15
