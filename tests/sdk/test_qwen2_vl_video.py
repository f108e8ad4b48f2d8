"""The video half of Qwen2-VL against transformers' own video processor, and whole answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokprune import Clip
from tokprune.families import FAMILIES
from tokprune.types import Prepared

SMALL = {"shortest_edge": 56 * 56, "longest_edge": 336 * 336}
LARGE = {"shortest_edge": 196 * 196, "longest_edge": 448 * 448}
PLACES = {
    "pictures' file": {"preprocessor_config.json": {"size": SMALL}},
    "pictures' file without sizes": {"preprocessor_config.json": {}},
    "sizes of older checkpoints": {
        "preprocessor_config.json": {
            "size": {"min_pixels": 1, "max_pixels": 1},
            "min_pixels": 196 * 196,
            "max_pixels": 224 * 224,
        },
    },
    "own file": {
        "preprocessor_config.json": {"size": SMALL},
        "video_preprocessor_config.json": {"size": LARGE, "image_mean": [0.5, 0.4, 0.3]},
    },
    "part of processor_config.json": {
        "preprocessor_config.json": {"size": SMALL},
        "video_preprocessor_config.json": {"size": SMALL},
        "processor_config.json": {
            "processor_class": "Qwen2VLProcessor",
            "image_processor": {"size": SMALL},
            "video_processor": {"size": LARGE},
        },
    },
    "processor_config.json alone": {
        "processor_config.json": {
            "image_processor": {"size": SMALL},
            "video_processor": {"size": LARGE},
        },
    },
    "processor_config.json without that part": {
        "preprocessor_config.json": {"size": SMALL},
        "processor_config.json": {"processor_class": "Qwen2VLProcessor"},
    },
    "all frames bounded together": {
        "preprocessor_config.json": {},
        "video_preprocessor_config.json": {
            "size": SMALL,
            "cap_pixels_per_frame": True,
            "max_video_tokens": 500,
        },
    },
}


def clip(frames: int, height: int, width: int) -> Clip:
    """A smooth film with noise."""
    random = np.random.default_rng(frames + height + width)
    time, y, x = np.mgrid[:frames, :height, :width] / 40
    base = 128 + 90 * np.sin(x + 9 * time)[..., None] * np.cos(y[..., None] + [0, 2, 4])
    noisy = base + random.normal(0, 25, base.shape)
    return Clip(noisy.clip(0, 255).astype(np.uint8), 2.0)


def written(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def prepared(folder: Path, film: Clip) -> tuple[np.ndarray, list[int]]:
    """Return patches and [frames, rows, columns] as transformers counts them."""
    (ours,) = FAMILIES["qwen2_vl"].open(folder).prepare([film])
    assert ours.kind == "video"
    assert [(r.picture, r.frame, r.tile) for r in ours.regions] == [
        (0, frame, 0) for frame in range(len(ours.regions))
    ]
    region = ours.regions[0]
    patches = np.asarray(ours.calls[0]["pixel_values"])
    return patches.reshape(-1, patches.shape[-1]), [
        len(ours.regions),
        2 * region.rows,
        2 * region.columns,
    ]


def theirs(folder: Path, film: Clip) -> tuple[np.ndarray, list[int], float]:
    from transformers import Qwen2VLVideoProcessor

    processor: Any = Qwen2VLVideoProcessor.from_pretrained(folder)
    made = processor(videos=[film.frames], return_tensors="pt", input_data_format="channels_last")
    (grid,) = made["video_grid_thw"].tolist()
    return made["pixel_values_videos"].numpy(), grid, 1 / (255 * min(processor.image_std))


@pytest.mark.torch
@pytest.mark.torchvision
@pytest.mark.parametrize("files", PLACES.values(), ids=PLACES)
def test_settings_come_from_where_transformers_takes_them(
    tmp_path: Path, files: dict[str, Any]
) -> None:
    written(tmp_path, files)
    film = clip(3, 121, 95)
    patches, grid = prepared(tmp_path, film)
    reference, expected, level = theirs(tmp_path, film)
    assert grid == expected
    assert np.abs(patches - reference).max() <= 2 * level


@pytest.mark.torch
@pytest.mark.torchvision
@pytest.mark.parametrize("frames", [1, 3, 16])
def test_patches_equal_the_video_processor_within_two_grey_levels(
    tmp_path: Path, frames: int
) -> None:
    """Both resize rows before columns; torchvision rounds its weights otherwise than Pillow.

    Measured with torchvision 0.28.0 and Pillow 13.0.0 on 33 clips, noise and smooth: at most 2
    levels of 255, and more than half a level at 0.75 % of all values at most.
    """
    written(tmp_path, PLACES["pictures' file"])
    for height, width in ((57, 300), (301, 83), (20, 33), (112, 112), (350, 351)):
        film = clip(frames, height, width)
        patches, grid = prepared(tmp_path, film)
        reference, expected, level = theirs(tmp_path, film)
        assert grid == expected
        assert grid[0] == -(-frames // 2)
        off = np.abs(patches - reference) / level
        assert off.max() <= 2.01
        assert (off > 0.5).mean() <= 0.01


class Reference:
    """Stock transformers on a checkpoint: chat template, forward and generate."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

        self.model: Any = Qwen2VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def inputs(self, shown: tuple[Prepared, ...], question: str) -> dict[str, Any]:
        """Return what generate takes for one video."""
        import torch

        (film,) = shown
        patches = np.asarray(film.calls[0]["pixel_values"])
        region = film.regions[0]
        message = [{"type": "video"}, {"type": "text", "text": question}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], add_generation_prompt=True, tokenize=False
        )
        assert text.count("<|video_pad|>") == 1
        text = text.replace("<|video_pad|>", "<|video_pad|>" * len(film.where))
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": 2 * (ids == self.model.config.video_token_id).int(),
            "pixel_values_videos": torch.from_numpy(patches.reshape(-1, patches.shape[-1])),
            "video_grid_thw": torch.tensor(
                [[len(film.regions), 2 * region.rows, 2 * region.columns]]
            ),
        }


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint(heads=4, kv_heads=2, head_dim=12, layers=2)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokprune_export.export import export
    from tokprune_export.options import ExportOptions

    path = tmp_path_factory.mktemp("video") / "bundle"
    export(ExportOptions(str(checkpoint), path), lambda _: None, lambda _: None)
    return path


