"""The shipped Qwen2-VL answers in fewer bits what it answers in float32."""

from collections.abc import Callable
from pathlib import Path

import pytest

import tokprune
from tokprune.scenes import suite

pytestmark = [pytest.mark.torch, pytest.mark.demo]
QUESTIONS = 40


@pytest.mark.parametrize(
    ("precision", "same"),
    [
        pytest.param("fp16", 40, marks=pytest.mark.soak),
        pytest.param("int8", 36, marks=pytest.mark.soak),
        ("int4", 34),
    ],
)
def test_answers_in_fewer_bits_are_those_of_float32(
    demo_bundles: Callable[..., Path], precision: str, same: int
) -> None:
    """Of 100 questions, 100 had the same text in float16, 95 in int8, 91 in int4."""
    wide = tokprune.load(demo_bundles("qwen2_vl"))
    narrow = tokprune.load(demo_bundles("qwen2_vl", precision))
    alike = [
        len({vlm.ask(list(one.pictures), one.question, 0.25).text for vlm in (wide, narrow)}) == 1
        for one in suite("dev", QUESTIONS)
    ]
    assert sum(alike) >= same
