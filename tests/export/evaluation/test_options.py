"""What is written on the command line, as the files of an evaluation have it."""

import pytest

from tokprune.budgets import parse_budget
from tokprune_export.evaluation.options import budgets_of


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("0.5,.5,0.50", ("0.5",)),
        ("1.,1.0,64,064", ("1.0", "64")),
        ("0.00001", ("0.00001",)),
        ("0.9999999", ("0.9999999",)),
        ("mass:1.0,mass:0.9,mass:.90", ("mass:1.0", "mass:0.9")),
        ("ttft:0.3s,ttft:300ms,auto:2000s", ("ttft:300ms", "auto:2000000ms")),
    ],
)
def test_a_budget_is_written_in_one_way_that_can_be_read_again(
    given: str, kept: tuple[str, ...]
) -> None:
    assert budgets_of(given) == kept
    said = [parse_budget(part) for part in given.split(",")]
    assert list(dict.fromkeys(said)) == [parse_budget(text) for text in kept]
