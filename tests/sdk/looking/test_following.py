"""Streams: what mattered, what moved, and the rest in turn."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from counts import CHUNKS, share
from grids import prompt_for
from stub_model import Stub, a_picture, a_vlm

from tokprune import Clip, Following, KeepCount, KeepMass, KeepRatio, RequestInvalid
from tokprune.families import anyres, llava_onevision, qwen2_vl
from tokprune.families.anyres import Hw, Tiler
from tokprune.looking import Asked, Look
from tokprune.looking.following import Follow
from tokprune.types import TILE, Array, Prepared, Ranking, VisionTokens

SIDE = 14  # tokens of a picture
PIXELS = 8


def picture(values: Array) -> Prepared:
    """Qwen2-VL's: each token's pixels given, [rows, columns, values]."""
    rows, columns, width = values.shape
    patches = np.repeat(values.reshape(1, -1, width), 4, axis=1).astype(np.float32)
    return qwen2_vl.from_patches("picture", 0, patches, (rows, columns), 2, (28, 28))


def asked(shown: Prepared, budget: KeepRatio | KeepCount | KeepMass) -> Asked:
    vision = VisionTokens(np.zeros((len(shown.where), 2), np.float32), shown.where, shown.regions)
    return Asked(prompt_for(vision), (shown,), budget)


def looked(follow: Follow, given: Asked, scores: Array | None = None) -> Look:
    """Look once; `scores` are of all tokens."""
    look = follow.first(given)
    places = np.arange(given.total) if look.places is None else look.places
    found = np.zeros(len(places)) if scores is None else scores[places]
    (shown, *_) = look.media
    vision = VisionTokens(np.zeros((len(places), 2), np.float32), shown.where, shown.regions)
    ranking = Ranking(lambda k: np.arange(k), found.astype(np.float32))
    assert follow.next(given, [look], vision, ranking) is None
    return look


def a_scene(seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(SIDE, SIDE, PIXELS))


def places_of(look: Look) -> set[int]:
    return set(range(SIDE**2)) if look.places is None else set(look.places.tolist())


@pytest.mark.parametrize("chunk", CHUNKS)
def test_every_part_is_seen_within_the_bound_in_every_seeded_scene(chunk: int) -> None:
    # A new object whose pixels differ too little to be noticed: nothing but the bound shows it.
    for seed in range(chunk * share(1000), (chunk + 1) * share(1000)):
        within = (1, 3, 8, 20)[seed % 4]
        random = np.random.default_rng(seed)
        follow = Follow(Following(within), qwen2_vl.cut)
        scene, budget = a_scene(seed), KeepRatio(0.1)
        scores = random.random(SIDE**2)
        appears = int(random.integers(1, 2 * within + 2))
        row, column = random.integers(0, SIDE - 1, 2).tolist()
        cells = {(row + a) * SIDE + column + b for a in (0, 1) for b in (0, 1)}
        seen: dict[int, int] = {}
        for number in range(appears + within):
            if number == appears:
                scene = scene.copy()
                scene[row : row + 2, column : column + 2] += 0.05
            look = looked(follow, asked(picture(scene), budget), scores)
            if number >= appears:
                for cell in cells & places_of(look):
                    seen.setdefault(cell, number)
        assert set(seen) == cells
        assert max(seen.values()) < appears + within


def test_what_moves_is_seen_at_once() -> None:
    follow, scene = Follow(Following(50), qwen2_vl.cut), a_scene(0)
    looked(follow, asked(picture(scene), KeepCount(10)))
    scene = scene.copy()
    scene[3, 4] += 0.5
    look = looked(follow, asked(picture(scene), KeepCount(10)))
    assert 3 * SIDE + 4 in places_of(look)
    assert "1 have moved" in look.reason
    again = looked(follow, asked(picture(scene), KeepCount(10)))
    assert "0 have moved" in again.reason


def test_what_creeps_is_noticed_against_what_was_last_shown() -> None:
    follow, scene = Follow(Following(1000), qwen2_vl.cut), a_scene(0)
    scores = np.zeros(SIDE**2)
    scores[:10] = 1
    looked(follow, asked(picture(scene), KeepCount(10)), scores)
    for step in range(6):
        scene = scene.copy()
        scene[9, 9] += 0.05
        look = looked(follow, asked(picture(scene), KeepCount(10)), scores)
        if 9 * SIDE + 9 in places_of(look):
            assert step >= 2
            return
    raise AssertionError("it crept by unseen")


def test_what_the_last_answer_was_read_from_is_looked_at_again() -> None:
    follow, scene = Follow(Following(20), qwen2_vl.cut), a_scene(0)
    scores = np.zeros(SIDE**2)
    scores[[56, 57, 70, 71]] = 1  # one block
    budget = KeepCount(14)
    looked(follow, asked(picture(scene), budget), scores)
    look = looked(follow, asked(picture(scene), budget), scores)
    assert {56, 57, 70, 71} <= places_of(look)
    assert look.encoded == 16 + 12  # four blocks hold fourteen tokens; three of 49 are due


def test_another_question_size_or_view_is_looked_at_as_a_whole() -> None:
    follow, budget = Follow(Following(8), qwen2_vl.cut), KeepCount(20)
    scene = a_scene(0)
    assert looked(follow, asked(picture(scene), budget)).places is None
    assert looked(follow, asked(picture(scene), budget)).places is not None
    given = asked(picture(scene), budget)
    words = given.prompt.words.copy()
    words[-3] = False
    other = Asked(
        type(given.prompt)(
            given.prompt.ids, given.prompt.slots, words, given.prompt.positions, 300
        ),
        given.media,
        budget,
    )
    assert looked(follow, other).places is None
    assert looked(follow, asked(picture(scene), budget)).places is None
    assert looked(follow, asked(picture(scene[:-2]), budget)).places is None
    moved = looked(follow, asked(picture(a_scene(1)[:-2]), budget))
    assert (moved.places, moved.reason) == (None, "most of the picture has changed")
    follow.follow.forget()
    assert looked(follow, asked(picture(a_scene(1)[:-2]), budget)).places is None


def test_tiles_are_followed_where_tokens_cannot_be_cut() -> None:
    tiler = Tiler(8, 4, tuple(Hw(8 * r, 8 * c) for r in range(1, 4) for c in range(1, 4)), 9)
    tiles = np.random.default_rng(0).normal(size=(10, 3, 8, 8)).astype(np.float32)
    layout = anyres.alone(tiler, 0, Hw(24, 24))
    make = partial(llava_onevision.from_tiles, "picture", layout=layout, size=Hw(24, 24))
    follow, budget = Follow(Following(3), None), KeepCount(20)
    crops: list[set[int]] = []
    assert looked(follow, asked(make(tiles=tiles), budget)).places is None
    for _ in range(3):
        look = looked(follow, asked(make(tiles=tiles), budget))
        assert look.places is not None
        where = make(tiles=tiles).where[look.places]
        assert (where[:, TILE] == 0).sum() == 16  # the whole is always there
        cells = where[(where[:, TILE] == 1) & (where[:, 6] == 0)]
        crops.append({int(r) // 4 * 3 + int(c) // 4 for r, c in cells[:, 3:5]})
    assert all(len(each) <= 4 for each in crops)
    assert set.union(*crops) == set(range(9))


def test_padding_is_never_shown() -> None:
    tiler = Tiler(4, 2, tuple(Hw(4 * r, 4 * c) for r in range(1, 5) for c in range(1, 5)), 9)
    wide = Hw(4, 17)
    crops = tiler.crops(wide)
    tiles = np.random.default_rng(0).normal(size=(1 + crops.height * crops.width, 3, 4, 4))
    layout = anyres.alone(tiler, 0, wide)
    shown = llava_onevision.from_tiles("picture", tiles.astype(np.float32), layout, wide)
    shown = replace(shown, units=np.pad(shown.units, ((0, 0), (0, 2))))  # two more, of padding
    empty = np.zeros((2, 3, 4, 4), np.float32)
    shown = replace(shown, calls=(*shown.calls, {"pixel_values": empty}))
    follow = Follow(Following(2), None)
    looked(follow, asked(shown, KeepCount(5)))
    for _ in range(4):
        look = looked(follow, asked(shown, KeepCount(5)))
        assert all(call["pixel_values"].any() for call in look.media[0].calls)


def test_a_camera_is_followed_through_answers() -> None:
    stub, follow = Stub(), Following(4)
    with a_vlm(stub) as vlm:
        first = vlm.ask(a_picture(1), "what?", 6, "attention", encode=follow)
        assert (first.encode, first.encoded, first.total) == ("follow", 24, 24)
        with pytest.raises(RequestInvalid, match="share or a count"):
            vlm.ask(a_picture(1), "what?", KeepMass(0.5), "attention", encode=follow)
        clip = Clip(np.stack([a_picture(1)] * 2), 2.0)
        with pytest.raises(RequestInvalid, match="picture by picture"):
            vlm.ask(clip, "what?", 6, "attention", encode=follow)


def test_a_bound_below_one_look_makes_no_sense() -> None:
    with pytest.raises(RequestInvalid, match="within=1 or more"):
        Following(0)
