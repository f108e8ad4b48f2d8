from random import Random

import numpy as np
import pytest
from PIL import Image

from tokprune.scenes import (
    Scene,
    Thing,
    ask,
    compare,
    describe,
    draw,
    in_picture,
    make_companion,
    make_scene,
)
from tokprune.scenes.glyphs import CHARACTERS, STYLES, glyph
from tokprune.scenes.questions import KINDS, MAKERS, NUMBERS
from tokprune.scenes.scene import COLORS, SHAPES
from tokprune.scenes.signs import Sign

GRIDS = ((4, 4), (6, 6), (8, 8), (8, 12), (14, 14), (20, 20))
SIGNED = [make_scene(Random(f"signs/{i}"), *GRIDS[1 + i % 5], signs=1 + i % 3) for i in range(30)]
CROWDED = [make_scene(Random(f"crowd/{i}"), 14, 14 + i % 3, crowded=True) for i in range(12)]
SCENES = [make_scene(Random(f"tests/{i}"), *GRIDS[i % len(GRIDS)]) for i in range(120)]


def thing(color="red", shape="star", **changes):
    values = {"large": True, "radius": 20, "x": 40, "y": 40, "digit": None, "rotation": 0}
    return Thing(color, shape, **{**values, **changes})


def named(scene, name):
    return next(thing for thing in scene.things if thing.name == name)


@pytest.mark.parametrize("scene", SCENES[:24])
def test_things_are_apart_and_inside(scene):
    height, width = scene.size_hw
    for index, one in enumerate(scene.things):
        assert one.radius < one.x < width - one.radius
        assert one.radius < one.y < height - one.radius
        for other in scene.things[:index]:
            assert one.name != other.name
            assert np.hypot(one.x - other.x, one.y - other.y) >= one.radius + other.radius


def test_signs_can_be_read_and_stand_apart_from_everything():
    for scene in SIGNED:
        height, width = scene.size_hw
        assert scene.signs
        assert len({sign.color for sign in scene.signs}) == len(scene.signs)
        for number, sign in enumerate(scene.signs):
            top, left, bottom, right = sign.box
            assert 0 < top < bottom < height
            assert 0 < left < right < width
            assert all(left < letter.x < right for letter in sign.letters)
            for other in scene.signs[:number]:
                (t, le, b, r) = other.box
                assert bottom < t or b < top or right < le or r < left
            for thing in scene.things:
                y, x = np.clip(thing.y, top, bottom), np.clip(thing.x, left, right)
                assert np.hypot(thing.y - y, thing.x - x) > thing.radius


def test_crowded_scenes_hold_twenty_things_or_more():
    for scene in CROWDED:
        assert scene.dense
        assert 20 <= len(scene.things) == len({thing.name for thing in scene.things})
    assert not any(scene.dense for scene in SCENES)


def test_large_is_clearly_larger_than_small():
    for scene in SCENES:
        large = [t.radius for t in scene.things if t.large]
        small = [t.radius for t in scene.things if not t.large]
        if large and small:
            assert min(large) >= 1.35 * max(small)


def test_digits_stand_on_large_things_only():
    digits = [t for scene in SCENES for t in scene.things if t.digit]
    assert digits
    assert all(t.large for t in digits)


@pytest.mark.parametrize("kind", MAKERS)
def test_answers_are_true_of_the_scene(kind):
    rng = Random(kind)
    asked = [(s, q) for s in (*SCENES, *SIGNED) for q in ask(rng, s, (kind,), 2)]
    assert len(asked) > 20
    groups = {kind: group for group, kinds in KINDS.items() for kind in kinds}
    for scene, question in asked:
        assert question.group == groups.get(kind, "size")
        assert TRUE[kind](scene, question.text.removesuffix("?").split(), question.answer)


def _about(words):
    return lambda t: (
        (not ({*words} & {*COLORS}) or t.color in words)
        and (not ({*words} & {*SHAPES}) or t.shape in words)
        and (not ({*words} & {"large", "small"}) or t.size in words)
        and ("digit" not in words or t.digit == words[-1])
    )


def _true_name(scene, words, answer):
    found = [t for t in scene.things if _about(words)(t)]
    return len(found) == 1 and answer in (found[0].color, found[0].shape)


def _true_size(scene, words, answer):
    return scene.has_both_sizes and named(scene, " ".join(words[2:4])).size == answer


def _true_exist(scene, words, answer):
    return (answer == "yes") == (" ".join(words[-2:]) in {t.name for t in scene.things})


def _true_digit(scene, words, answer):
    found = [t.digit for t in scene.things if t.shape == words[-1]]
    color = words[-2] if words[-2] in COLORS else None
    digits = [named(scene, f"{color} {words[-1]}").digit] if color else found
    return digits == [answer]


