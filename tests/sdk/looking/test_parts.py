"""Tiles and frames that are encoded by themselves."""

from dataclasses import replace

import numpy as np
import pytest
from grids import first_layer
from tiles import asked, tokens_of
from tiles import picture as tiled

from tokprune import KeepCount, RequestInvalid
from tokprune.families import anyres, llava_onevision, qwen2_vl, vila
from tokprune.families.anyres import Hw, Tiler
from tokprune.looking.look import showing
from tokprune.looking.parts import PADDING, apart, part, units_of
from tokprune.looking.showing import show_units
from tokprune.selection import select
from tokprune.selectors import SELECTORS, Inputs
from tokprune.types import KIND, NEWLINE, TILE, Array, Prepared, Prompt

TILER = Tiler(4, 2, tuple(Hw(4 * r, 4 * c) for r in range(1, 5) for c in range(1, 5)), 9)
SIZES = [(4, 4), (9, 14), (30, 31), (4, 17), (64, 16), (16, 16)]


def picture(size: tuple[int, int]) -> Prepared:
    """A picture of LLaVA-OneVision's, its tiles of 4 pixels and 2 x 2 tokens."""
    crops = TILER.crops(Hw(*size))
    random = np.random.default_rng(0)
    tiles = random.normal(size=(1 + crops.height * crops.width, 3, 4, 4)).astype(np.float32)
    layout = anyres.alone(TILER, 0, Hw(*size))
    return llava_onevision.from_tiles("picture", tiles, layout, Hw(*size))


def encoded(tiles: Array) -> Array:
    """What an encoder gives of tiles: four tokens, and a newline that is the same in all."""
    sums = tiles.mean(axis=(1, 2, 3))[:, None, None] + np.arange(4)[None, :, None]
    newline = np.full((len(tiles), 1, 1), 99)
    return np.concatenate([sums, newline], axis=1).astype(np.float32)


def packed(prepared: Prepared) -> Array:
    return prepared.pack([encoded(call["pixel_values"]) for call in prepared.calls])


@pytest.mark.parametrize("size", SIZES)
def test_a_part_gives_what_the_whole_gives_at_its_places(size: tuple[int, int]) -> None:
    split = apart(picture(size))
    whole = packed(picture(size))
    np.testing.assert_array_equal(packed(split), whole)
    random = np.random.default_rng(1)
    for _ in range(6):
        shown = random.random(len(split.calls)) < 0.5
        shown[0] = True
        (made,), places = part(split, shown)
        assert len(made.calls) == shown.sum()
        np.testing.assert_array_equal(packed(made), whole[places])
        np.testing.assert_array_equal(made.where, split.where[places])
        missing = np.setdiff1d(np.arange(len(whole)), places)
        patch = split.where[missing, KIND] != NEWLINE
        assert (split.units[missing][patch] & ~shown).any(axis=1).all()


def test_a_newline_is_shown_with_its_row() -> None:
    split = apart(picture((16, 16)))
    shown = np.zeros(len(split.calls), np.bool_)
    shown[[0, 1]] = True  # the whole, and the crop at the top left
    (made,), _ = part(split, shown)
    crops = made.where[made.where[:, TILE] == 1]
    assert (crops[:, KIND] == NEWLINE).sum() == len(set(crops[:, 3].tolist()))
    assert [region.tile for region in made.regions] == [0, 1]


def test_padding_is_no_token_and_no_tile_to_look_at() -> None:
    units = units_of([apart(picture((4, 17)))])
    sizes = [len(tokens) for tokens in units.tokens]
    assert [size == 0 for size in sizes] == (units.tile == PADDING).tolist()


def test_tokens_between_two_tiles_are_made_of_both() -> None:
    layout = anyres.alone(TILER, 0, Hw(64, 64))  # 4 x 4 tiles, scaled down to fewer than 9
    made = layout.tiles(17)
    assert made[layout.tokens.where[:, TILE] == 1].sum(axis=1).max() > 1
    assert not made[layout.tokens.where[:, KIND] == NEWLINE].any()


