"""Answers out of a list, against brute force over a model that is a function of what was said."""

import subprocess
import sys
from collections.abc import Sequence
from math import exp, log
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tokprune import RequestInvalid
from tokprune.manifest import Chat, Tokens
from tokprune.text.choices import Choice, ChoiceTree, choice_ids, choice_tree, choose
from tokprune.types import Array

VOCAB, EOS = 12, frozenset({10, 11})
Ids = tuple[int, ...]


class FakeModel:
    """Random logits for every beginning of an answer; counts its runs, and is strict."""

    def __init__(self, seed: int, *, flat: bool = False) -> None:
        self.seed, self.flat, self.written, self.runs = seed, flat, (), 0
        self._fresh = True

    def after(self, written: Ids) -> Array:
        if self.flat:
            return np.zeros(VOCAB, np.float32)
        rng = np.random.default_rng([self.seed, len(written), *written])
        return rng.normal(0, 4, VOCAB).astype(np.float32)

    @property
    def logits(self) -> Array:
        assert self._fresh, "there are no logits after a rewind"
        return self.after(self.written)

    def extend(self, ids: Sequence[int]) -> None:
        assert ids, "a run needs tokens"
        self.written, self._fresh = (*self.written, *ids), True
        self.runs += 1

    def rewind(self, count: int) -> None:
        assert count < len(self.written), "a rewind forgets something"
        self.written, self._fresh = self.written[:count], False


def by_brute_force(model: FakeModel, ids: Sequence[Ids]) -> list[float]:
    """Constrained decoding's probability of each: token by token, by the definition."""
    chances = []
    for choice in ids:
        chance = 1.0
        for depth in range(len(choice) + 1):
            before = choice[:depth]
            logits = model.after(before)
            rivals = {other[depth : depth + 1] for other in ids if other[:depth] == before}
            weights = {
                rival: sum(exp(logits[token]) for token in (rival or EOS)) for rival in rivals
            }
            chance *= weights[choice[depth : depth + 1]] / sum(weights.values())
        chances.append(chance)
    return chances


def forks_of(ids: Sequence[Ids]) -> set[Ids]:
    """Beginnings that choices go on from in more than one way."""
    befores = {choice[:depth] for choice in ids for depth in range(len(choice) + 1)}
    return {
        before
        for before in befores
        if len({c[len(before) : len(before) + 1] for c in ids if c[: len(before)] == before}) > 1
    }


def tree_of(ids: Sequence[Ids]) -> ChoiceTree:
    return ChoiceTree(tuple(str(number) for number in range(len(ids))), tuple(ids))


SETS = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple),
    min_size=2,
    max_size=12,
    unique=True,
)


@settings(deadline=None, max_examples=400)
@given(SETS, st.integers(0, 1000))
def test_probabilities_are_those_of_constrained_decoding(ids: list[Ids], seed: int) -> None:
    model = FakeModel(seed)
    expected = by_brute_force(model, ids)
    choice = choose(model, tree_of(ids), EOS)
    np.testing.assert_allclose(choice.probabilities, expected, rtol=1e-9)
    assert sum(choice.probabilities) == pytest.approx(1, abs=1e-12)
    assert choice.index == int(np.argmax(expected))
    assert choice.token_ids == ids[choice.index]
    assert choice.text == str(choice.index)


@settings(deadline=None, max_examples=300)
@given(SETS)
def test_the_model_runs_once_for_every_fork_and_not_for_the_prompts_own(ids: list[Ids]) -> None:
    model, tree = FakeModel(1), tree_of(ids)
    choose(model, tree, EOS)
    forks = forks_of(ids)
    assert model.runs == tree.runs == len(forks - {()})
    assert {fork.path for fork in tree.forks} == forks
    assert tree.rows == max(map(len, forks))


