"""The scorer networks, their ONNX graphs and their files."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from grids import first_layer, vision_tokens
from onnxruntime import InferenceSession
from safetensors.torch import load_file, save_file
from torch import nn

from tokprune.canvas import canvas
from tokprune.errors import RequestInvalid
from tokprune.manifest import Metrics, Modality, ScorerKind
from tokprune.selectors.baselines import mean_attention
from tokprune_export import graphs, onnx
from tokprune_export.parity_scorer import told
from tokprune_export.scorers import (
    NETWORKS,
    TEXT_ROWS,
    AskedScorer,
    AttentionMean,
    FramesScorer,
    GridScorer,
    Network,
    Scorer,
    Size,
    load_scorer,
    save_scorer,
)

pytestmark = pytest.mark.torch
HEADS, HIDDEN = 3, 10
SIZE = Size(HEADS, HIDDEN)
MADE = {"attention": lambda _: AttentionMean(), **NETWORKS}
NAMES = ("attention", "question", "index", "cells", "embeds", "words")


def inputs(
    *grids: tuple[int, int], rows: int = 9, seed: int = 0, bigger: int = 0
) -> tuple[torch.Tensor, ...]:
    """Random attention over pictures, on a canvas with `bigger` more rows and columns."""
    vision = vision_tokens(*grids)
    index, cells = canvas(vision.where, vision.regions)
    layers, high, wide = index.shape
    wider = np.full((layers, high + bigger, wide + bigger), -1)
    wider[:, :high, :wide] = index
    layer, cell = np.divmod(cells, high * wide)
    row, column = np.divmod(cell, wide)
    cells = (layer * (high + bigger) + row) * (wide + bigger) + column
    random = np.random.default_rng(seed)
    attention = random.dirichlet(np.ones(len(cells) + 1), (HEADS, rows))[..., :-1]
    question = np.arange(rows) % 3 == 1
    return (
        torch.from_numpy(attention.astype(np.float32)),
        torch.from_numpy(question),
        torch.from_numpy(wider),
        torch.from_numpy(cells),
        torch.from_numpy(random.standard_normal((len(cells), HIDDEN), np.float32)),
        torch.from_numpy(random.standard_normal((rows, HIDDEN), np.float32)),
    )


def made(kind: ScorerKind) -> AttentionMean | Network:
    torch.manual_seed(1)
    return MADE[kind](SIZE).eval()


def also(network: nn.Module, given: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What some networks read besides: every region follows the one before."""
    found = told(network, len(given[NAMES.index("index")]))[""]
    return {name: torch.from_numpy(array) for name, array in found.items()}


@pytest.mark.parametrize("kind", MADE)
def test_the_exported_scorer_equals_the_module_at_sizes_that_were_not_traced(
    kind: ScorerKind, tmp_path: Path
) -> None:
    network = made(kind)
    onnx.save(onnx.trace(graphs.scorer(network, SIZE), 18), tmp_path / "scorer.onnx")
    session = InferenceSession(tmp_path / "scorer.onnx")
    declared = [port.name for port in session.get_inputs()]
    for grids, rows in (
        (((14, 14),), 30),
        (((1, 1),), 1),
        (((1, 1), (1, 1)), 2),
        (((8, 3), (2, 7), (5, 5)), 25),
        (((1, 9),), TEXT_ROWS),
    ):
        given = inputs(*grids, rows=rows)
        more = also(network, given)
        feeds = {**dict(zip(NAMES, given, strict=True)), **more}
        with torch.no_grad():
            expected = network(*given, **more).numpy()
        got = np.asarray(session.run(None, {name: feeds[name].numpy() for name in declared})[0])
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
        assert got.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", MADE)
def test_without_a_marked_question_all_rows_count(kind: ScorerKind) -> None:
    attention, question, *rest = inputs((4, 5))
    network = made(kind)
    more = also(network, (attention, question, *rest))
    with torch.no_grad():
        none = network(attention, torch.zeros_like(question), *rest, **more)
        every = network(attention, torch.ones_like(question), *rest, **more)
    torch.testing.assert_close(none, every)


def test_the_mean_is_the_attention_selectors_own() -> None:
    vision = vision_tokens((3, 4))
    first = first_layer(vision, np.random.default_rng(0).random(12))
    given = (torch.from_numpy(first.attention), torch.from_numpy(first.question))
    empty = torch.zeros(0, dtype=torch.int64)
    np.testing.assert_allclose(
        AttentionMean()(*given, empty, empty, torch.zeros(12, 1), torch.zeros(5, 1)),
        mean_attention(first),
        rtol=1e-6,
    )