@pytest.mark.torch
def test_answers_about_1_3_and_16_frames_are_those_of_transformers(
    checkpoint: Path, bundle: Path
) -> None:
    import torch
    from recording import recorded

    import tokprune

    torch.set_num_threads(1)
    vlm, logits = recorded(tokprune.load(bundle, threads=1))
    reference = Reference(checkpoint)
    question = "what shape is red?"
    grids = []
    for frames, height, width in ((1, 84, 140), (3, 60, 121), (16, 112, 112)):
        film = clip(frames, height, width)
        prompt, shown = vlm.model.prepare(film, question)
        inputs = reference.inputs(shown, question)
        assert prompt.ids.tolist() == inputs["input_ids"][0].tolist()
        answer = vlm.ask(film, question, 1.0, max_new_tokens=8)
        with torch.no_grad():
            expected = reference.model.generate(
                **inputs, max_new_tokens=8, do_sample=False, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        ids = expected.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        theirs = torch.stack(expected.logits)[:, 0].numpy()
        assert np.abs(np.stack(logits) - theirs).max() <= 1e-4 * max(1, np.abs(theirs).max())
        assert list(answer.token_ids) == ids[: len(answer.token_ids)]
        assert len(logits) == len(theirs)
        assert len(set(ids)) > 1  # or equal answers would mean little
        grids.append([(r.frame, r.rows, r.columns) for r in answer.regions])
    assert grids == [
        [(0, 3, 5)],
        [(0, 2, 4), (1, 2, 4)],
        [(frame, 4, 4) for frame in range(8)],
    ]
