"""Whether an answer has fallen into a loop: the same tokens again and again, without an end."""

from typing import Final

import numpy as np

LONGEST_PERIOD: Final = 64  # tokens of an n-gram that is looked for
FEWEST_TOKENS: Final = 64  # that a loop has covered before it counts as one
FEWEST_REPETITIONS: Final = 4


def repetitions_of(period: int) -> int:
    """Return how often an n-gram of `period` tokens must stand in a row to count as a loop."""
    return max(FEWEST_REPETITIONS, -(-FEWEST_TOKENS // period))


class RepetitionGuard:
    """Tells when the last tokens are one n-gram of up to 64 tokens, too often in a row.

    Too often is four times and 64 tokens at least: 64 times one token, 32 times two, eight times
    eight, four times sixteen or more. Lists and tables repeat a little ("cup, cup, cup"); text
    that a reader wants hardly goes on like that. (Of 97 Markdown and Python files, in the demo's
    tokens of little more than a letter, 32 tokens would end 16, at the rules of tables; 64 end
    four, at rules of 16 columns.) Greedy decoding does not leave such a loop by
    itself (arXiv:1904.09751, section 4). The answer is ended, not bent: a penalty on repetition
    would change right answers too (text that is read from a picture repeats). vLLM's
    `repetition_detection` (vllm-project/vllm#35451) is the same idea; it compares whole n-grams
    at every token, while here every period has a count of how long the tokens have followed it.
    That is 64 comparisons a token, and a memory of 64 tokens.
    """

    def __init__(self) -> None:
        # the token `period` places ago stands at [period - 1]; -1 is no token
        self._last = np.full(LONGEST_PERIOD, -1, np.int64)
        self._equal = np.zeros(LONGEST_PERIOD, np.int64)  # tokens in a row equal to that one

    def push(self, token_id: int) -> bool:
        """Take the next token; return True where the answer has fallen into a loop."""
        self._equal = np.where(self._last == token_id, self._equal + 1, 0)
        self._last[1:] = self._last[:-1]
        self._last[0] = token_id
        return bool((self._equal >= _EQUAL_IN_A_LOOP).any())


# The n-gram's first occurrence is equal to nothing before it.
_EQUAL_IN_A_LOOP = np.asarray(
    [(repetitions_of(period) - 1) * period for period in range(1, LONGEST_PERIOD + 1)]
)
