"""Whole evaluations with the demo bundle: a few questions, and few cells."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import tokprune
from tokprune.errors import NotCalibrated, RequestInvalid
from tokprune.scenes import film_suite, suite, write
from tokprune.vlm import VLM
from tokprune_export.evaluation import evaluate as evaluating
from tokprune_export.evaluation import planning
from tokprune_export.evaluation.asking import answer_cells
from tokprune_export.evaluation.cells import Cell
from tokprune_export.evaluation.evaluate import evaluate
from tokprune_export.evaluation.opening import Setup, open_bundle
from tokprune_export.evaluation.options import EvaluateOptions
from tokprune_export.evaluation.record import Record
from tokprune_export.evaluation.running import Crew, EvaluationBroken
from tokprune_export.evaluation.suites import Task
from tokprune_export.scorers import PaperScorer, Scorer, Size, save_scorer

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def vlm(demo_bundle: Path) -> VLM:
    return open_bundle(demo_bundle)


@pytest.fixture(scope="module")
def options(
    demo_bundle: Path, demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> EvaluateOptions:
    """Three drawn questions, with the true relevance and another scorer."""
    folder = tmp_path_factory.mktemp("evaluation")
    llm = tokprune.load(demo_bundle).bundle.manifest.llm
    torch.manual_seed(0)
    scorer = Scorer(PaperScorer(), "paper", ["picture"], {"samples": 0.0}, {})
    save_scorer(folder / "other.safetensors", scorer, Size(llm.heads, llm.hidden_size), {})
    return EvaluateOptions(
        bundle=demo_bundle,
        suite="scenes",
        out=folder / "out",
        split="train",
        budgets="1.0,0.25,mass:0.5",
        selectors="relevance,attention,uniform,random,downsample",
        tokens=64,
        samples=3,
        more=("4:0.25:uniform,relevance",),
        turns=1,
        timed=1,
        scorer=(folder / "other.safetensors",),
        oracle=str(demo_checkpoint),
        processes=1,
    )


@pytest.fixture(scope="module")
def finished(options: EvaluateOptions) -> Path:
    evaluate(options)
    return options.out


@pytest.fixture(scope="module")
def results(finished: Path) -> dict[str, Any]:
    return json.loads((finished / "results.json").read_bytes())


def small(options: EvaluateOptions, out: Path, **others: Any) -> EvaluateOptions:
    """The same with little to ask, and no torch."""
    less: dict[str, Any] = {
        "budgets": "0.25", "selectors": "relevance,uniform", "samples": 2, "more": (),
        "turns": 0, "timed": 0, "scorer": (), "oracle": None, "out": out,
    }  # fmt: skip
    return replace(options, **less | others)


def kept_lines(out: Path) -> list[dict[str, Any]]:
    (path,) = out.glob("samples-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_writes_figures_rows_tables_and_plots(
    finished: Path, results: dict[str, Any]
) -> None:
    assert {path.name for path in finished.iterdir() if "-" not in path.stem[:8]} == {
        "results.json", "rows.json", "results.md", "accuracy-kept.png", "accuracy-ttft.png",
        "groups.png",
    }  # fmt: skip
    names = set(results["figures"]["cells"])
    assert {"full", "oracle", "random", "downsample", "relevance (other)"} <= names
    assert {"relevance, question shuffled", "attention, question shuffled"} <= names
    assert not [name for name in names if "/" in name]
    rows = json.loads((finished / "rows.json").read_bytes())
    assert (rows["samples"], rows["split"]) == (3, "train")
    (row,) = [
        row
        for row in rows["rows"]
        if (row["group"], row["selector"], row["budget"]) == ("all", "relevance", 0.25)
    ]
    assert row["n"] == 4  # asked with --more
    assert row["recall"] is not None
    assert row["ttft_ms"] > 0


def test_scores_are_compared_with_the_oracle(results: dict[str, Any]) -> None:
    cells = results["figures"]["cells"]
    for name in ("relevance", "attention", "relevance (other)"):
        part = cells[name]["0.25"]["all"]
        assert 0 < part["recall"] <= 1
        assert -1 <= part["spearman"] <= 1
    assert cells["uniform"]["0.25"]["all"]["spearman"] is None
    assert (
        cells["relevance"]["0.25"]["all"]["recall"]
        > cells["relevance (other)"]["0.25"]["all"]["recall"]
    )  # which was never trained


def test_an_adaptive_budget_stands_beside_fixed_ones_that_keep_as_much(
    results: dict[str, Any],
) -> None:
    each = results["adaptive"]["relevance@mass:0.5"]
    cells = results["figures"]["cells"]["relevance"]
    assert cells[each["equal_mean"]]["all"]["kept"] >= each["kept"]["mean"]
    assert cells[each["equal_p95"]]["all"]["kept_p95"] >= each["kept"]["p95"]
    refused = {(r["selector"], r["budget"]) for r in results["figures"]["refused"]}
    assert refused == {("uniform", "mass:0.5"), ("random", "mass:0.5")}


def test_time_to_first_token_is_measured_by_stage(results: dict[str, Any]) -> None:
    times = results["latency"]["cells"]
    assert set(times) == {
        "full@1.0",
        *(f"{n}@0.25" for n in ("relevance", "attention", "uniform", "random", "downsample")),
    }
    stages = {key: {s for s, ms in each["p50"].items() if ms > 0} for key, each in times.items()}
    assert stages["full@1.0"] == {"vision", "prefill", "ttft"}
    assert stages["relevance@0.25"] - stages["attention@0.25"] == {"scorer"}
    assert stages["attention@0.25"] - stages["uniform@0.25"] == {"first_layer"}
    for each in times.values():
        sums = sum(ms for stage, ms in each["p50"].items() if stage != "ttft")
        assert each["p50"]["ttft"] == pytest.approx(sums)  # one question


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What is asked while a test runs: cells by question."""
    found: dict[str, list[str]] = {}

    def counted(setup: Setup, task: Task, cells: Sequence[Cell]) -> Record:
        found.setdefault(task.key, []).extend(cell.key for cell in cells)
        return answer_cells(setup, task, cells)

    monkeypatch.setattr(evaluating, "answer_cells", counted)
    return found


