"""Pieces of text from tokens that are random bytes, for both kinds of tokenizer."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokprune.text.stopping import StopStrings
from tokprune.text.text_pieces import TextPieces

SPECIAL = "<|end|>"


def byte_level() -> Tokenizer:
    """As Qwen's: every byte has a letter, some join."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(letters)}
    vocab["Ġa"] = len(vocab)
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "a")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(SPECIAL, special=True)])
    return made


def byte_fallback() -> Tokenizer:
    """As Llama's: words with a mark for the space, bytes for all else."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "é", "中", "🙂"]
    vocab = {word: number for number, word in enumerate(words)}
    made = Tokenizer(
        models.BPE(vocab, [("▁", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens([AddedToken(SPECIAL, special=True)])
    return made


TOKENIZERS = {"byte level": byte_level(), "byte fallback": byte_fallback()}
EITHER = pytest.mark.parametrize("kind", TOKENIZERS)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.lists(st.integers(0, 10_000), max_size=24)


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[str], TextPieces]:
    pieces = TextPieces(tokenizer)
    return [*[pieces.push(token) for token in ids], pieces.finish()], pieces


def any_ids(tokenizer: Tokenizer, numbers: list[int]) -> list[int]:
    return [number % tokenizer.get_vocab_size() for number in numbers]


@EITHER
@settings(deadline=None, max_examples=300)
@given(TEXT)
def test_pieces_join_to_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    given, pieces = pieces_of(tokenizer, ids)
    assert "".join(given) == pieces.text == tokenizer.decode(ids)
    assert pieces.ids == tuple(ids)


@EITHER
@settings(deadline=None, max_examples=500)
@given(NUMBERS)
def test_random_tokens_make_pieces_of_valid_unicode(kind: str, numbers: list[int]) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = any_ids(tokenizer, numbers)
    given, pieces = pieces_of(tokenizer, ids)
    assert all(piece.encode("utf-8").decode("utf-8") == piece for piece in given)
    assert pieces.text == tokenizer.decode(ids)
    if kind == "byte level":  # no byte changes what those before it were
        assert "".join(given) == pieces.text


@EITHER
@settings(deadline=None, max_examples=500)
@given(NUMBERS, st.lists(st.text("aé�\n ", min_size=1, max_size=3), max_size=3))
@example([97, 98, 99], ["�"])
def test_through_stop_strings_the_pieces_are_the_text_up_to_the_first(
    kind: str, numbers: list[int], stops: list[str]
) -> None:
    tokenizer = TOKENIZERS[kind]
    given, _ = pieces_of(tokenizer, any_ids(tokenizer, numbers))
    matcher, out = StopStrings(tuple(stops)), list[str]()
    for piece in given:
        text, stopped = matcher.push(piece)
        out.append(text)
        if stopped:
            break
    else:
        out.append(matcher.flush()[0])
    whole = "".join(given)
    ends = [whole.find(stop) for stop in stops if stop in whole]
    assert "".join(out) == whole[: min(ends, default=len(whole))]
    assert all(text.encode("utf-8").decode("utf-8") == text for text in out)


@EITHER
@pytest.mark.parametrize("text", ["é", "中", "🙂", "e\u0301", "👩\u200d🚀"])
def test_a_character_comes_out_whole(kind: str, text: str) -> None:
    tokenizer = byte_level() if kind == "byte level" else byte_fallback()
    raw = text.encode("utf-8")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = letters.pre_tokenize_str(text)[0][0]
    names: list[str] = list(spelled) if kind == "byte level" else [f"<0x{x:02X}>" for x in raw]
    ids: list[Any] = [tokenizer.token_to_id(name) for name in names]
    given, _ = pieces_of(tokenizer, ids)
    assert "".join(given) == text
    assert "�" not in "".join(given)


@EITHER
def test_an_unfinished_character_comes_out_as_a_replacement_at_the_end(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    names = {"byte level": ["a", "Ã"], "byte fallback": ["a", "<0xC3>"]}[kind]
    ids: list[Any] = [tokenizer.token_to_id(name) for name in names]
    assert pieces_of(tokenizer, ids)[0] == ["a", "", "�"]


def test_bytes_that_break_a_character_given_out_before_leave_the_text_right() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    names = ["a", "<0xC3>", "<0xA9>", "<0xA9>", "a"]
    ids: list[Any] = [tokenizer.token_to_id(name) for name in names]
    given, pieces = pieces_of(tokenizer, ids)
    assert given == ["a", "", "é", "", "", ""]  # nothing is said twice
    assert pieces.text == "a���a"


@EITHER
def test_special_tokens_are_no_text(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    special: Any = tokenizer.token_to_id(SPECIAL)
    letter: Any = tokenizer.token_to_id("a")
    assert pieces_of(tokenizer, [letter, special, letter])[0] == ["a", "", "a", ""]
