"""Which thing a phrase of a question means: labels for the dense auxiliary task of the LLM.

A question gives one or two tokens of supervision, too few for a small model to find out soon that
"the green circle" is to be looked up in the picture. So throw-away heads ask on the way: every
vision token for its place and for what has happened there (labels in cells.py), the last token of
every phrase for the thing it means, and for what that does, and while a text is spelled every token
for the character that comes next: where it stands, and which one it is.
"""

import re

import torch
import torch.nn.functional as F  # noqa: N812
from cells import (
    CLASSES,
    DIGIT,
    EVENT,
    EVENTS,
    IGNORED,
    KINDS,
    LONGEST_FILM,
    LONGEST_SIDE,
    READ,
    Shown,
)
from torch import Tensor

from tokprune.scenes import Form, Page, Scene
from tokprune.scenes.film import Film, moved
from tokprune.scenes.glyphs import CHARACTERS
from tokprune.scenes.pages import FIELDS
from tokprune.scenes.scene import COLORS, SHAPES, TOKEN_PX, Thing
from tokprune.scenes.writing import Letter
from tokprune.types import Region

PLACED = (LONGEST_SIDE, LONGEST_SIDE, 3, 3)  # row and column, thirds of the picture
# Is there such a thing, where, what it is; of a character, whether it is the second of its cell.
MEANT = (2, *PLACED, *CLASSES[: DIGIT + 1], READ)
# Of a character: which one. In a film: what a thing does, from which frame on, the colour that it
# turns, and where it is at last.
DOES = (len(CHARACTERS), *EVENT, len(COLORS), *PLACED)
REFERENT = (*MEANT, *DOES)
UNKNOWN = (IGNORED,) * (len(REFERENT) - 1)
_PHRASE = re.compile(
    rf"(?:(?P<size>large|small) )?(?:(?P<color>{'|'.join(COLORS)}) )?"
    rf"(?P<shape>{'|'.join(SHAPES)}|shape)\b(?: with digit (?P<digit>\d)| has digit (?P<has>\d)"
    rf"| is (?P<is>{'|'.join(COLORS)})\b)?"
)
_WRITTEN = re.compile(
    rf"(?:(?P<color>{'|'.join(COLORS)}) )?(?P<kind>sign|bar)\b|the (?P<field>{'|'.join(FIELDS)})\b"
)
_IN_PICTURE = re.compile(r" in the (?:first|second|third) picture")


def find_referents(text: str, shown: Shown, region: Region) -> list[tuple[int, tuple[int, ...]]]:
    """Where each phrase ends, and the classes of what it means; not of phrases for several.

    Places are counted in the grid of a region that covers the whole picture.
    """
    written = [] if isinstance(shown, Film) else _find_written(text, shown, region)
    return written if written or isinstance(shown, Page) else _find_things(text, shown, region)


def _find_written(
    text: str, shown: Scene | Page, region: Region
) -> list[tuple[int, tuple[int, ...]]]:
    """Signs, bars and fields of forms: where their characters begin, and their colour."""
    match = _WRITTEN.search(text)
    if match is None:
        return []
    said = match.groupdict()
    places: list[tuple[int, int, str, str | None]]  # y, x, kind, colour
    if isinstance(shown, Scene):
        places = [(s.letters[0].y, s.letters[0].x, "sign", s.color) for s in shown.signs]
    elif isinstance(shown, Form):
        fields = [field for field in shown.fields if field.key == said["field"]]
        starts = [shown.value_letters(field)[0] for field in fields]
        places = [(letter.y, letter.x, "line", None) for letter in starts]
    else:
        starts = [(shown.number_letters(bar)[0], bar.color) for bar in shown.bars]
        places = [(letter.y, letter.x, "bar", color) for letter, color in starts]
    wanted = [place for place in places if said["color"] in (None, place[3])]
    if len(wanted) != 1:
        return []
    [(y, x, kind, color)] = wanted
    classes = (
        1,
        *_at(y, x, shown, region),
        KINDS.index(kind) + 1,
        IGNORED if color is None else list(COLORS).index(color) + 1,
    )
    return [(match.end(), _padded(classes))]


def find_letters(
    answer: str, shown: Shown, region: Region
) -> dict[int, tuple[Letter, tuple[int, ...]]]:
    """Each character of an answer that is read from the picture, and its classes, by its index."""
    found: dict[int, tuple[Letter, tuple[int, ...]]] = {}
    for text in [] if isinstance(shown, Film) else _texts(shown):
        spelled = "".join(letter.character for letter in text)
        match = re.search(rf"\b{spelled}\b", answer)
        if match is None:
            continue
        taken: dict[tuple[int, ...], int] = {}
        for index, letter in enumerate(text, match.start()):
            place = _at(letter.y, letter.x, shown, region)
            slot = min(taken.get(place[:2], 0), READ - 1)
            taken[place[:2]] = slot + 1
            character = CHARACTERS.index(letter.character)
            classes = (1, *place, *(IGNORED,) * (DIGIT + 1), slot, character)
            found[index] = letter, _padded(classes)
    return found


