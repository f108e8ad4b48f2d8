from itertools import islice

import numpy as np
import pytest

from tokprune.selectors.facility import covering_most
from tokprune.selectors.similarity import unit


def plainly(rows: np.ndarray, weights: np.ndarray, k: int) -> list[int]:
    """Every gain anew at every step."""
    similar = rows.astype(np.float64) @ rows.T.astype(np.float64)
    covered, order = np.zeros(len(rows)), list[int]()
    while len(order) < k:
        gain = weights * np.maximum(similar - covered, 0).sum(axis=1)
        gain[order] = -1
        order.append(int(gain.argmax()))
        covered = np.maximum(covered, similar[order[-1]])
    return order


@pytest.mark.parametrize("seed", range(3))
def test_the_lazy_order_is_the_greedy_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = unit(random.normal(size=(120, 8)).astype(np.float32))
    weights = random.random(120).astype(np.float32)
    expected = plainly(rows, weights.astype(np.float64), 60)
    assert list(islice(covering_most(rows, weights), 60)) == expected


def test_all_come_once_and_those_of_no_weight_last_in_their_order() -> None:
    random = np.random.default_rng(3)
    rows = unit(random.normal(size=(30, 4)).astype(np.float32))
    weights = random.random(30).astype(np.float32)
    weights[[4, 9, 21]] = 0
    order = list(covering_most(rows, weights))
    assert sorted(order) == list(range(30))
    assert order[-3:] == [4, 9, 21]


def test_one_of_many_alike_stands_for_all_of_them() -> None:
    rows = unit(np.asarray([[1, 0]] * 5 + [[0, 1]] * 2, np.float32))
    assert list(islice(covering_most(rows, np.ones(7, np.float32)), 3)) == [0, 5, 1]
