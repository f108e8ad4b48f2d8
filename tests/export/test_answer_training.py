"""Training scorers on what answers lose."""

from pathlib import Path

import numpy as np
import pytest
import torch
from grids import tiled_vision

from tokprune.canvas import canvas, follows
from tokprune.scenes import suite, write
from tokprune.types import KIND, PATCH
from tokprune_export import answer_training
from tokprune_export import lessons as teaching
from tokprune_export.answer_training import Task, train_on_answers
from tokprune_export.checkpoint import open_checkpoint
from tokprune_export.decoder import TextModel
from tokprune_export.dimming import dimmed_hidden, kept_shares
from tokprune_export.examples import read_examples
from tokprune_export.label_cache import Label
from tokprune_export.labels import label_all
from tokprune_export.lessons import laid_out, lessons_of, lost_answers
from tokprune_export.pairs import pair_of
from tokprune_export.scorer_training import Recipe, network_of, predictions
from tokprune_export.scorers import NETWORKS, Arch, Network, Size
from tokprune_export.teacher import Teacher, open_teacher

pytestmark = pytest.mark.torch
CPU = torch.device("cpu")
SIZE = Size(4, 128)  # of the demo VLM


@pytest.fixture(scope="module")
def teacher(demo_checkpoint: Path) -> Teacher:
    return open_teacher(open_checkpoint(str(demo_checkpoint)), CPU)


