"""What the latency model learns of a request that was refused after its second look."""

from math import exp
from time import sleep

import numpy as np
import pytest
from stub_model import Stub, a_vlm
from timed_machine import calibration

from tokprune import Auto, BudgetImpossible, Clip
from tokprune.timing.calibrations import Curve
from tokprune.timing.latency import Latency
from tokprune.timing.request_sizes import Sizes
from tokprune_runtimes import Interrupt

CALL_S = 0.04  # of the vision encoder
BUDGET_MS = 1000


def test_refusals_after_two_looks_teach_what_both_encoded() -> None:
    stub, measured = Stub(), calibration()
    measured.stages.update(dict.fromkeys(measured.stages, Curve(0.5, 0.0, 0.0, 1.1, [])))
    measured.stages["vision"] = Curve(1000 * CALL_S, 0.0, 0.0, 1.1, [])
    latency = Latency(measured)

    def at(graph: str, interrupt: Interrupt | None) -> None:
        if graph == "vision":
            sleep(CALL_S)  # as was measured
        if graph == "first_layer" and stub.runs["first_layer"] % 2 == 0:
            sleep(BUDGET_MS / 1000)  # a hiccup after the second look: the budget cannot be met

    stub.at = at
    clip = Clip(np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3)).astype(np.uint8), 4.0)
    with a_vlm(stub, latency=latency, vision_cache_bytes=0) as vlm:
        for number in range(1, 4):
            with pytest.raises(BudgetImpossible):
                vlm.ask(clip, "what?", Auto(BUDGET_MS), "attention", encode="lazy")
            assert stub.runs["first_layer"] == 2 * number  # it was refused after two looks
            assert stub.runs["vision"] > 3 * number
    level = latency.forecast(Sizes((1,), 1, 1, 1)).levels["vision"]
    assert exp(level) < 1.6  # as slow as measured; other programs may run beside it
