"""The bundle against stock transformers: same tokens, same logits, unpruned and pruned."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recording import recorded

import tokprune
from tokprune.scenes import suite
from tokprune.vlm import VLM

pytestmark = [pytest.mark.torch, pytest.mark.demo]
ATOL = 1e-4  # times max(1, max |reference|)
SCENES = 200 if os.environ.get("SOAK") else 60
NEW_TOKENS = 16


class Reference:
    """Stock classes from the checkpoint folder: processor, chat template, generate."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        self.model: Any = Qwen2VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.pictures: Any = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def inputs(self, pictures: list[np.ndarray], question: str) -> dict[str, torch.Tensor]:
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        made = self.pictures(
            images=pictures, return_tensors="pt", input_data_format="channels_last"
        )
        for grid in made["image_grid_thw"]:
            text = text.replace("<|image_pad|>", "<|slot|>" * (int(grid.prod()) // 4), 1)
        ids = self.tokenizer(text.replace("<|slot|>", "<|image_pad|>"), return_tensors="pt")
        slots = ids.input_ids == self.model.config.image_token_id
        return {
            "input_ids": ids.input_ids,
            "attention_mask": ids.attention_mask,
            "mm_token_type_ids": slots.int(),
            **made,
        }

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
        """Logits of the same answer from the kept embeddings alone, original position ids."""
        inner = self.model.model
        positions, _ = inner.get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"]
        )
        features = inner.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        embeds = inner.get_input_embeddings()(inputs["input_ids"])
        slots = inputs["mm_token_type_ids"][0].nonzero()[:, 0]
        embeds[0, slots] = torch.cat(list(features.pooler_output))
        stays = torch.ones(embeds.shape[1], dtype=torch.bool)
        stays[slots] = False
        stays[slots[torch.from_numpy(keep)]] = True
        embeds, positions = embeds[:, stays], positions[:, :, stays]
        following, steps = int(positions.max()) + 1, []
        for step in range(NEW_TOKENS):
            hidden = inner.language_model(
                inputs_embeds=embeds, position_ids=positions, use_cache=False
            ).last_hidden_state
            logits = self.model.lm_head(hidden[:, -1])[0]
            steps.append(logits.numpy())
            token = logits.argmax()
            if int(token) == self.model.config.text_config.eos_token_id:
                break
            embeds = torch.cat([embeds, inner.get_input_embeddings()(token)[None, None]], 1)
            new = torch.full((3, 1, 1), following + step)
            positions = torch.cat([positions, new], 2)
        return np.stack(steps)


@pytest.fixture(scope="module")
def reference(demo_checkpoint: Path) -> Reference:
    torch.set_num_threads(2)
    return Reference(demo_checkpoint)


@pytest.fixture(scope="module")
def vlm(demo_bundle: Path) -> VLM:
    return tokprune.load(demo_bundle)


def agree(
    ours: list[np.ndarray], theirs: np.ndarray, ids: tuple[int, ...], expected: list[int]
) -> bool:
    """Check logits step by step up to the first tie; return whether there was none."""
    for step, (mine, reference) in enumerate(zip(ours, theirs, strict=False)):
        allowed = ATOL * max(1.0, float(np.abs(reference).max()))
        assert np.abs(mine - reference).max() <= allowed
        best, second = np.sort(reference)[:-3:-1]
        if best - second < 2 * allowed:
            return False
        assert int(mine.argmax()) == int(reference.argmax()) == expected[step]
    assert len(ours) == len(theirs)
    assert list(ids) == expected[: len(ids)]
    return True


def test_test_scenes_get_token_identical_answers_and_equal_logits(
    vlm: VLM, reference: Reference
) -> None:
    seen, logits = recorded(vlm)
    whole = 0
    for sample in suite("test", SCENES):
        answer = seen.ask(list(sample.pictures), sample.question, 1.0, max_new_tokens=NEW_TOKENS)
        inputs = reference.inputs(list(sample.pictures), sample.question)
        ids, theirs = reference.answer(inputs)
        assert answer.total == int(inputs["mm_token_type_ids"].sum())
        whole += agree(logits, theirs, answer.token_ids, ids)
    assert whole >= 0.975 * SCENES  # the rest are ties of the reference's own top two


@pytest.mark.parametrize("name", ["uniform", "attention"])
@pytest.mark.parametrize("budget", [0.5, 0.125])
def test_a_pruned_answer_equals_transformers_fed_the_same_kept_embeddings(
    vlm: VLM, reference: Reference, name: str, budget: float
) -> None:
    seen, logits = recorded(vlm)
    for sample in suite("test", 8, tokens=196):
        answer = seen.ask(
            list(sample.pictures), sample.question, budget, name, max_new_tokens=NEW_TOKENS
        )
        inputs = reference.inputs(list(sample.pictures), sample.question)
        theirs = reference.pruned(inputs, answer.selection.keep)
        agree(logits, theirs, answer.token_ids, [int(step.argmax()) for step in theirs])


@pytest.mark.parametrize("form", ["portable", "ort"])
def test_two_pictures_of_different_sizes_in_one_prompt(
    demo_bundle: Path, reference: Reference, form: str
) -> None:
    seen, logits = recorded(tokprune.load(demo_bundle, llm_form=form))
    (first,) = suite("dev", 1, tokens=64, groups=["color"])
    (second,) = suite("dev", 1, tokens=96, groups=["color"])
    pictures = [*first.pictures, *second.pictures]
    answer = seen.ask(pictures, "which picture has more shapes?", 1.0, max_new_tokens=NEW_TOKENS)
    ids, theirs = reference.answer(reference.inputs(pictures, "which picture has more shapes?"))
    assert answer.total == 64 + 96
    agree(logits, theirs, answer.token_ids, ids)


def test_a_picture_of_8_by_3_cells(vlm: VLM, reference: Reference) -> None:
    seen, logits = recorded(vlm)
    (sample,) = suite("dev", 1, tokens=64, groups=["color"])
    picture = np.ascontiguousarray(sample.pictures[0][:, : 3 * 28])
    answer = seen.ask(picture, sample.question, 1.0, max_new_tokens=NEW_TOKENS)
    ids, theirs = reference.answer(reference.inputs([picture], sample.question))
    assert [(region.rows, region.columns) for region in answer.regions] == [(8, 3)]
    agree(logits, theirs, answer.token_ids, ids)


@pytest.mark.parametrize("tied", [False, True])
def test_a_random_model_of_odd_dimensions(
    tiny_checkpoint: Any, tmp_path: Path, *, tied: bool
) -> None:
    from conftest import export_bundle

    checkpoint = tiny_checkpoint(tied=tied)
    export_bundle(checkpoint, tmp_path / "bundle")
    seen, logits = recorded(tokprune.load(tmp_path / "bundle"))
    oracle = Reference(checkpoint)
    (sample,) = suite("dev", 1, tokens=64, groups=["color"])
    answer = seen.ask(sample.pictures[0], sample.question, 1.0, max_new_tokens=NEW_TOKENS)
    ids, theirs = oracle.answer(oracle.inputs([sample.pictures[0]], sample.question))
    agree(logits, theirs, answer.token_ids, ids)
