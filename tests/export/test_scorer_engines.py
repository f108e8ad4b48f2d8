"""Every kind of scorer, as a graph that TensorRT-RTX builds on the CPU."""

from pathlib import Path

import pytest
from engine_builds import Built
from torch import nn

from tokprune_export import graphs
from tokprune_export.scorers import (
    AskedScorer,
    AttentionMean,
    FramesScorer,
    GridScorer,
    PaperScorer,
    Size,
    TwoLooks,
)

pytestmark = pytest.mark.torch
SIZES = dict.fromkeys(("u", "r", "H", "W"), (1, 4, 16))


@pytest.mark.parametrize(
    "network",
    [
        AttentionMean(),
        PaperScorer(),
        GridScorer(4),
        AskedScorer(4, 128),
        FramesScorer(4, 128),
        TwoLooks(AskedScorer(4, 128), GridScorer(4)),
        TwoLooks(FramesScorer(4, 128), AskedScorer(4, 128)),
    ],
)
def test_tensorrt_builds_every_scorer(network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / graphs.FOLDER).mkdir()
    target = graphs.Target(tmp_path, 18, 64)
    spec = graphs.write(graphs.scorer(network.eval(), Size(4, 128)), target, "scorer")
    built = Built(tmp_path / spec.file)
    assert built.build(spec, {**SIZES, "n": (4, 196, 900)}) > 1000