@pytest.mark.parametrize("kind", ["grid", "asked", "frames"])
def test_a_grid_scores_the_same_alone_and_on_a_bigger_canvas(kind: ScorerKind) -> None:
    network = made(kind)
    with torch.no_grad():
        given, wider = inputs((4, 5)), inputs((4, 5), bigger=3)
        alone = network(*given, **also(network, given))
        torch.testing.assert_close(network(*wider, **also(network, wider)), alone)


def test_a_picture_does_not_see_its_neighbour_on_the_grid() -> None:
    network = GridScorer(HEADS)
    attention, question, index, cells, *_ = inputs((3, 3), (4, 2))
    with torch.no_grad():
        before = network.logits(network.features(attention, question), index, cells)
        attention[:, :, 9:] += 0.1
        after = network.logits(network.features(attention, question), index, cells)
    assert torch.equal(before[:9], after[:9])
    assert not torch.isclose(before[9:], after[9:]).any()


def test_a_picture_hears_of_its_neighbour_where_the_question_is_read() -> None:
    network = AskedScorer(HEADS, HIDDEN)
    attention, question, index, cells, embeds, words = inputs((3, 3), (4, 2))
    features = network.features(attention, question)
    with torch.no_grad():
        channels = network.channels(features, embeds, words, question)
        before = network.logits(channels, index, cells)
        apart = network.logits(channels, index, cells, torch.tensor([0, 1]))
        embeds[9:] += torch.arange(HIDDEN)
        channels = network.channels(features, embeds, words, question)
        after = network.logits(channels, index, cells)
        still = network.logits(channels, index, cells, torch.tensor([0, 1]))
    assert not torch.isclose(before[:9], after[:9]).any()
    assert torch.equal(apart[:9], still[:9])  # of another prompt it does not


@pytest.mark.parametrize(
    ("follows", "reached"),
    [([0, 1, 1, 1], [0, 1, 2]), ([0, 1, 0, 1], [0, 1]), ([0, 0, 1, 1], [0]), ([0] * 4, [0])],
)
def test_a_frame_hears_of_the_two_before_and_after_it(
    follows: list[float], reached: list[int]
) -> None:
    network = FramesScorer(HEADS, HIDDEN)
    x, filled = torch.randn(4, network.width, 3, 3), torch.ones(4, 1, 3, 3, dtype=torch.bool)
    with torch.no_grad():
        before = network.deeper(x, filled, torch.tensor(follows))
        x[0] += 1
        after = network.deeper(x, filled, torch.tensor(follows))
    assert (after != before).flatten(1).any(dim=1).nonzero().flatten().tolist() == reached


@pytest.mark.parametrize("kind", ["grid", "asked", "frames"])
def test_newline_tokens_have_no_cell_and_no_relevance(kind: ScorerKind) -> None:
    attention, question, index, _, embeds, words = inputs((2, 2), rows=4)
    attention = torch.cat([attention, attention[:, :, :2]], dim=2)
    cells = torch.tensor([0, 1, 2, 3, 0, 0])
    embeds = torch.cat([embeds, embeds[:2]])
    given = (attention, question, index, cells, embeds, words)
    network = made(kind)
    with torch.no_grad():
        relevance = network(*given, **also(network, given))
    assert relevance[4:].tolist() == [0, 0]
    assert relevance[:4].min() > 0


def test_rows_before_the_last_twenty_do_not_count() -> None:
    attention, question, *rest = inputs((3, 4), rows=TEXT_ROWS + 2)
    network = made("grid")
    with torch.no_grad():
        expected = network(attention[:, 2:], question[2:], *rest[:-1], rest[-1][2:])
        torch.testing.assert_close(network(attention, question, *rest), expected)


def test_the_users_words_count_wherever_they_stand_where_the_question_is_read() -> None:
    attention, question, *rest = inputs((3, 4), rows=TEXT_ROWS + 6)
    question[:] = False
    question[:2] = True  # before the last twenty
    network = made("asked")
    with torch.no_grad():
        before = network(attention, question, *rest)
        attention[:, 0, 5] += 0.2
        assert network(attention, question, *rest)[5] != before[5]
        attention[:, 3, 5] += 0.2  # no word of the user's, and not among the last twenty
        again = network(attention, question, *rest)
        attention[:, 3, 5] -= 0.1
        assert torch.equal(network(attention, question, *rest), again)


