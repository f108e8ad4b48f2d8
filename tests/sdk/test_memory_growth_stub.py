"""The same on a stub model: 86,400 requests, one a second for a day; and leaks that are planted."""

import pytest
from grown import counts, faults, measured


@pytest.mark.parametrize("requests", counts(86_400))
def test_a_day_of_requests_leaves_nothing_behind(requests: int) -> None:
    found = measured("stub", requests)
    assert not faults(found), found
    assert sum(found["ends"].values()) == requests


@pytest.mark.parametrize(
    ("fault", "grown"), [("watchers", "memory"), ("threads", "threads"), ("files", "files")]
)
def test_a_planted_leak_is_found_out(fault: str, grown: str) -> None:
    assert grown in faults(measured("stub", 200, fault))
