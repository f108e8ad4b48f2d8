"""Glances: what scorers are trained on is what the runtime shows them at the first of two looks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tokprune
from tokprune.scenes import film_suite, suite, write
from tokprune.types import First, Prompt, Ranking, VisionTokens
from tokprune_export.answer_training import COURSE, Task, glance_scores, spread, train_on_answers
from tokprune_export.checkpoint import open_checkpoint
from tokprune_export.examples import Example, read_examples
from tokprune_export.label_cache import Glance, Label, LabelCache
from tokprune_export.labels import label_all, sample_name
from tokprune_export.lessons import Lesson, lessons_of, lost_answers
from tokprune_export.media import load
from tokprune_export.pairs import Pair, glance_of, pair_of
from tokprune_export.scorer_training import Recipe, network_of
from tokprune_export.scorers import size_of
from tokprune_export.teacher import Teacher, open_teacher

pytestmark = [pytest.mark.torch, pytest.mark.demo]
CPU = torch.device("cpu")
CHECKPOINTS = Path(__file__).parents[2] / "samples" / "scenes" / "checkpoints"
Seen = tuple[VisionTokens, np.ndarray]


def labelled(
    teacher: Teacher, folder: Path, *, films: bool = False, count: int = 12
) -> list[tuple[Example, Label]]:
    drawn = (
        film_suite("train", count, frames=4, questions=1)
        if films
        else suite("train", count, tokens=196, questions=1, groups=("color", "count", "compare"))
    )
    examples = read_examples(write(folder, drawn))
    return [(each, label) for each, label in label_all(teacher, examples) if label is not None]


def teacher_of(family: str) -> Teacher:
    return open_teacher(open_checkpoint(str(CHECKPOINTS / family)), CPU)


@pytest.fixture(scope="module")
def qwen() -> Teacher:
    return teacher_of("qwen2_vl")


@pytest.mark.parametrize(
    ("family", "encode", "films"),
    [
        ("qwen2_vl", "coarse", False),
        ("qwen2_vl", "coarse", True),
        ("llava_onevision", "lazy", False),
    ],
)
def test_a_glance_is_what_the_first_of_two_looks_shows(
    demo_bundles: Callable[..., Path], tmp_path: Path, family: str, encode: str, *, films: bool
) -> None:
    looks: list[Seen] = []

    def watching(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del prompt
        attention = first().attention
        looks.append((vision, attention))
        scores = attention.mean(axis=(0, 1))
        order = np.argsort(-scores, kind="stable")
        return Ranking(lambda k: order[:k], scores)

    found = labelled(teacher_of(family), tmp_path / "data", films=films)
    compared = 0
    with tokprune.load(demo_bundles(family), backend="cpu", threads=1) as vlm:
        for example, label in found:
            looks.clear()
            shown = [load(source) for source in example.media]
            answer = vlm.ask(shown, example.question, 0.2, watching, encode=encode)
            if label.glance is None:
                assert len(looks) == 1
                continue
            compared += 1
            vision, attention = looks[0]
            assert answer.encode == encode
            np.testing.assert_allclose(label.glance.embeds, vision.embeds, atol=2e-2)
            np.testing.assert_allclose(label.glance.attention, attention, atol=2e-3)
            assert label.glance.attention.shape[1] == label.attention.shape[1]
            assert len(label.glance.under) == len(label.slots) == answer.total
            assert set(label.glance.under.tolist()) <= {*range(len(vision.where)), -1}
    assert compared > len(found) / 2


def test_a_family_that_looks_once_has_no_glances(tmp_path: Path) -> None:
    found = labelled(teacher_of("vila"), tmp_path / "data", count=4)
    assert found
    assert all(label.glance is None for _, label in found)


def test_scores_of_a_glance_count_for_what_lies_under_them(qwen: Teacher, tmp_path: Path) -> None:
    (_, label), *_ = labelled(qwen, tmp_path / "data", count=4)
    assert label.glance is not None
    scores = torch.rand(len(label.glance.cells))
    whole = spread(scores, label)
    assert set(whole.tolist()) == set(scores.tolist())
    hidden = label.glance.under.clone()
    hidden[3] = -1
    cut = spread(scores, replace(label, glance=replace(label.glance, under=hidden)))
    assert cut[3].isneginf()
    assert torch.equal(cut[4:], whole[4:])


def test_a_glance_is_trained_on_the_relevance_under_its_tokens(
    qwen: Teacher, tmp_path: Path
) -> None:
    (_, label), *_ = labelled(qwen, tmp_path / "data", count=4)
    network = network_of("asked", size_of(qwen.text.model.config.to_dict()), 0)
    pair = glance_of(network, label, qwen.text.embeddings, CPU)
    assert pair is not None
    assert label.glance is not None
    shared = np.zeros(len(label.glance.cells))
    np.add.at(shared, label.glance.under.numpy(), label.relevance.numpy())
    best = int(shared.argmax())
    assert int(pair.target.argmax()) == best
    assert pair_of(network, label, qwen.text.embeddings, CPU).embeds.shape[0] == len(label.slots)
    alone = replace(label, glance=None)
    assert glance_of(network, alone, qwen.text.embeddings, CPU) is None


def test_glances_stay_in_the_cache(qwen: Teacher, tmp_path: Path) -> None:
    found = labelled(qwen, tmp_path / "data", count=4)
    cache = LabelCache(tmp_path / "labels")
    for example, label in found:
        cache.add(sample_name(example), label)
    (first, without), *_ = found
    cache.add(sample_name(first), replace(without, glance=None))
    cache.flush()
    again = LabelCache(tmp_path / "labels").read([sample_name(example) for example, _ in found])
    assert again[sample_name(first)].glance is None
    for example, label in found[1:]:
        kept = again[sample_name(example)].glance
        assert kept is not None
        assert label.glance is not None
        for name in Glance.__dataclass_fields__:
            assert torch.equal(getattr(kept, name), getattr(label.glance, name))


def test_training_on_glances_lowers_what_answers_lose_by_them(
    qwen: Teacher, tmp_path: Path
) -> None:
    labels = [label for _, label in labelled(qwen, tmp_path / "data", count=60)]
    network = network_of("asked", size_of(qwen.text.model.config.to_dict()), 0)
    table = qwen.text.embeddings
    tasks = [
        Task(
            pair_of(network, each.label, table, CPU),
            each,
            glance_of(network, each.label, table, CPU),
        )
        for each in lessons_of(qwen.text, labels)
    ]

    def lost() -> float:
        seen: list[tuple[Pair, Lesson]] = [
            (task.glance, task.lesson) for task in tasks if task.glance is not None
        ]
        scores = glance_scores(network, seen)
        return float(np.mean(lost_answers(qwen.text, scores, [lesson for _, lesson in seen])))

    before = lost()
    recipe = Recipe(5, 4, 3e-3, 0.01, "one_cycle", patience=5)
    course = replace(COURSE, glances=1.0)
    train_on_answers(network, qwen.text, tasks, tasks, recipe, 0, lambda *_: None, course)
    assert lost() < 0.8 * before
