import numpy as np
import pytest
from grids import salient, tiled_vision

from tokprune.errors import SelectorUnavailable
from tokprune.selectors.scores import (
    farthest_points,
    min_max,
    outliers,
    reconstruction_error,
    saliency,
    text_similarity,
)
from tokprune.selectors.similarity import unit
from tokprune.types import KIND, PATCH

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(60, 12)).astype(np.float32)
WORDS = RANDOM.normal(size=(5, 12)).astype(np.float32)


def test_saliency_is_that_of_the_patches_and_its_lack_says_how_to_export_it() -> None:
    vision = salient(tiled_vision())
    assert vision.saliency is not None
    assert (saliency(vision) == vision.saliency[vision.where[:, KIND] == PATCH]).all()
    with pytest.raises(SelectorUnavailable, match=r"`tokprune-export MODEL OUTPUT --saliency`"):
        saliency(tiled_vision())


def test_likeness_to_the_question_is_the_mean_cosine_of_its_words() -> None:
    cosines = [
        [row @ word / np.linalg.norm(row) / np.linalg.norm(word) for word in WORDS] for row in ROWS
    ]
    assert text_similarity(unit(ROWS), WORDS) == pytest.approx(np.mean(cosines, axis=1), abs=1e-5)
    sharp = text_similarity(unit(ROWS), WORDS, 0.001)
    assert sharp == pytest.approx(np.max(cosines, axis=1), abs=1e-3)
    soft = np.asarray(cosines)
    shares = np.exp(soft / 0.05) / np.exp(soft / 0.05).sum(axis=1, keepdims=True)
    found = text_similarity(unit(ROWS), WORDS, 0.05)
    assert found == pytest.approx((soft * shares).sum(axis=1), abs=1e-4)


def test_without_words_all_are_alike() -> None:
    assert (text_similarity(unit(ROWS), np.zeros((0, 12), np.float32)) == 0).all()


def test_the_error_of_reconstruction_is_that_of_ridge_regression() -> None:
    basis = ROWS[[3, 9, 30]]
    expected = []
    for row in ROWS.astype(np.float64):
        gram = basis @ basis.T + 1e-5 * np.eye(3)
        expected.append(np.linalg.norm(row - basis.T @ np.linalg.solve(gram, basis @ row)))
    assert reconstruction_error(ROWS, basis) == pytest.approx(np.asarray(expected), abs=1e-4)
    assert reconstruction_error(ROWS, basis)[[3, 9, 30]].max() < 1e-3


def test_farthest_points_start_at_the_largest_norm() -> None:
    order = [int(np.linalg.norm(ROWS, axis=1).argmax())]
    while len(order) < 8:
        gaps = np.linalg.norm(ROWS[:, None] - ROWS[None, order], axis=2).min(axis=1)
        gaps[order] = -1
        order.append(int(gaps.argmax()))
    assert farthest_points(ROWS, 8).tolist() == order
    assert sorted(farthest_points(ROWS[:5], 10).tolist()) == list(range(5))
    assert sorted(farthest_points(np.ones((4, 2), np.float32), 4).tolist()) == [0, 1, 2, 3]


def test_scaling_goes_from_zero_to_one_and_makes_ones_of_what_is_alike() -> None:
    assert min_max(np.asarray([2, 4, 3], np.float32)).tolist() == [0, 1, 0.5]
    assert min_max(np.full(3, 5, np.float32)).tolist() == [1, 1, 1]
    assert len(min_max(np.zeros(0, np.float32))) == 0


def test_outliers_are_far_above_the_third_quartile() -> None:
    values = np.asarray([1, 2, 3, 4, 5, 6, 7, 8, 14.1], np.float32)
    low, high = np.quantile(values, [0.25, 0.75])
    assert (low, high) == (3, 7)
    assert outliers(values).tolist() == [False] * 8 + [True]
    assert not outliers(np.asarray([*values[:8], 13], np.float32)).any()
    assert len(outliers(np.zeros(0, np.float32))) == 0
