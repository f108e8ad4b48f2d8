"""The shipped demo bundle answers held-out scenes."""

from pathlib import Path

import pytest

import tokprune
from tokprune.scenes import suite

pytestmark = [pytest.mark.torch, pytest.mark.demo]
FLOOR = 0.88  # of 120 mixed test scenes; the card has the figures
SHARE_AT_A_QUARTER = 0.92  # of the full accuracy, by the bundle's default selector


def accuracy(vlm: tokprune.VLM, budget: float) -> float:
    answers = [
        vlm.ask(list(sample.pictures), sample.question, budget, max_new_tokens=8).text
        == sample.answer
        for sample in suite("test", 120)
    ]
    return sum(answers) / len(answers)


def test_answers_stay_above_the_floor_unpruned_and_at_a_quarter(demo_bundle: Path) -> None:
    vlm = tokprune.load(demo_bundle)
    full = accuracy(vlm, 1.0)
    assert full >= FLOOR
    assert accuracy(vlm, 0.25) >= SHARE_AT_A_QUARTER * full
