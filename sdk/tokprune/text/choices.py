"""An answer out of a list, with the probability of each, in one step for each differing token."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64

from tokprune.errors import RequestInvalid
from tokprune.manifest import Chat, Piece, Tokens
from tokprune.types import Array

MOST_CHOICES: Final = 64


@runtime_checkable
class Continuation(Protocol):
    """The LLM after a prompt, and after the answer tokens that were given to it."""

    @property
    def logits(self) -> Float32[Array, " v"]:
        """Of the next token."""
        ...

    def extend(self, ids: Sequence[int]) -> None:
        """Append answer tokens in one run; `logits` are then those after the last of them."""
        ...

    def rewind(self, count: int) -> None:
        """Keep the first `count` answer tokens. There are no `logits` until `extend`."""
        ...


@dataclass(frozen=True)
class Choice:
    """The likeliest of the choices."""

    text: str
    index: int
    probabilities: tuple[float, ...]  # one a choice, in their order; they sum to 1
    token_ids: tuple[int, ...]  # of `text`, without the end of the answer
    choice_mass: float  # of the model's free probability, what the first fork's tokens have


@dataclass(frozen=True)
class Fork:
    """A place where choices differ in their next token, or where one ends and others go on."""

    path: tuple[int, ...]  # the answer tokens before it
    tokens: tuple[int, ...]  # that choices go on with
    groups: tuple[tuple[int, ...], ...]  # the choices behind each of these
    ends: int | None  # the choice that ends here, if one does


@dataclass(frozen=True)
class ChoiceTree:
    """Choices as a tree over their tokens. Made by `choice_tree`, or from ids that differ."""

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]

    @property
    def forks(self) -> tuple[Fork, ...]:
        """Every place where choices part, each before those behind it."""
        return tuple(_forks(self.ids, tuple(range(len(self.ids)))))

    @property
    def runs(self) -> int:
        """Runs of the LLM after prefill that `choose` takes: one a fork, none for the prompt's."""
        return sum(bool(fork.path) for fork in self.forks)

    @property
    def rows(self) -> int:
        """Most answer tokens that the LLM holds at a time meanwhile."""
        return max(len(fork.path) for fork in self.forks)


def choice_tree(
    choices: Sequence[str], chat: Chat, tokens: Tokens, tokenizer: Any, max_new_tokens: int
) -> ChoiceTree:
    """Check choices and tokenise them as the model would write them.

    Raises:
        RequestInvalid: fewer than two or more than 64, two that are the same to the model, one
            that is empty, not valid Unicode, too long, or that no answer can be.
    """
    texts = _checked(choices)
    ids: dict[tuple[int, ...], str] = {}
    for text in texts:
        made = tuple(choice_ids(text, chat, tokenizer))
        if control := set(made) & {tokens.image, tokens.video, *tokens.control, *tokens.eos}:
            raise RequestInvalid(
                f"The choice {text!r} would make control tokens (ids {sorted(control)}): this "
                "tokenizer cannot spell them out; remove them"
            )
        if len(made) > max_new_tokens:
            raise RequestInvalid(
                f"The choice {text!r} has {len(made)} tokens, max_new_tokens is {max_new_tokens}: "
                "raise it or give a shorter choice"
            )
        if made in ids:
            raise RequestInvalid(
                f"The choices {ids[made]!r} and {text!r} are the same tokens to this model: give "
                "one of them"
            )
        ids[made] = text
    return ChoiceTree(texts, tuple(ids))


def choice_ids(text: str, chat: Chat, tokenizer: Any) -> list[int]:
    """Return the tokens of an answer as the model would write them after the prompt.

    A tokenizer may join the end of the prompt with the answer, and templates part them in two
    ways: a prompt of Qwen's ends in a line's end, one of VILA's in "ASSISTANT:", behind which the
    space is the answer's own. So both are tokenised together, with what the template puts before
    earlier answers; the prompt's own tokens must stay as they are.

    Raises:
        RequestInvalid: the answer joins with the prompt, or has no tokens.
    """
    before = _ending(chat.generation)
    replied = _ending(chat.reply)
    same = chat.reply[:-1] == chat.generation[:-1] and replied.startswith(before)
    prompt = _encode(before, tokenizer)
    whole = _encode((replied if same else before) + text, tokenizer)
    if whole[: len(prompt)] != prompt:
        raise RequestInvalid(
            f"The choice {text!r} would join with the end of the prompt: leave out the spaces or "
            "line ends that it begins with"
        )
    if len(whole) == len(prompt):
        raise RequestInvalid(f"The choice {text!r} has no tokens in this model: give another word")
    return whole[len(prompt) :]


