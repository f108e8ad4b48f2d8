import numpy as np
import pytest
from grids import tiled_vision, vision_tokens

from tokprune.selectors.similarity import (
    AT_ONCE,
    BLOCK,
    NARROW,
    Columns,
    blocks,
    looks,
    projection,
    unit,
)
from tokprune.types import KIND, PATCH, VisionTokens


def drawn(count: int, width: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32))


def test_looks_are_the_patches_at_unit_length() -> None:
    vision = tiled_vision()
    rows = looks(vision)
    patches = vision.embeds[vision.where[:, KIND] == PATCH]
    assert rows == pytest.approx(patches / np.linalg.norm(patches, axis=1, keepdims=True))
    assert (unit(np.zeros((2, 3), np.float32)) == 0).all()


def test_only_looks_that_are_wider_are_projected() -> None:
    vision = vision_tokens((4, 5), hidden=48)
    assert looks(vision, 64).shape == (20, 48)
    assert (looks(vision, 64) == looks(vision)).all()
    narrow = looks(vision, 8)
    assert narrow.shape == (20, 8)
    assert np.linalg.norm(narrow, axis=1) == pytest.approx(1)
    again = looks(VisionTokens(vision.embeds, vision.where, vision.regions), 8)
    assert (again == narrow).all()


def test_a_projection_keeps_cosines_by_and_large() -> None:
    rows = drawn(200, 2048)
    error = (
        unit(rows @ projection(2048, 256)) @ unit(rows @ projection(2048, 256)).T - rows @ rows.T
    )
    assert np.abs(error).mean() < 0.06


def test_blocks_make_up_the_whole_matrix() -> None:
    rows = drawn(2 * BLOCK + 3, 6)
    whole = np.concatenate([part for _, part in blocks(rows)])
    assert whole == pytest.approx(rows @ rows.T, abs=1e-6)
    assert [part.start for part, _ in blocks(rows)] == [0, BLOCK, 2 * BLOCK]


@pytest.mark.parametrize("width", [NARROW, NARROW + 1])
@pytest.mark.parametrize("count", [1, AT_ONCE - 1, AT_ONCE, 100])
def test_columns_are_the_same_whether_they_come_alone_or_together(width: int, count: int) -> None:
    rows = drawn(count, width)
    columns, random = Columns(rows), np.random.default_rng(1)
    gain = random.random(count).astype(np.float32)
    for index in random.permutation(count).tolist():  # promises that are often wrong
        assert columns(index, gain) == pytest.approx(rows @ rows[index], abs=1e-5)
        gain[index] = -np.inf
