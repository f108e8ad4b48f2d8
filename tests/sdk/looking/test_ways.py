"""Ways to look by name."""

import re

import numpy as np
import pytest
from stub_model import Stub, a_picture, a_vlm
from tiles import asked, picture

from tokprune import Clip, Following, KeepCount, RequestInvalid
from tokprune.looking import ENCODES, Way, Ways, looking_of, stream_way, way_of


@pytest.mark.parametrize(
    ("text", "way"),
    [
        *((name, Way(name)) for name in ENCODES),
        ("lazy:3", Way("lazy", most=3)),
        ("lazy:0.9", Way("lazy", share=0.9)),
        ("lazy:1.0", Way("lazy", share=1.0)),
        ("coarse:2", Way("coarse", times=2.0)),
        ("repeats:0.05", Way("repeats", tau=0.05)),
        ("repeats:0", Way("repeats", tau=0.0)),
    ],
)
def test_ways_are_read_as_they_are_written(text: str, way: Way) -> None:
    assert way_of(text) == way


@pytest.mark.parametrize(
    "text",
    [
        *("lazy:0", "lazy:", "lazy:1.5", "lazy:0.0", "lazy:.9", "lazy:-0.5", "full:2"),
        *("repeats:-1", "repeats:9", "coarse:0.5"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(RequestInvalid, match="'lazy:2'"):
        way_of(text)


@pytest.mark.parametrize("given", [None, 5, b"lazy"])
def test_what_is_no_way_is_refused_with_what_is(given: object) -> None:
    expected = re.escape(f"Got encode={given!r}; expected one of full, lazy, coarse")
    with pytest.raises(RequestInvalid, match=expected):
        way_of(given)


@pytest.mark.parametrize("text", ["follow", "follow:8"])
def test_a_single_question_follows_nothing_by_name(text: str) -> None:
    with a_vlm(Stub()) as vlm, pytest.raises(RequestInvalid, match=r"a stream.*Following\(within"):
        vlm.ask(a_picture(), "what?", encode=text)


def test_a_name_that_is_unknown_is_refused_before_anything_runs() -> None:
    stub = Stub()
    with a_vlm(stub) as vlm, pytest.raises(RequestInvalid, match="Did you mean 'lazy'"):
        vlm.ask(a_picture(), "what?", encode="lasy")
    assert not stub.runs


def test_a_way_that_the_family_has_not_names_those_that_it_has() -> None:
    with a_vlm(Stub()) as vlm, pytest.raises(RequestInvalid, match="full, lazy, repeats, auto"):
        vlm.ask(a_picture(), "what?", encode="coarse")


def test_pinned_pictures_are_encoded_whole() -> None:
    with a_vlm(Stub()) as vlm:
        pinned = vlm.pin(a_picture(), budget=4)
        with pytest.raises(
            RequestInvalid, match=r"encode=tokprune.Following\(within=3\) for pinned"
        ):
            pinned.ask("what?", encode=Following(3))
        with pytest.raises(RequestInvalid, match="pinned"):
            pinned.ask("what?", encode="lazy")
        chat = vlm.chat(pin=True, budget=4)
        with pytest.raises(RequestInvalid, match="pinned"):
            chat.ask("what?", a_picture(), encode="lazy")
        assert chat.ask("what?", a_picture()).kept == 4


def test_auto_skips_no_frames() -> None:
    clip = Clip(np.zeros((8, 32, 48, 3), np.uint8), 4.0)
    with a_vlm(Stub()) as vlm:
        assert vlm.ask(a_picture(), "what?", 5, "attention", encode="auto").encode == "full"
        assert vlm.ask(clip, "what?", 5, "attention", encode="auto").encode == "full"
        assert vlm.ask(clip, "what?", 5, "attention", encode="lazy").encode == "lazy"


def test_auto_leaves_crops_for_later_where_the_selector_scores() -> None:
    given = asked(KeepCount(20), picture())
    for scores, way in ((True, "lazy"), (False, "full")):
        assert looking_of(Way("auto"), Ways(), None, given, scores=scores)[0] == way


def test_words_without_pictures_need_no_look() -> None:
    with a_vlm(Stub()) as vlm:
        answer = vlm.chat().ask("hello", encode="auto")
    assert (answer.encode, answer.encoded, answer.total) == ("full", 0, 0)


def test_a_stream_may_be_followed_by_name() -> None:
    followed = stream_way("follow:5")
    assert isinstance(followed, Following)
    assert followed.within == 5
    assert isinstance(stream_way("follow"), Following)
    assert stream_way("lazy:2") == "lazy:2"
    with pytest.raises(RequestInvalid, match="'follow:8'"):
        stream_way("follow:none")
    with pytest.raises(RequestInvalid, match="Did you mean"):
        stream_way("lasy")
