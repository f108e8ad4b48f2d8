from itertools import islice

import numpy as np
import pytest

from tokprune.selectors.max_min import max_min
from tokprune.selectors.similarity import unit


def drawn(count: int, width: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32))


def by_definition(rows: np.ndarray, k: int, chosen: list[int] | None = None) -> list[int]:
    """First the token whose nearest other is farthest, then the one farthest from the chosen."""
    distance = 1 - rows.astype(np.float64) @ rows.T.astype(np.float64)
    others = range(len(rows))
    if not chosen:
        start = max(others, key=lambda i: (min(distance[i, j] for j in others if j != i), -i))
        chosen, k = [start], k - 1
    order = list(chosen)
    for _ in range(k):
        left = [i for i in others if i not in order]
        order.append(max(left, key=lambda i: (min(distance[i, j] for j in order), -i)))
    return order


@pytest.mark.parametrize("width", [5, 300])
def test_each_is_the_farthest_from_those_before(width: int) -> None:
    rows = drawn(60, width, 0)
    assert list(islice(max_min(rows), 40)) == by_definition(rows, 40)


def test_what_was_chosen_before_is_kept_away_from() -> None:
    rows = drawn(50, 6, 1)
    chosen = np.asarray([3, 40, 17])
    assert list(islice(max_min(rows, chosen), 20)) == by_definition(rows, 20, chosen.tolist())[3:]
    assert sorted(max_min(rows, chosen)) == sorted(set(range(50)) - {3, 40, 17})


def test_all_tokens_come_once_and_ties_go_to_the_earlier() -> None:
    assert sorted(max_min(drawn(30, 4, 2))) == list(range(30))
    assert list(max_min(np.tile([[1.0, 0.0]], (4, 1)).astype(np.float32))) == [0, 1, 2, 3]
    assert list(max_min(np.ones((1, 1), np.float32))) == [0]
