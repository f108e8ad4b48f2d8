import numpy as np

from tokprune.selectors.pivots import least_like, loudest
from tokprune.selectors.similarity import unit


def test_the_loudest_have_the_largest_absolute_sums_and_ties_go_to_the_earlier() -> None:
    rows = np.asarray([[1, -1], [-3, 0], [2, 1], [0, 0], [0, 4]], np.float32)
    assert loudest(rows, 3).tolist() == [4, 1, 2]
    assert loudest(rows, 9).tolist() == [4, 1, 2, 0, 3]


def by_definition(rows: np.ndarray, pivots: np.ndarray, k: int) -> list[int]:
    kept: list[int] = []
    for number, pivot in enumerate(pivots):
        share = (number + 1) * k // len(pivots) - number * k // len(pivots)
        left = [i for i in range(len(rows)) if i not in kept]
        kept += sorted(left, key=lambda i: (rows[i] @ pivot, i))[:share]
    return kept


def test_each_pivot_keeps_its_share_of_what_is_least_like_it() -> None:
    random = np.random.default_rng(0)
    rows = unit(random.normal(size=(40, 6)).astype(np.float32))
    pivots = unit(random.normal(size=(8, 6)).astype(np.float32))
    for k in range(1, 41):
        kept = least_like(rows, pivots, k).tolist()
        assert kept == by_definition(rows, pivots, k)
        assert len(set(kept)) == k
