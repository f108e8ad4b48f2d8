"""An answer as it is written."""

from collections.abc import Callable, Generator, Iterator

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from tokprune.pipeline import Flow
from tokprune.stopwatch import Stopwatch
from tokprune.types import Answer, FinishReason

STAGES = ("preprocess", "vision", "first_layer", "scorer", "select", "prefill", "decode")


class AnswerStream:
    """Iterates over pieces of valid Unicode text; `answer` is there once it is exhausted.

    The pieces make up the answer's text, unless the model emits bytes that are no UTF-8 behind a
    character given out already: `answer.text` is then what all bytes decode to. Leaving the loop
    early, or `close()`, stops the work; no answer is made then.
    """

    def __init__(
        self, flow: Callable[[], Flow], tokenizer: Tokenizer, watch: Stopwatch, selector: str
    ) -> None:
        self._flow = flow
        self._tokenizer = tokenizer
        self._watch = watch
        self._selector = selector
        self._answer: Answer | None = None
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop the work."""
        self._pieces.close()

    @property
    def answer(self) -> Answer:
        """The whole answer, after the last piece.

        Raises:
            RuntimeError: the stream is not exhausted.
        """
        if self._answer is None:
            raise RuntimeError("The answer is not finished: iterate over the stream to its end")
        return self._answer

    def _run(self) -> Generator[str, None, None]:
        flow = self._flow()
        ids: list[int] = []
        decoder = DecodeStream(skip_special_tokens=True)
        text = ""
        reason: FinishReason | None = None
        ttft_ms = 0.0
        while reason is None:
            with self._watch.stage("decode" if ttft_ms else "prefill"):
                token = next(flow.tokens)
            ttft_ms = ttft_ms or self._watch.elapsed_ms()
            reason = token.finish_reason
            if token.id is None:
                continue
            ids.append(token.id)
            try:
                piece = decoder.step(self._tokenizer, token.id)
            except Exception:  # tokenizers raises nothing more particular
                # later bytes broke a character that had been whole; the answer's text is right
                decoder, piece = DecodeStream(skip_special_tokens=True), None
            if piece:
                text += piece
                yield piece
        # Bytes of an unfinished character at the end come out as U+FFFD.
        whole = self._tokenizer.decode(ids, skip_special_tokens=True)
        if len(whole) > len(text) and whole.startswith(text):
            yield whole[len(text) :]
        self._answer = self._finished(flow, ids, whole, reason, ttft_ms)

    def _finished(
        self, flow: Flow, ids: list[int], text: str, reason: FinishReason, ttft_ms: float
    ) -> Answer:
        timings = self._watch.timings_ms
        return Answer(
            text=text,
            finish_reason=reason,
            selection=flow.selection,
            regions=flow.vision.regions,
            where=flow.vision.where,
            selector=self._selector,
            timings_ms={stage: timings.get(stage, 0.0) for stage in STAGES},
            ttft_ms=ttft_ms,
            token_ids=tuple(ids),
        )
