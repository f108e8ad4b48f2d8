"""Budgets in time and the vision encoder: how much of a picture there is time to encode."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import sleep

import msgspec
import numpy as np
import pytest
from timed_machine import calibration

import tokprune
from tokprune import Answer, Auto, BudgetImpossible, Deadline, Following, KeepMass
from tokprune.budgets import BudgetLike
from tokprune.model import Model
from tokprune.scenes import suite
from tokprune.timing.calibrations import Curve
from tokprune.timing.latency import Latency
from tokprune.types import Images, Media, Prepared
from tokprune.vlm import VLM

pytestmark = pytest.mark.demo
TOTAL = 196
ENCODER = 4000.0  # ms on paper that the encoder takes of a whole picture of 196 tokens
VALUES = 4 * 1176  # that the encoder is fed of a token


@pytest.fixture(scope="module")
def model(demo_bundles: Callable[..., Path]) -> Iterator[Model]:
    with tokprune.load(demo_bundles("qwen2_vl"), backend="cpu", threads=1) as vlm:
        yield vlm.model


def ask(
    model: Model,
    asked: tuple[Images, str],
    budget: BudgetLike,
    encode: str | Following = "full",
) -> Answer:
    """Ask the demo Qwen2-VL by the clock of an encoder that is 100 times as slow.

    What it learned of one request would be of another machine, so each has a clock of its own.
    """
    measured = calibration()
    measured.stages["vision"] = Curve(1.0, ENCODER / TOTAL / VALUES, 0.0, 1.1, [])
    with VLM(model, latency=Latency(measured), vision_cache_bytes=0) as vlm:
        return vlm.ask(*asked, budget, encode=encode)


@pytest.fixture(scope="module")
def question() -> tuple[Images, str]:
    sample = next(iter(suite("dev", 1, tokens=TOTAL, groups=("color",))))
    return sample.pictures, sample.question


def test_a_deadline_that_the_whole_encoder_misses_is_met_by_two_looks(
    model: Model, question: tuple[Images, str]
) -> None:
    with pytest.raises(BudgetImpossible):
        ask(model, question, Deadline(3000))
    encoded: list[int] = []
    for ttft_ms in (1800, 2600):
        answer = ask(model, question, Deadline(ttft_ms), "coarse")
        assert answer.encode == "coarse"
        assert answer.kept == answer.encoded - 49
        on_paper = answer.kept / TOTAL * ENCODER  # the first look took no time worth mentioning
        assert 0.6 * ttft_ms < on_paper < ttft_ms, "the time is used"
        encoded.append(answer.encoded)
    assert encoded[0] + 20 < encoded[1] < TOTAL


def test_the_whole_is_looked_at_where_that_keeps_no_fewer(
    model: Model, question: tuple[Images, str]
) -> None:
    answer = ask(model, question, Deadline(60_000), "coarse")
    assert (answer.encode, answer.encoded) == ("coarse", TOTAL)
    assert "time to look at everything" in answer.encode_reason


def test_auto_looks_twice_only_where_it_must(model: Model, question: tuple[Images, str]) -> None:
    assert ask(model, question, Deadline(60_000), "auto").encode == "full"
    must = ask(model, question, Deadline(2600), "auto")
    assert (must.encode, must.total) == ("coarse", TOTAL)
    assert ask(model, question, 0.25, "auto").encode == "full"


def test_what_even_two_looks_miss_is_refused_or_late(
    model: Model, question: tuple[Images, str]
) -> None:
    with pytest.raises(BudgetImpossible, match="with 16 vision tokens"):
        ask(model, question, Deadline(1000), "coarse")
    late = ask(model, question, Deadline(300, best_effort=True), "coarse")
    assert (late.encode, late.kept, late.encoded) == ("coarse", 16, 49 + 16)


def test_the_time_that_cutting_the_small_picture_took_counts(
    model: Model, question: tuple[Images, str]
) -> None:
    halved = model.processor.ways.halved
    assert halved is not None

    def slowly(media: Media) -> tuple[Prepared, ...]:
        sleep(2)
        return halved(media)

    ways = replace(model.processor.ways, halved=slowly)
    slow = replace(model, processor=replace(model.processor, ways=ways))
    with pytest.raises(BudgetImpossible) as caught:
        ask(slow, question, Deadline(1000), "coarse")
    expected = re.search(r"comes after (\d+) ms as a rule", str(caught.value))
    assert expected is not None
    assert int(expected[1]) >= 2000 + ENCODER * (49 + 16) / TOTAL


def test_parts_are_timed_by_their_own_curve(model: Model, question: tuple[Images, str]) -> None:
    """Where they cost twice as much as whole pictures do, half as many are encoded in time."""
    measured = calibration()
    measured.stages["vision"] = Curve(1.0, ENCODER / TOTAL / VALUES, 0.0, 1.1, [])
    twice = Curve(2.0, 2 * ENCODER / TOTAL / VALUES, 0.0, 1.1, [])
    kept: list[int] = []
    for parts in (None, twice):
        latency = Latency(msgspec.structs.replace(measured, parts=parts))
        with VLM(model, latency=latency, vision_cache_bytes=0) as vlm:
            answer = vlm.ask(*question, Deadline(2600), encode="coarse")
        assert answer.encode == "coarse"
        kept.append(answer.kept)
    assert kept[1] < 0.6 * kept[0]


def test_frames_that_are_followed_meet_deadlines_that_the_whole_encoder_misses(
    model: Model, question: tuple[Images, str]
) -> None:
    follow = Following(within=8)
    with pytest.raises(BudgetImpossible):
        ask(model, question, Deadline(1800), follow)  # the first frame is encoded as a whole
    assert ask(model, question, 0.25, follow).encoded == TOTAL
    answer = ask(model, question, Deadline(1800), follow)
    assert answer.encode == "follow"
    assert 28 < answer.encoded < 80  # 571 to 1633 ms on paper
    assert answer.kept > 16
    with pytest.raises(BudgetImpossible):
        ask(model, question, Deadline(500), follow)
    assert ask(model, question, Auto(1800, p=0.5), follow).encoded < 80


def test_relevance_and_time_together_encode_what_is_needed(
    model: Model, question: tuple[Images, str]
) -> None:
    need = ask(model, question, KeepMass(0.5), "coarse")
    assert need.kept == need.encoded - 49 < TOTAL / 2
    short = ask(model, question, Auto(2600, p=0.5), "coarse")
    assert short.kept <= need.kept
    assert np.isin(short.selection.keep, need.selection.keep).all()


def test_a_picture_too_small_for_two_looks_is_looked_at_once(model: Model) -> None:
    tiny = np.full((84, 84, 3), 128, np.uint8)
    answer = ask(model, ((tiny,), "what is it?"), Deadline(5000), "coarse")
    assert (answer.encoded, answer.total) == (9, 9)
    assert "no less than one" in answer.encode_reason