@pytest.fixture(scope="module")
def labels(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> list[Label]:
    """Of questions about small drawn scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    groups = ("color", "shape", "exist", "count")
    data = write(folder, suite("train", 40, tokens=64, questions=4, groups=groups))
    found = [label for _, label in label_all(teacher, read_examples(data)) if label is not None]
    assert len(found) > 110
    return found


def tasks(network: Network, text: TextModel, labels: list[Label]) -> list[Task]:
    table = text.embeddings
    return [
        Task(pair_of(network, each.label, table, CPU), each) for each in lessons_of(text, labels)
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_shares_sum_to_the_count_and_follow_the_scores(temperature: float) -> None:
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    real = torch.arange(50) < torch.tensor([50, 31, 8, 50])[:, None]
    count = torch.tensor([2.0, 20.5, 7.0, 49.0])
    shares = kept_shares(scores, real, count, temperature)
    torch.testing.assert_close(shares.sum(dim=1), count, rtol=1e-3, atol=1e-3)
    assert (shares[~real] == 0).all()
    order = scores[0].argsort()
    assert (shares[0, order].diff() >= 0).all()


def test_the_gradient_of_the_shares_knows_that_their_sum_is_fixed() -> None:
    scores = torch.randn(1, 12, dtype=torch.float64).requires_grad_()
    real, count = torch.ones(1, 12, dtype=torch.bool), torch.tensor([4.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(kept_shares(scores, real, count, 0.5).sum(), scores)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-7, rtol=0)
    picked = lambda s: kept_shares(s, real, count, 0.5)[:, 3]  # noqa: E731
    assert torch.autograd.gradcheck(picked, (scores,), eps=1e-5, atol=1e-4)


def test_from_the_number_of_tokens_on_all_shares_are_one() -> None:
    shares = kept_shares(
        torch.randn(2, 5), torch.ones(2, 5, dtype=torch.bool), torch.tensor([5.0, 9.0]), 1.0
    )
    assert (shares == 1).all()


@torch.no_grad()
def plain_logits(text: TextModel, label: Label, keep: torch.Tensor) -> torch.Tensor:
    """Logits of HF's own forward over the rows that are left."""
    ids = torch.cat([label.ids, label.answer])
    embeds = text.embeddings[ids]
    embeds[label.slots] = label.embeds.float()
    rows = torch.ones(len(ids), dtype=torch.bool)
    rows[label.slots] = keep
    positions = text.position_ids(label.positions[:, None, rows])
    hidden = text.model(inputs_embeds=embeds[rows][None], position_ids=positions)
    return text.head(hidden.last_hidden_state[0, -len(label.answer) - 1 :])


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_shares_of_one_and_zero_are_the_model_without_the_dropped_tokens(
    teacher: Teacher, labels: list[Label], share: float
) -> None:
    chosen = labels[:3]
    random = torch.Generator().manual_seed(0)
    keep = [torch.rand(len(label.slots), generator=random) < share for label in chosen]
    dimmed = laid_out(teacher.text, chosen, [each.float() for each in keep])
    with torch.no_grad():
        hidden = dimmed_hidden(teacher.text, *dimmed[:3])
        logits = teacher.text.head(hidden[dimmed.emits])
    expected = [plain_logits(teacher.text, *each) for each in zip(chosen, keep, strict=True)]
    torch.testing.assert_close(logits, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert teacher.text.model.config._attn_implementation != "tokprune_dimmed"


def test_a_dimmed_token_matters_less_the_lower_its_share(
    teacher: Teacher, labels: list[Label]
) -> None:
    label = labels[0]
    told = []
    for share in (1.0, 0.5, 0.03):
        shares = torch.ones(len(label.slots))
        shares[10:40] = share
        with torch.no_grad():
            dimmed = laid_out(teacher.text, [label], [shares])
            told.append(dimmed_hidden(teacher.text, *dimmed[:3])[dimmed.emits])
    dropped = torch.ones(len(label.slots))
    dropped[10:40] = 0
    with torch.no_grad():
        dimmed = laid_out(teacher.text, [label], [dropped])
        gone = dimmed_hidden(teacher.text, *dimmed[:3])[dimmed.emits]
    distances = [float((each - gone).norm()) for each in told]
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < 0.3 * distances[0]


@pytest.mark.parametrize("arch", NETWORKS)
def test_gradients_reach_all_of_the_scorer_and_nothing_else(
    teacher: Teacher, labels: list[Label], arch: Arch
) -> None:
    network = network_of(arch, SIZE, 0)
    before = {name: value.clone() for name, value in teacher.text.model.state_dict().items()}
    some = tasks(network, teacher.text, labels[:4])
    answer_training._learn(
        network, teacher.text, some, answer_training.COURSE, 1.0, np.random.default_rng(0)
    )
    for name, value in network.named_parameters():
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
    moved = [
        float(value.grad.abs().sum()) for value in network.parameters() if value.grad is not None
    ]
    assert sum(each > 0 for each in moved) >= len(moved) - 1  # all but the bias of the readout
    assert all(value.grad is None for value in teacher.text.model.parameters())
    after = teacher.text.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_equal_seeds_give_equal_networks(teacher: Teacher, labels: list[Label]) -> None:
    recipe = Recipe(2, 8, 3e-3, 0.01, "one_cycle")
    runs: list[tuple[list[float], list[torch.Tensor]]] = []
    for seed in (3, 3, 4):
        network = network_of("asked", SIZE, 0)
        some = tasks(network, teacher.text, labels[:20])
        losses: list[float] = []
        train_on_answers(
            network,
            teacher.text,
            some[:14],
            some[14:],
            recipe,
            seed,
            lambda loss, _, to=losses: to.append(loss),
        )
        assert len(losses) == 4
        runs.append((losses, [value.clone() for value in network.parameters()]))
    (losses, weights), (again, same), (others, _) = runs
    assert losses == again != others
    assert all(map(torch.equal, weights, same))


def test_training_on_answers_lowers_what_other_questions_lose(
    teacher: Teacher, labels: list[Label]
) -> None:
    network, text = network_of("asked", SIZE, 0), teacher.text
    others = tasks(network, text, labels[-30:])
    before = lost(network, text, others)
    recipe = Recipe(6, 4, 3e-3, 0.01, "one_cycle", patience=6)
    some = tasks(network, text, labels[:-30])
    train_on_answers(network, text, some, others, recipe, 0, lambda *_: None)
    assert lost(network, text, others) < 0.8 * before


def lost(network: Network, text: TextModel, some: list[Task]) -> float:
    scores = list(predictions(network, [task.pair for task in some]))
    return float(np.mean(lost_answers(text, scores, [task.lesson for task in some])))


def test_nothing_is_lost_where_every_token_is_kept(
    teacher: Teacher, labels: list[Label], monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons = list(lessons_of(teacher.text, labels[:5]))
    scores = [np.random.default_rng(0).random(len(label.slots)) for label in labels[:5]]
    lost = lost_answers(teacher.text, scores, lessons)
    assert len(lost) == 5
    assert sum(lost) > 0.01
    monkeypatch.setattr(teaching, "CHECKED_AT", (1.0,))
    np.testing.assert_allclose(lost_answers(teacher.text, scores, lessons), 0, atol=1e-4)


def test_newlines_stay_whatever_is_kept() -> None:
    vision = tiled_vision()
    index, cells = canvas(vision.where, vision.regions)
    tokens = len(cells)
    label = Label(
        attention=torch.zeros(2, 3, tokens).half(),
        question=torch.ones(3, dtype=torch.bool),
        index=torch.from_numpy(index.astype(np.int32)),
        cells=torch.from_numpy(cells.astype(np.int32)),
        relevance=torch.zeros(tokens),
        embeds=torch.zeros(tokens, 4).half(),
        ids=torch.arange(tokens),
        slots=torch.arange(tokens),
        answer=torch.arange(1),
        positions=torch.arange(tokens + 1)[None],
        follows=torch.from_numpy(follows(vision.regions)),
    )
    patch = vision.where[:, KIND] == PATCH
    scores = np.arange(tokens, dtype=np.float32)
    kept = teaching._best(scores, label, 0.25).numpy()
    assert kept[~patch].all()
    assert kept[patch].sum() == np.ceil(0.25 * patch.sum())
    assert scores[patch][kept[patch] == 1].min() > scores[patch][kept[patch] == 0].max()
