"""Questions about one scene or page, or about two scenes, with the answers that were drawn."""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from tokprune.scenes.scene import COLORS, SHAPES, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
           "eleven", "twelve")  # fmt: skip
ORDINALS = ("first", "second", "third")
PLURALS = {shape: f"{shape}s" for shape in SHAPES} | {"cross": "crosses"}
MARGIN_PX = 12  # relations and places nearer than this to a tie are not asked


class Question(NamedTuple):
    """What is asked, what was drawn, and the type of it."""

    text: str
    answer: str
    group: str


Maker = Callable[[Random, Scene], Question | None]
LARGEST_COUNT = len(NUMBERS) - 1


def _alone(things: Sequence[Thing], key: Callable[[Thing], object]) -> list[Thing]:
    """Things that no other shares the key with."""
    counts = Counter(key(thing) for thing in things)
    return [thing for thing in things if counts[key(thing)] == 1]


def _pick(rng: Random, things: Sequence[Thing]) -> Thing | None:
    return rng.choice(things) if things else None


def _color(rng: Random, scene: Scene) -> Question | None:
    draw = rng.random()
    if draw < 0.5:
        if thing := _pick(rng, _alone(scene.things, lambda t: t.shape)):
            return Question(f"what color is the {thing.shape}?", thing.color, "color")
    elif draw < 0.75 and scene.has_both_sizes:
        if thing := _pick(rng, _alone(scene.things, lambda t: (t.shape, t.large))):
            text = f"what color is the {thing.size} {thing.shape}?"
            return Question(text, thing.color, "color")
    else:
        numbered = [thing for thing in _alone(scene.things, lambda t: t.digit) if thing.digit]
        if thing := _pick(rng, numbered):
            text = f"what color is the shape with digit {thing.digit}?"
            return Question(text, thing.color, "color")
    return None


def _shape(rng: Random, scene: Scene) -> Question | None:
    draw = rng.random()
    if draw < 0.5:
        if thing := _pick(rng, _alone(scene.things, lambda t: t.color)):
            return Question(f"what shape is {thing.color}?", thing.shape, "shape")
    elif draw < 0.75 and scene.has_both_sizes:
        if thing := _pick(rng, _alone(scene.things, lambda t: (t.color, t.large))):
            text = f"what is the {thing.size} {thing.color} shape?"
            return Question(text, thing.shape, "shape")
    else:
        numbered = [thing for thing in _alone(scene.things, lambda t: t.digit) if thing.digit]
        if thing := _pick(rng, numbered):
            return Question(f"what shape has digit {thing.digit}?", thing.shape, "shape")
    return None


def _size(rng: Random, scene: Scene) -> Question | None:
    if not scene.has_both_sizes:
        return None
    large = rng.random() < 0.5  # both answers equally often
    thing = rng.choice([thing for thing in scene.things if thing.large == large])
    return Question(f"is the {thing.name} large or small?", thing.size, "size")


def _exist(rng: Random, scene: Scene) -> Question | None:
    thing = rng.choice(scene.things)
    if rng.random() < 0.5:
        return Question(f"is there {with_article(thing.name)}?", "yes", "exist")
    present = {(thing.color, thing.shape) for thing in scene.things}
    for _ in range(20):
        near = [(thing.color, rng.choice(SHAPES)), (rng.choice(list(COLORS)), thing.shape)]
        color, shape = rng.choice(near)
        if rng.random() < 0.3:
            color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        if (color, shape) not in present:
            return Question(f"is there {with_article(f'{color} {shape}')}?", "no", "exist")
    return None


def _digit(rng: Random, scene: Scene) -> Question | None:
    thing = _pick(rng, [thing for thing in scene.things if thing.digit])
    if thing is None or thing.digit is None:
        return None
    only = sum(other.shape == thing.shape for other in scene.things) == 1
    name = thing.shape if only and rng.random() < 0.4 else thing.name
    return Question(f"what digit is on the {name}?", thing.digit, "digit")


def _position(rng: Random, scene: Scene) -> Question | None:
    thing = rng.choice(scene.things)
    height, width = scene.size_hw
    row, column = _third(thing.y, height), _third(thing.x, width)
    if row is None or column is None:
        return None
    place = f"{('top', 'middle', 'bottom')[row]} {('left', 'center', 'right')[column]}"
    return Question(f"where is the {thing.name}?", place, "position")


def _third(value: int, span: int) -> int | None:
    """Which third of the picture, unless that is too close to tell."""
    if min(abs(value - span / 3), abs(value - 2 * span / 3)) < 5:
        return None
    return min(2, int(value / span * 3))


def _count(rng: Random, scene: Scene) -> Question | None:
    draw = rng.random()
    number = len(scene.things)
    if draw < 0.2 and number <= LARGEST_COUNT:
        return Question("how many shapes are there?", NUMBERS[number], "count")
    if draw < 0.6:
        counts = {shape: sum(t.shape == shape for t in scene.things) for shape in SHAPES}
        names = PLURALS
    else:
        counts = {color: sum(t.color == color for t in scene.things) for color in COLORS}
        names = {color: f"{color} shapes" for color in COLORS}
    number = rng.choice(sorted(set(counts.values())))
    kind = rng.choice([kind for kind, count in counts.items() if count == number])
    return Question(f"how many {names[kind]} are there?", NUMBERS[number], "count")