def choose(continuation: Continuation, tree: ChoiceTree, eos: frozenset[int]) -> Choice:
    """Find the likeliest choice.

    A choice's probability is the product, over the forks on its way, of its token's share among
    the tokens that choices go on with there (softmax over their logits alone). That is what
    decoding constrained to the list would draw from, so it sums to 1 whatever else the model might
    have said; tokens without an alternative count as sure. A choice that others begin with ends by
    any of `eos`, whose probabilities are added. `choice_mass` tells how much of the model's free
    probability the first fork's tokens had: near 0, the model wanted to say something else, and
    the probabilities are no measure of its confidence. Only the usual tokens of a text count, not
    other ways of spelling it.

    The likeliest choice is taken, ties to the earlier one: sampling's temperature has no effect.
    """
    logs = np.zeros(len(tree.texts))
    mass: float | None = None
    written: tuple[int, ...] = ()
    for fork in tree.forks:
        _go(continuation, written, fork.path)
        written = fork.path
        logits = np.asarray(continuation.logits, np.float64)
        options = [logits[token] for token in fork.tokens]
        groups = list(fork.groups)
        if fork.ends is not None:
            options.append(_log_sum(logits[sorted(eos)]))
            groups.append((fork.ends,))
        together = _log_sum(np.asarray(options))
        if mass is None:
            mass = float(np.exp(together - _log_sum(logits)))
        for option, group in zip(options, groups, strict=True):
            logs[list(group)] += option - together
    index = int(logs.argmax())
    chances = np.exp(logs)
    return Choice(
        text=tree.texts[index],
        index=index,
        probabilities=tuple((chances / chances.sum()).tolist()),  # of rounding only
        token_ids=tree.ids[index],
        choice_mass=min(mass or 0.0, 1.0),
    )


def _go(continuation: Continuation, written: Sequence[int], path: Sequence[int]) -> None:
    """Bring the LLM from behind `written` to behind `path`, in one run."""
    pairs = zip(written, path, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if shared < len(written):
        continuation.rewind(shared)
    if shared < len(path):
        continuation.extend(path[shared:])


def _log_sum(logits: Float64[Array, " m"]) -> float:
    """Return the logarithm of the sum of exponentials."""
    largest = logits.max()
    return float(largest + np.log(np.exp(logits - largest).sum()))


def _forks(ids: tuple[tuple[int, ...], ...], group: tuple[int, ...], depth: int = 0) -> list[Fork]:
    """Return the forks behind the first `depth` tokens, which all of a group share."""
    if len(group) == 1:
        return []
    while len({ids[index][depth : depth + 1] for index in group}) == 1:
        depth += 1
    behind: dict[int, list[int]] = {}
    ends = None
    for index in group:
        if len(ids[index]) == depth:
            ends = index
        else:
            behind.setdefault(ids[index][depth], []).append(index)
    groups = tuple(map(tuple, behind.values()))
    fork = Fork(ids[group[0]][:depth], tuple(behind), groups, ends)
    return [fork, *(each for part in groups for each in _forks(ids, part, depth + 1))]


def _ending(piece: Piece) -> str:
    """Return the text that a piece of the template ends with."""
    last = piece[-1] if piece else ""
    return last if isinstance(last, str) else ""


def _encode(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _checked(choices: Sequence[str]) -> tuple[str, ...]:
    if isinstance(choices, str):
        raise RequestInvalid(f"choices takes a list of strings, got one string: {choices!r}")
    if not 2 <= len(choices) <= MOST_CHOICES:
        raise RequestInvalid(f"choices takes 2 to {MOST_CHOICES} strings, got {len(choices)}")
    for number, text in enumerate(choices):
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RequestInvalid(f"choices takes strings, got {text!r}")
        if not text:
            raise RequestInvalid("A choice is empty: give at least one character")
        if text in choices[:number]:
            raise RequestInvalid(f"The choice {text!r} is given twice")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise RequestInvalid(
                f"The choice {text!r} holds a lone surrogate: give valid Unicode"
            ) from None
    return tuple(choices)
