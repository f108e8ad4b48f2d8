"""From a request body to a question for `vlm.chat`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from tokprune.budgets import Auto, Budget, Deadline, budget_of
from tokprune.chat import Part
from tokprune.errors import (
    BudgetImpossible,
    ContextOverflow,
    DeadlineExceeded,
    RequestInvalid,
)
from tokprune.looking import Way, way_of
from tokprune.running.request import AskOptions
from tokprune.selectors import method_of
from tokprune.serving.data_urls import PictureReader
from tokprune.serving.refusals import HttpRefused
from tokprune.serving.wire import (
    AssistantMessage,
    ChatRequest,
    Chatted,
    PicturePart,
    SystemMessage,
    TextPart,
    UserMessage,
)

Parts: TypeAlias = tuple[Part, ...]
NEW_TOKENS = 128  # where a request sets no bound, as `vlm.ask`
MOST_MESSAGES = MOST_PARTS = 1000
MOST_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Rules:
    """What the server was started with."""

    model: str  # its name in /v1/models
    budget: Budget  # of requests that name none
    selector: str | None
    max_new_tokens: int  # that a request may ask for
    pictures_first: bool = False  # in each message, wherever they stood
    encode: str = "full"  # of requests that do not say


@dataclass(frozen=True)
class Asked:
    """A checked request, its pictures read."""

    system: str | None
    earlier: tuple[tuple[Parts, str], ...]
    question: Parts
    budget: Budget
    selector: str | None
    options: AskOptions
    stream: bool
    include_usage: bool


def asked_of(request: ChatRequest, rules: Rules) -> Asked:
    """Check a request, and read its pictures.

    Raises:
        RequestInvalid, ContextOverflow: it makes no sense, or is far too long.
        PictureInvalid: a picture cannot be read.
        HttpRefused: it is for another model.
    """
    if request.model not in (None, rules.model):
        raise HttpRefused(
            404,
            "model_not_found",
            f"There is no model {request.model!r:.100} here, only {rules.model!r}",
        )
    budget = rules.budget if request.budget is None else budget_of(request.budget)
    if request.selector is not None:
        method_of(request.selector)
    if request.encode is not None:
        served_way(request.encode)
    options = _options(request, rules)
    _check_size(request.messages)
    system, turns = _turns(request.messages)
    pictures = PictureReader()
    read = [
        (_ordered(_parts(asked, number, pictures), rules), answer)
        for number, asked, answer in turns
    ]
    return Asked(
        system=system,
        earlier=tuple((parts, answer) for parts, answer in read if answer is not None),
        question=read[-1][0],
        budget=budget,
        selector=request.selector or rules.selector,
        options=options,
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
    )


def served_way(encode: str) -> Way:
    """Read a way to look that a request can ask for: not what follows a stream.

    Raises:
        RequestInvalid: it is none.
    """
    if encode.partition(":")[0] == "follow":
        raise RequestInvalid(
            f"Got encode={encode!r:.100}, but requests to this server know nothing of each other, "
            "and a stream is followed by remembering what it showed before. Here ask with 'auto', "
            "'lazy', 'coarse' or 'repeats'. A camera is followed by `tokprune watch --encode "
            "follow:8`, or in a program by tokprune.Following(within=8), given to every `ask`"
        )
    return way_of(encode)


def later(asked: Asked, elapsed_s: float) -> Asked:
    """Return the request with what is left of its times: they count from its arrival.

    Raises:
        BudgetImpossible, DeadlineExceeded: nothing is left.
    """
    budget, options = asked.budget, asked.options.copy()
    if isinstance(budget, (Deadline, Auto)):
        left_ms = budget.ttft_ms - 1000 * elapsed_s
        if left_ms <= 0:
            raise BudgetImpossible(
                f"To receive and read the request took {1000 * elapsed_s:.0f} ms, longer than the "
                f"{budget.ttft_ms:g} ms that its budget gives the first token"
            )
        budget = replace(budget, ttft_ms=left_ms)
    deadline_s = options.get("deadline_s")
    if deadline_s is not None and deadline_s > 0:  # what is not above 0 is refused by `ask`
        if deadline_s <= elapsed_s:
            raise DeadlineExceeded(
                f"To receive and read the request took longer than its deadline of {deadline_s:g} s"
            )
        options["deadline_s"] = deadline_s - elapsed_s
    return replace(asked, budget=budget, options=options)


def _options(request: ChatRequest, rules: Rules) -> AskOptions:
    encode = rules.encode if request.encode is None else request.encode
    options = AskOptions(max_new_tokens=_new_tokens(request, rules), encode=encode)
    if request.temperature is not None:
        options["temperature"] = request.temperature
    if request.top_p is not None:
        options["top_p"] = request.top_p
    if request.seed is not None:
        options["seed"] = request.seed
    if request.stop is not None:
        options["stop"] = [request.stop] if isinstance(request.stop, str) else request.stop
    if request.choices_list is not None:
        options["choices"] = request.choices_list
    if request.deadline_s is not None:
        options["deadline_s"] = request.deadline_s
    return options


def _new_tokens(request: ChatRequest, rules: Rules) -> int:
    given = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(given) > 1:
        raise RequestInvalid(
            f"max_tokens={request.max_tokens} and max_completion_tokens="
            f"{request.max_completion_tokens} mean the same: give one"
        )
    asked = given.pop() if given else None
    if asked is None:
        return min(NEW_TOKENS, rules.max_new_tokens)
    if asked > rules.max_new_tokens:
        raise RequestInvalid(
            f"max_tokens={asked} is more than the {rules.max_new_tokens} that this server allows: "
            "ask for less, or start it with a larger --max-new-tokens"
        )
    return asked


def _check_size(messages: Sequence[Chatted]) -> None:
    """Refuse what no context takes, before anything costs time in proportion to it."""
    parts = 0
    characters = 0
    for message in messages:
        content = message.content
        parts += 1 if isinstance(content, str) else len(content)
        characters += sum(map(len, _texts(content)))
    if len(messages) > MOST_MESSAGES or parts > MOST_PARTS or characters > MOST_CHARACTERS:
        raise ContextOverflow(
            f"The conversation has {len(messages)} messages of {parts} parts with {characters} "
            f"characters, more than {MOST_MESSAGES}, {MOST_PARTS} or {MOST_CHARACTERS}"
        )


def _turns(
    messages: Sequence[Chatted],
) -> tuple[str | None, list[tuple[int, UserMessage, str | None]]]:
    """Return the system message, and every turn: its place, what was asked, what was answered."""
    system = None
    turns: list[tuple[int, UserMessage, str | None]] = []
    for number, message in enumerate(messages):
        open_turn = bool(turns) and turns[-1][2] is None
        match message:
            case SystemMessage() if number == 0:
                system = _joined(message.content)
            case UserMessage() if not open_turn:
                turns.append((number, message, None))
            case AssistantMessage() if open_turn:
                turns[-1] = (*turns[-1][:2], _joined(message.content))
            case _:
                _refuse_order(f"messages[{number}] has the role {_role(message)!r}")
    if not turns or turns[-1][2] is not None:
        _refuse_order(f"the last of {len(messages)} messages is not the user's")
    return system, turns


def _refuse_order(problem: str) -> None:
    raise RequestInvalid(
        f"The messages are out of order: {problem}. Give at most one system message, first; then "
        "user and assistant in turn, and the user's last. Join what follows on the same role into "
        "one message of several parts"
    )


def _role(message: Chatted) -> str:
    return str(message.__struct_config__.tag)


def _texts(content: str | Sequence[TextPart | PicturePart]) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part.text for part in content if isinstance(part, TextPart)]


def _joined(content: str | Sequence[TextPart]) -> str:
    return "".join(_texts(content))


def _ordered(parts: Parts, rules: Rules) -> Parts:
    """Move pictures to the front where that is the rule.

    The words of a question that stand before a picture do not attend to it, so what chooses vision
    tokens by the question does not hear it.
    """
    if not rules.pictures_first:
        return parts
    return tuple(sorted(parts, key=lambda part: isinstance(part, str)))


def _parts(message: UserMessage, number: int, pictures: PictureReader) -> Parts:
    if isinstance(message.content, str):
        return (message.content,)
    if not message.content:
        raise RequestInvalid(f"messages[{number}].content is empty: give text or a picture")
    return tuple(
        part.text
        if isinstance(part, TextPart)
        else pictures.read(part.image_url.url, f"messages[{number}].content[{index}]")
        for index, part in enumerate(message.content)
    )
