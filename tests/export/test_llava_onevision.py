"""LLaVA-OneVision on a random checkpoint: our graphs and packing against transformers' own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from llava_checkpoint import TEMPLATE, TILE_PX, configuration, write_llava_checkpoint
from recording import recorded

import tokprune
from tokprune.canvas import row_ends
from tokprune.loading import open_tokenizer
from tokprune.manifest import Manifest
from tokprune.selectors import SELECTORS
from tokprune.types import KIND, NEWLINE, Clip, Medium
from tokprune_export import export, parity
from tokprune_export.chat_template import Template, compile_chat, special_ids, verify_chat
from tokprune_export.checkpoint import open_checkpoint
from tokprune_export.errors import ExportRefused
from tokprune_export.families import llava_onevision as family
from tokprune_export.families import llava_onevision_trials as prompts
from tokprune_export.families.family import Trial
from tokprune_export.options import ExportOptions

pytestmark = [pytest.mark.torch, pytest.mark.torchvision]
NEW_TOKENS = 8
ATOL = 1e-4  # times max(1, max |reference|)
QUESTION = "what is this?"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "model"
    write_llava_checkpoint(folder, demo_checkpoint)
    return folder


class Reference:
    """Stock classes from the checkpoint folder: processor, chat template, generate."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, LlavaOnevisionProcessor
        from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
            LlavaOnevisionImageProcessorPil,
        )
        from transformers.models.llava_onevision.video_processing_llava_onevision import (
            LlavaOnevisionVideoProcessor,
        )

        self.model = family.load(folder, None)
        self.processor: Any = LlavaOnevisionProcessor(
            LlavaOnevisionImageProcessorPil.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            LlavaOnevisionVideoProcessor.from_pretrained(folder),
            num_image_tokens=(TILE_PX // 4) ** 2,
            vision_feature_select_strategy="full",
            chat_template=TEMPLATE,
        )

    def inputs(self, media: Sequence[Medium]) -> dict[str, torch.Tensor]:
        clips = [each for each in media if isinstance(each, Clip)]
        pictures = [each for each in media if not isinstance(each, Clip)]
        shown = [{"type": "video" if isinstance(each, Clip) else "image"} for each in media]
        content = [*shown, {"type": "text", "text": QUESTION}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return self.processor(
            text=[text],
            images=[pictures] if pictures else None,  # nested: all of one prompt
            videos=[clip.frames for clip in clips] or None,
            input_data_format="channels_last",
            return_tensors="pt",
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
    def pruned(
        self, inputs: dict[str, torch.Tensor], keep: np.ndarray, means: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the first logits from kept embeddings alone, at their original positions."""
        ids, config = inputs["input_ids"][0], self.model.config
        vision = (ids == config.image_token_index) | (ids == config.video_token_index)
        slots = vision.nonzero()[:, 0]
        embeds = self.model.get_input_embeddings()(ids)
        embeds[slots] = family.encode(self.model, inputs)
        if means is not None:
            embeds[slots[torch.from_numpy(keep)]] = torch.from_numpy(means)
        stays = ~vision
        stays[slots[torch.from_numpy(keep)]] = True
        kept = stays.nonzero()[:, 0]
        hidden = self.model.model.language_model(
            inputs_embeds=embeds[None, kept],
            position_ids=kept[None],
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


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(0, 256, (*shape, 3), np.uint8)


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() <= ATOL * max(1.0, float(np.abs(theirs).max())))


def test_the_gate_passes_for_tiles_pictures_and_frames_of_many_sizes(exported: Exported) -> None:
    assert all(row.ok for row in exported.rows)
    for graph in ("vision_encoder", "first_layer", "end to end", "pruned"):
        assert {row.case for row in exported.rows if row.graph == graph} == set(prompts.TRIALS)


SHOWN: dict[str, list[Medium]] = {
    "one picture": [noise(50, 83)],
    "a picture scaled down": [noise(170, 175)],
    "two pictures": [noise(50, 83), noise(40, 20)],
    "a video": [Clip(noise(5, TILE_PX, TILE_PX), 2.0)],
    "a picture and a video": [noise(83, 20), Clip(noise(2, TILE_PX, TILE_PX), 2.0)],
}


@pytest.mark.parametrize("media", SHOWN.values(), ids=SHOWN)
def test_unpruned_answers_are_those_of_transformers(
    exported: Exported, reference: Reference, media: list[Medium]
) -> None:
    seen, logits = recorded(tokprune.load(exported.bundle))
    answer = seen.ask(media, QUESTION, 1.0, max_new_tokens=NEW_TOKENS)
    inputs = reference.inputs(media)
    ids, theirs = reference.answer(inputs)
    assert close(np.stack(logits), theirs[: len(logits)])
    assert list(answer.token_ids) == ids[: len(logits)]
    assert len(set(ids)) > 2  # the answer says something


ASKED = {name for name, method in SELECTORS.items() if method.needs <= {"frames"}}


@pytest.mark.parametrize("name", sorted(ASKED))
def test_pruned_answers_keep_exactly_k_with_the_newlines_of_their_rows(
    exported: Exported, reference: Reference, name: str
) -> None:
    seen, logits = recorded(tokprune.load(exported.bundle))
    films_alone = "frames" in SELECTORS[name].needs
    for shown in ("a video",) if films_alone else ("one picture", "two pictures", "a video"):
        media = SHOWN[shown]
        for budget in (1, 0.125, 0.5, 0.99):
            answer = seen.ask(media, QUESTION, budget, name, max_new_tokens=1)
            keep, kind = answer.selection.keep, answer.where[:, KIND]
            assert len(keep) == (budget if budget == 1 else int(np.ceil(budget * answer.total)))
            ends = row_ends(answer.where)[keep]
            assert len(keep) == 1 or set(ends[ends >= 0]) == set(keep[kind[keep] == NEWLINE])
            expected = reference.pruned(reference.inputs(media), keep, answer.selection.embeds)
            assert close(logits[0], expected)


def trial(model: Any, *shown: prompts.Picture | prompts.Film) -> Trial:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "TRIALS", {"": shown})
        (made,) = prompts.trials(model)
    return made


@torch.no_grad()
def test_packed_tokens_equal_transformers_for_pictures_of_40_sizes(reference: Reference) -> None:
    model = reference.model
    encoder = family.VisionEncoder(model)
    sizes = 10 ** np.random.default_rng(5).uniform(-1, 0.85, (40, 2))  # in tiles
    tiles = set[int]()
    for height, width in sizes.tolist():
        made = trial(model, prompts.Picture(height, width))
        (media,) = made.media
        calls = [torch.from_numpy(call["pixel_values"]) for call in media.calls]
        ours = media.pack([encoder(call).numpy() for call in calls])
        assert close(ours, family.encode(model, made.inputs).numpy())
        tiles.add(sum(len(call) for call in calls))
    assert {2, 3, 4, 5, 7} <= tiles
    assert max(tiles) > 13  # more than the bound: scaled down


@pytest.mark.parametrize("layer", [-2, 1, [-1, 1], [3]])
@torch.no_grad()
def test_the_layers_that_the_checkpoint_names_are_read(
    demo_checkpoint: Path, layer: int | list[int]
) -> None:
    from transformers import LlavaOnevisionForConditionalGeneration

    config = configuration(demo_checkpoint, vision_feature_layer=layer)
    model: Any = LlavaOnevisionForConditionalGeneration(config).eval()
    made = trial(model, prompts.Film(2))
    pixels = torch.from_numpy(made.media[0].calls[0]["pixel_values"])
    ours = made.media[0].pack([family.VisionEncoder(model)(pixels).numpy()])
    assert close(ours, family.encode(model, made.inputs).numpy())


def test_trials_of_the_published_size_are_few_and_short() -> None:
    from transformers import LlavaOnevisionConfig

    config = LlavaOnevisionConfig(vision_config=None, text_config=None)
    trials = list(prompts.trials(SimpleNamespace(config=config)))
    names = {made.name for made in trials}
    assert names == {
        "2 tiles", "3 tiles", "5 tiles", "2 pictures", "1 frame", "3 frames",
    }  # fmt: skip
    assert max(len(made.slots) for made in trials) <= prompts.MOST_TOKENS


def test_the_published_template_compiles_and_agrees(checkpoint: Path) -> None:
    template = Template(checkpoint)
    chat = compile_chat(checkpoint, template)
    ids = special_ids(open_tokenizer(checkpoint))
    start, end = ids["<|im_start|>"], ids["<|im_end|>"]
    assert (chat.head, chat.words) == ([start, "user "], ["\n"])
    assert chat.head_system == [[start, "system \n"], [end, start, "user "]]
    assert chat.reply == [end, start, "assistant \n"]
    assert chat.generation == [end, start, "assistant\n"]
    assert (chat.picture, chat.video) == ([ids["<image>"]], [ids["<video>"]])
    assert chat.media_first
    tokens = export.records.tokens(open_checkpoint(str(checkpoint)), chat)
    assert (tokens.image, tokens.video) == (ids["<image>"], ids["<video>"])
    assert verify_chat(checkpoint, template, chat, tokens, "llava_onevision") >= 35


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_token_index": None}, "lacks image_token_index"),
        ({"text_config": {"model_type": "gemma2"}}, "text_config of model_type 'gemma2'"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "only 'siglip_vision_model' can"),
        ({"vision_feature_select_strategy": "default"}, "drops a tile's first token"),
        ({"vision_feature_layer": -9}, "vision_feature_layer = -9, and the vision encoder 3"),
        ({"vision_feature_layer": [1, 4]}, r"vision_feature_layer = \[1, 4\], and"),
        ({"text_config": {"use_sliding_window": True}}, "use_sliding_window = true"),
        ({"text_config": {"layer_types": ["sliding_attention"]}}, "use_sliding_window = true"),
        ({"text_config": {"rope_parameters": {"rope_type": "dynamic"}}}, "rope_type 'dynamic'"),
        ({"text_config": {"rope_parameters": {"rope_type": "mrope"}}}, "rope_type 'mrope'"),
        ({"image_grid_pinpoints": [[TILE_PX, 5]]}, r"image_grid_pinpoints \[\(30, 5\)\] are no"),
        ({"vision_aspect_ratio": "square"}, "vision_aspect_ratio is 'square', expected 'anyres"),
    ],
)
def test_settings_that_the_graphs_would_ignore_are_refused(
    demo_checkpoint: Path, changes: dict[str, Any], message: str
) -> None:
    config = configuration(demo_checkpoint).to_dict()
    family.check(config)
    for name, change in changes.items():
        merged = {**config[name], **change} if isinstance(change, dict) else change
        config = {**config, name: merged}
    with pytest.raises(ExportRefused, match=message):
        family.check(config)


def test_a_part_of_the_decoder_is_loaded_for_a_smoke_test(checkpoint: Path) -> None:
    assert len(family.text(family.load(checkpoint, 1)).model.layers) == 1
