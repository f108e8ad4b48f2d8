"""The field's selectors against what their formulas say, put together from naive parts."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from grids import first_layer, inputs, never, prompt_for, salient, vision_tokens

from tokprune import KeepCount
from tokprune.selection import select
from tokprune.selectors import SELECTORS
from tokprune.selectors.dpp import most_likely
from tokprune.selectors.facility import covering_most
from tokprune.selectors.max_min import max_min
from tokprune.selectors.merging import by_looks, means
from tokprune.selectors.mmr import marginal
from tokprune.selectors.relevance import relevance_mmr, scope_relevance
from tokprune.selectors.similarity import projection, unit
from tokprune.selectors.training_free import divprune, scope
from tokprune.types import Prompt, Ranking, VisionTokens

HIDDEN = 12
VISION = salient(vision_tokens((7, 8), hidden=HIDDEN))
SALIENCY = np.asarray(VISION.saliency)
ROWS = VISION.embeds / np.linalg.norm(VISION.embeds, axis=1, keepdims=True)
SCORES = np.random.default_rng(5).random(56).astype(np.float32)
GIVEN = inputs(SCORES / SCORES.sum(), HIDDEN)
PROMPT = prompt_for(VISION)
WORDS = GIVEN.embed(PROMPT.ids[PROMPT.words])


def ranked(name: str, vision: VisionTokens = VISION, prompt: Prompt = PROMPT) -> Ranking:
    return SELECTORS[name].make(GIVEN)(prompt, vision, lambda: first_layer(vision, SCORES))


def scaled(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


def cosines_with_words() -> np.ndarray:
    return ROWS @ (WORDS / np.linalg.norm(WORDS, axis=1, keepdims=True)).T


def test_the_question_is_three_words_here() -> None:
    assert len(WORDS) == 3


def test_vtc_cls_takes_the_most_salient() -> None:
    assert ranked("vtc-cls").take(56).tolist() == np.argsort(-SALIENCY, kind="stable").tolist()


def test_divprune_is_max_min_over_looks() -> None:
    assert ranked("divprune").take(30).tolist() == list(islice(max_min(ROWS), 30))


def test_cdpruner_weighs_a_determinant_by_likeness_to_the_question() -> None:
    quality = scaled(cosines_with_words().mean(axis=1)) + 1e-6
    expected = islice(most_likely(ROWS, quality.astype(np.float32)), 10)
    assert ranked("cdpruner").take(10).tolist() == list(expected)


def test_scope_covers_by_saliency_and_ours_by_relevance() -> None:
    expected = islice(covering_most(ROWS, SALIENCY), 20)
    assert ranked("scope").take(20).tolist() == list(expected)
    ours = scope_relevance(GIVEN.scorer, attention_share=0.0)
    ranking = ours(PROMPT, VISION, lambda: first_layer(VISION, SCORES))
    expected = islice(covering_most(ROWS, SCORES / SCORES.sum()), 20)
    assert ranking.take(20).tolist() == list(expected)
    assert ranking.scores == pytest.approx(SCORES / SCORES.sum())


def test_mmr_weighs_scaled_relevance_against_likeness() -> None:
    ours = relevance_mmr(GIVEN.scorer, attention_share=0.0, importance_share=0.4)
    ranking = ours(PROMPT, VISION, lambda: first_layer(VISION, SCORES))
    expected = islice(marginal(ROWS, scaled(SCORES).astype(np.float32), 0.4), 20)
    assert ranking.take(20).tolist() == list(expected)
    assert ranking.scores == pytest.approx(SCORES / SCORES.sum())


def test_relevance_counts_alone_in_all_of_ours() -> None:
    relevant, attended = np.eye(56, dtype=np.float32)[[3, 5]]
    for make in (relevance_mmr, scope_relevance):
        ranking = make(lambda *_: relevant)(PROMPT, VISION, lambda: first_layer(VISION, attended))
        assert ranking.scores is not None
        assert (ranking.scores[3], ranking.scores[5]) == pytest.approx((1.0, 0.0))


def test_dart_keeps_what_is_least_like_its_pivots() -> None:
    loud = np.argsort(-np.abs(VISION.embeds).sum(axis=1), kind="stable")[:4]
    words = WORDS[np.argsort(-np.abs(WORDS).sum(axis=1), kind="stable")]
    pivots = [*ROWS[loud], *(word / np.linalg.norm(word) for word in words)]
    kept: list[int] = []
    for number, pivot in enumerate(pivots):  # 4 of vision, 3 words: 28 is 4 for each
        left = [token for token in range(56) if token not in kept]
        kept += sorted(left, key=lambda token: ROWS[token] @ pivot)[:4]
        assert len(kept) == 4 * (number + 1)
    assert ranked("dart").take(28).tolist() == kept


def test_dart_and_text_scores_do_without_words() -> None:
    silent = replace(PROMPT, words=np.zeros_like(PROMPT.words))
    for name in ("dart", "cdpruner", "flashvlm", "recoverable"):
        assert len(set(ranked(name, prompt=silent).take(20).tolist())) == 20


def test_apet_keeps_what_is_described_worst_and_its_twin_merges_the_rest() -> None:
    basis = [int(np.linalg.norm(VISION.embeds, axis=1).argmax())]
    while len(basis) < 10:
        gaps = np.linalg.norm(VISION.embeds[:, None] - VISION.embeds[None, basis], axis=2)
        basis.append(int(gaps.min(axis=1).argmax()))
    chosen = VISION.embeds[basis].astype(np.float64)
    shares = np.linalg.solve(chosen @ chosen.T + 1e-5 * np.eye(10), chosen @ VISION.embeds.T)
    error = np.linalg.norm(VISION.embeds - shares.T @ chosen, axis=1)
    order = ranked("apet").take(20)
    assert order.tolist() == np.argsort(-error, kind="stable")[:20].tolist()
    plain = select(ranked("apet"), VISION, KeepCount(20))
    merged = select(ranked("apet-merge"), VISION, KeepCount(20))
    assert plain.embeds is None
    assert merged.keep.tolist() == plain.keep.tolist()
    expected = means(VISION, plain.keep, by_looks(VISION, plain.keep))
    assert merged.embeds == pytest.approx(expected.embeds)


@pytest.mark.parametrize("k", [1, 2, 9, 20, 56])
def test_flashvlm_is_half_scores_and_half_unlike_them(k: int) -> None:
    cosines = cosines_with_words().astype(np.float64)
    shares = np.exp(cosines / 0.05) / np.exp(cosines / 0.05).sum(axis=1, keepdims=True)
    text = scaled((cosines * shares).sum(axis=1)) + 1e-6
    score = np.exp(0.5 * np.log(text) + 0.5 * np.log(scaled(SALIENCY) + 1e-6))
    head = np.argsort(-score, kind="stable")[: k - k // 2]
    expected = [*head, *islice(max_min(ROWS, head), k // 2)]
    assert ranked("flashvlm").take(k).tolist() == expected


def test_recoverable_keeps_outliers_then_what_is_like_the_question_then_the_salient() -> None:
    values = np.linspace(1, 2, 56).astype(np.float32)
    values[[7, 30]] = (9, 12)
    embeds = VISION.embeds.copy()
    embeds[[7, 11]] = 5 * (WORDS / np.linalg.norm(WORDS, axis=1, keepdims=True)).mean(axis=0)
    embeds[[token for token in range(56) if token not in (7, 11)]] *= [[1, *[0.0] * 11]]
    vision = VisionTokens(embeds, VISION.where, VISION.regions, values)
    ranking = ranked("recoverable", vision)
    assert ranking.take(5).tolist() == [30, 7, 11, 55, 54]
    assert ranking.merge is not None
    keep = np.asarray([7, 11, 30])
    assert (ranking.merge(keep).embeds == means(vision, keep, by_looks(vision, keep)).embeds).all()


def test_a_projection_is_a_parameter() -> None:
    wide = salient(vision_tokens((9, 9), hidden=400))
    narrow = unit(wide.embeds @ projection(400, 128))
    expected = list(islice(max_min(narrow), 40))
    assert divprune(width=128)(PROMPT, wide, never).take(40).tolist() == expected
    assert divprune()(PROMPT, wide, never).take(40).tolist() != expected
    expected = list(islice(covering_most(narrow, np.asarray(wide.saliency)), 40))
    assert scope(width=128)(PROMPT, wide, never).take(40).tolist() == expected
