"""What calibration shows the encoder of drawn pictures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tokprune
from tokprune.errors import EngineTooSmall
from tokprune.graphs import VisionEncoder
from tokprune.model import Model
from tokprune.trial_parts import SHARES, scattered, trial_parts
from tokprune.types import COLUMN, ROW, Feeds

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def model(demo_bundle: Path) -> Model:
    return tokprune.load(demo_bundle, backend="cpu", threads=1, verify="sizes").model


def noise(side_px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), np.uint8)


@pytest.mark.parametrize("share", SHARES)
def test_tokens_are_scattered_in_blocks(model: Model, share: float) -> None:
    (picture,) = model.processor.prepare([noise(392)])
    tokens = scattered(picture, share)
    assert len(tokens) == round(share * 196)
    assert (np.diff(tokens) > 0).all()
    blocks = picture.where[tokens][:, [ROW, COLUMN]] // 2
    found, counts = np.unique(blocks, axis=0, return_counts=True)
    assert (counts == 4).sum() >= len(counts) - 1, "all but one are whole"
    if share <= 0.5:
        apart = found.max(axis=0) - found.min(axis=0)
        assert (apart >= 4).all(), "here and there"


def test_cuts_are_of_the_largest_picture_and_of_one_with_half_its_tokens(model: Model) -> None:
    media = [model.processor.prepare([noise(side)]) for side in (112, 224, 280, 392)]
    parts = trial_parts(model, media)
    assert all(shown.part for shown in parts)
    counts = [len(shown.where) for shown in parts]
    assert counts == sorted(counts)
    assert set(counts) == {round(share * n) for share in SHARES for n in (64, 196)}


def test_tiles_are_shown_one_a_call(demo_bundles: Callable[..., Path]) -> None:
    model = tokprune.load(demo_bundles("llava_onevision"), backend="cpu", threads=1).model
    (whole,) = model.processor.prepare([noise(560)])
    parts = trial_parts(model, [(whole,)])
    units = whole.units.shape[1]
    assert max(len(shown.calls) for shown in parts) == units > len(whole.calls)
    assert all(len(call["pixel_values"]) == 1 for shown in parts for call in shown.calls)
    assert len({len(shown.calls) for shown in parts}) == len(parts)
    assert model.vision([parts[0]]).embeds.shape[0] == len(parts[0].where)


def test_an_encoder_of_one_size_has_no_parts(demo_bundles: Callable[..., Path]) -> None:
    model = tokprune.load(demo_bundles("vila"), backend="cpu", threads=1).model
    assert trial_parts(model, [model.processor.prepare([noise(392)])]) == []


def test_parts_that_the_engine_does_not_take_are_left_out(model: Model) -> None:
    def check(feeds: Feeds) -> None:
        if feeds["pixel_values"].size < 300_000:
            raise EngineTooSmall("built for more")

    bounded = replace(model, vision=VisionEncoder(model.vision.graph, check))
    media = [model.processor.prepare([noise(392)])]
    every, few = (trial_parts(each, media) for each in (model, bounded))
    assert 0 < len(few) < len(every)
