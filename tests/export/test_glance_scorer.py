"""A scorer of its own for first looks: exported beside the other, run where it is due."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tokprune
from tokprune.canvas import canvas
from tokprune.types import Array, Feeds, FirstLayer, VisionTokens
from tokprune_export import export
from tokprune_export.errors import ExportRefused
from tokprune_export.options import ExportOptions
from tokprune_export.parity_report import Row
from tokprune_export.parity_scorer import scorer_feeds
from tokprune_export.scorers import (
    AskedScorer,
    FramesScorer,
    GridScorer,
    Scorer,
    Size,
    TwoLooks,
    extra_inputs,
    save_scorer,
)
from tokprune_runtimes import Graph, Interrupt

pytestmark = pytest.mark.torch
SIZE = Size(5, 60)


@pytest.fixture(scope="module")
def networks() -> tuple[AskedScorer, GridScorer]:
    torch.manual_seed(0)
    return AskedScorer(*SIZE).eval(), GridScorer(SIZE.heads).eval()


@pytest.fixture(scope="module")
def options(
    networks: tuple[AskedScorer, GridScorer],
    tiny_checkpoint: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> ExportOptions:
    checkpoint = tiny_checkpoint(heads=5, kv_heads=1, head_dim=12, layers=3, tied=True)
    folder = tmp_path_factory.mktemp("scorers")
    whole, glance = (folder / f"{name}.safetensors" for name in ("whole", "glance"))
    metrics = {"recall_at_50": 0.5, "recall_at_25": 0.5, "spearman": 0.5, "kl": 1.0}
    save_scorer(whole, Scorer(networks[0], "asked", ["picture"], metrics, {}), SIZE, {})
    other = Scorer(networks[1], "grid", ["picture"], metrics, {}, {**metrics, "spearman": 0.25})
    save_scorer(glance, other, SIZE, {})
    return ExportOptions(str(checkpoint), folder / "bundle", scorer=whole, glance_scorer=glance)


@pytest.fixture(scope="module")
def rows(options: ExportOptions) -> list[Row]:
    found: list[Row] = []
    manifest = export.export(options, lambda step: None, found.extend)
    assert (manifest.scorer.kind, manifest.scorer.metrics["spearman"]) == ("asked", 0.5)
    assert manifest.scorer.glance_metrics["spearman"] == 0.25
    return found


def test_both_looks_are_compared_at_the_export(rows: list[Row]) -> None:
    cases = [row.case for row in rows if row.graph == "scorer"]
    assert all(row.ok for row in rows)
    assert len([case for case in cases if case.endswith(", first look")]) == len(cases) / 2 == 3


class Recording:
    """A scorer graph that remembers what it was told."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.looks: list[float] = []

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        self.looks += feeds["glance"].tolist()
        return self.graph.run(feeds, interrupt)

    def loop(self, carries: object) -> object:
        raise AssertionError("scorers have no loop")


def score(network: torch.nn.Module, vision: VisionTokens, first: FirstLayer) -> Array:
    layout = canvas(vision.where, vision.regions)
    given = (first.attention, first.question, *layout, vision.embeds, first.words)
    with torch.no_grad():
        return network(*map(torch.from_numpy, given)).numpy()


@pytest.mark.usefixtures("rows")
def test_each_look_is_scored_by_its_own_network(
    options: ExportOptions, networks: tuple[AskedScorer, GridScorer]
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (448, 448, 3), np.uint8)
    with tokprune.load(options.output, backend="cpu", threads=1) as vlm:
        model = vlm.model
        prompt, prepared = model.prepare([picture], "what?")
        vision = model.vision(prepared)
        first = model.first_layer.run(prompt, vision)
        for glance, network in zip((False, True), networks, strict=True):
            scores = model.scorer(replace(vision, glance=glance), first)
            assert np.allclose(scores, score(network, vision, first), rtol=1e-3, atol=1e-6)
        recorder = Recording(model.scorer.graph)
        object.__setattr__(model.scorer, "graph", recorder)
        for encode, looks in (("full", [0]), ("coarse", [1]), ("coarse:2", [1, 0])):
            recorder.looks.clear()
            answer = vlm.ask(picture, "what?", 0.25, encode=encode, max_new_tokens=1)
            assert answer.encode == encode.partition(":")[0]
            assert recorder.looks == looks


def test_one_of_first_looks_alone_is_refused(options: ExportOptions, tmp_path: Path) -> None:
    alone = replace(options, output=tmp_path / "bundle", scorer=None)
    with pytest.raises(ExportRefused, match="--glance-scorer without --scorer"):
        export.export(alone, lambda step: None, lambda rows: None)
    assert options.scorer is not None
    never = replace(options, output=tmp_path / "bundle", glance_scorer=options.scorer)
    with pytest.raises(ExportRefused, match="no figures of first looks: train it on some"):
        export.export(never, lambda step: None, lambda rows: None)
    wrong = replace(options, output=tmp_path / "bundle", glance_scorer=tmp_path / "none")
    with pytest.raises(tokprune.RequestInvalid, match="There is no scorer file"):
        export.export(wrong, lambda step: None, lambda rows: None)
    assert not any(tmp_path.iterdir())


def test_two_looks_give_the_scores_of_one_network_each() -> None:
    torch.manual_seed(1)
    size = Size(3, 16)
    whole, glance = GridScorer(size.heads).eval(), AskedScorer(*size).eval()
    feeds = scorer_feeds(np.random.default_rng(0), [(3, 4), (2, 5)], size, 7, 3)
    given = [torch.from_numpy(array) for array in feeds.values()]
    both = TwoLooks(whole, glance)
    with torch.no_grad():
        first, second = whole(*given), glance(*given)
        assert not torch.allclose(first, second)
        assert torch.equal(both(*given, torch.zeros(1)), first)
        assert torch.equal(both(*given, torch.ones(1)), second)


def test_each_of_two_looks_is_told_what_it_reads() -> None:
    torch.manual_seed(1)
    size = Size(3, 16)
    whole, glance = FramesScorer(*size).eval(), AskedScorer(*size).eval()
    feeds = scorer_feeds(np.random.default_rng(0), [(3, 4), (3, 4)], size, 7, 3)
    given = [torch.from_numpy(array) for array in feeds.values()]
    both, follows = TwoLooks(whole, glance), torch.tensor([0.0, 1.0])
    assert extra_inputs(both) == ("glance", "follows")
    assert extra_inputs(TwoLooks(glance, glance)) == ("glance",)
    with torch.no_grad():
        first, second = whole(*given, follows=follows), glance(*given)
        assert not torch.allclose(first, whole(*given, follows=torch.zeros(2)))
        assert torch.equal(both(*given, torch.zeros(1), follows=follows), first)
        assert torch.equal(both(*given, torch.ones(1), follows=follows), second)