def test_frames_are_units_in_every_family() -> None:
    frames = np.zeros((3, 6, 8), np.float32)
    film = qwen2_vl.from_patches("video", 0, frames, (1, 2), 2, (28, 56))
    assert film.units.tolist() == [[f == frame for f in range(3)] for frame in (0, 0, 1, 1, 2, 2)]
    llava = llava_onevision.from_tiles(
        "video", np.zeros((3, 3, 4, 4), np.float32), anyres.film(TILER, 0, 3), Hw(4, 4)
    )
    assert llava.units[:-1].sum(axis=1).tolist() == [1] * (len(llava.units) - 1)
    grid = vila.Grid(2, column_major=False)
    still = vila.from_pixels(grid, 0, 1, np.zeros((1, 3, 4, 4), np.float32), (4, 4))
    assert still.units.tolist() == [[True]] * 4


def test_frames_that_are_not_shown_have_no_call_and_no_region() -> None:
    patches = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    film = apart(qwen2_vl.from_patches("video", 0, patches, (1, 2), 2, (28, 56)))
    (made,), places = part(film, np.asarray([True, False, True]))
    assert places.tolist() == [0, 1, 4, 5]
    assert [region.frame for region in made.regions] == [0, 2]
    assert part(film, np.zeros(3, np.bool_)).media == ()


def test_some_tokens_alone_keep_their_pixels_and_positions() -> None:
    patches = np.random.default_rng(0).normal(size=(2, 24, 8)).astype(np.float32)
    film = qwen2_vl.from_patches("video", 0, patches, (2, 3), 2, (56, 84))
    tokens = np.asarray([1, 2, 5, 10])
    for given in (film, apart(film)):
        made = qwen2_vl.cut(given, tokens)
        first, second = made.calls
        rows = np.ravel(np.asarray([1, 2, 5])[:, None] * 4 + np.arange(4))
        np.testing.assert_array_equal(first["pixel_values"][0], patches[0, rows])
        np.testing.assert_array_equal(first["positions"], film.calls[0]["positions"][rows])
        np.testing.assert_array_equal(second["pixel_values"][0], patches[1, 16:20])
        np.testing.assert_array_equal(made.where, film.where[tokens])
        assert made.units.tolist() == [[True, False]] * 3 + [[False, True]]


def test_a_prompt_that_shows_some_tokens_keeps_their_positions() -> None:
    prompt = Prompt(
        ids=np.asarray([7, 1, 1, 1, 8, 1, 9]),
        slots=np.asarray([1, 2, 3, 5]),
        words=np.asarray([False] * 6 + [True]),
        positions=np.arange(7)[None] * 2,
        next_position=14,
    )
    shown = showing(prompt, np.asarray([1, 3]))
    assert shown.ids.tolist() == [7, 1, 8, 1, 9]
    assert shown.slots.tolist() == [1, 3]
    assert shown.words.tolist() == [False] * 4 + [True]
    assert shown.positions.tolist() == [[0, 4, 8, 10, 12]]
    assert shown.next_position == 14
    every = showing(prompt, np.arange(4))
    for name in ("ids", "slots", "words", "positions"):
        np.testing.assert_array_equal(getattr(every, name), getattr(prompt, name))


def test_calls_that_are_apart_already_stay_as_they_are() -> None:
    split = apart(picture((9, 14)))
    assert apart(split) is split


GRIDS, FRAMES = {"uniform", "pool", "globalcom2"}, {"evs", "vidcom2", "ts-llava"}


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - FRAMES))
def test_selectors_choose_among_what_is_encoded_or_say_that_they_need_the_whole(name: str) -> None:
    shown = np.zeros(10, np.bool_)
    shown[[0, 3, 5]] = True  # the whole, and two crops
    look = show_units(asked(KeepCount(40), tiled()), shown)
    random, grids = np.random.default_rng(0), tokens_of(look.media)
    count = len(grids.where)
    embeds = random.normal(size=(count, 8)).astype(np.float32)
    vision = replace(grids, embeds=embeds, saliency=random.random(count).astype(np.float32))
    scores = random.dirichlet(np.ones(count)).astype(np.float32)
    table = random.normal(size=(500, 8)).astype(np.float32)
    selector = SELECTORS[name].make(Inputs(lambda vision, first: scores, lambda ids: table[ids]))

    def choose(k: int) -> int:
        first = first_layer(vision, scores)
        return select(selector(look.prompt, vision, lambda: first), vision, KeepCount(k)).kept

    if name in GRIDS:
        with pytest.raises(RequestInvalid, match=f"'{name}' needs whole grids"):
            choose(10)
    else:
        assert [choose(k) for k in (1, 10, 30, count)] == [1, 10, 30, count]
