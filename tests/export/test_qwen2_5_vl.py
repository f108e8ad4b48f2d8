"""Qwen2.5-VL on a random checkpoint: our graphs and positions against transformers' own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qwen2_5_checkpoint import WINDOW_PX, configuration, write_qwen2_5_checkpoint
from recording import recorded

import tokprune
from tokprune.families.qwen2_5_vl import Encoder, windows
from tokprune.families.qwen_patches import patch_positions
from tokprune.manifest import Manifest
from tokprune.types import Clip, Medium
from tokprune_export import export, parity
from tokprune_export.checkpoint import open_checkpoint
from tokprune_export.errors import ExportRefused
from tokprune_export.families import qwen2_5_vl as family
from tokprune_export.options import ExportOptions

pytestmark = [pytest.mark.torch, pytest.mark.torchvision]
NEW_TOKENS = 8
ATOL = 1e-4  # times max(1, max |reference|)
QUESTION = "what shape is red?"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen2_5") / "model"
    write_qwen2_5_checkpoint(folder, demo_checkpoint)
    return folder


class Reference:
    """Stock classes from the checkpoint folder: processor, chat template, generate."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        self.model = family.load(folder, None)
        self.processor: Any = Qwen2_5_VLProcessor(
            Qwen2VLImageProcessorPil.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            Qwen2VLVideoProcessor.from_pretrained(folder),
            chat_template=(folder / "chat_template.jinja").read_text(),
        )

    def inputs(self, media: Sequence[Medium]) -> dict[str, torch.Tensor]:
        clips = [each for each in media if isinstance(each, Clip)]
        pictures = [each for each in media if not isinstance(each, Clip)]
        shown = [{"type": "video" if isinstance(each, Clip) else "image"} for each in media]
        content = [*shown, {"type": "text", "text": QUESTION}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        rates = [{"fps": each.fps, "total_num_frames": len(each.frames)} for each in clips]
        return self.processor(
            text=[text],
            images=pictures or None,
            videos=[each.frames for each in clips] or None,
            input_data_format="channels_last",
            return_tensors="pt",
            **({"video_metadata": rates} if clips else {}),
        )

    @torch.no_grad()
    def answer(self, inputs: dict[str, torch.Tensor]) -> tuple[list[int], np.ndarray]:
        output = self.model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        return ids, torch.stack(output.logits)[:, 0].numpy()

    @torch.no_grad()
    def pruned(self, inputs: dict[str, torch.Tensor], keep: np.ndarray) -> np.ndarray:
        """Return the first logits from kept embeddings alone, at their original positions."""
        kinds = inputs["mm_token_type_ids"]
        of_time = {name: inputs[name] for name in inputs if "_grid_" in name}
        positions, _ = self.model.model.get_rope_index(inputs["input_ids"], kinds, **of_time)
        slots = kinds[0].nonzero()[:, 0]
        embeds = self.model.get_input_embeddings()(inputs["input_ids"][0])
        for kind, pixels, grid in (
            (1, "pixel_values", "image_grid_thw"),
            (2, "pixel_values_videos", "video_grid_thw"),
        ):
            if pixels in inputs:
                output = self.model.model.visual(inputs[pixels], grid_thw=inputs[grid])
                embeds[kinds[0] == kind] = output.pooler_output
        stays = kinds[0] == 0
        stays[slots[torch.from_numpy(keep)]] = True
        kept = stays.nonzero()[:, 0]
        hidden = self.model.model.language_model(
            inputs_embeds=embeds[None, kept],
            position_ids=positions[:, :, kept],
            attention_mask=torch.ones(1, len(kept), dtype=torch.int64),
        ).last_hidden_state
        return self.model.lm_head(hidden[0, -1]).numpy()


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


@dataclass(frozen=True)
class Exported:
    bundle: Path
    manifest: Manifest
    rows: list[parity.Row]


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    bundle, rows = tmp_path_factory.mktemp("exported") / "bundle", list[parity.Row]()
    manifest = export.export(ExportOptions(str(checkpoint), bundle), lambda _: None, rows.extend)
    return Exported(bundle, manifest, rows)


def test_the_bundle_lists_the_settings_that_the_checkpoint_has(exported: Exported) -> None:
    settings = {name for name in exported.manifest.files if "processor" in name}
    assert settings == {"processor_config.json"}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(0, 256, (*shape, 3), np.uint8)


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() <= ATOL * max(1.0, float(np.abs(theirs).max())))


def test_the_gate_passes_for_windows_pictures_and_videos_of_many_sizes(exported: Exported) -> None:
    assert all(row.ok for row in exported.rows)
    for graph in ("positions", "vision_encoder", "first_layer", "end to end", "pruned"):
        assert {row.case for row in exported.rows if row.graph == graph} == set(family.TRIALS)


# videos of whole vision tokens: torchvision's resizing rounds otherwise than Pillow's
SHOWN: dict[str, list[Medium]] = {
    "a picture below a window": [noise(60, 57)],
    "a picture of partial windows": [noise(130, 201)],
    "two pictures": [noise(97, 170), noise(60, 120)],
    "three pictures": [noise(60, 57), noise(84, 168), noise(115, 61)],
    "1 frame": [Clip(noise(1, 84, 140), 2.0)],
    "3 frames": [Clip(noise(3, 56, 112), 0.7)],
    "16 frames": [Clip(noise(16, 112, 112), 3.7)],
    "two videos": [Clip(noise(4, 56, 56), 0.25), Clip(noise(6, 56, 84), 30.0)],
    "a video between pictures": [noise(60, 57), Clip(noise(5, 112, 56), 1.0), noise(97, 170)],
}


