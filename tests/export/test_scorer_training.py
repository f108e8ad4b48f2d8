"""Training of the scorer networks: batches, targets, figures."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from grids import tiled_vision, vision_tokens
from scorer_variants import PICTURES, VIDEOS, Variant, ranks

from tokprune.canvas import canvas, follows
from tokprune.manifest import Modality
from tokprune.types import KIND, PATCH
from tokprune_export.agreement import attention_scores, quality, recall, spearman, target_of
from tokprune_export.label_cache import Label
from tokprune_export.pairs import batched_logits, collate, pair_of
from tokprune_export.scorer_training import (
    Recipe,
    divergence,
    mean_loss,
    network_of,
    predictions,
    split,
    train,
)
from tokprune_export.scorers import NETWORKS, Arch, Size, extra_inputs

pytestmark = pytest.mark.torch
CPU = torch.device("cpu")
HEADS = 2
SIZE = Size(HEADS, 4)
TABLE = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))


def label(*grids: tuple[int, int], seed: int = 0, rows: int = 6) -> Label:
    """A label whose relevance is the square of the mean attention."""
    vision = vision_tokens(*grids)
    index, cells = canvas(vision.where, vision.regions)
    random = np.random.default_rng(seed)
    scores = random.dirichlet(np.full(len(cells), 0.3))
    attention = np.tile(scores, (HEADS, rows, 1)).astype(np.float16)
    return Label(
        attention=torch.from_numpy(attention),
        question=torch.arange(rows) < 4,
        index=torch.from_numpy(index.astype(np.int32)),
        cells=torch.from_numpy(cells.astype(np.int32)),
        relevance=torch.from_numpy((scores**2).astype(np.float32)),
        follows=(torch.arange(len(index)) > 0).float(),
        **prompt_of(vision.embeds),
    )


def prompt_of(embeds: np.ndarray) -> dict[str, Any]:
    """Two rows of text, all vision tokens, two rows of text, and an answer."""
    tokens = len(embeds)
    return {
        "embeds": torch.from_numpy(embeds).half(),
        "ids": torch.arange(tokens + 4),
        "slots": torch.arange(2, tokens + 2),
        "answer": torch.arange(2),
        "positions": torch.arange(tokens + 6)[None],
    }


VARIANTS = [v for v in (*PICTURES, *VIDEOS) if v.rows == "rotated"]  # of the same inputs


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_batch_gives_what_each_sample_gives_alone(variant: Variant) -> None:
    network = variant.untrained(SIZE, 0)
    labels = [label((4, 5)), label((2, 9), (6, 3), seed=1), label((1, 1), seed=2)]
    pairs = [pair_of(network, each, TABLE, CPU) for each in labels]
    with torch.no_grad():
        batched = batched_logits(network, collate(pairs))
        for row, pair in zip(batched, pairs, strict=True):
            alone = batched_logits(network, collate([pair]))[0]
            torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-4, atol=1e-5)
            assert (row[len(alone) :] == float("-inf")).all()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_training_sees_what_the_graph_will_see(variant: Variant) -> None:
    network = variant.untrained(SIZE, 0)
    given = label((2, 9), (6, 3))
    (predicted,) = predictions(network, [pair_of(network, given, TABLE, CPU)])
    with torch.no_grad():
        graph = network(
            given.attention.float(),
            given.question,
            given.index.long(),
            given.cells.long(),
            given.embeds.float(),
            TABLE[given.ids[-len(given.question) :]],
            **{name: getattr(given, name) for name in extra_inputs(network)},
        )
    np.testing.assert_allclose(predicted, graph, rtol=2e-3)  # features are kept in half precision


@pytest.mark.parametrize("arch", NETWORKS)
def test_training_is_deterministic_and_learns(arch: Arch) -> None:
    labels = [label((5, 5), seed=seed) for seed in range(48)]
    recipe = Recipe(8, 16, 3e-3, 0.0, "cosine")
    runs = []
    for _ in range(2):
        network = network_of(arch, SIZE, 3)
        pairs = [pair_of(network, each, TABLE, CPU) for each in labels]
        losses: list[float] = []
        best = train(
            network, pairs, pairs[:9], recipe, 3, lambda _, loss, __, to=losses: to.append(loss)
        )
        assert best == 8
        runs.append((losses, [value.clone() for value in network.parameters()]))
    (losses, weights), (again, others) = runs
    assert losses == again
    assert all(map(torch.equal, weights, others))
    assert losses[-1] < 0.8 * losses[0]


def test_training_ends_where_other_pictures_gain_nothing_and_keeps_the_best_weights() -> None:
    network = network_of("grid", SIZE, 0)
    pairs = [pair_of(network, label((5, 5), seed=seed), TABLE, CPU) for seed in range(16)]
    # what is checked is the opposite of what is trained on
    opposite = [replace(p, target=target_of(p.target.max() - p.target)) for p in pairs]
    losses: list[float] = []
    recipe = Recipe(40, 8, 1e-2, 0.0, "cosine", patience=3)
    best = train(network, pairs, opposite, recipe, 0, lambda *given: losses.append(given[2]))
    assert len(losses) == best + 3 < 40
    assert mean_loss(network, opposite, divergence) == pytest.approx(min(losses), rel=1e-5)


def test_newlines_have_no_say_in_the_training_of_the_grid_network() -> None:
    vision = tiled_vision()
    patch = vision.where[:, KIND] == PATCH
    index, cells = canvas(vision.where, vision.regions)
    scores = np.random.default_rng(0).random(len(cells)).astype(np.float32) * patch
    given = Label(
        attention=torch.rand(HEADS, 6, len(cells)).half(),
        question=torch.arange(6) < 4,
        index=torch.from_numpy(index.astype(np.int32)),
        cells=torch.from_numpy(cells.astype(np.int32)),
        relevance=torch.from_numpy(scores),
        follows=torch.from_numpy(follows(vision.regions)),
        **prompt_of(vision.embeds),
    )
    network = network_of("grid", SIZE, 0)
    batch = collate(
        [pair_of(network, label((4, 5)), TABLE, CPU), pair_of(network, given, TABLE, CPU)]
    )
    logits = batched_logits(network, batch)
    assert (logits[1].isneginf().numpy() == ~patch).all()
    losses = divergence(logits, batch)
    losses.sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all()
               for value in network.parameters())  # fmt: skip
    target, seen = batch.target[1][patch], logits[1][patch].log_softmax(dim=0)
    expected = torch.nn.functional.kl_div(seen, target, reduction="sum")
    torch.testing.assert_close(losses[1], expected)


def test_of_pictures_and_of_videos_the_same_share_is_held_out() -> None:
    shown = [[f"p{i}"] for i in range(100)] + [[f"v{i}"] for i in range(20)] + [["p0", "v0"]]
    kinds: list[Modality] = ["video" if number >= 100 else "picture" for number in range(121)]
    training, held = split(shown, kinds, seed=0)
    assert sorted(training + held) == list(range(121))
    kept = [(kinds[i], shown[i][0]) for i in held]
    assert len({name for _, name in kept if name[0] == "v"}) == 2
    assert len({name for _, name in kept if name[0] == "p"}) in (10, 11)  # p0 goes with its video


def test_the_target_is_the_upper_half_of_the_relevance() -> None:
    target = target_of(torch.tensor([4.0, 1.0, 0.0, 6.0, 2.0]))
    torch.testing.assert_close(target, torch.tensor([4.0, 0, 0, 6, 2]) / 12)
    torch.testing.assert_close(target_of(torch.zeros(4)), torch.zeros(4))


def test_the_loss_is_the_divergence_of_the_prediction_from_the_target() -> None:
    network = network_of("paper", SIZE, 0)
    batch = collate(
        [pair_of(network, label((2, 3)), TABLE, CPU), pair_of(network, label((2, 2)), TABLE, CPU)]
    )
    exact = batch.target.log().clamp(min=-99).masked_fill(~batch.slots, float("-inf"))
    torch.testing.assert_close(divergence(exact, batch), torch.zeros(2), rtol=0, atol=1e-6)
    flat = torch.zeros(2, 6).masked_fill(~batch.slots, float("-inf"))
    some = batch.target[1][batch.target[1] > 0]
    assert divergence(flat, batch)[1] == pytest.approx(float((some * (some * 4).log()).sum()))


def test_the_loss_on_ranks_counts_wrongly_ordered_pairs_by_how_far_they_are_apart() -> None:
    network = network_of("paper", SIZE, 0)
    batch = collate([pair_of(network, label((1, 4)), TABLE, CPU)])
    target = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    batch = replace(batch, target=target)
    right, wrong = torch.tensor([[60.0, 50, -50, -60]]), torch.tensor([[-50.0, 50, 10, -60]])
    assert ranks(right, batch).item() == pytest.approx(0.0, abs=1e-6)
    # of four pairs that matter one is wrong, by 60; what matters as much is no pair
    assert ranks(wrong, batch).item() == pytest.approx(60 / 4, rel=1e-4)


def test_figures_are_those_of_their_definitions() -> None:
    oracle = np.array([5.0, 4, 3, 2, 1, 0, 0, 0])
    assert recall(oracle * 3, oracle, 0.5) == 1
    assert recall(np.array([9.0, 0, 0, 0, 8, 7, 6, 0]), oracle, 0.5) == 0.25
    assert recall(np.array([0, 9.0, 0, 0, 8, 7, 6, 0]), oracle, 0.25) == 0.5
    assert spearman(oracle, oracle**2) == pytest.approx(1)
    assert spearman(oracle, -oracle) == pytest.approx(-1)
    assert spearman(np.ones(8), oracle) == 0
    # ranks 1.5 1.5 3 against 1 2 3: 1.5 / sqrt(1.5 x 2)
    assert spearman(np.array([1.0, 1, 2]), np.array([1.0, 2, 3])) == pytest.approx(0.75**0.5)


def test_attention_that_ranks_like_the_label_has_full_recall() -> None:
    labels = [label((4, 4), seed=seed) for seed in range(3)]
    row = quality([attention_scores(each) for each in labels], labels, [0.5, 0.25, 0.0])
    assert row.answers_lost == 0.25
    assert (row.recall_at_50, row.recall_at_25, row.samples) == (1, 1, 3)
    assert row.spearman == pytest.approx(1, abs=1e-3)
    assert row.kl > 0


def test_samples_that_share_a_picture_stay_on_one_side() -> None:
    pictures = [[f"p{i}"] for i in range(30) for _ in range(3)]
    pictures += [["p0", "p1"], ["p1", "p2"], ["alone"]]
    kinds: list[Modality] = ["picture"] * len(pictures)
    training, held = split(pictures, kinds, seed=5)
    assert sorted(training + held) == list(range(len(pictures)))
    assert held
    sides = [{name for i in side for name in pictures[i]} for side in (training, held)]
    assert not sides[0] & sides[1]
    assert split(pictures, kinds, seed=5) == (training, held)
    assert split(pictures, kinds, seed=6) != (training, held)
