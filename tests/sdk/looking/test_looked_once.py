"""Budgets in time ask what the first look costs: it is made once, and its time is counted."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from time import sleep
from typing import Any

import numpy as np
import pytest
from stub_model import Stub, a_model, a_picture
from timed_machine import calibration

from tokprune import Auto, Clip, Following, KeepRatio, vision_cache
from tokprune.budgets import Budget
from tokprune.looking import Ways, following
from tokprune.timing.latency import Latency
from tokprune.vlm import VLM

COMPARISON_MS = 60.0


@pytest.fixture
def vlm() -> Iterator[VLM]:
    model = a_model(Stub())
    processor = replace(model.processor, ways=Ways(crops=True))
    with VLM(replace(model, processor=processor), latency=Latency(calibration())) as made:
        yield made


def counted(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, ms: float = 0.0
) -> list[object]:
    """Note every call of a function, which takes so much longer."""
    before: Callable[..., object] = getattr(module, name)
    calls: list[object] = []

    def noted(*given: object) -> object:
        calls.append(given)
        sleep(ms / 1000)
        return before(*given)

    monkeypatch.setattr(module, name, noted)
    return calls


@pytest.mark.parametrize("budget", [Auto(60_000), KeepRatio(0.5)])
def test_a_stream_is_compared_once_a_frame(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch, budget: Budget
) -> None:
    follow = Following(4)
    for number in range(1, 4):
        calls = counted(monkeypatch, following, "parts_of", COMPARISON_MS)
        answer = vlm.ask(a_picture(number), "what?", budget, "attention", encode=follow)
        monkeypatch.undo()
        assert len(calls) == 1
        assert answer.timings_ms["preprocess"] >= COMPARISON_MS


@pytest.mark.parametrize("budget", [Auto(60_000), KeepRatio(0.25)])
def test_every_frame_is_hashed_once(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch, budget: Budget
) -> None:
    clip = Clip(np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3)).astype(np.uint8), 4.0)
    hashes = counted(monkeypatch, vision_cache, "key_of")
    answer = vlm.ask(clip, "what?", budget, "attention", encode="lazy")
    assert answer.encode == "lazy"
    assert len(hashes) == answer.encoder_runs <= 8
