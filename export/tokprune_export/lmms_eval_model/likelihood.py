"""Multiple choice by likelihood, from one question with `choices=`, where that is exact."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from sys import float_info
from typing import NamedTuple

from tokprune.model import Model
from tokprune.running.request import AskOptions
from tokprune.text.choices import choice_ids
from tokprune.types import Answer


class Likelihood(NamedTuple):
    """What the harness's multiple choice compares: it takes the least loss."""

    loss: float  # -log p(choice), natural, of the model's free probability
    greedy: bool  # whether the model would write it by itself


@dataclass(frozen=True)
class Choices:
    """The choices of one question, each with the only token that it has."""

    texts: tuple[str, ...]
    ids: tuple[int, ...]


def one_token_choices(continuations: Sequence[str], model: Model) -> Choices:
    """Check that `choices=` gives their exact likelihoods.

    With one token each they part at the first token, so that a choice's share times `choice_mass`
    is its token's free probability. Longer ones share no such bound: what constrained decoding
    draws from is not the product of free probabilities. The space that the harness puts before a
    continuation joins it to a plain text; in a chat that is the template's part, so it is dropped.

    Raises:
        NotImplementedError: one has more tokens, or there is one only.
        RequestInvalid: one cannot be an answer at all.
    """
    texts = tuple(dict.fromkeys(text.lstrip() for text in continuations))
    chat = model.bundle.manifest.chat
    ids = [choice_ids(text, chat, model.tokenizer) for text in texts]
    for text, tokens in zip(texts, ids, strict=True):
        if len(tokens) > 1:
            raise NotImplementedError(
                f"The likelihood of {text!r:.100} ({len(tokens)} tokens) is not computed here, "
                "only of choices of one token each, such as A, B, C and D. Use a task of this "
                "benchmark that generates its answer"
            )
    if len(texts) < 2:
        raise NotImplementedError(
            f"The likelihood of one continuation alone ({''.join(texts)!r:.100}) is not computed "
            "here, only of two choices or more"
        )
    return Choices(texts, tuple(tokens[0] for tokens in ids))


def likelihoods(
    choices: Choices, ask: Callable[[AskOptions], Answer]
) -> tuple[list[Likelihood], Answer]:
    """Ask once, and again for the greedy token where the probabilities leave it open."""
    answer = ask(AskOptions(choices=list(choices.texts), max_new_tokens=1))
    assert answer.probabilities is not None
    assert answer.choice_mass is not None
    mass = max(answer.choice_mass, float_info.min)
    shares = [max(answer.probabilities[text], float_info.min) for text in choices.texts]
    best = max(range(len(shares)), key=shares.__getitem__)
    likeliest = mass * shares[best] > 0.5
    if not likeliest:
        free = ask(AskOptions(max_new_tokens=1))
        likeliest = free.token_ids[:1] == (choices.ids[best],)
    found = [
        Likelihood(-log(mass) - log(share), greedy=likeliest and index == best)
        for index, share in enumerate(shares)
    ]
    return found, answer
