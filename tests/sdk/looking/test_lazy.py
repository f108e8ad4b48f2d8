"""Whole pictures and some frames first, then what the question points to."""

import numpy as np
import pytest
from stub_model import Stub, a_vlm
from tiles import SIDE, TILER, asked, picture, tokens_of
from timed_machine import calibration

from tokprune import Clip, Deadline, KeepCount, KeepMass, KeepRatio, RequestInvalid
from tokprune.families import anyres, llava_onevision
from tokprune.families.anyres import Hw, Tiler
from tokprune.looking import Asked, Look
from tokprune.looking.lazy import STRIDE, Lazy, estimated
from tokprune.selectors.baselines import attention, uniform
from tokprune.timing.latency import Latency
from tokprune.types import (
    COLUMN,
    FRAME,
    KIND,
    NEWLINE,
    ROW,
    TILE,
    Array,
    First,
    FirstLayer,
    Prompt,
    Ranking,
    VisionTokens,
)


def looked(lazy: Lazy, given: Asked, scores: Array) -> list[Look]:
    """All looks, where the first one finds these scores of its tokens."""
    looks = [lazy.first(given)]
    while True:
        ranking = Ranking(lambda k: np.arange(k), scores.astype(np.float32))
        following = lazy.next(given, looks, tokens_of(looks[-1].media), ranking)
        if following is None:
            return looks
        looks.append(following)


def at_corner() -> Array:
    """Relevance in the top right corner of the whole picture."""
    scores = np.zeros((SIDE, SIDE), np.float32)
    scores[0, -1] = 1
    return scores.ravel()


def test_the_whole_picture_comes_first_and_then_the_crop_that_matters() -> None:
    first, second = looked(Lazy(), asked(KeepCount(20), picture()), at_corner())
    assert (first.last, first.encoded, len(first.media[0].calls)) == (False, SIDE**2, 1)
    assert (second.last, len(second.media[0].calls)) == (True, 2)
    crops = second.media[0].where[second.media[0].where[:, TILE] == 1]
    patches = crops[crops[:, KIND] != NEWLINE]
    assert patches[:, ROW].max() == SIDE - 1
    assert patches[:, COLUMN].min() == 2 * SIDE
    assert second.encoded == SIDE**2 + SIDE  # with a newline for each row
    assert second.budget == KeepCount(20)


@pytest.mark.parametrize("steepness", [0.0, 0.3, 0.6, 1.0, 3.0])
def test_there_are_as_many_crops_as_hold_what_is_expected(steepness: float) -> None:
    row = np.exp(-steepness * np.arange(SIDE))  # most of it at the top left corner
    _, second = looked(Lazy(), asked(KeepCount(5), picture()), np.outer(row, row).ravel())
    line = np.repeat(row, 3).reshape(3, SIDE).sum(axis=1)  # three crops of SIDE tokens beside
    worth = np.sort(np.outer(line, line).ravel())[::-1]
    held = np.cumsum(worth) / worth.sum()
    wanted = 1 + int((held < 0.85 - 1e-6).sum())
    assert len(second.media[0].calls) == 1 + wanted


@pytest.mark.parametrize("count", [40, 100, 140])
def test_there_are_as_many_crops_as_the_budget_can_use(count: int) -> None:
    _, second = looked(Lazy(), asked(KeepCount(count), picture()), at_corner())
    assert len(second.places if second.places is not None else ()) >= count


@pytest.mark.parametrize("count", [40, 60, 70, 80, 95])
def test_tokens_between_two_crops_are_counted_once_both_are_there(count: int) -> None:
    pinpoints = tuple(Hw(8 * r, 8 * c) for r in range(1, 5) for c in range(1, 5))
    tiler = Tiler(8, SIDE, pinpoints, 7)  # 4 x 4 crops are scaled down
    tiles = np.zeros((17, 3, 8, 8), np.float32)
    layout = anyres.alone(tiler, 0, Hw(32, 32))
    shown = llava_onevision.from_tiles("picture", tiles, layout, Hw(32, 32))
    assert (shown.units.sum(axis=1) > 1).any()
    _, second = looked(Lazy(), asked(KeepCount(count), shown), np.linspace(1, 2, SIDE**2))
    assert second.places is not None
    assert len(second.places) >= count


def test_no_more_crops_than_were_asked_for() -> None:
    even = np.ones(SIDE**2)
    _, second = looked(Lazy(most=2), asked(KeepCount(100), picture()), even)
    assert len(second.media[0].calls) == 3
    assert second.places is not None
    assert second.budget == KeepCount(len(second.places))  # all that there is
    assert len(second.places) < 100
    assert "2 of 9" in second.reason


