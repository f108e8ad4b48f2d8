from itertools import islice

import numpy as np
import pytest

from tokprune.selectors.dpp import most_likely
from tokprune.selectors.similarity import unit


def by_determinants(rows: np.ndarray, quality: np.ndarray, k: int) -> list[int]:
    """Greedily: try every token, and take the one with the largest determinant."""
    rows, quality = rows.astype(np.float64), quality.astype(np.float64)
    kernel = quality[:, None] * (rows @ rows.T) * quality
    order: list[int] = []
    while len(order) < k:
        left = [i for i in range(len(rows)) if i not in order]

        def volume(token: int) -> float:
            chosen = [*order, token]
            return float(np.linalg.slogdet(kernel[np.ix_(chosen, chosen)])[1])

        order.append(max(left, key=volume))
    return order


@pytest.mark.parametrize("width", [24, 300])
def test_each_raises_the_determinant_the_most(width: int) -> None:
    random = np.random.default_rng(0)
    rows = unit(random.normal(size=(40, width)).astype(np.float32))
    quality = (0.1 + random.random(40)).astype(np.float32)
    assert list(islice(most_likely(rows, quality), 16)) == by_determinants(rows, quality, 16)


def test_what_no_dimension_is_left_for_follows_by_quality() -> None:
    random = np.random.default_rng(1)
    rows = unit(random.normal(size=(100, 5)).astype(np.float32))
    quality = (0.1 + random.random(100)).astype(np.float32)
    order = list(most_likely(rows, quality))
    assert sorted(order) == list(range(100))
    assert order[:5] == by_determinants(rows, quality, 5)
    rest = order[5:]
    assert rest == sorted(rest, key=lambda token: -quality[token])


def test_more_tokens_than_the_factor_began_with_are_still_those_of_the_definition() -> None:
    random = np.random.default_rng(2)
    rows = unit(random.normal(size=(90, 120)).astype(np.float32))
    quality = (0.5 + random.random(90)).astype(np.float32)
    assert list(islice(most_likely(rows, quality), 80)) == by_determinants(rows, quality, 80)


def test_equal_tokens_are_taken_in_their_order() -> None:
    rows = np.tile([[1.0, 0.0]], (4, 1)).astype(np.float32)
    assert list(most_likely(rows, np.ones(4, np.float32))) == [0, 1, 2, 3]
