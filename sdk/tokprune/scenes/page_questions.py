"""Questions about a form or a chart, with the answers that were drawn."""

from random import Random

from tokprune.scenes.pages import Chart, Form, Page
from tokprune.scenes.questions import NUMBERS, Question


def ask_page(rng: Random, page: Page, count: int) -> list[Question]:
    """Return up to `count` different questions."""
    found: list[Question] = []
    for _ in range(8 * count):
        if len(found) == count:
            break
        question = _form(rng, page) if isinstance(page, Form) else _chart(rng, page)
        if question not in found:
            found.append(question)
    return found


def _form(rng: Random, page: Form) -> Question:
    field = rng.choice(page.fields)
    draw = rng.random()
    if draw < 0.65:
        return Question(f"what is the {field.key}?", field.value, "document")
    if draw < 0.9:
        return Question(f"which field is {field.value}?", field.key, "document")
    return Question("how many fields are there?", NUMBERS[len(page.fields)], "document")


def _chart(rng: Random, page: Chart) -> Question:
    bar = rng.choice(page.bars)
    draw = rng.random()
    if draw < 0.5:
        text = f"what is the value of the {bar.color} bar?"
        return Question(text, str(bar.number), "document")
    if draw < 0.7:
        return Question(f"what color is the bar with {bar.number}?", bar.color, "document")
    if draw < 0.9:
        highest = rng.random() < 0.5
        best = (max if highest else min)(page.bars, key=lambda each: each.number)
        text = f"what color is the {'highest' if highest else 'lowest'} bar?"
        return Question(text, best.color, "document")
    return Question("how many bars are there?", NUMBERS[len(page.bars)], "document")


def describe_page(page: Page) -> Question:
    """All of it, in reading order: an auxiliary task of the training."""
    if isinstance(page, Form):
        words = [f"{field.key} {field.value}" for field in page.fields]
    else:
        words = [f"{bar.color} bar {bar.number}" for bar in page.bars]
    return Question("describe the image.", "; ".join(words), "caption")