@pytest.mark.parametrize(("share", "crops"), [(0.1, 1), (0.5, 5), (0.9, 9), (1.0, 9)])
@pytest.mark.parametrize("budget", [KeepCount(10), KeepMass(0.5)])
def test_a_share_of_what_is_expected_is_held_whatever_the_budget_keeps(
    budget: KeepCount | KeepMass, share: float, crops: int
) -> None:
    _, second = looked(Lazy(share=share), asked(budget, picture()), np.ones(SIDE**2))
    assert len(second.media[0].calls) == 1 + crops
    _, second = looked(Lazy(share=share), asked(budget, picture()), at_corner())
    assert len(second.media[0].calls) == 1 + 1  # all of it is expected there


def test_a_small_share_leaves_enough_to_choose_from() -> None:
    _, second = looked(Lazy(share=0.01), asked(KeepCount(100), picture()), np.ones(SIDE**2))
    assert second.places is not None
    assert len(second.places) >= 100


def test_a_share_gives_way_to_time() -> None:
    lazy = Lazy(share=0.9, room=lambda pixels, tokens, before, wanted: min(wanted, 2))
    _, second = looked(lazy, asked(KeepCount(10), picture()), np.ones(SIDE**2))
    assert len(second.media[0].calls) == 1 + 2


def test_a_budget_that_asks_for_mass_gets_the_crops_that_hold_it() -> None:
    given = asked(KeepMass(0.9), picture())
    _, second = looked(Lazy(), given, at_corner())
    assert len(second.media[0].calls) == 2
    _, second = looked(Lazy(), given, np.ones(SIDE**2))
    assert len(second.media[0].calls) == 1 + 8  # 0.85 of nine
    assert second.budget == KeepMass(0.9)


@pytest.mark.parametrize("budget", [KeepRatio(1.0), KeepCount(1000)])
def test_a_budget_that_keeps_everything_is_one_look(budget: KeepRatio | KeepCount) -> None:
    (only,) = looked(Lazy(), asked(budget, picture()), np.ones(1))
    assert only.places is None
    assert only.reason == "the budget keeps everything"


def test_a_selector_without_scores_cannot_say_where_to_look() -> None:
    given = asked(KeepCount(20), picture())
    looks = [Lazy().first(given)]
    vision = tokens_of(looks[-1].media)
    with pytest.raises(RequestInvalid, match="this selector gives none"):
        Lazy().next(given, looks, vision, Ranking(lambda k: np.arange(k)))


def test_worth_is_shared_by_the_tokens_at_one_place() -> None:
    given = asked(KeepCount(20), picture())
    first = Lazy().first(given)
    expected = estimated(given.media, tokens_of(first.media), np.arange(16, dtype=np.float32))
    crops = given.media[0].where[:, TILE] == 1
    assert expected[crops].sum() == pytest.approx(np.arange(16).sum())
    assert expected[given.media[0].where[:, KIND] == NEWLINE].max() == 0


def test_frames_between_two_are_worth_something_between() -> None:
    tiles = np.zeros((2 * STRIDE + 1, 3, 8, 8), np.float32)
    layout = anyres.film(TILER, 0, len(tiles))
    film = llava_onevision.from_tiles("video", tiles, layout, Hw(8, 8))
    given = asked(KeepCount(8), film)
    first = Lazy().first(given)
    assert sorted(set(first.media[0].where[:, FRAME].tolist())) == [0, STRIDE, 2 * STRIDE]
    scores = np.where(first.media[0].where[:, FRAME] == STRIDE, 1.0, 0.0).astype(np.float32)
    expected = estimated(given.media, tokens_of(first.media), scores)
    worth = [expected[film.where[:, FRAME] == frame].mean() for frame in range(STRIDE + 1)]
    assert (np.diff(worth) > 0).all()
    _, second = looked(Lazy(most=2), given, scores)
    frames = set(second.media[0].where[:, FRAME].tolist())
    assert frames == {0, STRIDE - 1, STRIDE, STRIDE + 1, 2 * STRIDE}


