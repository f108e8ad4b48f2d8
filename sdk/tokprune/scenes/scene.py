"""What stands in a drawn picture: coloured shapes, some with a digit, and signs with text."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tokprune.scenes.signs import Sign, place_signs, touches

COLORS = {
    "red": (215, 35, 35),
    "green": (35, 160, 55),
    "blue": (40, 75, 225),
    "yellow": (240, 220, 45),
    "purple": (140, 50, 175),
    "orange": (245, 140, 25),
    "cyan": (45, 205, 220),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
TOKEN_PX = 28  # side of one vision token of the demo VLMs
DIGIT_PX = 16  # the lowest digit that a small encoder learns to read
DIGIT_SHARE = 0.9  # height of a digit over the radius of its shape
SMALL_PX, LARGE_PX = (10.0, 13.0), (19.0, 24.0)  # radius bands at scale 1
CROWD = (20, 28)  # things of a crowded picture
CROWD_SCALE = (0.8, 1.0)
CROWD_TOKENS = 196  # that a crowded picture has at least


@dataclass(frozen=True)
class Thing:
    """One shape. Its size is relative: large or small within its picture."""

    color: str
    shape: str
    large: bool
    radius: int  # pixels
    x: int  # centre, pixels
    y: int
    digit: str | None
    rotation: int  # degrees

    @property
    def name(self) -> str:
        """What questions call it; unique in its picture."""
        return f"{self.color} {self.shape}"

    @property
    def size(self) -> str:
        """Large or small."""
        return "large" if self.large else "small"


@dataclass(frozen=True)
class Scene:
    """One picture before it is drawn."""

    rows: int  # vision tokens
    columns: int
    scale: float  # of all things
    things: tuple[Thing, ...]
    seed: int  # of the background
    signs: tuple[Sign, ...] = ()

    @property
    def dense(self) -> bool:
        """Whether it is crowded: little of it can go."""
        return len(self.things) >= CROWD[0]

    @property
    def has_both_sizes(self) -> bool:
        """Size is relative: only then large and small mean something."""
        return len({thing.large for thing in self.things}) == 2

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rows * TOKEN_PX, self.columns * TOKEN_PX


def things_range(rows: int, columns: int) -> tuple[int, int]:
    """How many things a picture of this many vision tokens holds: mostly background."""
    tokens = rows * columns
    if tokens <= 16:
        return 1, 3
    if tokens <= 36:
        return 2, 5
    if tokens <= 100:
        return 2, 6
    return 3, 8 if tokens <= 256 else 12


def make_scene(
    rng: Random,
    rows: int,
    columns: int,
    shared: Sequence[Thing] = (),
    *,
    signs: int = 0,
    crowded: bool = False,
) -> Scene:
    """Place things apart from each other, every (colour, shape) once.

    Args:
        rng: source of all chance.
        rows: vision tokens.
        columns: vision tokens.
        shared: things whose colour and shape shall occur here as well.
        signs: how many signs stand among them; fewer where there is no room.
        crowded: 20 things or more, on 196 vision tokens or more.
    """
    height, width = rows * TOKEN_PX, columns * TOKEN_PX
    low, high = CROWD if crowded else things_range(rows, columns)
    wanted = rng.randint(low, high)
    scale = rng.uniform(*CROWD_SCALE) if crowded else _scale(rng, rows * columns)
    colors = rng.sample(list(COLORS), rng.randint(3, 6))
    shapes = rng.sample(SHAPES, rng.randint(2, 5))
    plates = place_signs(rng, signs, (height, width), list(COLORS)) if signs else ()
    things: list[Thing] = []
    waiting = [(thing.color, thing.shape) for thing in shared]
    for attempt in range(1000 if crowded else 240):
        if len(things) == wanted:
            break
        if attempt == 60:
            colors, shapes = list(COLORS), list(SHAPES)
        color, shape = waiting[0] if waiting else (rng.choice(colors), rng.choice(shapes))
        thing = _place(rng, color, shape, scale, height, width)
        if thing is not None and _free(thing, things, plates):
            things.append(thing)
            waiting = waiting[1:]
    if len(things) < (low if crowded else 1) or len(plates) < min(signs, 1):
        return make_scene(rng, rows, columns, shared, signs=signs, crowded=crowded)
    rng.shuffle(things)
    return Scene(rows, columns, scale, tuple(things), rng.randrange(2**31), plates)


def _scale(rng: Random, tokens: int) -> float:
    """Mostly near 1, sometimes half or one and a half, so that down-sampled pictures look known."""
    if tokens <= 36:
        return rng.uniform(0.9, 1.1)
    draw = rng.random()
    if draw < 0.06:
        return rng.uniform(0.5, 0.7)
    if draw < 0.16:
        return rng.uniform(0.7, 0.85)
    if draw < 0.26:
        return rng.uniform(1.2, 1.5)
    return rng.uniform(0.85, 1.2)


def _place(
    rng: Random, color: str, shape: str, scale: float, height: int, width: int
) -> Thing | None:
    large = rng.random() < 0.6
    radius = round(scale * rng.uniform(*(LARGE_PX if large else SMALL_PX)))
    margin = radius + 3
    if 2 * margin >= min(height, width):
        return None
    numbered = large and round(radius * DIGIT_SHARE) >= DIGIT_PX and rng.random() < 0.65
    angle = 0
    if shape != "circle":
        angle = rng.choice(
            (-8, -4, 0, 4, 8) if shape == "diamond" else (-15, -10, -5, 0, 5, 10, 15)
        )
    return Thing(
        color=color,
        shape=shape,
        large=large,
        radius=radius,
        x=rng.randint(margin, width - margin - 1),
        y=rng.randint(margin, height - margin - 1),
        digit=str(rng.randint(0, 9)) if numbered else None,
        rotation=angle,
    )


def _free(thing: Thing, things: Sequence[Thing], signs: Sequence[Sign]) -> bool:
    beside = all(_apart(thing, other) for other in things)
    return beside and not any(touches(sign, thing.x, thing.y, thing.radius) for sign in signs)


def _apart(one: Thing, other: Thing) -> bool:
    if (one.color, one.shape) == (other.color, other.shape):
        return False
    gap = one.radius + other.radius + 3
    return (one.x - other.x) ** 2 + (one.y - other.y) ** 2 >= gap * gap
