"""The gate's part for the scorer: its graph against its network, on random attention."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

from tokprune.canvas import canvas
from tokprune.types import Array, Region
from tokprune_export.parity_bench import Bench
from tokprune_export.parity_report import RULES, Row, compare
from tokprune_export.scorers import Size, extra_inputs


def scorer_rows(bench: Bench, network: nn.Module) -> Iterator[Row]:
    """Compare the scorer with its own network, on grids and rows that were not traced."""
    spec = bench.graphs.scorer
    graph = bench.open(spec)
    names = [tensor.name for tensor in spec.inputs]
    shapes = {tensor.name: tensor.shape for tensor in spec.inputs}
    hidden = shapes["embeds"][1] if "embeds" in shapes else 1
    size = Size(int(shapes["attention"][0]), int(hidden))
    random = np.random.default_rng(0)
    rule = RULES["fp32"]  # it stays float32: its weights are small, and scores are for ranking
    rule = bench.rule if bench.precision == "fp32" else rule
    for grids, rows, asked in (((1, 1),), 1, 0), (((8, 3),), 9, 4), (((5, 7), (2, 9)), 31, 12):
        feeds = scorer_feeds(random, grids, size, rows, asked)
        case = f"{' and '.join(f'{h}x{w}' for h, w in grids)}, {asked}/{rows} rows"
        for look, more in told(network, len(grids)).items():
            given = {**feeds, **more}
            with torch.no_grad():
                oracle = network(**{name: torch.from_numpy(given[name]) for name in given}).numpy()
            ours = graph.run({name: given[name] for name in names})["relevance"]
            yield compare("scorer", "", case + look, ours, oracle, rule)


def told(network: nn.Module, regions: int) -> dict[str, dict[str, Array]]:
    """Return what a network reads beyond attention and tokens, by what its rows add to a case."""
    looks = {"": np.zeros(1, np.float32)}
    if "glance" in extra_inputs(network):
        looks[", first look"] = np.ones(1, np.float32)
    follows = np.minimum(np.arange(regions), 1).astype(np.float32)  # as frames of one video
    offered = {name: {"glance": look, "follows": follows} for name, look in looks.items()}
    return {
        name: {key: each[key] for key in extra_inputs(network)} for name, each in offered.items()
    }


def scorer_feeds(
    random: np.random.Generator,
    grids: Iterable[tuple[int, int]],
    size: Size,
    rows: int,
    asked: int,
) -> dict[str, Array]:
    """Return random attention over pictures of these grids, the last rows marked as asked."""
    regions = tuple(Region(index, 0, 0, h, w) for index, (h, w) in enumerate(grids))
    where = np.zeros((sum(region.rows * region.columns for region in regions), 7), np.int32)
    where[:, 0] = np.repeat([r.picture for r in regions], [r.rows * r.columns for r in regions])
    where[:, 3:5] = np.concatenate(
        [np.indices((r.rows, r.columns)).reshape(2, -1).T for r in regions]
    )
    index, cells = canvas(where, regions)
    attention = random.dirichlet(np.ones(len(where) + 1), size=(size.heads, rows))[:, :, :-1]
    question = np.arange(rows) >= rows - asked
    return {
        "attention": attention.astype(np.float32),
        "question": question,
        "index": index,
        "cells": cells,
        "embeds": random.standard_normal((len(where), size.hidden), np.float32),
        "words": random.standard_normal((rows, size.hidden), np.float32),
    }
