"""The evaluation: its figures on made-up answers, and a small run with the demo bundle."""

import json
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import msgspec
import numpy as np
import pytest
import torch

import tokprune
from tokprune.budgets import KeepRatio
from tokprune.errors import RequestInvalid
from tokprune.scenes import film_suite, suite, write
from tokprune.selectors.baselines import random_tokens
from tokprune.vlm import VLM
from tokprune_export import evaluate
from tokprune_export.answer_cells import DEFAULT, Record, Setup, Task, answer_cells, opened
from tokprune_export.evaluate import EvaluateOptions, tasks
from tokprune_export.evaluation_report import (
    RIVALS,
    Bootstrap,
    Results,
    summarise,
)
from tokprune_export.evaluation_tables import markdown, plot
from tokprune_export.scorers import PaperScorer, Scorer, save_scorer

pytestmark = pytest.mark.torch
NAMES = ("random/0", "random/1", *RIVALS[1:], DEFAULT)
FACTS = {
    "bundle": "made up",
    "questions": "none",
    "machine": "none",
    "date": "2026-11-21",
    "note": "Mind.",
}


def record(number: int, right: set[str]) -> Record:
    """A question whose answer is right in the named cells."""
    cells = ["full@1", *(f"{name}@0.5" for name in NAMES)]
    answers = {cell: " RED " if cell in right else "blue" for cell in cells}
    group = "colour" if number % 2 else "count"
    agreement = {"attention": [0.5, 0.25, 0.1 * number]}
    modality = "video" if number > 4 else "picture"
    return Record(str(number), group, modality, "red", 64 + number, answers, agreement)


@pytest.fixture
def results() -> Results:
    """Full is right on 8 of 8, `default` on 6, `uniform` on 4 (the colours), one seed on all."""
    always = {"full@1", "random/0@0.5"}
    records = [
        record(
            number,
            always
            | ({f"{DEFAULT}@0.5"} if number > 1 else set())
            | ({"uniform@0.5"} if number % 2 else set()),
        )
        for number in range(8)
    ]
    return summarise(records, (0.5,), "attention", FACTS)


def test_accuracy_is_by_type_with_the_worst_named(results: Results) -> None:
    assert results["full"] == {"mean": 1.0, "groups": {"colour": 1.0, "count": 1.0}}
    assert results["groups"] == {"colour": 4, "count": 4}
    uniform = results["selectors"]["uniform"]["0.5"]
    assert uniform["groups"] == {"colour": 1.0, "count": 0.0}
    assert (uniform["worst_group"], uniform["mean"], uniform["loyalty"]) == ("count", 0.5, 0.5)
    assert results["selectors"][DEFAULT]["0.5"]["of_full"]["mean"] == 0.75


def test_the_seeds_of_random_are_averaged(results: Results) -> None:
    assert results["selectors"]["random"]["0.5"]["mean"] == 0.5
    assert results["random_spread"] == {"0.5": 1.0}
    assert not [name for name in results["selectors"] if "/" in name]


def test_differences_are_paired(results: Results) -> None:
    ahead = results["differences"][DEFAULT]["random"]["0.5"]
    assert ahead["mean"] == 0.25
    assert ahead["low"] < 0.25 < ahead["high"]
    random = np.random.default_rng(0)
    easy = random.random(400) < 0.5
    better = easy | (random.random(400) < 0.1)
    found = Bootstrap(400).difference(better.astype(np.float32), easy.astype(np.float32))
    # the spread is that of the pairs, far less than that of two independent means
    assert 0 < found["low"] < found["mean"] < found["high"] < 2.5 * found["mean"]
    assert found["high"] - found["low"] == pytest.approx(
        2 * 1.96 * (better ^ easy).std() / 20, rel=0.1
    )


def test_an_accuracy_of_nothing_has_no_ratio() -> None:
    ratio = Bootstrap(5).ratio(np.zeros(5, np.float32), np.zeros(5, np.float32))
    assert np.isnan(list(ratio.values())).all()


def test_tables_and_plot_show_every_selector(results: Results) -> None:
    text = markdown(results)
    for name in results["selectors"]:
        assert f"| {name} |" in text
    assert "| attention | 0.500 | 0.250 | 0.350 |" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| uniform |")}
    assert widths == {3, 7}
    assert plot(results).startswith(b"\x89PNG")


