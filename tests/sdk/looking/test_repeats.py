"""Pixels that are encoded once."""

from dataclasses import replace

import numpy as np
import pytest
from grids import prompt_for
from stub_model import Stub, a_picture, a_vlm

from tokprune import Clip, KeepRatio
from tokprune.families import qwen2_vl
from tokprune.looking import Asked, Look
from tokprune.looking.repeats import Repeats, repeated
from tokprune.types import Array, Prepared, VisionTokens


def film(frames: Array) -> Prepared:
    """Frames of 2 x 3 tokens, each of one value: [f, 6]."""
    patches = np.repeat(frames.astype(np.float32), 4, axis=1)[..., None] * np.ones(5, np.float32)
    return qwen2_vl.from_patches("video", 0, patches, (2, 3), 2, (56, 84))


def looked(shown: Prepared, tau: float = 0.0, *, whole: bool = False) -> Look:
    vision = VisionTokens(np.zeros((len(shown.where), 2), np.float32), shown.where, shown.regions)
    asked = Asked(prompt_for(vision), (shown,), KeepRatio(0.5))
    return Repeats(None if whole else qwen2_vl.cut, tau).first(asked)


def packed(look: Look) -> Array:
    """What an encoder gives that tells each token's own pixels."""
    (shown,) = look.media
    return shown.pack([call["pixel_values"][:, ::4, :1] for call in shown.calls])[:, 0]


FLAT = np.asarray([[1, 1, 2], [1, 1, 3]]).reshape(1, 6)


def test_flat_areas_are_encoded_once_and_copied() -> None:
    look = looked(film(FLAT))
    assert [len(call["positions"]) for call in look.media[0].calls] == [3 * 4]
    assert packed(look).tolist() == FLAT.ravel().tolist()
    assert look.encoded == 3
    assert look.places is None
    assert look.reason == "3 of 6 tokens repeat others"


def test_what_is_new_is_all_encoded() -> None:
    look = looked(film(np.arange(6)[None]))
    assert look.encoded == 6
    assert look.reason == "0 of 6 tokens repeat others"


def test_a_frame_that_repeats_the_one_before_is_not_encoded_at_all() -> None:
    frames = np.stack([np.arange(6), np.arange(6), np.asarray([0, 1, 2, 3, 4, 9])])
    look = looked(film(frames))
    distinct = {id(call) for call in look.media[0].calls}
    assert look.encoded == 7
    assert len(distinct) == 2
    assert packed(look).tolist() == frames.ravel().tolist()


@pytest.mark.parametrize(("tau", "encoded"), [(0.0, 6), (0.1, 3), (0.25, 2), (5.0, 1)])
def test_a_tolerance_counts_from_what_was_encoded_not_from_neighbour_to_neighbour(
    tau: float, encoded: int
) -> None:
    slope = np.asarray([[0, 0.1, 0.2, 0.3, 0.4, 0.5]])
    shown = qwen2_vl.from_patches(
        "picture",
        0,
        np.repeat(slope.astype(np.float32), 4, axis=1)[..., None],
        (1, 6),
        2,
        (28, 168),
    )
    of = repeated(shown, tau + 1e-6)
    assert len(set(of.tolist())) == encoded
    assert np.abs(slope[0] - slope[0, of]).max() <= tau + 1e-6


def test_where_tokens_cannot_be_cut_whole_frames_are_compared() -> None:
    frames = np.stack([FLAT[0], FLAT[0], FLAT[0] + 1])
    look = looked(film(frames), whole=True)
    assert look.encoded == 12
    assert len({id(call) for call in look.media[0].calls}) == 2
    near = looked(film(frames), 1.0, whole=True)
    assert near.encoded == 6


def test_equal_frames_run_the_encoder_once_whatever_the_cache_holds() -> None:
    still = a_picture(3)
    clip = Clip(np.stack([still, still, a_picture(4), still]), 2.0)
    for cache_bytes in (0, 1 << 20):
        stub = Stub()
        with a_vlm(stub, vision_cache_bytes=cache_bytes) as vlm:
            answer = vlm.ask(clip, "what is it?", 30, "attention", encode="repeats")
            full = vlm.ask(clip, "what is it?", 30, "attention")
        assert answer.encoder_runs == 2
        assert answer.encoded == 48
        assert answer.text == full.text
        assert answer.selection.keep.tolist() == full.selection.keep.tolist()


def test_positions_that_differ_are_no_repeat() -> None:
    one = film(FLAT)
    call = dict(one.calls[0])
    other = replace(one, calls=({**call, "positions": call["positions"] + 1},))
    vision = VisionTokens(
        np.zeros((12, 2), np.float32),
        np.concatenate([one.where, one.where + np.asarray([1, 0, 0, 0, 0, 0, 0], np.int32)]),
        (*one.regions, one.regions[0]._replace(picture=1)),
    )
    asked = Asked(prompt_for(vision), (one, other), KeepRatio(0.5))
    assert Repeats(None).first(asked).encoded == 12


def test_a_frame_that_comes_back_is_not_encoded_again() -> None:
    frames = np.stack([np.arange(6), np.arange(6) + 10, np.arange(6)])
    look = looked(film(frames))
    assert look.encoded == 12
    assert len({id(call) for call in look.media[0].calls}) == 2
    assert packed(look).tolist() == frames.ravel().tolist()


def test_two_equal_pictures_with_flat_areas_are_encoded_once() -> None:
    one = film(FLAT)
    call = dict(one.calls[0])
    where = one.where + np.asarray([1, 0, 0, 0, 0, 0, 0], np.int32)
    other = replace(one, calls=(call,), where=where, regions=(one.regions[0]._replace(picture=1),))
    media = (one, other)
    vision = VisionTokens(
        np.zeros((12, 2), np.float32),
        np.concatenate([shown.where for shown in media]),
        tuple(region for shown in media for region in shown.regions),
    )
    look = Repeats(qwen2_vl.cut).first(Asked(prompt_for(vision), media, KeepRatio(0.5)))
    assert look.encoded == 3
    assert look.media[0].calls[0] is look.media[1].calls[0]
    assert look.media[1].regions[0].picture == 1