@pytest.mark.parametrize("media", SHOWN.values(), ids=SHOWN)
def test_unpruned_answers_are_those_of_transformers(
    exported: Exported, reference: Reference, media: list[Medium]
) -> None:
    seen, logits = recorded(tokprune.load(exported.bundle, threads=1))
    answer = seen.ask(media, QUESTION, 1.0, max_new_tokens=NEW_TOKENS)
    inputs = reference.inputs(media)
    prompt, _ = seen.model.prepare(media, QUESTION)
    assert prompt.ids.tolist() == inputs["input_ids"][0].tolist()
    ids, theirs = reference.answer(inputs)
    assert close(np.stack(logits), theirs[: len(logits)])
    assert list(answer.token_ids) == ids[: len(answer.token_ids)]
    assert len(set(ids)) > 2  # the answer says something


def test_the_same_frames_at_another_rate_are_another_prompt(exported: Exported) -> None:
    seen, logits = recorded(tokprune.load(exported.bundle, threads=1))
    frames, first = noise(16, 56, 56), list[np.ndarray]()
    for fps in (0.5, 4.0):
        seen.ask(Clip(frames, fps), QUESTION, 1.0, max_new_tokens=1)
        first.append(logits[0])
    assert not close(*first)


@pytest.mark.parametrize("budget", [1, 0.25, 0.5])
def test_pruned_answers_keep_original_positions(
    exported: Exported, reference: Reference, budget: float
) -> None:
    seen, logits = recorded(tokprune.load(exported.bundle, threads=1))
    for shown in ("two pictures", "16 frames", "a video between pictures"):
        answer = seen.ask(SHOWN[shown], QUESTION, budget, max_new_tokens=1)
        assert answer.kept == (budget if budget == 1 else -(-answer.total * budget // 1))
        expected = reference.pruned(reference.inputs(SHOWN[shown]), answer.selection.keep)
        assert close(logits[0], expected)


@pytest.mark.parametrize(
    "vision",
    [
        {},
        {"window_size": 28, "fullatt_block_indexes": []},
        {"window_size": 112, "fullatt_block_indexes": [0, 3]},
        {"window_size": 64, "patch_size": 8, "spatial_merge_size": 3, "num_heads": 1},
    ],
)
@torch.no_grad()
def test_vision_tokens_equal_transformers_for_grids_around_a_window(
    demo_checkpoint: Path, vision: dict[str, Any]
) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    config = configuration(demo_checkpoint, **vision)
    torch.manual_seed(0)
    model: Any = Qwen2_5_VLForConditionalGeneration(config).eval()
    for value in model.model.visual.parameters():
        if value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5)
    encoder, settings = family.VisionEncoder(model.model.visual), config.vision_config
    merge = settings.spatial_merge_size
    side = Encoder(settings.patch_size, merge, settings.window_size).side
    channels = model.model.visual.patch_embed.proj.weight[0].numel()
    for rows, columns in ((1, 1), (2, 3), (side, side), (side + 1, 2 * side), (5, 3 * side + 2)):
        pixels = torch.randn(2, rows * columns * merge**2, channels)
        grid = torch.tensor([[2, rows * merge, columns * merge]])
        theirs = model.model.visual(pixels.flatten(0, 1), grid_thw=grid).pooler_output
        positions = torch.from_numpy(patch_positions(rows, columns, merge))
        tables = [torch.from_numpy(each) for each in windows(positions.numpy(), side, merge)]
        ours = encoder(pixels, positions, *tables).flatten(0, 1)
        assert close(ours.numpy(), theirs.numpy())
        whole = [torch.from_numpy(each) for each in windows(positions.numpy(), 15, merge)]
        assert rows <= side >= columns or not close(
            encoder(pixels, positions, *whole).flatten(0, 1).numpy(), theirs.numpy()
        )


PUBLISHED: dict[str, Any] = {  # Qwen/Qwen2.5-VL-3B-Instruct has its text settings at the top
    "hidden_size": 2048,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "use_sliding_window": False,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_config": {
        "depth": 32,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "patch_size": 14,
        "spatial_merge_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    },
}


@pytest.mark.parametrize("vision", [PUBLISHED["vision_config"], {}, None])
def test_settings_as_published_are_taken(vision: dict[str, Any] | None) -> None:
    family.check({**PUBLISHED, "vision_config": vision})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_end_token_id": None}, "lacks vision_end_token_id"),
        ({"use_sliding_window": True}, "use_sliding_window = true"),
        ({"vision_config": {"window_size": 27}}, "window_size is 27 px, expected 28 px or more"),
        ({"vision_config": {"patch_size": [14, 14]}}, "Expected `int`, got `array`"),
        (
            {"vision_config": {"depth": 2, "fullatt_block_indexes": [1, 0]}},
            r"fullatt_block_indexes = \[1, 0\], which leaves no layer with window attention",
        ),
    ],
)
def test_settings_that_the_graphs_would_ignore_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportRefused, match=message):
        family.check({**PUBLISHED, **changes})


def test_a_part_of_the_decoder_is_loaded_for_a_smoke_test(checkpoint: Path) -> None:
    loaded = family.load(checkpoint, 1)
    assert len(family.qwen2_vl.text(loaded).model.layers) == 1
    assert loaded.config.vision_config.window_size == WINDOW_PX


def test_qwen3_vl_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(ExportRefused, match=r"model_type 'qwen3_vl', .* exported: .*qwen2_5_vl"):
        open_checkpoint(str(tmp_path))