def test_what_a_token_looks_like_changes_its_score() -> None:
    given = inputs((4, 5))
    network = made("asked")
    with torch.no_grad():
        before = network(*given)
        given[4][7] = given[4][7].flip(0)
        assert not torch.isclose(network(*given)[7], before[7])


def test_what_the_user_says_changes_the_scores_and_what_the_template_says_does_not() -> None:
    attention, question, index, cells, embeds, words = inputs((4, 5))
    network = made("asked")
    with torch.no_grad():
        before = network(attention, question, index, cells, embeds, words)
        other = words.clone()
        other[question] = other[question].flip(1)
        after = network(attention, question, index, cells, embeds, other)
        words[~question] += 1
        same = network(attention, question, index, cells, embeds, words)
    assert not torch.isclose(before, after).any()
    assert torch.equal(before, same)


def test_the_papers_network_has_its_size_and_ignores_the_scale_of_attention() -> None:
    network = made("paper")
    assert 0.17e6 < sum(value.numel() for value in network.parameters()) < 0.19e6
    attention, *rest = inputs((5, 6))
    with torch.no_grad():
        torch.testing.assert_close(network(attention / 50, *rest), network(attention, *rest))


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_scorer_file_reads_back_as_it_was_written(kind: ScorerKind, tmp_path: Path) -> None:
    metrics = {"recall_at_25": 0.5, "samples": 7.0}
    apart: dict[Modality, Metrics] = {"picture": metrics, "video": {"recall_at_25": 0.25}}
    glances = {"recall_at_25": 0.125} if kind == "asked" else None
    scorer = Scorer(made(kind), kind, ("picture", "video"), metrics, apart, glances)
    save_scorer(tmp_path / "scorer.safetensors", scorer, SIZE, {"model": "demo"})
    again = load_scorer(tmp_path / "scorer.safetensors", SIZE)
    assert again[1:] == scorer[1:]
    assert again.trained
    given = inputs((4, 5))
    with torch.no_grad():
        more = also(scorer.network, given)
        assert torch.equal(again.network(*given, **more), scorer.network(*given, **more))


def test_no_file_gives_the_mean_attention() -> None:
    scorer = load_scorer(None, SIZE)
    assert scorer[1:] == ("attention", (), {}, {}, None)
    assert not scorer.trained


def test_files_from_before_there_were_videos_were_trained_on_pictures(tmp_path: Path) -> None:
    path = tmp_path / "scorer.safetensors"
    save_file(made("grid").state_dict(), path, metadata=GOOD)
    scorer = load_scorer(path, SIZE)
    assert scorer.modalities == ("picture",)
    assert scorer.metrics_by_modality == {}


GOOD = {"format": "tokprune-scorer", "version": "1", "kind": "grid", "heads": "3", "metrics": "{}"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not a scorer file"),
        ({"version": "2"}, "scorer version '2', this tokprune reads '1'"),
        ({"heads": "8"}, "trained for 8 attention heads, the checkpoint's LLM has 3"),
        ({"hidden": "896"}, "trained for 896 numbers a vision token, the checkpoint's LLM has 10"),
        ({"kind": "gird"}, "unknown kind 'gird'. Known: asked, frames, grid, paper"),
        ({"kind": "paper"}, "does not hold the weights of its kind: depthwise"),
        ({"metrics": "[1]"}, "no readable metrics .* Expected `object`"),
        ({"metrics": "["}, "no readable metrics"),
        ({"modalities": "[]"}, "no readable metrics .* length >= 1 - at `\\$.modalities`"),
        ({"modalities": '["sound"]'}, "Invalid enum value 'sound'"),
        ({"metrics_by_modality": '{"sound": {}}'}, "Invalid enum value 'sound'"),
    ],
)
def test_wrong_metadata_is_an_error_that_says_what(
    change: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "scorer.safetensors"
    save_file(made("grid").state_dict(), path, metadata={**GOOD, **change})
    with pytest.raises(RequestInvalid, match=message):
        load_scorer(path, SIZE)


def test_damaged_and_missing_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "scorer.safetensors"
    with pytest.raises(RequestInvalid, match="There is no scorer file"):
        load_scorer(path, SIZE)
    path.write_text(json.dumps({"not": "tensors"}))
    with pytest.raises(RequestInvalid, match="is not a safetensors file"):
        load_scorer(path, SIZE)
    save_file(made("grid").state_dict(), path, metadata=GOOD)
    weights = load_file(path)
    weights["readout.bias"][0] = float("nan")
    save_file(weights, path, metadata=GOOD)
    with pytest.raises(RequestInvalid, match=r"readout\.bias missing, unexpected, of the wrong"):
        load_scorer(path, SIZE)