def _texts(shown: Scene | Page) -> list[tuple[Letter, ...]]:
    """All that is an answer where it is asked for."""
    if isinstance(shown, Scene):
        return [sign.letters for sign in shown.signs]
    if isinstance(shown, Form):
        return [shown.value_letters(field) for field in shown.fields]
    return [shown.number_letters(bar) for bar in shown.bars]


def _padded(classes: tuple[int, ...]) -> tuple[int, ...]:
    return (*classes, *(IGNORED,) * (len(REFERENT) - len(classes)))


def _find_things(
    text: str, shown: Scene | Film, region: Region
) -> list[tuple[int, tuple[int, ...]]]:
    found: list[tuple[int, tuple[int, ...]]] = []
    for match in _PHRASE.finditer(text):
        said = match.groupdict()
        shape = None if said["shape"] == "shape" else said["shape"]
        color, digit = said["color"] or said["is"], said["digit"] or said["has"]
        wanted = {"size": said["size"], "color": color, "shape": shape, "digit": digit}
        wanted = {name: value for name, value in wanted.items() if value}
        numbers = [
            number
            for number, thing in enumerate(shown.things)
            if all(getattr(thing, name) == value for name, value in wanted.items())
        ]
        if len(numbers) > 1 or not wanted:
            continue
        labels = _classes(numbers[0], shown, region) if numbers else (0, *UNKNOWN)
        found.append((match.end(), labels))
    if named := _IN_PICTURE.search(text):  # only there is it known which picture is meant
        return [(named.end(), found[0][1])] if len(found) == 1 else []
    return found


def _classes(number: int, shown: Scene | Film, region: Region) -> tuple[int, ...]:
    thing = shown.things[number]
    both_sizes = isinstance(shown, Scene) and shown.has_both_sizes
    return (
        1,
        *_placed(thing, shown, region),
        KINDS.index(thing.shape) + 1,
        list(COLORS).index(thing.color) + 1,
        1 + thing.large if both_sizes else IGNORED,
        _digit(thing),
        IGNORED,
        *(_does(shown, number, region) if isinstance(shown, Film) else (IGNORED,) * len(DOES)),
    )


def _placed(thing: Thing, shown: Scene | Film, region: Region) -> tuple[int, int, int, int]:
    """Row and column in the region, and thirds of the picture."""
    return _at(thing.y, thing.x, shown, region)


def _at(y: int, x: int, shown: Shown, region: Region) -> tuple[int, int, int, int]:
    height, width = shown.rows * TOKEN_PX, shown.columns * TOKEN_PX
    row, column = y * region.rows // height, x * region.columns // width
    return row, column, 3 * y // height, 3 * x // width


def _digit(thing: Thing) -> int:
    return 0 if thing.digit is None else int(thing.digit) + 1


def _does(film: Film, number: int, region: Region) -> tuple[int, ...]:
    """What a thing does, from which frame on, the colour that it turns, and its last place."""
    thing, event = film.things[number], film.events[number]
    color = list(COLORS).index(event.color) if event.color else IGNORED
    start = event.start if event.kind != "stays" else IGNORED
    last = moved(thing, event, film.frames - 1) or thing
    kind = EVENTS.index(event.direction or event.kind)
    return IGNORED, kind, min(start, LONGEST_FILM - 1), color, *_placed(last, film, region)


def classes_loss(logits: Tensor, labels: Tensor, parts: tuple[int, ...]) -> tuple[Tensor, float]:
    """Mean over the `parts` that have labels of the cross-entropy, and the share that is right.

    Args:
        logits: [m, sum of parts]
        labels: [m, number of parts], IGNORED where unknown
        parts: how many classes each column of the labels has.
    """
    losses: list[Tensor] = []
    right = known = 0
    for index, part in enumerate(logits.float().split(parts, -1)):
        wanted = labels[:, index]
        some = wanted != IGNORED
        if not bool(some.any()):  # pictures have no events: the others count the more
            continue
        each = F.cross_entropy(part, wanted.clamp(min=0), reduction="none")
        losses.append((each * some).sum() / some.sum())
        right += int((part.argmax(-1) == wanted)[some].sum())
        known += int(some.sum())
    return torch.stack(losses).mean(), right / max(1, known)
