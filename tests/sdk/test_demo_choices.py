"""Choices on the demo bundles: tokens as the model writes them, chances by teacher forcing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokprune import load
from tokprune.budgets import KeepRatio
from tokprune.llm import LanguageModel
from tokprune.llm_calls import Call, feeds_of
from tokprune.manifest import Chat
from tokprune.scenes import suite
from tokprune.selection import keep_all, select
from tokprune.text.choices import ChoiceTree, choice_ids, choice_tree, choose
from tokprune.types import Array, Prompt, VisionTokens
from tokprune.vlm import VLM

FAMILIES = ("qwen2_vl", "llava_onevision", "vila")
COLORS = ("red", "green", "blue", "yellow", "orange", "cyan", "white", "purple")
PLACES = tuple(f"{y} {x}" for y in ("top", "middle", "bottom") for x in ("left", "center", "right"))
PARTS = ("bottom", "bottom right", "top left", "top")  # some begin with others
DIGITS = ("two", "three", "four", "2", "3", "10", "12")
LISTS = (("yes", "no"), COLORS, PLACES, PARTS, DIGITS)
FORMS = ("portable", "ort")
ROOM = 16  # answer tokens


class Replay:
    """The demo's LLM after a prompt, in one loop of its graph that is rewound."""

    def __init__(self, llm: LanguageModel, prompt: Prompt, vision: VisionTokens) -> None:
        self.llm, self.prompt = llm, prompt
        selection = select(keep_all(len(vision.embeds)), vision, KeepRatio(1.0))
        rows = llm.rows(prompt, vision, selection)
        self.length, self.written, self.runs = rows.embeds.shape[1], 0, -1
        self.loop = llm.graph.loop(llm._carries(self.length + ROOM))
        self._logits: Array | None = None
        self._run(rows.embeds, rows.positions)

    def _run(self, embeds: Array, positions: Array) -> None:
        bias = np.zeros((1, self.length + self.written), np.float32)
        call = Call(embeds, positions, bias)
        self._logits = self.loop.step(feeds_of(self.llm.form, call))["logits"][0, -1]
        self.runs += 1

    @property
    def logits(self) -> Array:
        assert self._logits is not None
        return self._logits

    def extend(self, ids: Sequence[int]) -> None:
        first = self.prompt.next_position + self.written
        axes = (len(self.prompt.positions), 1, len(ids))
        positions = np.broadcast_to(np.arange(first, first + len(ids)), axes).astype(np.int64)
        self.written += len(ids)
        self._run(np.asarray(self.llm.embed_tokens[list(ids)], np.float32)[None], positions)

    def rewind(self, count: int) -> None:
        self.written, self._logits = count, None
        self.loop.rewind(self.length + count)


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request: pytest.FixtureRequest, demo_bundles: Callable[..., Path]) -> VLM:
    return load(demo_bundles(request.param), backend="cpu", threads=1)


def seen(vlm: VLM, sample: Any) -> tuple[Prompt, VisionTokens]:
    prompt, media = vlm.model.prepare(list(sample.pictures), sample.question)
    return prompt, vlm.model.vision(media)


def tree_for(vlm: VLM, choices: Sequence[str]) -> ChoiceTree:
    manifest = vlm.bundle.manifest
    return choice_tree(choices, manifest.chat, manifest.tokens, vlm.model.tokenizer, ROOM)


@pytest.mark.demo
def test_a_choice_has_the_tokens_that_the_model_writes_freely(vlm: VLM) -> None:
    texts = set[str]()
    for sample in suite("dev", 16, tokens=64):
        answer = vlm.ask(list(sample.pictures), sample.question, 0.5)
        assert answer.finish_reason == "stop"
        expected = choice_ids(answer.text, vlm.bundle.manifest.chat, vlm.model.tokenizer)
        assert expected == list(answer.token_ids), answer.text
        texts.add(answer.text)
    assert {"yes", "no"} <= texts
    assert texts & set(COLORS)
    assert any(" " in text for text in texts)


@pytest.mark.demo
@pytest.mark.parametrize("choices", LISTS, ids=" or ".join)
def test_choosing_agrees_with_teacher_forcing_from_fresh(
    vlm: VLM, choices: tuple[str, ...]
) -> None:
    eos = vlm.model.llm.eos
    tree = tree_for(vlm, choices)
    assert all(
        vlm.model.tokenizer.decode(ids) == text for text, ids in zip(choices, tree.ids, strict=True)
    )
    for sample in suite("dev", 2, tokens=36):
        prompt, vision = seen(vlm, sample)
        replay = Replay(vlm.model.llm, prompt, vision)
        choice = choose(replay, tree, eos)
        assert replay.runs == tree.runs
        expected = forced(vlm.model.llm, prompt, vision, tree, eos)
        np.testing.assert_allclose(choice.probabilities, expected, rtol=1e-4, atol=1e-7)
        assert choice.text == choices[int(np.argmax(expected))]


