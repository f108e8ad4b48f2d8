"""Single questions: the cells hold what a user would get."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from tokprune.budgets import KeepRatio
from tokprune.scenes import suite
from tokprune.selectors.baselines import random_tokens
from tokprune.vlm import VLM
from tokprune_export.evaluation.asking import Asking, answer_cells
from tokprune_export.evaluation.cells import Cell
from tokprune_export.evaluation.opening import Opened, Setup, open_bundle
from tokprune_export.evaluation.suites import open_suite, pairs, tasks
from tokprune_export.evaluation.turns import answer_turns, turn_cells

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def vlm(demo_bundle: Path) -> VLM:
    return open_bundle(demo_bundle)


def test_cells_hold_the_answers_that_a_user_gets(vlm: VLM, demo_bundle: Path) -> None:
    (task, *_) = tasks(open_suite("scenes", "train", 64), 1)
    (sample,) = suite("train", 1, tokens=64)
    cells = [
        Cell("full", "1.0"),
        Cell("uniform", "0.25"),
        Cell("attention", "0.06"),
        Cell("relevance", "mass:0.5"),
        Cell("random/0", "0.5"),
    ]
    record = answer_cells(Setup(demo_bundle), task, cells)
    for cell in cells:
        selector: Any = None if cell.name == "full" else cell.name
        if cell.name == "random/0":
            selector = random_tokens(crc32(f"{task.key} 0".encode()))
        budget = KeepRatio(1.0) if cell.name == "full" else cell.budget
        answer = vlm.ask(
            list(sample.pictures), sample.question, budget, selector, max_new_tokens=24
        )
        assert record.cells[cell.key].text == answer.text
        assert record.cells[cell.key].kept == answer.selection.kept
    assert record.agreement == {}


def test_a_twin_chooses_for_another_question_and_the_llm_gets_the_true_one(vlm: VLM) -> None:
    (task, *_) = tasks(open_suite("scenes", "train", 64), 1)
    asking = Asking(Opened(vlm), task, 24)
    own, twin = (asking._ranking(name) for name in ("relevance", "relevance, question shuffled"))
    assert own.scores is not None
    assert twin.scores is not None
    assert not np.array_equal(own.scores, twin.scores)
    other = Asking(Opened(vlm), replace(task, question=task.other_question), 24)
    expected = other._ranking("relevance").scores
    assert expected is not None
    np.testing.assert_allclose(twin.scores, expected, rtol=1e-5, atol=1e-8)
    assert asking._answers._prompt is asking._prompt


def test_downsampling_says_how_many_tokens_there_are_really(demo_bundle: Path) -> None:
    (task, *_) = tasks(open_suite("scenes", "train", 64), 1)
    record = answer_cells(Setup(demo_bundle), task, [Cell("downsample", "0.33")])
    given = record.cells["downsample@0.33"]
    assert (given.note, given.kept) == ("resized", 20)  # of 22 that there may be


def test_second_turns_hold_the_answers_of_a_chat(vlm: VLM, demo_bundle: Path) -> None:
    (task,) = pairs(open_suite("scenes", "train", 64), 1)
    cells = turn_cells(["relevance"], ["1.0", "0.25"])
    record = answer_turns(Setup(demo_bundle), task, cells)
    media: Any = list(task.media)
    chat = vlm.chat(budget=0.25, selector="relevance")
    chat.ask(task.before, media, max_new_tokens=24)
    again = chat.ask(task.question, max_new_tokens=24)
    afresh = vlm.ask(media, task.question, 0.25, "relevance", max_new_tokens=24)
    assert record.cells["relevance, selected again@0.25"].text == again.text
    assert record.cells["relevance, afresh@0.25"].text == afresh.text
    before = vlm.ask(media, task.before, 0.25, "relevance", max_new_tokens=24)
    reused = record.cells["relevance, reused@0.25"]
    assert reused.kept == before.selection.kept
