"""Figures, rows, tables and plots of made-up answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokprune.errors import RequestInvalid
from tokprune_export.evaluation.cells import SEEDS, WITHOUT_PRUNING, Cell
from tokprune_export.evaluation.figures import (
    Answered,
    Question,
    figures,
    parts_of,
    same,
    worst,
)
from tokprune_export.evaluation.plots import by_group, over_kept, over_ttft
from tokprune_export.evaluation.record import Given, Record
from tokprune_export.evaluation.rows import merge, number, rows_of, write_rows
from tokprune_export.evaluation.tables import markdown
from tokprune_export.evaluation.turn_figures import turn_figures
from tokprune_export.evaluation.turns import turn_cells

OURS, TWIN = "relevance", "relevance, question shuffled"
CELLS = [
    WITHOUT_PRUNING,
    *(Cell(name, "0.5") for name in (OURS, TWIN, "uniform", "evs", "downsample")),
    *(Cell(f"random/{seed}", "0.5") for seed in SEEDS),
]


def question(place: int, answer: str = "red") -> Question:
    """Eight questions: the odd ones about colours, the last three about videos, one dense."""
    group = "colour" if place % 2 else "count"
    return Question(str(place), group, answer, place == 3, "video" if place > 4 else "picture")


def record(place: int) -> Record:
    """Full is right on all; ours but on two counts, uniform on colours, one seed of three."""
    right = {
        "full": True,
        OURS: place not in (0, 2),
        "uniform": place % 2 == 1,
        "random/1": True,
        "downsample": place == 0,
    }
    cells = {
        cell.key: Given(" Red. " if right.get(cell.name) else "blue", 10 + place) for cell in CELLS
    }
    cells["evs@0.5"] = Given("red", 5) if place > 4 else Given("", 0, refused="It takes a video")
    cells["downsample@0.5"] = Given("red" if place == 0 else "blue", 9, "resized")
    return Record(str(place), 20 + place, cells)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return made(labelled=True)


def made(*, labelled: bool) -> dict[str, Any]:
    questions = [question(place, "red" if labelled else "") for place in range(8)]
    records = {str(place): record(place) for place in range(8)}
    quality = {OURS: np.asarray([[0.5, 0.25, 0.1 * place] for place in range(8)])}
    answered = Answered(questions, records, CELLS)
    rivals = ("uniform", "random", "downsample")
    cells = turn_cells([OURS], ["1.0", "0.5"])
    turned = {
        str(place): Record(str(place), 20, {c.key: Given(turn(c, place), 5) for c in cells})
        for place in range(8)
    }
    time = {"vision": 5.0, "first_layer": 1.0, "scorer": 1.0, "select": 1.0, "prefill": 2.0}
    return {
        "bundle": "made-up",
        "suite": "scenes",
        "split": "dev",
        "tokens": 20,
        "frames": None,
        "samples": 8,
        "labelled": labelled,
        "budgets": ["1.0", "0.5"],
        "selectors": [OURS, "uniform", "evs", "random"],
        "default": OURS,
        "ours": [OURS],
        "skipped": {"scope": "It needs the saliency"},
        "machine": "a machine",
        "date": "2026-11-22",
        "tokprune": "0",
        "note": "Mind.",
        "figures": figures(answered, quality, [OURS], rivals, labelled=labelled),
        "more": None,
        "adaptive": {},
        "turns": turn_figures(questions, turned, cells, [OURS], labelled=labelled),
        "latency": {
            "questions": 2,
            "cells": {
                key: {q: {**time, "ttft": ttft} for q in ("p50", "p95")}
                for key, ttft in (("full@1.0", 20.0), (f"{OURS}@0.5", 10.0))
            },
        },
    }


def turn(cell: Cell, place: int) -> str:
    """Asked afresh all are right; as a second turn one is not, from reused tokens two."""
    wrong = {"selected again": 1, "reused": 2}.get(cell.name.rpartition(", ")[2], 0)
    return "blue" if cell.name.startswith(OURS) and place < wrong else "red"


def test_answers_are_the_same_but_for_case_spaces_and_a_full_stop() -> None:
    assert same(" Red. ", "red")
    assert not same("red", "dark red")
    assert not same("1.5", "15")
    assert same("Caf\u00e9", "cafe\u0301")  # one character, or a letter and its accent
    assert not same("cafe", "caf\u00e9")


def test_all_is_the_mean_over_groups_and_the_worst_is_named(results: dict[str, Any]) -> None:
    parts = results["figures"]["cells"][OURS]["0.5"]
    assert parts["all"]["accuracy"]["mean"] == parts["all"]["retention"]["mean"] == 0.75
    assert (parts["count"]["accuracy"]["mean"], parts["colour"]["n"]) == (0.5, 4)
    assert worst(parts, ["colour", "count"]) == ("count", 0.5)
    assert results["figures"]["cells"]["full"]["1.0"]["all"]["accuracy"] == {
        "mean": 1.0,
        "low": 1.0,
        "high": 1.0,
    }


def test_dense_scenes_pictures_and_videos_are_slices_of_their_own(results: dict[str, Any]) -> None:
    parts = results["figures"]["cells"]["uniform"]["0.5"]
    assert results["figures"]["parts"] == {
        "all": 8, "colour": 4, "count": 4, "dense": 1, "pictures": 5, "videos": 3,
    }  # fmt: skip
    assert parts["dense"]["accuracy"]["mean"] == 1.0
    assert parts["pictures"]["accuracy"]["mean"] == pytest.approx(2 / 5)
    assert parts["videos"]["kept"] == 16


def test_slices_that_are_everything_or_nothing_are_left_out() -> None:
    same_group = [question(place)._replace(group="one", dense=False) for place in range(3)]
    assert list(parts_of(same_group)) == ["all"]


def test_the_seeds_of_random_are_averaged_and_their_spread_is_given(
    results: dict[str, Any],
) -> None:
    parts = results["figures"]["cells"]["random"]["0.5"]
    assert parts["all"]["accuracy"]["mean"] == pytest.approx(1 / 3, abs=1e-4)
    assert results["figures"]["random_spread"] == {"0.5": 1.0}


def test_loyalty_is_agreement_with_the_unpruned_answer_and_needs_no_labels() -> None:
    found = made(labelled=False)["figures"]["cells"][OURS]["0.5"]
    assert found["all"]["loyalty"]["mean"] == 0.75
    assert found["all"]["accuracy"] is found["all"]["retention"] is None
    assert worst(found, ["colour", "count"]) == ("count", 0.5)


def test_what_was_refused_has_no_figure_over_it_but_one_where_all_was_answered(
    results: dict[str, Any],
) -> None:
    parts = results["figures"]["cells"]["evs"]["0.5"]
    assert parts["all"]["accuracy"] is None
    assert parts["videos"]["accuracy"]["mean"] == 1.0
    (refused,) = results["figures"]["refused"]
    assert refused == {
        "selector": "evs", "budget": "0.5", "questions": 5, "why": "It takes a video",
    }  # fmt: skip


def test_ours_are_compared_with_every_rival_and_with_their_own_twin(
    results: dict[str, Any],
) -> None:
    differences = results["figures"]["differences"]
    assert list(differences) == [OURS]
    assert list(differences[OURS]) == ["uniform", "random", "downsample", TWIN]
    assert differences[OURS]["uniform"]["0.5"]["mean"] == 0.25
    assert differences[OURS][TWIN]["0.5"]["low"] > 0


def test_rows_are_flat_and_there_is_one_for_each_place(results: dict[str, Any]) -> None:
    rows = rows_of(results)
    places = {(row["group"], row["selector"], row["budget"]) for row in rows}
    assert len(places) == len(rows) == 6 * 7  # parts, and rows of the tables
    (ours,) = [r for r in rows if (r["group"], r["selector"]) == ("all", OURS)]
    assert (ours["bundle"], ours["suite"], ours["split"]) == ("made-up", "scenes", "dev")
    assert (ours["n"], ours["accuracy"], ours["retention"], ours["budget"]) == (8, 0.75, 0.75, 0.5)
    assert ours["ci_low"] < ours["accuracy"] < ours["ci_high"]
    assert (ours["recall_50"], ours["recall"], ours["spearman"]) == (0.5, 0.25, 0.35)
    assert (ours["loyalty"], ours["ttft_ms"], ours["kept"]) == (0.75, 10.0, 13.5)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_a_row_is_of_the_most_questions_that_its_cell_was_asked(results: dict[str, Any]) -> None:
    more = {**results["figures"], "cells": {OURS: results["figures"]["cells"][OURS]}}
    part = more["cells"][OURS]["0.5"]["all"] | {"n": 2000}
    more = {**more, "cells": {OURS: {"0.5": {"all": part}}}}
    rows = rows_of({**results, "more": more})
    assert len(rows) == 6 * 7
    assert [row["n"] for row in rows if row["group"] == "all"].count(2000) == 1


def test_budgets_are_numbers_where_they_are_fixed() -> None:
    assert [number(text) for text in ("1.0", "0.5", "64", "mass:0.9")] == [1.0, 0.5, 64, "mass:0.9"]
    assert isinstance(number("64"), int)


def test_runs_are_joined_with_machine_and_date(results: dict[str, Any], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
        head = {**results, "figures": None, "bundle": folder.name}
        rows = [{**row, "bundle": folder.name} for row in rows_of(results)]
        write_rows(folder / "rows.json", {k: v for k, v in head.items() if k != "turns"}, rows)
    merge(folders, tmp_path / "docs" / "scenes.json")
    joined = json.loads((tmp_path / "docs" / "scenes.json").read_bytes())
    assert (joined["date"], joined["machine"]) == ("2026-11-22", "a machine")
    assert [run["bundle"] for run in joined["runs"]] == ["first", "second"]
    assert len(joined["rows"]) == 2 * 6 * 7


def test_runs_of_the_same_place_are_not_joined(results: dict[str, Any], tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.json", {**results, "figures": None}, rows_of(results))
    with pytest.raises(RequestInvalid, match="both have rows of made-up, scenes, dev, all, full"):
        merge([tmp_path, tmp_path], tmp_path / "joined.json")
    with pytest.raises(RequestInvalid, match=r"Give the --out folders of finished runs"):
        merge([tmp_path / "none"], tmp_path / "joined.json")
    for foreign, message in (("[1]", "it has no 'bundle'"), ('{"rows": []}', "no 'bundle'")):
        (tmp_path / "rows.json").write_text(foreign)
        with pytest.raises(RequestInvalid, match=f"is no file of tokprune-eval: .*{message}"):
            merge([tmp_path], tmp_path / "joined.json")


def test_tables_show_every_selector_and_every_thing_that_is_missing(
    results: dict[str, Any],
) -> None:
    text = markdown(results)
    for name in (f"**{OURS}**", TWIN, "uniform", "random", "downsample", "evs"):
        assert f"| {name} |" in text
    assert "| **relevance** | 100.0% | 50.0% | 75.0% |" in text
    assert "| scope | It needs the saliency |" in text
    assert "| evs | 0.5 | 5 | It takes a video |" in text
    assert "| **relevance** | 0.500 | 0.250 | 0.350 |" in text
    assert "| 0.5 | 9.0 | resized 8 |" in text
    assert "in points: 100.0 at 0.5." in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| selector |")}
    assert {line.count("|") for line in text.splitlines() if line.startswith("| ---")} >= widths


def test_tables_without_labels_are_about_loyalty() -> None:
    text = markdown(made(labelled=False))
    assert "Right answers are not given" in text
    assert "## Loyalty by group at budget 0.5" in text
    assert "ccuracy" not in text.replace("docs/evaluation.md explains every column", "")


def test_two_turns_are_compared_with_asking_afresh(results: dict[str, Any]) -> None:
    losses = results["turns"]["losses"][OURS]
    assert losses["selected again"]["0.5"]["mean"] == -0.125
    assert losses["reused"]["0.5"]["mean"] == -0.25
    assert losses["reused alone"]["0.5"]["mean"] == 0
    assert "| relevance | 0.5 | 100.0% | 87.5% | 75.0% | 100.0% |" in markdown(results)


def test_plots_are_drawn(results: dict[str, Any]) -> None:
    for plot in (over_kept, over_ttft, by_group):
        data = plot(results)
        assert data is not None
        assert data.startswith(b"\x89PNG")
    assert over_ttft({**results, "latency": None}) is None


@pytest.mark.parametrize("name", [r"$\frac{$", "a|b", "two\nlines"])
def test_a_group_may_be_called_anything(name: str) -> None:
    renamed = json.loads(json.dumps(made(labelled=True)).replace("colour", json.dumps(name)[1:-1]))
    shown = {**renamed, "suite": f"{name}.jsonl"}
    for plot in (over_kept, over_ttft, by_group):
        assert plot(shown)
    lines = markdown(renamed).splitlines()
    heads = [place for place, line in enumerate(lines) if line.startswith("| selector |")]
    for place in heads:
        widths = {line.replace(r"\|", "").count("|") for line in lines[place : place + 3]}
        assert len(widths) == 1
