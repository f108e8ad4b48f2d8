"""Rows of the tables that look at pictures in another way."""

from pathlib import Path

import pytest

from tokprune.errors import RequestInvalid
from tokprune.looking import Following
from tokprune.scenes import stream_suite, suite
from tokprune_export.evaluation.asking import answer_cells
from tokprune_export.evaluation.cells import Cell, Plan
from tokprune_export.evaluation.encoding import Row, row_of, rows_of, ways_of
from tokprune_export.evaluation.latency import measure, timed_cells
from tokprune_export.evaluation.opening import Setup, open_bundle
from tokprune_export.evaluation.suites import open_suite, tasks


def test_a_row_is_named_after_its_selector_and_its_way() -> None:
    row = Row("relevance-spread", "lazy:2")
    assert row_of(row.name) == row
    assert row_of("relevance-spread") is None
    assert row_of("relevance-spread, question shuffled") is None


def test_ways_are_read_with_commas_and_checked() -> None:
    assert ways_of(" lazy, lazy:2,lazy ,", streams=False) == ("lazy", "lazy:2")
    assert ways_of("", streams=True) == ()
    with pytest.raises(RequestInvalid, match="Did you mean 'coarse'"):
        ways_of("lazy,coarce", streams=False)


def test_only_streams_are_followed() -> None:
    assert ways_of("lazy,follow:4,follow", streams=True) == ("lazy", "follow:4", "follow")
    with pytest.raises(RequestInvalid, match=r"--suite scenes-stream, or a file"):
        ways_of("lazy,follow:4", streams=False)
    with pytest.raises(RequestInvalid, match="another number of looks"):
        ways_of("follow:0", streams=True)


def test_each_way_has_a_row_with_a_selector_that_scores() -> None:
    asked, scoring = ("uniform", "attention"), ("attention, encode lazy",)
    assert rows_of(asked, "attention-spread", ["lazy"]) == ("attention-spread, encode lazy",)
    assert rows_of(asked, "spread", ["lazy"]) == scoring
    assert rows_of(("uniform",), "spread", ["lazy"]) == ()


def test_rows_are_asked_at_fixed_budgets_and_are_nobodys_rivals() -> None:
    plan = Plan(("relevance", "uniform"), "relevance", ways=("lazy",), twins=False)
    name = "relevance, encode lazy"
    assert plan.names == ("relevance", "uniform", name, "downsample")
    assert plan.training_free == ("uniform", "downsample")
    cells = plan.cells(plan.names, ["0.5", "mass:0.9"])
    assert Cell(name, "0.5") in cells
    assert Cell(name, "mass:0.9") not in cells
    timed = timed_cells(plan.selectors, plan.looked, ["1.0", "0.5"], downsample=True)
    assert Cell(name, "0.5") in timed


@pytest.mark.torch
def test_a_row_holds_the_answer_that_a_user_gets_and_what_was_encoded(demo_bundle: Path) -> None:
    (task, *_) = tasks(open_suite("scenes", "train", 196), 1)
    (sample,) = suite("train", 1, tokens=196)
    rows = [Row("relevance", way) for way in ("coarse", "repeats", "lazy")]
    record = answer_cells(Setup(demo_bundle), task, [Cell(row.name, "0.25") for row in rows])
    vlm = open_bundle(demo_bundle)
    for row in rows:
        given = record.cells[f"{row.name}@0.25"]
        answer = vlm.ask(list(sample.pictures), sample.question, 0.25, "relevance", encode=row.way)
        assert (given.text, given.kept, given.encoded) == (
            answer.text,
            answer.kept,
            answer.encoded,
        )
    cells = [Cell("full", "1.0"), Cell(rows[0].name, "0.25")]
    times = measure(vlm, [task], cells, lambda: None)
    coarse, full = (times[cell.key]["p50"] for cell in reversed(cells))
    assert coarse["vision"] > 0
    assert coarse["ttft"] == pytest.approx(sum(v for k, v in coarse.items() if k != "ttft"))
    assert set(coarse) == set(full)


@pytest.mark.torch
def test_a_followed_row_has_seen_the_stream_and_holds_its_last_answer(demo_bundle: Path) -> None:
    (task, *_) = tasks(open_suite("scenes-stream", "train", 196, 4), 1)
    (sample,) = stream_suite("train", 1, tokens=196, frames=4)
    assert (len(task.seen), task.modality) == (3, "picture")
    row = Row("relevance", "follow:2")
    cells = [Cell("full", "1.0"), Cell(row.name, "0.25")]
    given = answer_cells(Setup(demo_bundle), task, cells).cells[cells[1].key]
    vlm, follow = open_bundle(demo_bundle), Following(within=2)
    answers = [
        vlm.ask(frame, sample.question, 0.25, "relevance", encode=follow) for frame in sample.frames
    ]
    answer = answers[-1]
    assert answers[0].encoded == 196 > answer.encoded
    assert (given.text, given.kept, given.encoded) == (answer.text, answer.kept, answer.encoded)
    times = measure(vlm, [task], cells, lambda: None)
    assert times[cells[1].key]["p50"]["vision"] > 0
