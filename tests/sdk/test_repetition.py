"""The loop detector against its definition by brute force."""

import sys
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokprune.text.repetition import LONGEST_PERIOD, RepetitionGuard, repetitions_of

NEEDED = {  # tokens of an n-gram -> how often in a row; written out, not computed
    1: 64, 2: 32, 3: 22, 4: 16, 5: 13, 7: 10, 8: 8, 12: 6, 15: 5, 16: 4, 17: 4, 40: 4, 64: 4,
}  # fmt: skip


def in_a_loop(tokens: list[int]) -> bool:
    """The definition."""
    for period in range(1, LONGEST_PERIOD + 1):
        times = max(4, (64 + period - 1) // period)
        if len(tokens) >= period * times and tokens[-period * times :] == tokens[-period:] * times:
            return True
    return False


@st.composite
def answers(draw: st.DrawFn) -> list[int]:
    """Tokens with loops in them, some broken off just before or after they count."""
    tokens: list[int] = []
    for _ in range(draw(st.integers(1, 3))):
        tokens += draw(st.lists(st.integers(0, 2), max_size=12))
        gram = draw(st.lists(st.integers(0, 2), min_size=1, max_size=70))
        length = len(gram) * repetitions_of(len(gram)) + draw(st.integers(-3, 2))
        tokens += (gram * 70)[:length]
    return tokens


@settings(deadline=None, max_examples=60)
@given(answers())
def test_it_fires_exactly_where_the_last_tokens_are_a_loop(tokens: list[int]) -> None:
    guard = RepetitionGuard()
    for end, token in enumerate(tokens, 1):
        assert guard.push(token) == in_a_loop(tokens[:end]), end


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(0, 5), max_size=40),
    st.lists(st.integers(0, 5), min_size=1, max_size=LONGEST_PERIOD),
)
def test_an_endless_loop_is_found_as_soon_as_it_has_repeated_often_enough(
    before: list[int], gram: list[int]
) -> None:
    guard = RepetitionGuard()
    bound = len(before) + len(gram) * repetitions_of(len(gram))
    tokens = (before + gram * 70)[:bound]
    assert any(guard.push(token) for token in tokens)


@pytest.mark.parametrize(("period", "times"), NEEDED.items())
def test_the_bound_is_64_tokens_and_four_times(period: int, times: int) -> None:
    guard = RepetitionGuard()
    fired = [guard.push(token) for token in list(range(period)) * times]
    assert fired.index(True) == period * times - 1
    assert repetitions_of(period) == times


def test_an_answer_of_all_different_tokens_never_fires() -> None:
    guard = RepetitionGuard()
    assert not any(guard.push(token) for token in range(5000))


def test_longer_n_grams_than_64_tokens_are_left_to_the_length() -> None:
    guard = RepetitionGuard()
    assert not any(guard.push(token) for token in list(range(65)) * 50)


@pytest.mark.parametrize(
    "text",
    [
        "no. " * 10,
        "a cup, " * 6 + "a plate",
        "| 0 | 0 | 0 | 0 |\n" * 3,
        "-" * 60,
        '{"label": "cup"}, ' * 3,
    ],
)
def test_lists_and_tables_that_repeat_a_little_are_left_alone(text: str) -> None:
    guard = RepetitionGuard()
    assert not any(guard.push(ord(letter)) for letter in text)  # finer than any tokenizer


def random_tokens(chance: Random) -> Iterator[int]:
    while True:
        yield chance.randrange(3)


def test_memory_does_not_grow_with_the_answer() -> None:
    guard, tokens = RepetitionGuard(), random_tokens(Random(3))

    def held() -> int:
        return sum(sys.getsizeof(part) for part in vars(guard).values())

    guard.push(next(tokens))
    before = held()
    for _ in range(3000):
        guard.push(next(tokens))
    assert held() == before
