"""From a conversation to token ids, with pieces of the chat template compiled at export."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tokprune.errors import RequestInvalid
from tokprune.families.family import Processor, Span
from tokprune.manifest import Chat, Piece, Tokens
from tokprune.types import Prepared, Prompt


@dataclass(frozen=True)
class Picture:
    """A picture's place in a turn."""

    number: int  # among the pictures of the conversation, from 0


Content: TypeAlias = str | Picture


@dataclass(frozen=True)
class Turn:
    """What the user said, with pictures where they stood, and what was answered."""

    content: tuple[Content, ...]
    answer: str | None = None  # None: the turn to be answered


@dataclass(frozen=True)
class Conversation:
    """One or more turns, all but the last one answered."""

    turns: tuple[Turn, ...]
    system: str | None = None

    def __post_init__(self) -> None:
        answered = [turn.answer is not None for turn in self.turns]
        if not answered or answered[-1] or not all(answered[:-1]):
            raise RequestInvalid(
                "A conversation ends with one unanswered turn, all others answered"
            )


class _Text(NamedTuple):
    text: str
    words: bool  # the user's words of the last turn


class _Slots(NamedTuple):
    picture: int


_Item: TypeAlias = _Text | _Slots | int  # an int is a special token's id


def build_prompt(
    conversation: Conversation,
    pictures: Sequence[Prepared],
    chat: Chat,
    tokens: Tokens,
    tokenizer: Any,
    processor: Processor,
) -> Prompt:
    """Join template and conversation, and tokenise it as the template's own output would be.

    Args:
        conversation: what was said; user text is text, whatever it spells.
        pictures: cut by the family's processor, in the order of `Picture.number`.
        chat: the compiled template.
        tokens: ids of the checkpoint.
        tokenizer: a `tokenizers.Tokenizer` with `encode_special_tokens` on.
        processor: gives positions.

    Raises:
        RequestInvalid: the text is not valid Unicode, or would make a control token.
    """
    ids: list[int] = []
    words: list[bool] = []
    slots: list[int] = []
    spans: list[Span] = []
    for is_text, run in groupby(_items(conversation, chat, tokens), lambda i: isinstance(i, _Text)):
        if is_text:
            run_ids, run_words = _tokenise([i for i in run if isinstance(i, _Text)], tokenizer)
            _refuse_control(run_ids, tokens)
            _append(spans, ids, words, run_ids, run_words)
            continue
        for item in run:
            if isinstance(item, _Slots):
                picture = pictures[item.picture]
                count = len(picture.where)
                slots += range(len(ids), len(ids) + count)
                ids += [tokens.image] * count
                words += [False] * count
                spans.append(Span(count, picture.regions))
            elif isinstance(item, int):
                _append(spans, ids, words, [item], [False])
    positions, next_position = processor.positions(spans)
    return Prompt(
        ids=np.asarray(ids, np.int64),
        slots=np.asarray(slots, np.int64),
        words=np.asarray(words, np.bool_),
        positions=positions,
        next_position=next_position,
    )


def _append(
    spans: list[Span], ids: list[int], words: list[bool], new: list[int], marks: list[bool]
) -> None:
    ids += new
    words += marks
    if spans and not spans[-1].regions:
        spans[-1] = Span(spans[-1].length + len(new))
    elif new:
        spans.append(Span(len(new)))


def _items(conversation: Conversation, chat: Chat, tokens: Tokens) -> list[_Item]:
    """Lay out pieces and content in order."""
    items = _opening(conversation.system, chat)
    for number, turn in enumerate(conversation.turns):
        last = turn.answer is None
        if number:
            items += _piece(chat.next_user)
        for content in turn.content:
            if isinstance(content, Picture):
                items += [
                    _Slots(content.number) if item == tokens.image else item
                    for item in _piece(chat.picture)
                ]
            else:
                items.append(_Text(_checked(content), last))
        items += _piece(chat.generation if last else chat.reply)
        if turn.answer is not None:
            items.append(_Text(_checked(turn.answer), words=False))
    return items


def _opening(system: str | None, chat: Chat) -> list[_Item]:
    if system is None:
        return _piece(chat.head)
    if chat.head_system is None:
        raise RequestInvalid("This checkpoint's chat template takes no system message")
    before, after = chat.head_system
    return [*_piece(before), _Text(_checked(system), words=False), *_piece(after)]


def _piece(piece: Piece) -> list[_Item]:
    return [item if isinstance(item, int) else _Text(item, words=False) for item in piece]


def _checked(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestInvalid(
            f"The text holds a lone surrogate at character {error.start}: give valid Unicode"
        ) from None
    return text


def _tokenise(run: list[_Text], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Tokenise adjacent texts as one, and mark the tokens that hold the user's words."""
    text = "".join(item.text for item in run)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    mine = np.repeat([item.words for item in run], [len(item.text) for item in run])
    before = np.concatenate([[0], np.cumsum(mine)])  # the user's characters before each
    spans = np.reshape(np.asarray(encoding.offsets, np.int64), (-1, 2))
    marks = before[spans[:, 1]] > before[spans[:, 0]]
    return list(encoding.ids), [bool(mark) for mark in marks]


def _refuse_control(ids: list[int], tokens: Tokens) -> None:
    made = set(ids) & {tokens.image, *tokens.control}
    if made:
        raise RequestInvalid(
            f"The text would make control tokens (ids {sorted(made)}): this tokenizer cannot spell "
            "them out; remove them from the text"
        )