class Spying:
    """A selector that remembers how many tokens it was shown."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        self.seen.append(len(vision.where))
        found: FirstLayer = first()
        assert found.attention.shape[2] == len(vision.where) == len(prompt.slots)
        return attention(prompt, vision, first)


def a_clip(frames: int = 9) -> Clip:
    noise = np.random.default_rng(0).integers(0, 256, (frames, 32, 48, 3)).astype(np.uint8)
    return Clip(noise, 4.0)


def test_an_answer_says_what_was_encoded_and_keeps_its_numbering() -> None:
    stub, spy = Stub(), Spying()
    with a_vlm(stub) as vlm:
        answer = vlm.ask(a_clip(), "what is it?", 30, spy, encode="lazy:3")
    cells = 24
    assert spy.seen[0] == 3 * cells
    assert answer.encode == "lazy"
    assert (answer.total, answer.kept, len(answer.where)) == (9 * cells, 30, 9 * cells)
    assert answer.encoded == spy.seen[1] < answer.total
    frames = set(answer.where[answer.selection.keep, FRAME].tolist())
    assert len(frames) <= answer.encoded // cells == stub.runs["vision"]
    assert answer.selection.scores is not None
    assert len(answer.selection.scores) == answer.total
    assert answer.selection.reason == "count"
    assert "crops and frames" in answer.encode_reason


def test_an_answer_from_some_frames_is_the_one_from_a_clip_whose_kept_tokens_are_the_same() -> None:
    # Embeddings, positions and text of what enters the LLM are equal, so the answers are.
    with a_vlm(Stub()) as vlm:
        lazy = vlm.ask(a_clip(), "what is it?", 30, "attention", encode="lazy:3")
        assert lazy.encoded < lazy.total

        def same(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
            return Ranking(lambda k: lazy.selection.keep[:k])

        full = vlm.ask(a_clip(), "what is it?", 30, same)
    assert full.selection.keep.tolist() == lazy.selection.keep.tolist()
    assert full.text == lazy.text
    assert (full.encode, full.encoded, full.encode_reason) == ("full", full.total, "")


def test_later_turns_look_again_and_encode_only_what_is_new() -> None:
    stub = Stub()
    with a_vlm(stub) as vlm:
        chat = vlm.chat(budget=30, selector="attention")
        first = chat.ask("what is it?", a_clip(), encode="lazy")
        before = stub.runs["vision"]
        assert before == first.encoder_runs
        second = chat.ask("where is it?", encode="lazy")
        assert stub.runs["vision"] - before == second.encoder_runs < first.encoder_runs
        third = chat.ask("and all of it?", budget=1.0)
        assert third.kept == third.total == third.encoded
        fresh = vlm.chat(budget=30, selector="attention")
        fresh.ask("what is it?", a_clip(), encode="lazy")
        assert fresh.ask("where is it?", encode="lazy").text == second.text


def test_nothing_is_encoded_twice_where_nothing_is_cached() -> None:
    stub = Stub()
    with a_vlm(stub, vision_cache_bytes=0) as vlm:
        answer = vlm.ask(a_clip(), "what is it?", 30, "attention", encode="lazy")
    assert stub.runs["vision"] == answer.encoder_runs == answer.encoded // 24


def test_what_scores_nothing_is_refused_and_the_vlm_goes_on() -> None:
    with a_vlm(Stub()) as vlm:
        with pytest.raises(RequestInvalid, match="gives none"):
            vlm.ask(a_clip(), "what is it?", 30, uniform, encode="lazy")
        assert vlm.ask(a_clip(), "what is it?", 30, uniform, encode="auto").encode == "full"


def test_a_later_turn_that_looks_at_everything_is_not_read_from_copies() -> None:
    clip = Clip(np.stack([a_clip(1).frames[0], a_clip(1).frames[0] // 2 + 60]), 4.0)
    with a_vlm(Stub()) as vlm:
        chat, plain = vlm.chat(selector="attention"), vlm.chat(selector="attention")
        copied = chat.ask("what is it?", clip, encode="repeats:2.0")
        assert copied.encoded < copied.total
        chat.undo()
        chat.recall("what is it?", "that", clip)
        plain.recall("what is it?", "that", clip)
        chat.ask("and now?", encode="repeats:2.0")
        plain.ask("and now?")
        chat.undo()
        plain.undo()
        assert chat.ask("and then?").text == plain.ask("and then?").text


def test_a_time_decides_how_many_frames_are_encoded() -> None:
    def encoded(ttft_ms: float) -> int:
        with a_vlm(Stub(), latency=Latency(calibration())) as vlm:
            budget = Deadline(ttft_ms, best_effort=True)
            answer = vlm.ask(a_clip(), "what is it?", budget, "attention", encode="lazy")
        return answer.encoded

    assert encoded(60_000) > 3 * 24
    assert encoded(1) == 3 * 24  # the frames of the first look
