"""What is written on the command line, as the files of an evaluation have it."""

import pytest

from tokprune.budgets import parse_budget
from tokprune.errors import RequestInvalid
from tokprune_export.evaluation.cells import SHUFFLED
from tokprune_export.evaluation.encoding import Row
from tokprune_export.evaluation.options import More, budgets_of, more_of


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


@pytest.mark.parametrize(
    ("given", "more"),
    [
        ("20:.5,64:uniform, scope,uniform", More(20, ("0.5", "64"), ("uniform", "scope"))),
        ("7:mass:0.9:relevance", More(7, ("mass:0.9",), ("relevance",))),
        (
            "9:0.5,ttft:300ms:full, encode lazy:0.95,scope,scope, question shuffled",
            More(
                9,
                ("0.5", "ttft:300ms"),
                ("full, encode lazy:0.95", "scope", "scope, question shuffled"),
            ),
        ),
    ],
)
def test_more_questions_may_be_asked_of_any_row(given: str, more: More) -> None:
    assert more_of(given) == more


def test_names_of_looks_and_of_twins_are_not_cut() -> None:
    rows = (Row("scope", "lazy:0.95").name, f"scope{SHUFFLED}", "uniform")
    assert more_of(f"9:0.5:{','.join(rows)}").names == rows


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("20:0.5", "give SAMPLES:BUDGETS:NAMES"),
        ("0:0.5:uniform", "give SAMPLES:BUDGETS:NAMES"),
        ("many:0.5:uniform", "give SAMPLES:BUDGETS:NAMES"),
        ("20:0.5:,", "give SAMPLES:BUDGETS:NAMES"),
        ("20:1.5:uniform", "KeepRatio takes a share above 0"),
        ("20:half:full, encode lazy:2", "Cannot read the budget 'half'"),
    ],
)
def test_what_cannot_be_asked_more_is_refused(given: str, message: str) -> None:
    with pytest.raises(RequestInvalid, match=message):
        more_of(given)