def test_figures_of_pictures_and_videos_stand_apart_too(results: Results) -> None:
    assert results["modalities"] == {"picture": 5, "video": 3}
    parts = results["by_modality"]
    assert [parts[kind]["mean_vision_tokens"] for kind in ("picture", "video")] == [66, 70]
    assert parts["picture"]["selectors"][DEFAULT]["0.5"]["of_full"]["mean"] == pytest.approx(0.6)
    assert parts["video"]["selectors"][DEFAULT]["0.5"]["of_full"]["mean"] == 1
    assert parts["video"]["selectors"]["uniform"]["0.5"]["mean"] == pytest.approx(2 / 3)
    text = markdown(results)
    assert "5 questions about pictures and 3 questions about videos" in text
    assert "of the 3 questions about videos (70 vision tokens, full accuracy 100.0%)" in text
    only = summarise([record(number, set()) for number in range(4)], (0.5,), "attention", FACTS)
    assert (only["modalities"], only["by_modality"]) == ({"picture": 4}, {})


@pytest.fixture(scope="module")
def options(
    demo_bundle: Path, demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> EvaluateOptions:
    """Three drawn questions, with the true relevance and another scorer."""
    folder = tmp_path_factory.mktemp("evaluation")
    heads = tokprune.load(demo_bundle).bundle.manifest.llm.heads
    torch.manual_seed(0)
    scorer = Scorer(PaperScorer(), "paper", ["picture"], {"samples": 0.0}, {})
    save_scorer(folder / "paper.safetensors", scorer, heads, {})
    return EvaluateOptions(
        bundle=demo_bundle,
        out=folder / "out",
        split="train",
        tokens=64,
        samples=3,
        paper_scorer=folder / "paper.safetensors",
        oracle=str(demo_checkpoint),
    )


@pytest.fixture(scope="module")
def finished(options: EvaluateOptions) -> Path:
    evaluate.run(options)
    return options.out


def test_a_run_writes_figures_tables_and_a_plot(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert results["samples"] == 3
    assert {"random", "uniform", "attention", "oracle", "relevance (paper)", DEFAULT} <= set(
        results["selectors"]
    )
    assert {"attention", "relevance (paper)"} <= set(results["agreement"])
    assert "vision tokens on average" in (finished / "results.md").read_text()
    assert (finished / "accuracy.png").stat().st_size > 10_000


def test_a_broken_run_goes_on_with_the_missing_questions(
    finished: Path, options: EvaluateOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = finished.glob("samples-*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:40])  # cut off in the third
    asked: list[str] = []

    def counted(setup: Setup, task: Task) -> Record:
        asked.append(task.key)
        return answer_cells(setup, task)

    before = json.loads((finished / "results.json").read_text())
    monkeypatch.setattr(evaluate, "answer_cells", counted)
    evaluate.run(options)
    assert asked == [json.loads(lines[2])["key"]]
    assert json.loads((finished / "results.json").read_text()) == before
    assert path.read_text() == "".join(lines)


def test_cells_hold_the_answers_that_a_user_gets(options: EvaluateOptions) -> None:
    vlm = opened(Setup(options.bundle)).vlm
    (task, *_) = tasks(options)
    record = answer_cells(Setup(options.bundle), task)
    (sample,) = suite("train", 1, tokens=64)
    for cell, budget, selector in (
        ("full@1", KeepRatio(1.0), None),
        ("uniform@0.25", KeepRatio(0.25), "uniform"),
        ("attention@0.06", KeepRatio(0.06), "attention"),
        ("random/0@0.5", KeepRatio(0.5), random_tokens(crc32(f"{task.key} 0".encode()))),
    ):
        answer = vlm.ask(
            list(sample.pictures), sample.question, budget, selector, max_new_tokens=24
        )
        assert record.cells[cell] == answer.text
    assert record.agreement == {}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two questions about drawn videos and one about a picture."""
    samples = [
        *film_suite("train", 2, grid=(4, 4), frames=4),
        *suite("train", 1, tokens=64, groups=("color",)),
    ]
    return write(tmp_path_factory.mktemp("mixed"), samples)


def test_a_data_file_with_videos_gives_tables_by_modality(
    options: EvaluateOptions, mixed: Path, tmp_path: Path
) -> None:
    evaluate.run(replace(options, out=tmp_path, data=mixed))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["modalities"] == {"picture": 1, "video": 2}
    assert results["by_modality"]["video"]["mean_vision_tokens"] == 2 * 16  # frames in pairs
    assert results["by_modality"]["picture"]["mean_vision_tokens"] == 64
    assert "2 questions about videos (32 vision tokens" in (tmp_path / "results.md").read_text()
    vlm = opened(Setup(options.bundle)).vlm
    (path,) = tmp_path.glob("samples-*.jsonl")
    first, *_ = map(json.loads, path.read_text().splitlines())
    (film, *_) = film_suite("train", 1, grid=(4, 4), frames=4)
    for cell, budget in (("full@1", 1.0), ("default@0.5", 0.5), ("default@0.06", 0.06)):
        answer = vlm.ask(film.clip, film.question, budget, max_new_tokens=24)
        assert first["cells"][cell] == answer.text
    assert (first["modality"], first["key"]) == ("video", "data.jsonl, line 1")
    assert set(first["agreement"]) > {"attention"}


def test_a_bundle_without_videos_says_so_with_the_line_before_anything_is_asked(
    options: EvaluateOptions, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = opened(Setup(options.bundle))
    manifest = there.vlm.bundle.manifest
    chat = msgspec.structs.replace(manifest.chat, video=None)
    bundle = replace(there.vlm.bundle, manifest=msgspec.structs.replace(manifest, chat=chat))
    without = there._replace(vlm=VLM(replace(there.vlm.model, bundle=bundle)))
    monkeypatch.setattr(evaluate, "opened", lambda _: without)
    monkeypatch.setattr(evaluate, "answer_cells", lambda *_: pytest.fail("asked"))
    with pytest.raises(RequestInvalid, match=r"data\.jsonl, line 1: .* takes no video"):
        evaluate.run(replace(options, out=tmp_path, data=mixed))


def test_drawn_videos_are_asked_about_where_frames_are_given(options: EvaluateOptions) -> None:
    made = list(tasks(replace(options, frames=4, samples=2)))
    films = list(film_suite("train", 2, grid=(8, 8), frames=4))
    assert [(task.key, task.modality) for task in made] == [(f.key, "video") for f in films]
    with pytest.raises(RequestInvalid, match="No grid of 65 vision tokens"):
        next(tasks(replace(options, frames=4, tokens=65)))


def test_every_question_has_the_next_ones_words_beside_it(options: EvaluateOptions) -> None:
    made = list(tasks(options))
    following = [*(task.question for task in made[1:]), made[0].question]
    assert [task.other_question for task in made] == following


def test_what_cannot_work_is_one_line_and_exit_status_2(
    options: EvaluateOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle, out = str(options.bundle), str(tmp_path / "out")
    for arguments, message in (
        ([bundle, "--out", out, "--samples", "0"], "--samples and --processes take 1 or more"),
        ([bundle, "--out", out, "--tokens", "65"], "No grid of 65 vision tokens"),
        ([bundle, "--out", out, "--paper-scorer", out], "There is no scorer file"),
        ([str(tmp_path / "none"), "--out", out], "none"),
    ):
        monkeypatch.setattr(sys, "argv", ["tokprune-eval", *arguments])
        with pytest.raises(SystemExit) as stopped:
            evaluate.main()
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_two_processes_answer_what_one_does(
    finished: Path, options: EvaluateOptions, tmp_path: Path
) -> None:
    evaluate.run(replace(options, out=tmp_path, samples=2, processes=2, oracle=None))
    several, one = (
        {line["key"]: line["cells"] for line in map(json.loads, path.read_text().splitlines())}
        for path in (next(tmp_path.glob("*.jsonl")), next(finished.glob("*.jsonl")))
    )
    assert len(several) == 2
    for key, cells in several.items():
        # the last question's twin reads other words: there are fewer questions
        same = {name: text for name, text in cells.items() if "shuffled" not in name}
        assert same.items() <= one[key].items()


def test_a_process_that_dies_is_one_line_and_nothing_is_lost(
    options: EvaluateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(*_: object) -> Iterator[Record]:
        yield record(0, set())
        raise BrokenProcessPool

    monkeypatch.setattr(evaluate, "_answered", died)
    with pytest.raises(evaluate.EvaluationBroken, match="goes on where it was"):
        evaluate.run(replace(options, out=tmp_path))
    (path,) = tmp_path.glob("*.jsonl")
    assert len(path.read_text().splitlines()) == 1