@pytest.mark.parametrize(
    ("ids", "runs", "rows"),
    [
        ([(1,), (2,)], 0, 0),  # yes and no: prefill has said it
        ([(5, 6, 1), (5, 6, 2)], 1, 2),  # a common beginning in one run
        ([(1, 2, 3, 4), (5, 6, 7)], 0, 0),  # what follows the difference is sure
        ([(1,), (1, 2)], 1, 1),  # one begins with the other
        ([(1, 2), (1, 3), (4, 5, 6), (4, 5, 7)], 2, 2),
    ],
)
def test_an_answer_takes_one_step_for_each_differing_token(
    ids: list[Ids], runs: int, rows: int
) -> None:
    model, tree = FakeModel(1), tree_of(ids)
    choose(model, tree, EOS)
    assert (model.runs, tree.runs, tree.rows) == (runs, runs, rows)


def test_ties_go_to_the_earlier_choice() -> None:
    assert choose(FakeModel(0, flat=True), tree_of([(3,), (1,), (2,)]), EOS).index == 0


def test_a_choice_that_another_begins_with_ends_by_any_end_of_the_answer() -> None:
    choice = choose(FakeModel(0, flat=True), tree_of([(1, 2), (1,)]), EOS)
    assert choice.probabilities == pytest.approx((1 / 3, 2 / 3))  # two ends, equal logits


def test_choice_mass_is_what_the_model_freely_gave_to_the_first_fork() -> None:
    even = choose(FakeModel(0, flat=True), tree_of([(3,), (1,), (2, 1), (2, 2)]), EOS)
    assert even.choice_mass == pytest.approx(3 / VOCAB)
    late = choose(FakeModel(0, flat=True), tree_of([(5, 6), (5, 7), (5,)]), EOS)
    assert late.choice_mass == pytest.approx(4 / VOCAB)  # two tokens and two ends
    model = FakeModel(4)
    freely = np.exp(model.after((0,)).astype(np.float64))
    given = choose(model, tree_of([(0, 1), (0, 3)]), EOS)
    assert given.choice_mass == pytest.approx((freely[1] + freely[3]) / freely.sum())


def test_extreme_logits_give_probabilities_all_the_same() -> None:
    class Sure(FakeModel):
        def after(self, written: Ids) -> Array:
            return np.asarray([0, -3e4, 3e4, *[-np.inf] * (VOCAB - 3)], np.float32)

    choice: Choice = choose(Sure(0), tree_of([(1, 1), (2, 0), (2, 2)]), EOS)
    assert choice.index == 2
    assert choice.probabilities == (0, 0, 1)
    assert choice.choice_mass == pytest.approx(1)


LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
START, END, IMAGE, JOINED, LINES = (len(LETTERS) + number for number in range(5))


def small_tokenizer() -> Tokenizer:
    """Bytes; "es" joins, and so do two line ends."""
    vocab = {letter: number for number, letter in enumerate(LETTERS)}
    vocab.update({"es": JOINED, "ĊĊ": LINES, "<s>": START, "<e>": END, "<i>": IMAGE})
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("e", "s"), ("Ċ", "Ċ")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "<e>", "<i>")])
    made.encode_special_tokens = True
    return made


def chat_of(generation: list[int | str], reply: list[int | str]) -> Chat:
    return Chat([START], None, reply, [END], generation, [IMAGE], None, media_first=False, words=[])


TOKENIZER = small_tokenizer()
CHAT = chat_of([END, "bot\n"], [END, "bot\n"])
TOKENS = Tokens(IMAGE, None, [END], [START, END, IMAGE])


def made(*choices: str, max_new_tokens: int = 8, chat: Chat = CHAT) -> ChoiceTree:
    return choice_tree(choices, chat, TOKENS, TOKENIZER, max_new_tokens)


def spelled(*texts: str) -> Ids:
    ids: list[Any] = [TOKENIZER.token_to_id(text) for text in texts]
    return tuple(ids)


