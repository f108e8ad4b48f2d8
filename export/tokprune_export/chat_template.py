"""The checkpoint's chat template, compiled to pieces and verified token for token.

Conversations are rendered with marker words in the place of what people say; what stands between
the markers becomes the pieces. Then real conversations go both ways, and must give equal ids.
"""

import json
import re
from collections.abc import Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tokprune.loading import open_tokenizer
from tokprune.manifest import Chat, Piece, Tokens
from tokprune.prompting import Conversation, Shown, Turn, build_prompt
from tokprune.types import MediumKind, Prepared, Region
from tokprune_export.checkpoint import open_processor, quiet_transformers
from tokprune_export.errors import ExportRefused

USER, AGAIN, ANSWER, SYSTEM = "Qmarkerone", "Qmarkertwo", "Amarker", "Smarker"
IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


class Template:
    """The Jinja template, rendered as transformers renders it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            open_tokenizer(folder)
            with quiet_transformers():  # of a model_type that is not its own, too
                self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # tokenizers raises nothing more particular
            raise ExportRefused(f"{folder} has no readable tokenizer: {error}") from None
        self._template: str | None = None
        legacy = folder / "chat_template.json"  # beside the processor, in older checkpoints
        if self._tokenizer.chat_template is None and legacy.is_file():
            self._template = json.loads(legacy.read_bytes())["chat_template"]
        elif self._tokenizer.chat_template is None:
            raise ExportRefused(
                f"{folder} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json): add the one that it was trained with"
            )
        self._in_parts = False  # whether what is said comes as a list, in every role
        self._in_parts = ANSWER not in self.render([_user(USER), _assistant(ANSWER), _user(AGAIN)])

    def render(self, messages: list[dict[str, Any]]) -> str:
        """Return the prompt of a conversation that awaits an answer."""
        if self._in_parts:
            messages = [_say_in_parts(**message) for message in messages]
        return self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
        )

    def ids(self, text: str) -> list[int]:
        """Tokenise a rendered prompt."""
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def compile_chat(folder: Path, template: Template) -> Chat:
    """Cut the template into pieces.

    Raises:
        ExportRefused: the template does more than wrap what people say.
    """
    names = special_ids(open_tokenizer(folder))

    def piece(text: str) -> Piece:
        return _piece(text, names)

    plain, generation = _around(template.render([_user(USER)]), USER)
    before, after = _around(template.render([_user(IMAGE, USER)]), USER)
    same = takewhile(lambda pair: pair[0] == pair[1], zip(plain, before, strict=False))
    head = plain[: len(list(same))]
    words = plain.removeprefix(head)  # a template may put a picture within what frames words
    conversation = [_user(USER), _assistant(ANSWER), _user(AGAIN)]
    _, reply, following, end = _around(template.render(conversation), USER, ANSWER, AGAIN)
    framed = [before, following]
    if end != generation or after != generation or not all(x.endswith(words) for x in framed):
        raise ExportRefused("The chat template changes its frame with pictures or turns")
    picture = before.removeprefix(head).removesuffix(words)
    swapped, _ = _around(template.render([_user(USER, IMAGE)]), USER)
    video = _video(template, head).removesuffix(words)
    system = _system(template, words)
    return Chat(
        head=piece(head),
        head_system=None if system is None else [piece(text) for text in system],
        reply=piece(reply),
        next_user=piece(following.removesuffix(words)),
        generation=piece(generation),
        picture=piece(picture),
        video=piece(video) if video else None,
        media_first=swapped == before != plain,
        words=piece(words),
    )


def verify_chat(folder: Path, template: Template, chat: Chat, tokens: Tokens, family: str) -> int:
    """Send conversations both ways and return how many.

    Raises:
        ExportRefused: ids differ, with the first conversation where they do; or the settings of the
            processors are none that the family follows.
    """
    tokenizer, processor = open_tokenizer(folder), open_processor(family, folder)
    conversations = _conversations(
        systems=chat.head_system is not None, videos=chat.video is not None
    )
    for messages in conversations:
        conversation, media = _parsed(messages, media_first=chat.media_first)
        ours = build_prompt(conversation, media, chat, tokens, tokenizer, processor).ids.tolist()
        oracle = template.ids(template.render(messages))
        if ours != oracle:
            raise ExportRefused(
                "The chat template cannot be compiled: for "
                f"{json.dumps(messages, ensure_ascii=True)} transformers gives {oracle}, "
                f"the compiled pieces give {ours}"
            )
    return len(conversations)


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the added tokens that steer the model, by their text."""
    added = tokenizer.get_added_tokens_decoder().items()
    return {token.content: index for index, token in added if token.special}


def _piece(text: str, names: dict[str, int]) -> Piece:
    """Split text at special tokens, longest first."""
    if not names:
        return [text] if text else []
    longest = sorted(names, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest))})", text)
    return [names.get(part, part) for part in parts if part]


