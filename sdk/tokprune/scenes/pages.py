"""Pages: forms of fields with values, and charts of bars with numbers."""

from dataclasses import dataclass
from random import Random
from typing import NamedTuple, TypeAlias

from tokprune.scenes.glyphs import STYLES
from tokprune.scenes.scene import COLORS, TOKEN_PX
from tokprune.scenes.signs import random_text
from tokprune.scenes.writing import Letter, letters, text_width

FIELDS = ("name", "date", "price", "total", "item", "year", "page", "time")
LETTER_PX = (18, 23)  # height of a letter
LINE = 1.7  # least distance of lines, in heights of a letter
FEWEST, MOST = 2, 8  # fields; bars are two or more
DARK_SHARE = 0.25  # of the pages are light on dark
EDGE_PX = 10
LEAST_STEP = 4  # between the numbers of two bars


class Field(NamedTuple):
    """One line of a form."""

    key: str  # one of FIELDS; no two lines share it
    value: str
    y: int  # centre line, pixels


class Bar(NamedTuple):
    """One bar of a chart, with its number above."""

    color: str  # no two bars share it
    number: int  # 10 to 99; its height is in proportion
    x: int  # centre, pixels
    top: int


@dataclass(frozen=True)
class Paper:
    """What every page has before it is drawn."""

    rows: int  # vision tokens
    columns: int
    style: str
    height: int  # of the letters, pixels
    dark: bool  # light on dark
    seed: int  # of the paper

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rows * TOKEN_PX, self.columns * TOKEN_PX


@dataclass(frozen=True)
class Form(Paper):
    """Fields with values, one below the other."""

    left: int  # where the names of the fields begin, pixels
    middle: int  # where the values begin
    fields: tuple[Field, ...]

    def key_letters(self, field: Field) -> tuple[Letter, ...]:
        """The characters of a field's name."""
        return letters(field.key.upper(), self.style, self.height, self.left, field.y)

    def value_letters(self, field: Field) -> tuple[Letter, ...]:
        """The characters of a field's value."""
        return letters(field.value, self.style, self.height, self.middle, field.y)


@dataclass(frozen=True)
class Chart(Paper):
    """Bars with numbers, side by side."""

    bars: tuple[Bar, ...]
    base: int  # bottom of the bars, pixels
    bar_width: int

    def number_letters(self, bar: Bar) -> tuple[Letter, ...]:
        """The digits above a bar."""
        width = text_width(str(bar.number), self.style, self.height)
        y = bar.top - round(0.8 * self.height)
        return letters(str(bar.number), self.style, self.height, bar.x - width // 2, y)


Page: TypeAlias = Form | Chart


def make_page(rng: Random, rows: int, columns: int) -> Page:
    """Make a form or a chart.

    Args:
        rng: source of all chance.
        rows: vision tokens, 5 or more.
        columns: vision tokens, 5 or more; a form has 6 or more.
    """
    form = columns >= 6 and rng.random() < 0.6
    return _form(rng, rows, columns) if form else _chart(rng, rows, columns)


def _form(rng: Random, rows: int, columns: int) -> Form:
    height, width = rows * TOKEN_PX, columns * TOKEN_PX
    letter, style = rng.randint(*LETTER_PX), rng.choice(STYLES)
    room = (height - 2 * EDGE_PX) // round(LINE * letter)
    count = rng.randint(FEWEST, min(MOST, room))
    pitch = rng.uniform(LINE * letter, (height - 2 * EDGE_PX) / count)
    top = rng.uniform(EDGE_PX, height - EDGE_PX - pitch * count)
    keys = rng.sample(FIELDS, count)
    values: list[str] = []
    while len(values) < count:
        value = str(rng.randint(10, 999)) if rng.random() < 0.5 else random_text(rng, 2, 3)
        values += [value] if value not in values else []
    while True:
        keys_width = max(text_width(key.upper(), style, letter) for key in keys)
        values_width = max(text_width(value, style, letter) for value in values)
        free = width - 2 * EDGE_PX - keys_width - values_width - letter
        if free >= 0:
            break
        letter -= 1  # a narrow page
    left = EDGE_PX + rng.randint(0, free // 2)
    middle = left + keys_width + letter + rng.randint(0, free // 2)
    lines = (round(top + pitch * (number + 0.5)) for number in range(count))
    return Form(
        rows=rows,
        columns=columns,
        style=style,
        height=letter,
        dark=rng.random() < DARK_SHARE,
        left=left,
        middle=middle,
        fields=tuple(map(Field, keys, values, lines)),
        seed=rng.randrange(2**31),
    )


def _chart(rng: Random, rows: int, columns: int) -> Chart:
    height, width = rows * TOKEN_PX, columns * TOKEN_PX
    letter, style = rng.randint(*LETTER_PX), rng.choice(STYLES)
    widest = text_width("00", style, letter) + 8
    dark = rng.random() < DARK_SHARE
    colors = [color for color in COLORS if dark or color != "white"]  # of the paper
    count = rng.randint(FEWEST, min(len(colors), (width - 2 * EDGE_PX) // widest))
    pitch = (width - 2 * EDGE_PX) / count
    base = height - EDGE_PX - rng.randint(0, height // 8)
    tallest = base - EDGE_PX - 2 * letter
    numbers: list[int] = []
    while len(numbers) < count:
        number = rng.randint(10, 99)
        if all(abs(number - other) >= LEAST_STEP for other in numbers):
            numbers.append(number)
    scale = tallest / max(numbers) * rng.uniform(0.8, 1.0)
    bars = tuple(
        Bar(
            color=color,
            number=number,
            x=round(EDGE_PX + pitch * (place + 0.5)),
            top=base - max(4, round(scale * number)),
        )
        for place, (color, number) in enumerate(
            zip(rng.sample(colors, count), numbers, strict=True)
        )
    )
    return Chart(
        rows=rows,
        columns=columns,
        style=style,
        height=letter,
        dark=dark,
        bars=bars,
        base=base,
        bar_width=round(min(pitch * rng.uniform(0.45, 0.75), 44)),
        seed=rng.randrange(2**31),
    )