def test_choices_are_tokenised_as_one_writes_them() -> None:
    tree = made("yes", "no", "yes!")
    assert tree.texts == ("yes", "no", "yes!")
    assert tree.ids == (spelled("y", "es"), spelled("n", "o"), spelled("y", "es", "!"))
    assert tree.runs == 1  # behind "yes", whether it goes on


def test_a_space_that_the_template_puts_before_answers_belongs_to_them() -> None:
    chat = chat_of([END, "BOT:"], [END, "BOT: "])
    assert choice_ids("no", chat, TOKENIZER) == list(spelled("Ġ", "n", "o"))
    assert choice_ids("no", chat_of([END], [END]), TOKENIZER) == list(spelled("n", "o"))


def test_a_template_that_frames_earlier_answers_in_another_way_is_of_no_use_for_this() -> None:
    thinking = chat_of([END, "bot\n", START, "\n"], [END, "bot\n"])
    assert choice_ids("no", thinking, TOKENIZER) == list(spelled("n", "o"))


@pytest.mark.parametrize(
    ("choices", "options", "message"),
    [
        (["yes"], {}, "2 to 64 strings, got 1"),
        ([str(number) for number in range(65)], {}, "2 to 64 strings, got 65"),
        ("yes", {}, "one string: 'yes'"),
        (["yes", ""], {}, "A choice is empty"),
        (["a", "b", "a"], {}, "'a' is given twice"),
        (["a", "\udc00"], {}, "lone surrogate"),
        (["a", "12345"], {"max_new_tokens": 4}, "'12345' has 5 tokens, max_new_tokens is 4"),
        (["a", "\nb"], {}, "would join with the end of the prompt: leave out"),
    ],
)
def test_senseless_choices_are_refused(
    choices: Sequence[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestInvalid, match=message):
        choice_tree(choices, CHAT, TOKENS, TOKENIZER, **{"max_new_tokens": 8, **options})


def test_64_choices_of_just_the_length_are_taken() -> None:
    choices = [f"{number:04}" for number in range(64)]
    assert len(choice_tree(choices, CHAT, TOKENS, TOKENIZER, 4).ids) == 64


def test_choices_that_are_the_same_tokens_are_refused() -> None:
    from tokenizers import normalizers

    folding = small_tokenizer()
    folding.normalizer = normalizers.NFC()
    with pytest.raises(RequestInvalid, match="are the same tokens to this model"):
        choice_tree(["\u00e9", "e\u0301"], CHAT, TOKENS, folding, 8)


def test_a_spelled_special_token_is_text_or_refused() -> None:
    assert not {START, END, IMAGE} & set(made("<e>", "no").ids[0])
    blunt = small_tokenizer()
    blunt.encode_special_tokens = False
    with pytest.raises(RequestInvalid, match=rf"control tokens \(ids \[{END}\]\)"):
        choice_tree(["<e>", "no"], CHAT, TOKENS, blunt, 8)


def test_a_choice_without_tokens_is_refused() -> None:
    from tokenizers import normalizers

    deaf = small_tokenizer()
    deaf.normalizer = normalizers.Strip()
    with pytest.raises(RequestInvalid, match="' ' has no tokens in this model"):
        choice_tree([" ", "a"], chat_of([END], [END]), TOKENS, deaf, 8)


def test_what_is_no_string_is_refused_where_nothing_checks_types() -> None:
    code = "from tokprune.text.choices import choice_tree as t; t(['a', 3], None, None, None, 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "RequestInvalid: choices takes strings, got 3" in done.stderr


def test_the_logarithms_do_not_lose_small_probabilities() -> None:
    class Steep(FakeModel):
        def after(self, written: Ids) -> Array:
            return np.asarray([0, -600, *[-1e9] * (VOCAB - 2)], np.float32)

    choice = choose(Steep(0), tree_of([(0,), (1, 0), (1, 1)]), EOS)
    assert log(choice.probabilities[1]) == pytest.approx(-600)
