import numpy as np
import pytest

from tokprune.selectors.quotas import at_least, best_of_each, proportional, softmax


def weights(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def test_a_softmax_adds_up_to_one_and_sharpens_as_it_cools() -> None:
    values = weights(0.1, 0.3, 0.2)
    assert softmax(values, 1.0) == pytest.approx(np.exp(values) / np.exp(values).sum())
    assert softmax(values, 0.001) == pytest.approx([0, 1, 0])


def test_shares_follow_weights_and_what_does_not_fit_goes_to_the_others() -> None:
    assert proportional(8, weights(1, 2, 1), [9, 9, 9]).tolist() == [2, 4, 2]
    assert proportional(8, weights(1, 6, 1), [9, 2, 9]).tolist() == [3, 2, 3]
    assert proportional(10, weights(0, 1, 0), [3, 4, 6]).tolist() == [2, 4, 4]
    assert proportional(3, weights(1, 1), [2, 2]).tolist() == [2, 1]  # ties to the earlier


def test_ata_is_the_formula_and_the_remainder_goes_to_the_top() -> None:
    relevance = np.asarray([0.2, 0.5, 0.3])
    exact = [2 + int(share * (20 - 3 * 2)) for share in relevance]  # 4, 9, 6: one is left
    assert at_least(20, relevance, [50, 50, 50], 2).tolist() == [exact[0], exact[1] + 1, exact[2]]
    assert at_least(20, relevance, [50, 5, 50], 2).tolist()[1] == 5


def test_few_tokens_are_split_evenly_first() -> None:
    assert at_least(7, weights(1, 0, 0), [9, 9, 9], 4).tolist() == [3, 2, 2]
    assert at_least(6, weights(0, 0), [4, 8], 1).tolist() == [2, 4]


@pytest.mark.parametrize("seed", range(5))
def test_every_split_adds_up_and_none_is_above_its_size(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 30, 6).tolist()
    given = np.where(random.random(6) < 0.3, 0, random.random(6)).astype(np.float32)
    for k in range(sum(sizes) + 1):
        for parts in (proportional(k, given, sizes), at_least(k, given, sizes, 3)):
            assert parts.sum() == k
            assert (parts <= sizes).all()
            assert (parts >= 0).all()


def test_the_best_of_each_group_are_taken() -> None:
    scores = weights(0.1, 0.9, 0.9, 0.2, 0.3)
    groups = [np.asarray([0, 1, 2]), np.asarray([3, 4])]
    assert best_of_each(scores, groups, [2, 1]).tolist() == [1, 2, 4]
    assert best_of_each(scores, groups, [0, 0]).tolist() == []
