"""The text of an answer, piece by piece while its tokens come."""

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextPieces:
    """Turns tokens into pieces of valid Unicode text, a character only once it is whole.

    The pieces make up the text, unless later bytes break a character that was given out already
    (a tokenizer with byte fallback decodes all bytes in a row together): `text` is then right, and
    the pieces, which cannot be taken back, are not, and lack what came with the breaking token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given = ""

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens so far."""
        return tuple(self._ids)

    @property
    def text(self) -> str:
        """What all tokens so far decode to. Bytes that are no UTF-8 come out as U+FFFD."""
        return self._tokenizer.decode(self._ids, skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that became whole with it, often none."""
        self._ids.append(token_id)
        try:
            piece = self._decoder.step(self._tokenizer, token_id)
        except Exception:  # tokenizers raises nothing more particular
            # later bytes broke a character that had been whole
            self._decoder, piece = DecodeStream(skip_special_tokens=True), None
        self._given += piece or ""
        return piece or ""

    def finish(self) -> str:
        """Return the rest: bytes of a character that stayed unfinished, as U+FFFD."""
        whole = self.text
        if not whole.startswith(self._given):
            return ""
        rest = whole[len(self._given) :]
        self._given = whole
        return rest
