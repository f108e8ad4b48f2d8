"""Which thing a phrase of a question means: labels for the dense auxiliary task of the LLM.

A question gives one or two tokens of supervision, too few for a small model to find out soon that
"the green circle" is to be looked up in the picture. So two throw-away heads ask on the way: every
vision token for its own row and column, and the last token of every phrase for the thing it means.
"""

import re

import torch
import torch.nn.functional as F  # noqa: N812
from cells import CLASSES, IGNORED
from torch import Tensor

from tokprune.scenes import Scene
from tokprune.scenes.scene import COLORS, SHAPES, TOKEN_PX, Thing

LONGEST_SIDE = 20  # vision tokens
PLACE = (LONGEST_SIDE, LONGEST_SIDE)  # row and column of a token
# Is there such a thing; its row and column, its thirds of the picture, and what it is.
REFERENT = (2, *PLACE, 3, 3, *CLASSES)
UNKNOWN = (IGNORED,) * (len(REFERENT) - 1)
_PHRASE = re.compile(
    rf"(?:(?P<size>large|small) )?(?:(?P<color>{'|'.join(COLORS)}) )?"
    rf"(?P<shape>{'|'.join(SHAPES)}|shape)\b(?: with digit (?P<digit>\d)| has digit (?P<has>\d)"
    rf"| is (?P<is>{'|'.join(COLORS)})\b)?"
)
_IN_PICTURE = re.compile(r" in the (?:first|second|third) picture")


def find_referents(text: str, scene: Scene) -> list[tuple[int, tuple[int, ...]]]:
    """Where each phrase ends, and the classes of what it means; not of phrases for several."""
    found: list[tuple[int, tuple[int, ...]]] = []
    for match in _PHRASE.finditer(text):
        said = match.groupdict()
        shape = None if said["shape"] == "shape" else said["shape"]
        color, digit = said["color"] or said["is"], said["digit"] or said["has"]
        wanted = {"size": said["size"], "color": color, "shape": shape, "digit": digit}
        wanted = {name: value for name, value in wanted.items() if value}
        things = [
            thing
            for thing in scene.things
            if all(getattr(thing, name) == value for name, value in wanted.items())
        ]
        if len(things) > 1 or not wanted:
            continue
        labels = _classes(things[0], scene) if things else (0, *UNKNOWN)
        found.append((match.end(), labels))
    if named := _IN_PICTURE.search(text):  # only there is it known which picture is meant
        return [(named.end(), found[0][1])] if len(found) == 1 else []
    return found


def _classes(thing: Thing, scene: Scene) -> tuple[int, ...]:
    height, width = scene.size_hw
    return (
        1,
        thing.y // TOKEN_PX,
        thing.x // TOKEN_PX,
        3 * thing.y // height,
        3 * thing.x // width,
        SHAPES.index(thing.shape) + 1,
        list(COLORS).index(thing.color) + 1,
        1 + thing.large if scene.has_both_sizes else IGNORED,
        0 if thing.digit is None else int(thing.digit) + 1,
    )


def classes_loss(logits: Tensor, labels: Tensor, parts: tuple[int, ...]) -> tuple[Tensor, float]:
    """Mean over `parts` of the cross-entropy, and the share of labels that are right.

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
        each = F.cross_entropy(part, wanted.clamp(min=0), reduction="none")
        losses.append((each * some).sum() / some.sum().clamp(min=1))
        right += int((part.argmax(-1) == wanted)[some].sum())
        known += int(some.sum())
    return torch.stack(losses).mean(), right / max(1, known)
