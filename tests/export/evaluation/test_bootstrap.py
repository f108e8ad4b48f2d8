"""Means over groups and paired intervals, against values that can be worked out by hand."""

from itertools import product

import numpy as np
import pytest

from tokprune_export.evaluation.bootstrap import Resampled, balanced, stratified


def columns(*values: list[float]) -> np.ndarray:
    return np.asarray(values, float).T


def test_the_mean_is_that_of_the_groups_whatever_their_size() -> None:
    groups = ["count", "count", "count", "colour"]
    assert balanced(groups) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    made = Resampled(columns([1, 0, 0, 1]), groups)
    assert made.mean(0).mean == pytest.approx((1 / 3 + 1) / 2)


def test_every_resample_draws_each_group_by_itself() -> None:
    groups = ["b", "a", "b", "b", "a"]
    weights = stratified(groups, 200)
    inside = np.asarray(groups) == "a"
    assert weights[:, inside].sum(axis=1) == pytest.approx(np.full(200, 0.5))
    assert weights[:, ~inside].sum(axis=1) == pytest.approx(np.full(200, 0.5))
    counts = weights[:, ~inside] * 6  # of three draws
    assert counts == pytest.approx(counts.round(), abs=1e-5)


def test_an_interval_is_that_of_all_resamples_counted_out() -> None:
    values = np.asarray([0.0, 1.0, 1.0, 1.0])
    everything = sorted(np.mean(each) for each in product(values, repeat=4))
    low, high = np.percentile(everything, [2.5, 97.5])
    made = Resampled(values[:, None], ["all"] * 4).mean(0)
    assert made == pytest.approx((0.75, low, high))


def test_an_interval_of_many_questions_is_the_normal_one() -> None:
    right = np.random.default_rng(3).random(900) < 0.8
    made = Resampled(right[:, None].astype(float), ["all"] * 900).mean(0)
    expected = 2 * 1.96 * right.std() / 30
    assert made.high - made.low == pytest.approx(expected, rel=0.06)


def test_differences_are_paired() -> None:
    random = np.random.default_rng(0)
    easy = random.random(400) < 0.5
    better = easy | (random.random(400) < 0.1)
    made = Resampled(columns(list(better), list(easy)), ["all"] * 400).difference(0, 1)
    # the spread is that of the pairs, far less than that of two independent means
    assert 0 < made.low < made.mean < made.high
    assert made.high - made.low == pytest.approx(2 * 1.96 * (better ^ easy).std() / 20, rel=0.1)


def test_equal_columns_differ_by_nothing_and_keep_everything() -> None:
    made = Resampled(columns([1, 0, 1], [1, 0, 1]), ["a", "a", "b"])
    assert made.difference(0, 1) == (0, 0, 0)
    assert made.ratio(0, 1).mean == 1


def test_a_ratio_is_that_of_the_means() -> None:
    made = Resampled(columns([1, 0, 0, 0], [1, 1, 0, 0]), ["a"] * 4).ratio(0, 1)
    assert made.mean == pytest.approx(0.5)
    assert 0 <= made.low <= made.mean <= made.high <= 1


def test_a_share_of_nothing_is_no_figure() -> None:
    made = Resampled(columns([0, 0], [0, 0]), ["a", "b"])
    assert np.isnan(made.ratio(0, 1)).all()


def test_resamples_without_a_right_answer_do_not_make_shares_of_millions() -> None:
    """One question in five is answered at all: a third of the resamples has none of it."""
    made = Resampled(columns([1, 1, 0, 0, 0], [1, 0, 0, 0, 0]), ["a"] * 5).ratio(0, 1)
    assert made.mean == pytest.approx(2)
    assert made.low == pytest.approx(1)
    assert 2 <= made.high <= 5  # five right answers to one at most


def test_a_column_that_lacks_an_answer_has_no_figures_and_spoils_no_other() -> None:
    made = Resampled(columns([1, np.nan, 1], [1, 1, 0]), ["a"] * 3)
    assert np.isnan(made.mean(0)).all()
    assert np.isnan(made.difference(0, 1)).all()
    assert np.isnan(made.ratio(0, 1)).all()
    assert made.mean(1).mean == pytest.approx(2 / 3)


def test_the_same_questions_always_give_the_same_interval() -> None:
    first, second = (Resampled(columns([1, 0, 1, 1]), ["a"] * 4).mean(0) for _ in range(2))
    assert first == second
