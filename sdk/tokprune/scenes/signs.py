"""Signs in a scene: plates of one colour with a few characters."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tokprune.scenes.glyphs import STYLES
from tokprune.scenes.writing import Letter, letters, text_width

SIGN_CHARACTERS = "0123456789ABCDEFGHJKLMNPRTUVWXYZ"  # none that looks like another but 2 and Z
SHORTEST, LONGEST = 2, 4  # characters
LETTER_PX = (18, 25)  # height of a letter
MARGIN = 0.4  # around the text, of a letter's height


@dataclass(frozen=True)
class Sign:
    """One sign."""

    color: str  # of the plate; no two signs of a picture share it
    text: str
    style: str
    height: int  # of the letters, pixels
    x: int  # centre, pixels
    y: int

    @property
    def letters(self) -> tuple[Letter, ...]:
        """The characters where they stand."""
        left = self.x - text_width(self.text, self.style, self.height) // 2
        return letters(self.text, self.style, self.height, left, self.y)

    @property
    def half_hw(self) -> tuple[int, int]:
        """Half of the plate's height and width, pixels."""
        margin = round(MARGIN * self.height)
        width = text_width(self.text, self.style, self.height)
        return self.height // 2 + margin, width // 2 + margin

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The plate's top, left, bottom and right, pixels."""
        down, right = self.half_hw
        return self.y - down, self.x - right, self.y + down, self.x + right


def random_text(rng: Random, shortest: int = SHORTEST, longest: int = LONGEST) -> str:
    """Draw some characters."""
    return "".join(rng.choice(SIGN_CHARACTERS) for _ in range(rng.randint(shortest, longest)))


def place_signs(
    rng: Random, count: int, size_hw: tuple[int, int], colors: Sequence[str]
) -> tuple[Sign, ...]:
    """Place signs apart from each other; fewer where there is no room."""
    height, width = size_hw
    free = rng.sample(colors, len(colors))
    placed: list[Sign] = []
    for _ in range(30 * count):
        if len(placed) == count:
            break
        sign = Sign(
            color=free[len(placed)],
            text=random_text(rng),
            style=rng.choice(STYLES),
            height=rng.randint(*LETTER_PX),
            x=rng.randrange(width),
            y=rng.randrange(height),
        )
        top, left, bottom, right = sign.box
        inside = top >= 2 and left >= 2 and bottom <= height - 2 and right <= width - 2
        if inside and all(_apart(sign, other) for other in placed):
            placed.append(sign)
    return tuple(placed)


def _apart(one: Sign, other: Sign) -> bool:
    if one.text == other.text:
        return False
    (top, left, bottom, right), (t, le, b, r) = one.box, other.box
    return bottom + 3 < t or b + 3 < top or right + 3 < le or r + 3 < left


def touches(sign: Sign, x: int, y: int, radius: int) -> bool:
    """Tell whether a circle comes near a sign."""
    down, right = sign.half_hw
    dy, dx = max(abs(y - sign.y) - down, 0), max(abs(x - sign.x) - right, 0)
    return dy * dy + dx * dx < (radius + 3) ** 2
