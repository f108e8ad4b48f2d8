"""Forms and charts: what is drawn can be read, and answers are true of it."""

from random import Random

import numpy as np
import pytest

from tokprune.scenes import ask_page, describe_page, draw, make_page
from tokprune.scenes.pages import Bar, Chart, Field, Form, Page
from tokprune.scenes.questions import NUMBERS

GRIDS = ((5, 5), (6, 6), (8, 8), (12, 8), (14, 14), (16, 13))
PAGES = [make_page(Random(f"pages/{i}"), *GRIDS[i % len(GRIDS)]) for i in range(90)]
FORMS = [page for page in PAGES if isinstance(page, Form)]
CHARTS = [page for page in PAGES if isinstance(page, Chart)]


def texts_of(page: Page) -> list[tuple]:
    if isinstance(page, Chart):
        return [page.number_letters(bar) for bar in page.bars]
    names = [page.key_letters(field) for field in page.fields]
    return names + [page.value_letters(field) for field in page.fields]


def test_there_are_forms_and_charts_and_no_page_is_both() -> None:
    assert len(FORMS) > 20
    assert len(CHARTS) > 20
    assert len(FORMS) + len(CHARTS) == len(PAGES)


@pytest.mark.parametrize("page", PAGES[:48])
def test_all_letters_are_inside_and_apart(page: Page) -> None:
    height, width = page.size_hw
    letters = [letter for text in texts_of(page) for letter in text]
    for number, one in enumerate(letters):
        assert one.width / 2 <= one.x <= width - one.width / 2
        assert one.height / 2 <= one.y <= height - one.height / 2
        for other in letters[:number]:
            across = abs(one.x - other.x) >= (one.width + other.width) / 2 - 1
            assert across or abs(one.y - other.y) >= one.height


@pytest.mark.parametrize("page", CHARTS[:24])
def test_bars_are_as_high_as_their_numbers(page: Chart) -> None:
    heights = [page.base - bar.top for bar in page.bars]
    numbers = [bar.number for bar in page.bars]
    assert np.argsort(heights).tolist() == np.argsort(numbers).tolist()
    assert len({bar.color for bar in page.bars}) == len(page.bars)
    ratios = np.array(heights) / np.array(numbers)
    np.testing.assert_allclose(ratios, ratios.mean(), atol=0.6 / min(numbers))


@pytest.mark.parametrize("page", FORMS[:24])
def test_fields_and_values_are_told_apart(page: Form) -> None:
    assert len({field.key for field in page.fields}) == len(page.fields)
    assert len({field.value for field in page.fields}) == len(page.fields)


def test_answers_are_true_of_the_page() -> None:
    kinds = set()
    for number, page in enumerate(PAGES):
        for question in ask_page(Random(number), page, 6):
            assert question.group == "document"
            words = question.text.removesuffix("?").split()
            kinds.add((words[0], words[1], words[3] if isinstance(page, Chart) else ""))
            assert _true(page, words) == question.answer, question
    assert len(kinds) >= 6  # each way of asking came


def _true(page: Page, words: list[str]) -> str:
    if words[0] == "how":
        return NUMBERS[len(page.fields if isinstance(page, Form) else page.bars)]
    if isinstance(page, Form):
        if words[0] == "which":
            return next(field.key for field in page.fields if field.value == words[-1])
        return next(field.value for field in page.fields if field.key == words[-1])
    if words[-1].isdigit():
        return next(bar.color for bar in page.bars if bar.number == int(words[-1]))
    if words[-2] in ("highest", "lowest"):
        best = max if words[-2] == "highest" else min
        return best(page.bars, key=lambda bar: bar.number).color
    return str(next(bar.number for bar in page.bars if bar.color == words[-2]))


def test_questions_about_one_page_differ() -> None:
    for page in PAGES[:20]:
        questions = ask_page(Random(0), page, 8)
        assert len(set(questions)) == len(questions) >= 3


def test_a_description_holds_everything() -> None:
    for page in PAGES[:30]:
        answer = describe_page(page).answer
        if isinstance(page, Form):
            assert all(f"{field.key} {field.value}" in answer for field in page.fields)
        else:
            assert all(f"{bar.color} bar {bar.number}" in answer for bar in page.bars)


PAPER: dict = {"rows": 6, "columns": 6, "style": "bold", "height": 20, "dark": False, "seed": 3}


def form_of(*fields: Field) -> Form:
    return Form(**PAPER, left=10, middle=100, fields=fields)


def chart_of(*bars: Bar) -> Chart:
    return Chart(**PAPER, bars=bars, base=150, bar_width=30)


def test_drawing_shows_ink_where_letters_stand() -> None:
    page = form_of(Field("name", "H7", 80))
    picture = draw(page).astype(int).mean(axis=2)
    for text in texts_of(page):
        for letter in text:
            y, x = letter.y - letter.height // 2, letter.x - letter.width // 2
            assert picture[y : y + letter.height, x : x + letter.width].min() < 80
    assert np.median(picture) > 170


def test_drawing_shows_bars_in_their_colours() -> None:
    picture = draw(chart_of(Bar("red", 50, 40, 60), Bar("blue", 20, 120, 110))).astype(int)
    assert picture[120, 40, 0] > picture[120, 40, 2] + 80
    assert picture[140, 120, 2] > picture[140, 120, 0] + 80
    assert picture[80, 120].min() > 150  # above the lower bar is paper


def test_drawing_is_deterministic_and_fills_the_grid() -> None:
    for page in PAGES[:6]:
        picture = draw(page)
        assert picture.shape == (*page.size_hw, 3)
        np.testing.assert_array_equal(picture, draw(page))