def _true_position(scene, words, answer):
    it = named(scene, " ".join(words[-2:]))
    height, width = scene.size_hw
    row, column = answer.split()
    return ("top", "middle", "bottom")[it.y * 3 // height] == row and (
        "left",
        "center",
        "right",
    )[it.x * 3 // width] == column


def _true_count(scene, words, answer):
    kind = words[2] if words[2] in COLORS else words[2].removesuffix("s").removesuffix("se")
    kind = "cross" if words[2] == "crosses" else kind
    count = sum(kind in (t.color, t.shape, "shape") for t in scene.things)
    return NUMBERS[count] == answer


def _true_text(scene, words, answer):
    if words[1] == "color":
        return [sign.color for sign in scene.signs if sign.text == words[-1]] == [answer]
    color = words[-3] if words[-3] in COLORS else None
    texts = [sign.text for sign in scene.signs if color in (None, sign.color)]
    return texts == [answer]


def _ahead(one, other, words):
    return {
        "left": one.x < other.x,
        "right": one.x > other.x,
        "above": one.y < other.y,
        "below": one.y > other.y,
    }[next(word for word in words if word in ("left", "right", "above", "below"))]


def _true_beside(scene, words, answer):
    start = named(scene, " ".join(words[-2:]))
    return [
        t.name for t in scene.things if _ahead(t, start, words) and _clear(t, start, words)
    ] == [answer]


def _clear(one, other, words):
    gap = one.x - other.x if "left" in words or "right" in words else one.y - other.y
    return abs(gap) > 10


def _true_is_beside(scene, words, answer):
    one, other = named(scene, " ".join(words[2:4])), named(scene, " ".join(words[-2:]))
    return _ahead(one, other, words) == (answer == "yes")


TRUE = {
    "color": _true_name,
    "shape": _true_name,
    "size": _true_size,
    "exist": _true_exist,
    "digit": _true_digit,
    "position": _true_position,
    "count": _true_count,
    "beside": _true_beside,
    "is_beside": _true_is_beside,
    "text": _true_text,
}


def test_sizes_are_not_asked_where_all_are_alike():
    scene = Scene(8, 8, 1.0, (thing(), thing("blue", x=120)), 0)
    assert ask(Random(0), scene, ("size",), 3) == []
    assert "large" not in describe(scene).text + describe(scene).answer


def test_a_description_names_everything_from_left_to_right():
    scene = Scene(8, 8, 1.0, (thing(x=150, digit="4"), thing("blue", large=False, x=30)), 0)
    assert describe(scene).answer == "small blue star; large red star 4"


def test_a_description_ends_with_the_signs():
    sign = Sign("red", "K7", "bold", 20, 100, 200)
    scene = Scene(8, 8, 1.0, (thing("blue"),), 0, (sign,))
    assert describe(scene).answer == "blue star; red sign K7"


def test_drawing_shows_plate_and_letters_of_a_sign():
    sign = Sign("yellow", "H", "bold", 24, 60, 50)
    picture = draw(Scene(4, 4, 1.0, (), 3, (sign,))).astype(int)
    top, left, bottom, right = sign.box
    plate = picture[top + 2 : bottom - 2, left + 2 : right - 2]
    assert (plate[0, :, 0] > 180).all()  # yellow above the letter
    assert (plate[0, :, 2] < 110).all()
    assert (plate.max(axis=2) < 60).sum() > 40  # dark ink


def test_a_question_can_name_its_picture():
    question = ask(Random(0), SCENES[2], ("exist",), 1)[0]
    assert in_picture(question, 1).text.endswith(" in the second picture?")
    assert in_picture(question, 1).answer == question.answer


@pytest.mark.parametrize("count", [2, 3])
def test_comparisons_are_true_of_their_scenes(count):
    rng = Random(count)
    for first in SCENES[2:80:3]:
        scenes = (first, *(make_companion(rng, first) for _ in range(count - 1)))
        question = compare(rng, scenes)
        if question is None:
            continue
        names = [{t.name for t in scene.things} for scene in scenes]
        words = question.text.removesuffix("?").split()
        picture = dict(zip(["first", "second", "third"], names, strict=False))
        if words[0] == "how":
            assert NUMBERS[len(picture[words[-2]])] == question.answer
        elif "more" in words:
            assert len(picture[question.answer]) == max(map(len, names))
        elif "both" in words:
            assert (question.answer == "yes") == all(" ".join(words[3:5]) in n for n in names)
        else:
            has = [place for place, n in picture.items() if " ".join(words[-2:]) in n]
            assert has == [question.answer]


def test_a_companion_shares_a_thing():
    for scene in SCENES[1:30]:
        other = make_companion(Random(scene.seed), scene)
        shared = {t.name for t in scene.things} & {t.name for t in other.things}
        assert shared or len(other.things) == 0


def test_drawing_shows_the_colour_of_a_thing():
    scene = Scene(4, 4, 1.0, (thing("green", "square", x=56, y=56),), 3)
    red, green, blue = draw(scene)[56, 56].astype(int)
    assert green > red + 60
    assert green > blue + 60


def test_drawing_is_deterministic_and_fills_the_grid():
    picture = draw(SCENES[3])
    assert picture.shape == (*SCENES[3].size_hw, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, draw(SCENES[3]))


@pytest.mark.parametrize("style", STYLES)
def test_every_character_has_its_own_glyph(style):
    masks = [glyph(character, style, 24) for character in CHARACTERS]
    assert {mask.shape[0] for mask in masks} == {24}
    assert all(0.1 < mask.mean() < 0.9 for mask in masks)
    square = [
        np.asarray(Image.fromarray((mask * 255).astype(np.uint8)).resize((16, 24)), np.float32)
        for mask in masks
    ]
    for index, one in enumerate(square):
        for other in square[:index]:
            assert np.abs(one - other).mean() > 4