def test_a_run_that_was_killed_goes_on_with_the_missing_questions(
    options: EvaluateOptions, tmp_path: Path, asked: dict[str, list[str]]
) -> None:
    once = small(options, tmp_path)
    before = evaluate(once)
    (path,) = tmp_path.glob("samples-*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:40])  # cut off in the second
    asked.clear()
    assert evaluate(once) == before
    assert list(asked) == [json.loads(lines[1])["key"]]
    assert path.read_text() == "".join(lines)


def test_a_run_with_more_asks_only_what_is_missing(
    options: EvaluateOptions, tmp_path: Path, asked: dict[str, list[str]]
) -> None:
    evaluate(small(options, tmp_path))
    first = dict(asked)
    asked.clear()
    evaluate(small(options, tmp_path, selectors="relevance,uniform,attention", samples=3))
    added = {"attention@0.25", "attention, question shuffled@0.25"}
    new = [key for key in asked if key not in first]
    assert len(new) == 1
    assert all(set(asked[key]) == added for key in first)
    assert set(asked[new[0]]) == {*added, *next(iter(first.values()))}
    asked.clear()
    evaluate(small(options, tmp_path, budgets="0.5,0.25", twins=False))
    assert {key: set(cells) for key, cells in asked.items()} == {
        key: {"relevance@0.5", "uniform@0.5"} for key in first
    }


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two questions about drawn videos and two about one picture."""
    samples = [
        *film_suite("train", 2, grid=(4, 4), frames=4),
        *suite("train", 1, tokens=64, questions=2, groups=("color", "exist")),
    ]
    return write(tmp_path_factory.mktemp("mixed"), samples)


def test_a_file_with_pictures_and_videos_has_figures_of_both(
    options: EvaluateOptions, mixed: Path, tmp_path: Path, vlm: VLM
) -> None:
    data = {"suite": str(mixed), "split": None, "tokens": None, "samples": 9, "turns": 9}
    results = evaluate(small(options, tmp_path, **data))
    assert (results["suite"], results["split"], results["samples"]) == ("data.jsonl", "-", 4)
    parts = results["figures"]["cells"]["full"]["1.0"]
    assert (parts["videos"]["n"], parts["videos"]["kept"]) == (2, 2 * 16)  # frames in pairs
    assert (parts["pictures"]["n"], parts["pictures"]["kept"]) == (2, 64)
    assert results["turns"]["figures"]["n"] == 1  # two questions are about one picture
    (film, *_) = film_suite("train", 1, grid=(4, 4), frames=4)
    answer = vlm.ask(film.clip, film.question, 0.25, "relevance", max_new_tokens=24)
    texts = {line["cells"]["relevance@0.25"][0] for line in kept_lines(tmp_path)}
    assert answer.text in texts


def test_a_file_without_answers_gives_loyalty_alone(
    options: EvaluateOptions, mixed: Path, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in mixed.read_text().splitlines()]
    bare = mixed.with_name("bare.jsonl")
    keys = ("image", "frames", "fps", "question")
    bare.write_text(
        "".join(json.dumps({k: v for k, v in line.items() if k in keys}) + "\n" for line in lines)
    )
    data = {"suite": str(bare), "split": None, "tokens": None}
    results = evaluate(small(options, tmp_path, **data, samples=4))
    assert not results["labelled"]
    for row in json.loads((tmp_path / "rows.json").read_bytes())["rows"]:
        assert row["accuracy"] is row["retention"] is row["ci_low"] is None
        assert 0 <= row["loyalty"] <= 1
    whole = results["figures"]["cells"]["full"]["1.0"]["all"]
    assert whole["loyalty"]["mean"] == 1.0
    assert "Right answers are not given" in (tmp_path / "results.md").read_text()


def test_a_bundle_without_videos_says_so_with_the_line_before_anything_is_asked(
    options: EvaluateOptions,
    mixed: Path,
    tmp_path: Path,
    vlm: VLM,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = msgspec.structs.replace(vlm.bundle.manifest.chat, video=None)
    manifest = msgspec.structs.replace(vlm.bundle.manifest, chat=chat)
    model = replace(vlm.model, bundle=replace(vlm.bundle, manifest=manifest))
    monkeypatch.setattr(evaluating, "open_bundle", lambda _: VLM(model))
    monkeypatch.setattr(evaluating, "answer_cells", lambda *_: pytest.fail("asked"))
    data = {"suite": str(mixed), "split": None, "tokens": None}
    with pytest.raises(RequestInvalid, match=r"data\.jsonl, line 1: .* takes no video"):
        evaluate(small(options, tmp_path, **data))


def test_selectors_that_a_bundle_cannot_run_are_named_and_refused_where_they_were_asked_for(
    options: EvaluateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(name: str, *_: object) -> str | None:
        return "It needs what is not there" if name == "relevance" else None

    monkeypatch.setattr("tokprune_export.evaluation.methods.lacking", lacking)
    with pytest.raises(RequestInvalid, match="'relevance', which cannot run here: It needs what"):
        evaluate(small(options, tmp_path))
    everything = small(options, tmp_path, selectors="all")
    inquiry = planning.plan_inquiry(everything, open_bundle(options.bundle))
    assert inquiry.skipped == {"relevance": "It needs what is not there"}
    assert "relevance" not in inquiry.plan.names
    assert {"uniform", "downsample"} <= set(inquiry.plan.names)


def test_a_budget_in_time_needs_a_device_that_was_measured(
    options: EvaluateOptions, tmp_path: Path
) -> None:
    with pytest.raises(NotCalibrated, match=r"auto:300ms .* run `tokprune calibrate .*threads 1`"):
        evaluate(small(options, tmp_path, budgets="auto:300ms"))


def test_two_processes_answer_what_one_does(options: EvaluateOptions, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    evaluate(small(options, one, samples=3))
    evaluate(small(options, two, samples=3, processes=2))
    by_key = [{line["key"]: line["cells"] for line in kept_lines(out)} for out in (one, two)]
    assert by_key[0] == by_key[1]
    assert len(by_key[0]) == 3


def test_a_process_that_dies_is_one_line_and_nothing_is_lost(
    options: EvaluateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(self: Crew, *_: object) -> Iterator[Record]:
        yield Record("first", 64, {})
        raise BrokenProcessPool

    monkeypatch.setattr(Crew, "_answered", died)
    with pytest.raises(EvaluationBroken, match="goes on where it was"):
        evaluate(small(options, tmp_path))
    assert len(kept_lines(tmp_path)) == 1
