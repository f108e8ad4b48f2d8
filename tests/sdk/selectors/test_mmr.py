from itertools import islice

import numpy as np
import pytest

from tokprune.selectors.mmr import marginal
from tokprune.selectors.similarity import unit


def by_definition(rows: np.ndarray, importance: np.ndarray, share: float, k: int) -> list[int]:
    similar = rows.astype(np.float64) @ rows.T.astype(np.float64)
    order = [int(importance.argmax())]
    while len(order) < k:
        left = [i for i in range(len(rows)) if i not in order]
        order.append(
            max(
                left,
                key=lambda i: (
                    share * importance[i] - (1 - share) * max(similar[i, j] for j in order),
                    -i,
                ),
            )
        )
    return order


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("width", [7, 300])
def test_each_has_the_largest_marginal_relevance(share: float, width: int) -> None:
    random = np.random.default_rng(0)
    rows = unit(random.normal(size=(50, width)).astype(np.float32))
    importance = random.random(50).astype(np.float32)
    found = list(islice(marginal(rows, importance, share), 30))
    assert found == by_definition(rows, importance.astype(np.float64), share, 30)


def test_importance_alone_is_an_order_by_importance_and_all_tokens_come_once() -> None:
    random = np.random.default_rng(1)
    rows = unit(random.normal(size=(20, 3)).astype(np.float32))
    importance = random.random(20).astype(np.float32)
    assert list(marginal(rows, importance, 1.0)) == np.argsort(-importance).tolist()
    assert sorted(marginal(rows, importance, 0.5)) == list(range(20))


def test_of_two_that_look_alike_the_second_comes_late() -> None:
    rows = unit(np.asarray([[1, 0], [1, 0.01], [0, 1]], np.float32))
    importance = np.asarray([1, 0.9, 0.5], np.float32)
    assert list(marginal(rows, importance, 0.5)) == [0, 2, 1]