def _around(text: str, *markers: str) -> list[str]:
    """Return what stands before, between and after the markers, each there once and in order."""
    parts: list[str] = []
    for marker in markers:
        if text.count(marker) != 1:
            raise ExportRefused(f"The chat template does not show {marker!r} once: {text!r}")
        part, text = text.split(marker)
        parts.append(part)
    return [*parts, text]


def _system(template: Template, words: str) -> list[str] | None:
    """Return the head around a system message, or None where the template takes none."""
    from jinja2 import TemplateError

    try:
        text = template.render([_say("system", SYSTEM), _user(USER)])
    except TemplateError:
        return None
    if SYSTEM not in text:
        return None
    before, after, _ = _around(text, SYSTEM, USER)
    return [before, after.removesuffix(words)]


def _video(template: Template, head: str) -> str:
    """Return what stands for a video, or nothing where the template takes none."""
    from jinja2 import TemplateError

    try:
        text = template.render([_user(VIDEO, USER)])
    except TemplateError:
        return ""
    return _around(text, USER)[0].removeprefix(head)


def _say_in_parts(role: str, content: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {"role": role, "content": parts}


def _say(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def _assistant(text: str) -> dict[str, Any]:
    return _say("assistant", text)


def _user(*content: str | dict[str, str]) -> dict[str, Any]:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"role": "user", "content": parts}


def _conversations(*, systems: bool, videos: bool) -> list[list[dict[str, Any]]]:
    """Return conversations with pictures and text in every order, and text that tokenisers cut."""
    texts = (
        "What is this?",
        "\n\nWhat is this?\n",
        "   leading spaces, trailing ones   ",
        "tab\there, and a no-break\u00a0space",
        "Wie heißt das? \u8fd9\u662f\u4ec0\u4e48\uff1f \u0447\u0442\u043e?",
        "emoji 👩\u200d🚀 and combining e\u0301",
        "100 % of 3.14159, isn't it? I'll say: x_1 += 2;",
        "line\r\nbreaks\n \n of  all kinds",
        "{{ braces }} {% raw %} <b>tags</b> | pipes",
        "assistant\nuser\nsystem",
    )
    turns = [[_user(IMAGE, text)] for text in texts]
    turns += [[_user(text, IMAGE)] for text in texts[:4]]
    turns += [[_user(text, IMAGE, other)] for text, other in pairwise(texts[:4])]
    first, second, third = texts[:3]
    turns += [
        [_user(first)],
        [_user(IMAGE, IMAGE, first)],
        [_user(first, IMAGE, second, IMAGE, third)],
        [_user(IMAGE, first, IMAGE)],
        [_user(first, second), _assistant("Yes."), _user(third)],
        [_user(IMAGE, first), _assistant("A cup.\n"), _user(second)],
        [_user(IMAGE, first), _assistant(" A cup"), _user(IMAGE, second)],
        [_user(first), _assistant(third), _user(second), _assistant("no"), _user(IMAGE, first)],
    ]
    if systems:
        turns += [[_say("system", text), *turns[index]] for index, text in enumerate(texts[:5])]
        turns += [[_say("system", second), *turns[-6]]]
    if videos:
        turns += [[_user(VIDEO, text)] for text in texts[:4]]
        turns += [[_user(first, VIDEO, second, IMAGE, third)], [_user(VIDEO, VIDEO, first)]]
        turns += [[_user(VIDEO, first), _assistant("Yes."), _user(IMAGE, second)]]
    return turns


def _parsed(
    messages: Sequence[dict[str, Any]], *, media_first: bool
) -> tuple[Conversation, list[Prepared]]:
    """Return the same conversation as the device takes it; everything shown is one vision token."""
    system, turns, media = None, [], []
    for message in messages:
        said = message["content"]
        if message["role"] == "system":
            system = said
        elif message["role"] == "assistant":
            turns[-1] = Turn(turns[-1].content, said)
        else:
            content: list[str | Shown] = []
            kinds = [IMAGE["type"], VIDEO["type"], "text"]
            ordered = sorted(said, key=lambda part: kinds.index(part["type"]))
            for part in ordered if media_first else said:
                if part["type"] == "text":
                    content.append(part["text"])
                    continue
                content.append(Shown(len(media)))
                media.append(_shown(len(media), "video" if part == VIDEO else "picture"))
            turns.append(Turn(tuple(content)))
    return Conversation(tuple(turns), system), media


def _shown(index: int, kind: MediumKind) -> Prepared:
    where = np.zeros((1, 7), np.int32)
    where[:, 0] = index
    return Prepared(
        kind=kind,
        calls=(),
        pack=lambda outputs: outputs[0],
        where=where,
        regions=(Region(index, 0, 0, 1, 1),),
        size_hw=(1, 1),
        units=np.ones((1, 1), np.bool_),
    )
