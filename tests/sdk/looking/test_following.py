"""Streams: what moved, the rest in turn, and what is remembered meanwhile."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from counts import CHUNKS, share
from grids import prompt_for
from stub_model import Stub, a_model, a_picture

from tokprune import Auto, Clip, Deadline, Following, KeepCount, KeepMass, KeepRatio, RequestInvalid
from tokprune.budgets import Budget
from tokprune.families import anyres, llava_onevision, qwen2_vl
from tokprune.families.anyres import Hw, Tiler
from tokprune.looking import Asked, Look, Ways
from tokprune.looking.following import Follow
from tokprune.looking.showing import Cut
from tokprune.types import Array, Feeds, Prepared, Ranking, VisionTokens
from tokprune.vlm import VLM

SIDE = 14  # tokens of a picture
PIXELS = 8
A_TENTH = KeepRatio(0.1)


def picture(values: Array) -> Prepared:
    """Qwen2-VL's: each token's pixels given, [rows, columns, values]."""
    rows, columns, width = values.shape
    patches = np.repeat(values.reshape(1, -1, width), 4, axis=1).astype(np.float32)
    return qwen2_vl.from_patches("picture", 0, patches, (rows, columns), 2, (28, 28))


def asked(shown: Prepared, budget: Budget) -> Asked:
    vision = VisionTokens(np.zeros((len(shown.where), 2), np.float32), shown.where, shown.regions)
    return Asked(prompt_for(vision), (shown,), budget)


def encoded(call: Feeds) -> Array:
    """The encoder of this test: the mean of a token's pixels, which the pixels alone decide."""
    pixels = call["pixel_values"]
    rows = pixels.reshape(1, -1, 4 * pixels.shape[-1]) if pixels.ndim == 3 else pixels
    return np.repeat(rows.mean(axis=-1, keepdims=True), 2, axis=-1).astype(np.float32)


def tokens_of(look: Look, encode: Callable[[Feeds], Array] = encoded) -> Array:
    """What the first layer gets."""
    (shown,) = look.media
    return shown.pack([encode(call) for call in shown.calls])


def looked(
    follow: Follow,
    given: Asked,
    scores: Array | None = None,
    encode: Callable[[Feeds], Array] = encoded,
) -> tuple[Look, Array]:
    """Look once; `scores` are of all tokens. Return what the first layer gets too."""
    look = follow.first(given)
    tokens = tokens_of(look, encode)
    assert len(tokens) == given.total
    found = np.zeros(given.total) if scores is None else scores
    vision = VisionTokens(tokens, look.media[0].where, look.media[0].regions)
    ranking = Ranking(lambda k: np.arange(k), found.astype(np.float32))
    assert follow.next(given, [look], vision, ranking) is None
    assert (look.places, look.prompt, look.budget) == (None, given.prompt, given.budget)
    return look, tokens


class Eyes:
    """What one question sees of one stream: a new `Follow` for every answer, as answers have."""

    def __init__(self, within: int, cut: Cut | None = qwen2_vl.cut) -> None:
        self.following, self.cut = Following(within), cut

    def look(self, scene: Array, budget: Budget = A_TENTH, scores: Array | None = None) -> Look:
        return looked(self.follow(), asked(picture(scene), budget), scores)[0]

    def tokens(self, scene: Array, scores: Array | None = None) -> Array:
        return looked(self.follow(), asked(picture(scene), A_TENTH), scores)[1]

    def fresh(self, scene: Array, scores: Array | None = None) -> set[int]:
        """Look, and return the tokens that are as the scene is now."""
        now = tokens_of(Eyes(8).follow().first(asked(picture(scene), A_TENTH)))
        return set(np.flatnonzero((self.tokens(scene, scores) == now).all(axis=1)).tolist())

    def follow(self, model: str = "") -> Follow:
        return Follow(self.following, self.cut, model)


def a_scene(seed: int, rows: int = SIDE) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, SIDE, PIXELS))


