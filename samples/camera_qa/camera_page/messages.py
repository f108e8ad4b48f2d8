"""What a browser may say. Everything else is refused."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tokprune.errors import RequestInvalid

LONGEST_MESSAGE = 16_000  # characters
LONGEST_ANSWER = 1024  # tokens
Mode: TypeAlias = Literal["continuous", "on_change", "on_demand"]
_SourceId = Annotated[int, Meta(ge=0, le=10_000)]
_Question = Annotated[str, Meta(min_length=1, max_length=2000)]
_Choice = Annotated[str, Meta(min_length=1, max_length=200)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """One text message; its type is the name of its class in small letters."""


class Set(_Message, frozen=True, tag="set"):
    """Change what is asked from the next frame on; what is left out stays."""

    source: _SourceId
    question: _Question | UnsetType = UNSET
    budget: Annotated[str, Meta(max_length=40)] | UnsetType = UNSET
    selector: Annotated[str, Meta(max_length=60)] | UnsetType | None = UNSET
    encode: Annotated[str, Meta(max_length=40)] | UnsetType = UNSET
    choices: Annotated[list[_Choice], Meta(max_length=32)] | UnsetType = UNSET
    max_new_tokens: Annotated[int, Meta(ge=1, le=LONGEST_ANSWER)] | UnsetType = UNSET
    mode: Mode | UnsetType = UNSET


class Ask(_Message, frozen=True, tag="ask"):
    """Ask on the next frame; the question stays the one that is asked."""

    source: _SourceId
    question: _Question


class Pause(_Message, frozen=True, tag="pause"):
    """Ask no more by itself."""

    source: _SourceId


class Resume(_Message, frozen=True, tag="resume"):
    """Go on asking."""

    source: _SourceId


class Cancel(_Message, frozen=True, tag="cancel"):
    """End the answer that is being written."""

    source: _SourceId


class Watch(_Message, frozen=True, tag="watch"):
    """Send pictures of this source, and of no other."""

    source: _SourceId


class Seen(_Message, frozen=True, tag="seen"):
    """The last picture was drawn: the next may come."""


class Webcam(_Message, frozen=True, tag="webcam"):
    """Begin or end with pictures of the browser's own camera."""

    on: bool


class Calibrate(_Message, frozen=True, tag="calibrate"):
    """Measure this device, for budgets in time."""


Control: TypeAlias = Set | Ask | Pause | Resume | Cancel
FromPage: TypeAlias = Control | Watch | Seen | Webcam | Calibrate
_decoder = msgspec.json.Decoder(FromPage)


def read_message(text: str) -> FromPage:
    """Read a text message of a browser.

    Raises:
        RequestInvalid: it is none that this page sends, or too long.
    """
    if len(text) > LONGEST_MESSAGE:
        raise RequestInvalid(f"A message has {LONGEST_MESSAGE} characters at most, got {len(text)}")
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise RequestInvalid(f"This is no message of the page: {error}") from None
