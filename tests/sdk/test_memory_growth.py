"""The promise "memory growth: 20,000 queries with mixed budgets and sizes" (robots.md).

Growth after the warm-up stays below 1 % and 8 MB, threads and open files stay as they are. The
warm-up begins with the largest requests: arenas of ONNX Runtime and malloc keep the size that they
once needed, which is no leak. tests/memory_growth.py says what is asked.
"""

from pathlib import Path

import pytest
from grown import counts, faults, measured


@pytest.mark.demo
@pytest.mark.parametrize("requests", counts(20_000))
def test_requests_of_every_kind_leave_nothing_behind(requests: int, demo_bundle: Path) -> None:
    found = measured(str(demo_bundle), requests)
    assert not faults(found), found
    ends = found["ends"]
    assert sum(ends.values()) == requests
    assert {"ask", "chat", "choose", "pin", "dropped", "waiting", "several"} <= set(ends)
    assert any("cancelled" in end.split()[1:] for end in ends)
    assert any("deadline_exceeded" in end for end in ends)
    assert any("context_overflow" in end for end in ends)


@pytest.mark.demo
def test_a_cache_without_bound_is_found_out(demo_bundle: Path) -> None:
    assert faults(measured(str(demo_bundle), 400, "cache")) == {"memory"}
