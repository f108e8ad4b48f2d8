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
class Shown:
    """The place of a picture or video in a turn."""

    number: int  # among all that were prepared for the conversation, from 0


Content: TypeAlias = str | Shown


@dataclass(frozen=True)
class Turn:
    """What the user said, with pictures and videos where they stood, and what was answered."""

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
    number: int
    token: int  # the placeholder's id


_Item: TypeAlias = _Text | _Slots | int  # an int is a special token's id


def build_prompt(
    conversation: Conversation,
    media: Sequence[Prepared],
    chat: Chat,
    tokens: Tokens,
    tokenizer: Any,
    processor: Processor,
) -> Prompt:
    """Join template and conversation, and tokenise it as the template's own output would be.

    Args:
        conversation: what was said; user text is text, whatever it spells.
        media: pictures and videos, cut by the family's processor, in the order of `Shown.number`.
        chat: the compiled template.
        tokens: ids of the checkpoint.
        tokenizer: a `tokenizers.Tokenizer` with `encode_special_tokens` on.
        processor: gives positions.

    Raises:
        RequestInvalid: the text is not valid Unicode, or would make a control token; or the
            checkpoint's template takes no video, or puts pictures before videos.
    """
    ids: list[int] = []
    words: list[bool] = []
    slots: list[int] = []
    spans: list[Span] = []
    latest = 0
    items = _items(conversation, media, chat, tokens)
    for is_text, run in groupby(items, lambda item: isinstance(item, _Text)):
        if is_text:
            run_ids, run_words = _tokenise([i for i in run if isinstance(i, _Text)], tokenizer)
            _refuse_control(run_ids, tokens)
            _append(spans, ids, words, run_ids, run_words)
            continue
        for item in run:
            if isinstance(item, _Slots):
                if slots and item.number < latest:  # vision tokens stand in the LLM's order
                    raise RequestInvalid(
                        "This checkpoint's chat template puts pictures before videos: give them "
                        "in that order"
                    )
                latest = item.number
                shown = media[item.number]
                count = len(shown.where)
                slots += range(len(ids), len(ids) + count)
                ids += [item.token] * count
                words += [False] * count
                spans.append(Span(count, shown.regions, shown.step_s))
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


def _items(
    conversation: Conversation, media: Sequence[Prepared], chat: Chat, tokens: Tokens
) -> list[_Item]:
    """Lay out pieces and content in order."""
    items = _opening(conversation.system, chat)
    for number, turn in enumerate(conversation.turns):
        last = turn.answer is None
        if number:
            items += _piece(chat.next_user)
        for content in _ordered(turn.content, media) if chat.media_first else turn.content:
            if isinstance(content, Shown):
                items += _shown(content.number, media[content.number], chat, tokens)
            else:
                items += [*_piece(chat.words), _Text(_checked(content), last)]
        items += _piece(chat.generation if last else chat.reply)
        if turn.answer is not None:
            items.append(_Text(_checked(turn.answer), words=False))
    return items


def _ordered(content: Sequence[Content], media: Sequence[Prepared]) -> list[Content]:
    """Return pictures, then videos, then words, each in their order."""

    def place(part: Content) -> int:
        if not isinstance(part, Shown):
            return 2
        return 1 if media[part.number].kind == "video" else 0

    return sorted(content, key=place)


def _shown(number: int, shown: Prepared, chat: Chat, tokens: Tokens) -> list[_Item]:
    """Lay out one picture or video."""
    piece, token = chat.picture, tokens.image
    if shown.kind == "video":
        if chat.video is None or tokens.video is None:
            raise RequestInvalid("This checkpoint's chat template takes no video: give pictures")
        piece, token = chat.video, tokens.video
    return [_Slots(number, token) if item == token else item for item in _piece(piece)]


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
    made = set(ids) & {tokens.image, tokens.video, *tokens.control}
    if made:
        raise RequestInvalid(
            f"The text would make control tokens (ids {sorted(made)}): this tokenizer cannot spell "
            "them out; remove them from the text"
        )
