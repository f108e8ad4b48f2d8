"""The tokens of an answer as text, until it ends or must."""

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Tokenizer

from tokprune.errors import Cancelled, DeadlineExceeded
from tokprune.pipeline import Flow
from tokprune.running.request import Options
from tokprune.stopwatch import Stopwatch
from tokprune.text.choices import Choice
from tokprune.text.repetition import RepetitionGuard
from tokprune.text.stopping import StopStrings
from tokprune.text.text_pieces import TextPieces
from tokprune.types import FinishReason


@dataclass(frozen=True)
class Written:
    """The text of an answer, and how it ended."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    ttft_ms: float
    choice: Choice | None


def write(
    flow: Flow,
    tokenizer: Tokenizer,
    watch: Stopwatch,
    options: Options,
    give: Callable[[str], None],
) -> Written:
    """Turn tokens into text until the answer ends, or must."""
    writer = _Writer(tokenizer, options, give)
    ttft_ms, choice = 0.0, None
    reason: FinishReason | None = None
    while reason is None:
        try:
            with watch.stage("decode" if ttft_ms else "prefill"):
                token = next(flow.tokens)
        except (Cancelled, DeadlineExceeded) as stopped:
            if not ttft_ms:
                raise
            reason = "cancelled" if isinstance(stopped, Cancelled) else "deadline"
            break
        ttft_ms = ttft_ms or watch.elapsed_ms()
        reason, choice = token.finish_reason, token.choice
        if token.id is not None:
            reason = writer.push(token.id) or reason
    stopped_there = writer.finish()
    if stopped_there and reason not in ("cancelled", "deadline"):
        reason = "stop"
    return Written(writer.text, writer.ids, reason, ttft_ms, choice)


class _Writer:
    """Tokens in, pieces of text out, up to a stop string or a loop."""

    def __init__(self, tokenizer: Tokenizer, options: Options, give: Callable[[str], None]) -> None:
        self._pieces = TextPieces(tokenizer)
        self._stops = StopStrings(tuple(options.stop))
        self._guard = RepetitionGuard() if options.repetition_guard else None
        self._give = give
        self._given: list[str] = []
        self._stopped = False

    @property
    def ids(self) -> tuple[int, ...]:
        return self._pieces.ids

    @property
    def text(self) -> str:
        """Return what was given out, or what all tokens decode to where no stop string cut it."""
        return "".join(self._given) if self._stopped else self._pieces.text

    def push(self, token: int) -> FinishReason | None:
        """Take a token; return why the answer must end after it."""
        text, self._stopped = self._stops.push(self._pieces.push(token))
        self._out(text)
        if self._stopped:
            return "stop"
        looped = self._guard is not None and self._guard.push(token)
        return "repetition" if looped else None

    def finish(self) -> bool:
        """Give out the rest; return whether a stop string ended the text."""
        if not self._stopped:
            text, self._stopped = self._stops.push(self._pieces.finish())
            self._out(text)
        if not self._stopped:
            text, self._stopped = self._stops.flush()
            self._out(text)
        return self._stopped

    def _out(self, text: str) -> None:
        if text:
            self._given.append(text)
            self._give(text)
