"""Merged selections in the LLM: which rows it gets, and which it need not see again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from grids import never, prompt_for, vision_tokens
from stub_model import HIDDEN, Stub, a_model, a_picture, a_vlm

from tokprune import KeepCount, Ranking, load
from tokprune.llm import Access, Generation
from tokprune.scenes import suite
from tokprune.selection import keep_all, select
from tokprune.selectors import SELECTORS, Inputs
from tokprune.selectors.baselines import random_tokens
from tokprune.selectors.merging import by_looks, merged
from tokprune.types import First, Prompt, Selection, VisionTokens

VISION = vision_tokens((2, 3), hidden=HIDDEN)
PROMPT = prompt_for(VISION)  # vision tokens in 3..8


def selection(at: list[int] | None = None, bias: list[float] | None = None) -> Selection:
    return Selection(
        np.asarray([1, 4]),
        6,
        None,
        2,
        "count",
        embeds=np.full((2, HIDDEN), 7, np.float32),
        bias=None if bias is None else np.asarray(bias, np.float32),
        at=None if at is None else np.asarray(at),
    )


def test_means_enter_in_place_of_the_kept_and_carry_their_position_or_another() -> None:
    llm = a_model(Stub()).llm
    own = llm.rows(PROMPT, VISION, selection())
    assert (own.embeds[0, 3:5] == 7).all()
    assert own.positions[0, 0].tolist() == [0, 1, 2, 4, 7, 9, 10, 11, 12, 13]
    moved = llm.rows(PROMPT, VISION, selection(at=[0, 3], bias=[0.0, 1.5]))
    assert moved.positions[0, 0].tolist() == [0, 1, 2, 3, 6, 9, 10, 11, 12, 13]
    assert moved.bias.tolist() == [0, 0, 0, 0, 1.5, 0, 0, 0, 0, 0]
    assert PROMPT.positions[0].tolist() == list(range(14))  # the prompt is not written to


def test_a_position_must_be_of_a_token_that_there_is() -> None:
    with pytest.raises(ValueError, match=r"0\.\.5"):
        selection(at=[1, 6])


def pooling(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    given = Inputs(lambda *_: np.zeros(0, np.float32), lambda _: np.zeros((0, 0), np.float32))
    return SELECTORS["pool"].make(given)(prompt, vision, first)


def test_a_chat_does_not_take_a_merged_selection_for_plain_rows() -> None:
    def plain(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        return replace(pooling(prompt, vision, first), merge=None)

    picture, reused = a_picture(), list[int]()
    for selectors in ((pooling, plain), (plain, pooling), (plain, plain)):
        stub = Stub()
        with a_vlm(stub) as vlm:
            chat = vlm.chat(budget=0.25)
            chat.ask("what?", picture, selector=selectors[0])
            answer = chat.ask("and?", selector=selectors[1])
            reused.append(answer.reused)
            afresh = vlm.chat(budget=0.25)
            afresh.recall("what?", chat.turns[0].answer or "", picture)
            assert afresh.ask("and?", selector=selectors[1]).text == answer.text
    assert reused[0] == reused[1] < reused[2]  # no row from the first vision token on


def test_pinned_pictures_may_be_merged_and_are_run_once() -> None:
    stub = Stub()
    with a_vlm(stub) as vlm:
        pinned = vlm.pin([a_picture(1), a_picture(2)], budget=0.25, selector="pool")
        first, second = pinned.ask("what?"), pinned.ask("how many?")
        assert first.selection.embeds is not None
        assert len(first.selection.embeds) == first.kept == 12
        assert first.reused == 0
        assert second.reused > 12
        assert (
            vlm.pin([a_picture(1), a_picture(2)], budget=0.25, selector="pool")
            .ask("how many?")
            .text
            == second.text
        )


@pytest.mark.demo
@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision", "vila"])
@pytest.mark.parametrize("form", ["portable", "ort"])
def test_merging_nothing_gives_exactly_the_unpruned_logits(
    demo_bundles: Callable[..., Path], family: str, form: str
) -> None:
    both = merged(random_tokens(), by_looks, median_position=True, size_bias=True)
    (sample,) = suite("dev", 1, tokens=64)
    with load(demo_bundles(family), backend="cpu", threads=1, llm_form=form) as vlm:
        model = vlm.model
        prompt, prepared = model.prepare(list(sample.pictures), sample.question)
        vision = model.vision(prepared)
        total = len(vision.where)

        def logits(chosen: Selection) -> np.ndarray:
            return model.llm.start(prompt, vision, chosen, 1, Access()).logits

        whole = logits(select(keep_all(total), vision, KeepCount(total)))
        ranking = both(prompt, vision, never)
        assert ranking.merge is not None
        found = ranking.merge(np.arange(total))
        bias = np.log(found.sizes).astype(np.float32)
        identity = Selection(
            np.arange(total), total, None, None, "all", embeds=found.embeds, bias=bias, at=found.at
        )
        assert (logits(identity) == whole).all()
        pruned = select(ranking, vision, KeepCount(total // 3))
        moved = logits(pruned)
        for name in ("embeds", "at", "bias"):  # each is heard
            assert (logits(replace(pruned, **{name: None})) != moved).any()
        tokens = list(model.llm.generate(prompt, vision, pruned, Generation(3)))
        assert tokens[-1].finish_reason is not None