def places_of(look: Look) -> set[int]:
    """The tokens that are encoded."""
    (call,) = look.media[0].calls
    rows, columns = (call["positions"] // 2).T[-2:]
    return set((rows * SIDE + columns).tolist())


@pytest.mark.parametrize("chunk", CHUNKS)
def test_every_part_is_seen_within_the_bound_in_every_seeded_scene(chunk: int) -> None:
    # A new object whose pixels differ too little to be noticed: nothing but the bound shows it.
    for seed in range(chunk * share(1000), (chunk + 1) * share(1000)):
        within = (1, 3, 8, 20)[seed % 4]
        random = np.random.default_rng(seed)
        eyes, scene = Eyes(within), a_scene(seed)
        scores = random.random(SIDE**2)
        appears = int(random.integers(1, 2 * within + 2))
        row, column = random.integers(0, SIDE - 1, 2).tolist()
        cells = {(row + a) * SIDE + column + b for a in (0, 1) for b in (0, 1)}
        seen: dict[int, int] = {}
        for number in range(appears + within):
            if number == appears:
                scene = scene.copy()
                scene[row : row + 2, column : column + 2] += 0.05
            fresh = eyes.fresh(scene, scores)
            if number >= appears:
                for cell in cells & fresh:
                    seen.setdefault(cell, number)
        assert set(seen) == cells
        assert max(seen.values()) < appears + within


def test_what_is_not_encoded_again_is_remembered() -> None:
    eyes, scene = Eyes(8), a_scene(0)
    before = eyes.tokens(scene)
    scene = scene.copy()
    scene += 0.04  # of a lamp that is switched on: too little to be a movement
    scene[3, 4] += 0.5
    given = asked(picture(scene), A_TENTH)
    look, tokens = looked(eyes.follow(), given)
    new = np.zeros(SIDE**2, np.bool_)
    new[sorted(places_of(look))] = True
    assert 3 * SIDE + 4 in places_of(look)
    assert look.encoded == new.sum() < 0.4 * SIDE**2
    whole = tokens_of(Eyes(8).follow().first(given))
    assert (whole != before).all()
    fresh = (tokens == whole).all(axis=1)
    assert fresh.sum() == 4 * (1 + 7)  # a block that moved, and seven that were due
    assert new[fresh].all()
    assert (tokens[~fresh] == before[~fresh]).all()
    beside = np.lib.stride_tricks.sliding_window_view(np.pad(fresh.reshape(SIDE, SIDE), 1), (3, 3))
    assert (beside.any(axis=(2, 3)).ravel() == new).all()  # what lies around is encoded as well
    for _ in range(7):
        tokens = eyes.tokens(scene)
    assert (tokens == whole).all()  # all was encoded since


def test_saliency_is_remembered_beside_vision_tokens() -> None:
    eyes, scene = Eyes(8), a_scene(0)

    def look_at(scene: Array) -> tuple[Array, Array]:
        follow = eyes.follow()
        given = asked(picture(scene), A_TENTH)
        look = follow.first(given)
        (shown,) = look.media
        tokens = [encoded(call) for call in shown.calls]
        saliency = shown.pack([each[..., :1] + 9 for each in tokens])
        vision = VisionTokens(shown.pack(tokens), shown.where, shown.regions)
        follow.next(given, [look], vision, Ranking(lambda k: np.arange(k)))
        return vision.embeds, saliency

    for number in range(10):
        scene = scene.copy()
        scene[number, number] += 1.0
        embeds, saliency = look_at(scene)
        assert np.allclose(saliency, embeds[:, :1] + 9)


def test_what_moves_is_seen_at_once() -> None:
    eyes, scene = Eyes(50), a_scene(0)
    eyes.look(scene)
    scene = scene.copy()
    scene[3, 4] += 0.5
    look = eyes.look(scene)
    assert 3 * SIDE + 4 in places_of(look)
    assert "1 have moved" in look.reason
    assert "0 have moved" in eyes.look(scene).reason


def test_what_creeps_is_noticed_against_what_was_last_encoded() -> None:
    eyes, scene = Eyes(1000), a_scene(0)
    eyes.look(scene)
    for step in range(6):
        scene = scene.copy()
        scene[9, 9] += 0.05
        if 9 * SIDE + 9 in places_of(eyes.look(scene)):
            assert step >= 2
            return
    raise AssertionError("it crept by unseen")


def test_less_is_a_movement_where_the_last_answer_was_read_from() -> None:
    scores = np.zeros(SIDE**2)
    block = {56, 57, 70, 71}
    scores[sorted(block)] = 1
    scores[0] = 0.1
    for change, noticed in ((0.05, set[int]()), (0.08, {56}), (0.2, {0, 56})):
        eyes, scene = Eyes(1000), a_scene(0)
        eyes.look(scene, scores=scores)
        eyes.look(scene, scores=scores)  # the corner is the first that is due
        changed = scene.copy()
        changed[4, 0] += change
        changed[0, 0] += change
        assert eyes.fresh(changed, scores) & {0, 56} == noticed


def test_a_request_that_is_stopped_on_its_way_changes_nothing() -> None:
    eyes, scene = Eyes(1000), a_scene(0)
    before = eyes.tokens(scene)
    changed = scene.copy()
    changed[5, 5] += 1.0
    stopped = eyes.follow().first(asked(picture(changed), A_TENTH))
    assert (tokens_of(stopped) != before).any()  # and nobody hears of it
    tokens = eyes.tokens(scene)
    assert (tokens == before).all()
    assert 5 * SIDE + 5 in places_of(eyes.look(changed))


def ended(follow: Follow, given: Asked, look: Look) -> None:
    """End a look that was begun before."""
    vision = VisionTokens(tokens_of(look), look.media[0].where, look.media[0].regions)
    assert follow.next(given, [look], vision, Ranking(lambda k: np.arange(k))) is None


@pytest.mark.parametrize("looks", [0, 3])
def test_what_is_forgotten_during_an_answer_stays_forgotten(looks: int) -> None:
    eyes, given = Eyes(8), asked(picture(a_scene(0)), A_TENTH)
    for _ in range(looks):
        eyes.look(a_scene(0))
    follow = eyes.follow()
    look = follow.first(given)
    eyes.following.forget()
    ended(follow, given, look)
    assert eyes.following.seen is None
    assert eyes.look(a_scene(0)).encoded == SIDE**2


def test_two_answers_at_one_time_leave_what_one_of_them_saw() -> None:
    # Of two VLMs, or two threads: what one encoded must not count as fresh in the other's memory.
    eyes, scene = Eyes(8), a_scene(0)
    eyes.look(scene)
    changed = scene.copy()
    changed[3, 4] += 1.0
    one, other = eyes.follow(), eyes.follow("another model")
    asks = asked(picture(changed), A_TENTH), asked(picture(a_scene(1)), A_TENTH)
    looks = one.first(asks[0]), other.first(asks[1])
    assert looks[0].encoded < SIDE**2 == looks[1].encoded
    ended(other, asks[1], looks[1])
    seen = eyes.following.seen
    ended(one, asks[0], looks[0])
    assert eyes.following.seen is seen
    for scene in (changed, changed):
        tokens = eyes.tokens(scene)
        whole = tokens_of(Eyes(8).follow().first(asked(picture(scene), A_TENTH)))
        assert (tokens == whole).all()


def test_every_budget_is_taken_and_one_that_keeps_everything_too() -> None:
    for budget in (KeepRatio(1.0), KeepCount(3), KeepMass(0.5), Deadline(300), Auto(300, 0.9)):
        eyes, scene = Eyes(8), a_scene(0)
        eyes.look(scene, budget)
        assert eyes.look(scene, budget).encoded < 0.4 * SIDE**2


def test_another_question_model_size_or_view_is_looked_at_as_a_whole() -> None:
    eyes, scene = Eyes(8), a_scene(0)
    first = "the first look at this question and picture"
    assert eyes.look(scene).reason == first
    assert "have moved" in eyes.look(scene).reason
    given = asked(picture(scene), A_TENTH)
    words = given.prompt.words.copy()
    words[-3] = False
    prompt = type(given.prompt)(
        given.prompt.ids, given.prompt.slots, words, given.prompt.positions, 300
    )
    other = replace(given, prompt=prompt)
    assert looked(eyes.follow(), other)[0].reason == first
    assert eyes.look(scene).reason == first
    assert looked(eyes.follow("another model"), given)[0].reason == first
    assert eyes.look(scene).reason == first
    assert eyes.look(scene[:-2]).reason == first
    assert eyes.look(a_scene(1)[:-2]).reason == "most of the picture has changed"
    assert "have moved" in eyes.look(a_scene(1)[:-2]).reason
    eyes.following.forget()
    look = eyes.look(a_scene(1)[:-2])
    assert (look.reason, look.encoded) == (first, SIDE * (SIDE - 2))


def tile(call: Feeds) -> Array:
    """An encoder of tiles: 4 x 4 tokens of 2 x 2 pixels, and a newline."""
    pixels = call["pixel_values"]
    side = pixels.shape[-1] // 4
    cells = pixels.reshape(1, 3, 4, side, 4, side).mean(axis=(1, 3, 5))
    tokens = np.pad(cells.reshape(1, 16, 1), ((0, 0), (0, 1), (0, 0)), constant_values=7)  # newline
    return np.repeat(tokens, 2, axis=-1)


def test_tiles_are_followed_where_tokens_cannot_be_cut() -> None:
    tiler = Tiler(8, 4, tuple(Hw(8 * r, 8 * c) for r in range(1, 4) for c in range(1, 4)), 9)
    tiles = np.random.default_rng(0).normal(size=(10, 3, 8, 8)).astype(np.float32)
    layout = anyres.alone(tiler, 0, Hw(24, 24))
    make = partial(llava_onevision.from_tiles, "picture", layout=layout, size=Hw(24, 24))
    eyes = Eyes(3, None)
    first = looked(eyes.follow(), asked(make(tiles=tiles), A_TENTH), encode=tile)[1]
    shown: list[set[int]] = []
    for number in range(3):
        tiles = tiles.copy()
        tiles[1 + number] += 1.0
        given = asked(make(tiles=tiles), A_TENTH)
        look, tokens = looked(eyes.follow(), given, encode=tile)
        calls = [call["pixel_values"] for call in look.media[0].calls]
        shown.append({n for n in range(10) for call in calls if (call[0] == tiles[n]).all()})
        assert {0, 1 + number} <= shown[-1]  # the whole is always there
        whole = tokens_of(Eyes(3, None).follow().first(given), tile)
        assert np.array_equal(tokens, whole)  # all that has changed, and what lies beside it
        assert not np.array_equal(tokens, first)
    assert all(len(each) <= 1 + 1 + 3 for each in shown)
    assert set.union(*shown) == set(range(10))


def test_a_small_thing_in_a_tile_is_a_movement() -> None:
    tiler = Tiler(64, 4, tuple(Hw(64 * r, 64 * c) for r in range(1, 4) for c in range(1, 4)), 9)
    tiles = np.random.default_rng(0).normal(size=(10, 3, 64, 64)).astype(np.float32)
    layout = anyres.alone(tiler, 0, Hw(192, 192))
    make = partial(llava_onevision.from_tiles, "picture", layout=layout, size=Hw(192, 192))
    eyes = Eyes(1000, None)
    looked(eyes.follow(), asked(make(tiles=tiles), A_TENTH), encode=tile)
    tiles = tiles.copy()
    tiles[5, :, 20:28, 40:48] += 1.0  # 8 x 8 px of 64 x 64
    look, _ = looked(eyes.follow(), asked(make(tiles=tiles), A_TENTH), encode=tile)
    assert "1 have moved" in look.reason
    assert any((call["pixel_values"][0] == tiles[5]).all() for call in look.media[0].calls)


def test_crops_of_another_size_in_equal_places_are_another_stream() -> None:
    # Above nine crops the grid is scaled down: 12, 20 and 30 crops give tokens in equal places.
    tiler = Tiler(8, 4, tuple(Hw(8 * r, 8 * c) for r in range(1, 7) for c in range(1, 7)), 9)
    eyes, places, counts = Eyes(4, None), set[bytes](), set[int]()
    for size in (Hw(24, 32), Hw(30, 40), Hw(36, 48), Hw(48, 64)):
        count = 1 + tiler.crops(size).height * tiler.crops(size).width
        tiles = np.random.default_rng(0).normal(size=(count, 3, 8, 8)).astype(np.float32)
        layout = anyres.alone(tiler, 0, size)
        shown = llava_onevision.from_tiles("picture", tiles, layout, size)
        given = asked(shown, A_TENTH)
        look, _ = looked(eyes.follow(), given, encode=tile)
        assert look.reason == "the first look at this question and picture"
        assert "0 have moved" in looked(eyes.follow(), given, encode=tile)[0].reason
        places.add(shown.where.tobytes())
        counts.add(count)
    assert (len(places), counts) == (1, {13, 21, 31})


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
    eyes = Eyes(2, None)
    follow = eyes.follow()
    look = follow.first(asked(shown, A_TENTH))
    tokens = [np.zeros((1, 4, 2), np.float32)] * len(look.media[0].calls)
    for _ in range(5):
        vision = VisionTokens(look.media[0].pack(tokens), shown.where, shown.regions)
        follow.next(asked(shown, A_TENTH), [look], vision, Ranking(lambda k: np.arange(k)))
        follow = eyes.follow()
        look = follow.first(asked(shown, A_TENTH))
        assert all(call["pixel_values"].any() for call in look.media[0].calls)
        tokens = [np.zeros((1, 4, 2), np.float32)] * len(look.media[0].calls)


def test_a_camera_is_followed_through_answers() -> None:
    model, follow = a_model(Stub()), Following(4)
    processor = replace(model.processor, ways=Ways(crops=True))
    with VLM(replace(model, processor=processor)) as vlm:
        first = vlm.ask(a_picture(1), "what?", 6, "attention", encode=follow)
        assert (first.encode, first.encoded, first.total) == ("follow", 24, 24)
        again = vlm.ask(a_picture(1), "what?", 6, "attention", encode=follow)
        assert again.encode_reason == "there is nothing to leave out"  # it is one tile
        assert again.text == first.text
        clip = Clip(np.stack([a_picture(1)] * 2), 2.0)
        with pytest.raises(RequestInvalid, match="picture by picture"):
            vlm.ask(clip, "what?", 6, "attention", encode=follow)


def test_a_bound_below_one_look_makes_no_sense() -> None:
    with pytest.raises(RequestInvalid, match="within=1 or more"):
        Following(0)