def _beside(rng: Random, scene: Scene) -> Question | None:
    thing = rng.choice(scene.things)
    word, axis, sign = rng.choice(_DIRECTIONS)
    gaps = [
        (sign * (getattr(other, axis) - getattr(thing, axis)), other)
        for other in scene.things
        if other is not thing
    ]
    near = [(gap, other) for gap, other in gaps if gap > -10]
    if len(near) != 1 or near[0][0] < MARGIN_PX:
        return None
    return Question(f"what is {word} the {thing.name}?", near[0][1].name, "relation")


def _is_beside(rng: Random, scene: Scene) -> Question | None:
    if len(scene.things) < 2:
        return None
    one, other = rng.sample(scene.things, 2)
    word, axis, sign = rng.choice(_DIRECTIONS)
    gap = sign * (getattr(one, axis) - getattr(other, axis))
    if abs(gap) < MARGIN_PX + 2:
        return None
    text = f"is the {one.name} {word} the {other.name}?"
    return Question(text, "yes" if gap > 0 else "no", "relation")


def _text(rng: Random, scene: Scene) -> Question | None:
    if not scene.signs:
        return None
    sign = rng.choice(scene.signs)
    if rng.random() < 0.2:
        return Question(f"what color is the sign with {sign.text}?", sign.color, "text")
    name = f"{sign.color} sign" if len(scene.signs) > 1 or rng.random() < 0.5 else "sign"
    return Question(f"what does the {name} say?", sign.text, "text")


_DIRECTIONS = (("left of", "x", -1), ("right of", "x", 1), ("above", "y", -1), ("below", "y", 1))
MAKERS: dict[str, Maker] = {
    "color": _color,
    "shape": _shape,
    "size": _size,
    "exist": _exist,
    "digit": _digit,
    "position": _position,
    "count": _count,
    "beside": _beside,
    "is_beside": _is_beside,
    "text": _text,
}
# The task groups about one scene, and the kinds of question that each has in turn. Sizes are asked
# in the training only.
KINDS: dict[str, tuple[str, ...]] = {
    "color": ("color",),
    "shape": ("shape",),
    "exist": ("exist",),
    "count": ("count",),
    "position": ("position",),
    "relation": ("beside", "is_beside"),
    "digit": ("digit",),
    "text": ("text",),
}


def ask(rng: Random, scene: Scene, kinds: Sequence[str], count: int) -> list[Question]:
    """Return up to `count` different questions, over the kinds (of MAKERS) in turn."""
    found: list[Question] = []
    for attempt in range(8 * count):
        if len(found) == count:
            break
        question = MAKERS[kinds[attempt % len(kinds)]](rng, scene)
        if question is not None and question not in found:
            found.append(question)
    return found


def describe(scene: Scene) -> Question:
    """Everything in the picture, from left to right: an auxiliary task of the training."""
    things = sorted(scene.things, key=lambda thing: thing.x)
    sizes = [f"{thing.size} " if scene.has_both_sizes else "" for thing in things]
    digits = [f" {thing.digit}" if thing.digit else "" for thing in things]
    words = [f"{size}{t.name}{digit}" for size, t, digit in zip(sizes, things, digits, strict=True)]
    words += [f"{sign.color} sign {sign.text}" for sign in scene.signs]
    return Question("describe the image.", "; ".join(words), "caption")


def compare(rng: Random, scenes: Sequence[Scene]) -> Question | None:
    """Ask about two or three pictures at once."""
    names = [{thing.name for thing in scene.things} for scene in scenes]
    which = rng.randrange(len(scenes))
    draw = rng.random()
    if draw < 0.2:
        text = f"how many shapes are in the {ORDINALS[which]} picture?"
        return Question(text, NUMBERS[len(names[which])], "compare")
    if draw < 0.4 and len(scenes) == 2:
        if len(names[0]) == len(names[1]):
            return None
        answer = ORDINALS[0 if len(names[0]) > len(names[1]) else 1]
        return Question("which picture has more shapes?", answer, "compare")
    if draw < 0.65 and len(scenes) == 2:
        return _in_both(rng, names[0], names[1])
    others = {name for index in range(len(scenes)) if index != which for name in names[index]}
    only = sorted(names[which] - others)
    if not only:
        return None
    return Question(
        f"which picture has {with_article(rng.choice(only))}?", ORDINALS[which], "compare"
    )


def _in_both(rng: Random, first: set[str], second: set[str]) -> Question | None:
    yes = rng.random() < 0.5
    names = sorted(first & second if yes else first ^ second)
    if not names:
        return None
    text = f"is there {with_article(rng.choice(names))} in both pictures?"
    return Question(text, "yes" if yes else "no", "compare")


def in_picture(question: Question, which: int) -> Question:
    """The same question about one of several pictures; they count from 0."""
    text = f"{question.text.removesuffix('?')} in the {ORDINALS[which]} picture?"
    return question._replace(text=text)


def with_article(name: str) -> str:
    """Return a thing's name with a or an."""
    return f"{'an' if name[0] == 'o' else 'a'} {name}"
