"""Half the size first, then what matters in full."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from grids import prompt_for
from hypothesis import given, settings
from hypothesis import strategies as st

from tokprune import Auto, Clip, Deadline, KeepCount, KeepMass, KeepRatio, RequestInvalid
from tokprune.budgets import Budget
from tokprune.families import Span, qwen2_vl
from tokprune.looking import Asked, Small
from tokprune.looking.coarse import Coarse, below
from tokprune.types import COLUMN, FRAME, ROW, Array, Medium, Prepared, Prompt, VisionTokens
from tokprune.types import Ranking as Ranked

STILLS, FILMS = qwen2_vl.Settings(min_pixels=1, max_pixels=10**7), qwen2_vl.FilmSettings()
prepare = partial(qwen2_vl.prepare, STILLS, FILMS)


def tokens_of(media: tuple[Prepared, ...]) -> VisionTokens:
    where = np.concatenate([shown.where for shown in media])
    regions = tuple(region for shown in media for region in shown.regions)
    return VisionTokens(np.ones((len(where), 2), np.float32), where, regions)


def request(budget: Budget, *media: Medium, times: float = 1.0) -> tuple[Coarse, Asked]:
    small = prepare(media, halved=True)
    given = Asked(prompt_for(tokens_of(prepare(media))), prepare(media), budget)
    return Coarse(lambda: Small(prompt_for(tokens_of(small)), small), qwen2_vl.cut, times), given


def noise(rows: int, columns: int) -> Array:
    shape = (28 * rows, 28 * columns, 3)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def by(scores: Array) -> Ranked:
    order = np.argsort(-scores, kind="stable")
    return Ranked(lambda k: order[:k], scores.astype(np.float32))


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (7, 9), (5, 12), (1, 9), (2, 3)])
def test_every_token_lies_under_the_one_that_shows_its_place(rows: int, columns: int) -> None:
    coarse, asked = request(KeepCount(1), noise(rows, columns))
    small = tokens_of(coarse.small().media)
    region = small.regions[0]
    assert (region.rows, region.columns) == ((rows + 1) // 2, (columns + 1) // 2)
    under = small.where[below(asked.media, small)]
    fine = asked.media[0].where
    for axis, size, half in ((ROW, rows, region.rows), (COLUMN, columns, region.columns)):
        middle = (fine[:, axis] + 0.5) / size
        assert (under[:, axis] <= middle * half).all()
        assert (middle * half <= under[:, axis] + 1).all()


def test_the_best_places_are_shown_in_full_with_their_own_positions() -> None:
    coarse, asked = request(KeepCount(6), noise(8, 8))
    first = coarse.first(asked)
    assert (first.last, first.encoded) == (False, 16)
    scores = np.zeros(16)
    scores[[5, 10]] = 1, 0.5  # row 1 column 1, then row 2 column 2
    vision = tokens_of(first.media)
    second = coarse.next(asked, [first], vision, by(scores))
    assert second is not None
    assert second.places is not None
    assert second.places.tolist() == [18, 19, 26, 27, 36, 37]
    (shown,) = second.media
    np.testing.assert_array_equal(shown.where[:, [ROW, COLUMN]], [*map(list, PLACES)])
    (call,) = shown.calls
    (whole,) = asked.media[0].calls
    patches = np.ravel(second.places[:, None] * 4 + np.arange(4))
    np.testing.assert_array_equal(call["pixel_values"], whole["pixel_values"][:, patches])
    np.testing.assert_array_equal(call["positions"], whole["positions"][patches])
    assert (second.last, second.encoded, second.budget) == (True, 6, KeepCount(6))
    assert second.worth is not None
    assert second.worth[second.places].tolist() == [0.25] * 4 + [0.125] * 2
    assert coarse.next(asked, [first, second], tokens_of(second.media), by(scores)) is None


PLACES = ((2, 2), (2, 3), (3, 2), (3, 3), (4, 4), (4, 5))


@pytest.mark.parametrize("count", [1, 3, 10, 29, 44])
def test_as_many_as_the_budget_says_are_encoded(count: int) -> None:
    coarse, asked = request(KeepCount(count), noise(7, 9))
    first = coarse.first(asked)
    vision = tokens_of(first.media)
    if len(vision.where) + count >= 63:
        assert first.places is None
        assert "no less than one" in first.reason
        return
    scores = np.random.default_rng(1).random(len(vision.where))
    second = coarse.next(asked, [first], vision, by(scores))
    assert second is not None
    assert second.encoded == count == len(second.places if second.places is not None else ())


@settings(deadline=None, max_examples=80)
@given(st.integers(9, 15), st.integers(9, 15), st.integers(1, 50), st.sampled_from("+-"), st.data())
def test_exactly_so_many_are_kept_on_every_grid_and_whatever_the_ranking(
    rows: int, columns: int, kept: int, sign: str, data: st.DataObject
) -> None:
    # Ranked by how many tokens lie under each: fewest first is what an odd grid is worst at.
    coarse, asked = request(KeepCount(kept), noise(rows, columns))
    first = coarse.first(asked)
    if first.last:  # two looks would encode no less than everything
        assert first.encoded == asked.total
        return
    vision = tokens_of(first.media)
    lying = np.bincount(below(asked.media, vision), minlength=len(vision.where))
    ranking = by((lying if sign == "+" else -lying).astype(np.float64))
    if data.draw(st.booleans()):
        ranking = Ranked(ranking.take)  # one that does not score
    second = coarse.next(asked, [first], vision, ranking)
    assert second is not None
    assert second.places is not None
    assert len(set(second.places.tolist())) == min(kept, asked.total) == second.encoded


def test_thirteen_by_thirteen_tokens_keep_as_many_as_asked_for() -> None:
    coarse, asked = request(KeepCount(16), noise(13, 13))
    first = coarse.first(asked)
    vision = tokens_of(first.media)
    lying = np.bincount(below(asked.media, vision))
    second = coarse.next(asked, [first], vision, by(-lying.astype(np.float64)))
    assert second is not None
    assert second.encoded == 16


def test_more_than_is_kept_may_be_encoded_and_the_second_look_chooses() -> None:
    coarse, asked = request(KeepCount(7), noise(8, 8), times=2.5)
    first = coarse.first(asked)
    vision = tokens_of(first.media)
    second = coarse.next(asked, [first], vision, by(np.arange(len(vision.where))))
    assert second is not None
    assert (second.encoded, second.budget) == (18, KeepCount(7))
    coarse, asked = request(KeepCount(40), noise(8, 8), times=2.0)
    assert coarse.first(asked).places is None, "all of it would be encoded, and the small one too"


def test_frames_of_a_video_are_cut_one_by_one() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 112, 112, 3)).astype(np.uint8)
    coarse, asked = request(KeepCount(8), Clip(frames, 2.0))
    first = coarse.first(asked)
    vision = tokens_of(first.media)
    scores = np.zeros(len(vision.where))
    scores[[0, -1]] = 1
    second = coarse.next(asked, [first], vision, by(scores))
    assert second is not None
    assert len(second.media[0].calls) == 2
    assert sorted(set(second.media[0].where[:, FRAME].tolist())) == [0, 1]


def test_two_pictures_are_cut_each_by_itself_and_one_may_be_left_out() -> None:
    coarse, asked = request(KeepCount(4), noise(6, 6), noise(4, 8))
    first = coarse.first(asked)
    vision = tokens_of(first.media)
    scores = np.zeros(len(vision.where))
    scores[9 + 3] = 1  # of the second
    second = coarse.next(asked, [first], vision, by(scores))
    assert second is not None
    assert second.places is not None
    assert second.places.tolist() == [36 + 6, 36 + 7, 36 + 14, 36 + 15]
    assert len(second.media) == 1


def test_a_budget_of_relevance_encodes_what_lies_under_the_tokens_that_hold_it() -> None:
    coarse, asked = request(KeepMass(0.9, floor=4), noise(8, 8))
    first = coarse.first(asked)
    scores = np.zeros(16)
    scores[[5, 10, 0]] = 6, 3.5, 0.5
    vision = tokens_of(first.media)
    second = coarse.next(asked, [first], vision, by(scores))
    assert second is not None
    assert second.places is not None
    assert second.places.tolist() == [18, 19, 26, 27, 36, 37, 44, 45]
    assert second.budget == KeepCount(8)
    capped, asked = request(KeepMass(0.9, floor=4, cap=6), noise(8, 8))
    cut = capped.next(asked, [first], vision, by(scores))
    assert cut is not None
    assert cut.encoded == 6
    with pytest.raises(RequestInvalid, match="needs a selector that scores"):
        coarse.next(asked, [first], vision, Ranked(lambda k: np.arange(k), None))


def test_time_decides_how_many_are_encoded_between_floor_and_what_is_wanted() -> None:
    asked_for: list[tuple[int, int]] = []

    def room(fewest: int, wanted: int) -> int:
        asked_for.append((fewest, wanted))
        return 24

    scores = np.linspace(1, 2, 16)
    for budget, wanted, closer in (
        (Deadline(300), 64, Deadline(300)),
        (Auto(300, p=0.5, floor=4), 28, Deadline(300)),
    ):
        coarse, asked = request(budget, noise(8, 8))
        first = coarse.first(asked)
        second = replace(coarse, room=room).next(asked, [first], tokens_of(first.media), by(scores))
        assert second is not None
        assert (second.encoded, second.budget) == (24, closer)
        assert asked_for.pop() == (16 if isinstance(budget, Deadline) else 4, wanted)


def test_a_budget_that_keeps_everything_is_one_look() -> None:
    coarse, asked = request(KeepRatio(1.0), noise(8, 8))
    assert coarse.first(asked).places is None


def test_positions_of_kept_text_and_tokens_are_those_of_the_whole_picture() -> None:
    coarse, asked = request(KeepCount(4), noise(8, 8))
    spans = (Span(3), Span(64, asked.media[0].regions), Span(5))
    positions, following = qwen2_vl.positions(spans)
    whole = asked.prompt
    prompt = Prompt(whole.ids, whole.slots, whole.words, positions, following)
    asked = Asked(prompt, asked.media, asked.budget)
    first = coarse.first(asked)
    second = coarse.next(asked, [first], tokens_of(first.media), by(np.arange(16)))
    assert second is not None
    assert second.places is not None
    kept = second.prompt.positions[:, second.prompt.slots]
    np.testing.assert_array_equal(kept, positions[:, 3 + second.places])
    np.testing.assert_array_equal(second.prompt.positions[:, -5:], positions[:, -5:])