def forced(
    llm: LanguageModel, prompt: Prompt, vision: VisionTokens, tree: ChoiceTree, eos: frozenset[int]
) -> list[float]:
    """Constrained decoding's probabilities, one token a step in a loop of its own each."""
    chances = []
    for ids in tree.ids:
        fresh, chance = Replay(llm, prompt, vision), 1.0
        for depth in range(len(ids) + 1):
            logits = fresh.logits.astype(np.float64)
            rivals = {
                other[depth : depth + 1] for other in tree.ids if other[:depth] == ids[:depth]
            }
            weights = {
                rival: np.exp(logits[list(rival or eos)] - logits.max()).sum() for rival in rivals
            }
            chance *= weights[ids[depth : depth + 1]] / sum(weights.values())
            if depth < len(ids):
                fresh.extend([ids[depth]])
        chances.append(float(chance))
    return chances


@pytest.mark.demo
def test_the_choice_is_what_the_model_says_freely_where_that_is_in_the_list(vlm: VLM) -> None:
    tree, colors = tree_for(vlm, ("no", "yes")), tree_for(vlm, COLORS)
    for sample in suite("dev", 4, tokens=64, groups=["exist"]):
        answer = vlm.ask(list(sample.pictures), sample.question, 1.0)
        replay = Replay(vlm.model.llm, *seen(vlm, sample))
        choice = choose(replay, tree, vlm.model.llm.eos)
        assert replay.runs == 0, "prefill has said it"
        assert choice.text == answer.text
        assert choice.token_ids == answer.token_ids
        assert choice.choice_mass > 0.9
        other = choose(replay, colors, vlm.model.llm.eos)
        assert other.choice_mass < 0.1, "nobody asked for a color"


@pytest.mark.demo
def test_a_cache_that_grows_chooses_like_one_in_place(demo_bundles: Callable[..., Path]) -> None:
    bundle = demo_bundles("qwen2_vl")
    forms = {form: load(bundle, backend="cpu", threads=1, llm_form=form) for form in FORMS}
    assert {vlm.model.llm.form.cache for vlm in forms.values()} == {"grows", "in_place"}
    _, sample = suite("dev", 2, tokens=64, groups=["position"])  # one that the demo knows
    chosen = [
        choose(Replay(vlm.model.llm, *seen(vlm, sample)), tree_for(vlm, PLACES), vlm.model.llm.eos)
        for vlm in forms.values()
    ]
    np.testing.assert_allclose(chosen[0].probabilities, chosen[1].probabilities, atol=1e-4)
    assert chosen[0].text == chosen[1].text == sample.answer


@pytest.mark.torch
@pytest.mark.demo
@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision"])
def test_tokens_are_those_of_an_assistants_turn_in_transformers(
    family: str, demo_bundles: Callable[..., Path], demo_checkpoint: Path
) -> None:
    from transformers import AutoTokenizer

    theirs: Any = AutoTokenizer.from_pretrained(demo_checkpoint.parent / family)
    chat, ours = opened(demo_bundles(family))
    user = {"role": "user", "content": [{"type": "text", "text": "is it red?"}]}
    for text in ANSWERS:
        reply = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        prompt: str = theirs.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
        whole: str = theirs.apply_chat_template([user, reply], tokenize=False)
        before = theirs(prompt, add_special_tokens=False)["input_ids"]
        after = theirs(whole, add_special_tokens=False)["input_ids"]
        assert after[: len(before)] == before
        expected = choice_ids(text, chat, ours)
        assert after[len(before) : len(before) + len(expected)] == expected, text
        assert theirs.convert_ids_to_tokens(after[len(before) + len(expected)]) == "<|im_end|>"


@pytest.mark.torch
@pytest.mark.demo
def test_vilas_tokens_are_those_of_its_sentencepiece_model(
    demo_bundles: Callable[..., Path], demo_checkpoint: Path
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs the export extra")
    (model,) = (demo_checkpoint.parent / "vila" / "llm").glob("*.model")
    theirs: Any = sentencepiece.SentencePieceProcessor(model_file=str(model))
    chat, ours = opened(demo_bundles("vila"))
    for text in ANSWERS:
        before = theirs.encode("A chat. USER: is it red? ASSISTANT:")
        after = theirs.encode(f"A chat. USER: is it red? ASSISTANT: {text}")
        assert after[: len(before)] == before
        assert choice_ids(text, chat, ours) == after[len(before) :], text


def opened(bundle: Path) -> tuple[Chat, Any]:
    vlm = load(bundle, backend="cpu", threads=1)
    return vlm.bundle.manifest.chat, vlm.model.tokenizer


ANSWERS = ("yes", "no", "red", "bottom right", "3", "12", "Yes.", "a red cross, top left", "é 🙂")
