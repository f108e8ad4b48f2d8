"""The request body of `POST /v1/chat/completions`, field by field.

Follows https://platform.openai.com/docs/api-reference/chat/create. A field that is in none of the
classes here is refused.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw

from tokprune.errors import RequestInvalid, unknown

_NULL = Raw(b"null")


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Refuses what it does not know."""


class TextPart(_Strict, frozen=True, tag_field="type", tag="text"):
    """Words."""

    text: str


class ImageUrl(_Strict, frozen=True):
    """Where a picture is: here always a data URL. `detail` "low" is refused: see `budget`."""

    url: str
    detail: Literal["auto", "high"] | None = None


class PicturePart(_Strict, frozen=True, tag_field="type", tag="image_url"):
    """A picture."""

    image_url: ImageUrl


class SystemMessage(_Strict, frozen=True, tag_field="role", tag="system"):
    """Only as the first message."""

    content: str | list[TextPart]
    name: str | None = None  # ignored


class UserMessage(_Strict, frozen=True, tag_field="role", tag="user"):
    """What was asked and shown, in its order."""

    content: str | list[TextPart | PicturePart]
    name: str | None = None  # ignored


class AssistantMessage(_Strict, frozen=True, tag_field="role", tag="assistant"):
    """What was answered. Clients send back what they got, with fields that are null."""

    content: str | list[TextPart]
    name: str | None = None  # ignored
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None


Chatted = SystemMessage | UserMessage | AssistantMessage


class StreamOptions(_Strict, frozen=True):
    """What a stream has beside text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # ignored: nothing is padded on a loopback


class ChatRequest(_Strict, frozen=True):
    """One question, with the conversation before it."""

    messages: list[Chatted]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: Annotated[int, Meta(ge=0)] | None = None
    stop: str | list[str] | None = None

    # Of tokprune alone (a client's `extra_body`).
    budget: str | int | float | None = None  # as on the command line; text is safest: "1.0"
    selector: str | None = None
    encode: str | None = None  # `AskOptions.encode`
    choices_list: list[str] | None = None  # `AskOptions.choices`; a reply's `choices` are others
    deadline_s: float | None = None  # from the arrival of the request

    # Without meaning for an answer: ignored.
    user: Raw = _NULL
    metadata: Raw = _NULL
    safety_identifier: Raw = _NULL
    prompt_cache_key: Raw = _NULL
    service_tier: Raw = _NULL
    store: Raw = _NULL
    parallel_tool_calls: Raw = _NULL

    # They would change the answer: refused, unless they ask for what is done anyway.
    audio: Raw = _NULL
    frequency_penalty: Raw = _NULL
    function_call: Raw = _NULL
    functions: Raw = _NULL
    logit_bias: Raw = _NULL
    logprobs: Raw = _NULL
    modalities: Raw = _NULL
    n: Raw = _NULL
    prediction: Raw = _NULL
    presence_penalty: Raw = _NULL
    reasoning_effort: Raw = _NULL
    response_format: Raw = _NULL
    tool_choice: Raw = _NULL
    tools: Raw = _NULL
    top_logprobs: Raw = _NULL
    verbosity: Raw = _NULL
    web_search_options: Raw = _NULL


_UNSUPPORTED: dict[str, tuple[object, ...]] = {  # field -> what does no harm, beside null
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
_LONGEST_NEUTRAL = 40  # bytes: what is longer is not even decoded


def chat_request(body: bytes) -> ChatRequest:
    """Read the body of a request.

    Raises:
        RequestInvalid: it is not JSON, or asks for what is not done here.
    """
    try:
        request = msgspec.json.decode(body, type=ChatRequest)
    except msgspec.ValidationError as error:
        raise RequestInvalid(_explained(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestInvalid(f"The body is no JSON that can be read: {error!s:.300}") from None
    for name, neutral in _UNSUPPORTED.items():
        _refuse_unless(name, getattr(request, name), neutral)
    return request


def _refuse_unless(name: str, given: Raw, neutral: tuple[object, ...]) -> None:
    text = bytes(given)
    value: object = ...
    if len(text) <= _LONGEST_NEUTRAL:
        value = msgspec.json.decode(text)
    if value is None or any(value == each and type(value) is type(each) for each in neutral):
        return
    if isinstance(value, float) and value in neutral:  # 0.0 where 0 is meant
        return
    raise RequestInvalid(
        f"{name}={text[:_LONGEST_NEUTRAL].decode(errors='replace')} is not supported here: leave "
        f"{name} out"
    )


def _explained(message: str) -> str:
    """Say what is accepted, where msgspec says only what is not."""
    known = ChatRequest.__struct_fields__
    _, found, rest = message.partition("Object contains unknown field `")
    name, _, where = rest.partition("`")
    if found and not where:  # of the body itself
        return unknown("field", name[:100], sorted(known))
    if message.endswith(".role`"):
        return f"{message}. Roles: system (first message only), user, assistant"
    if message.endswith(".type`"):
        return f"{message}. Parts: text, and image_url in messages of the user"
    if message.endswith(".detail`"):
        return f"{message}. Give fewer vision tokens with `budget` instead"
    return message
