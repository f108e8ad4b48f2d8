"""Stop strings against the plain definition: cut where the first of them begins in the whole."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokprune import RequestInvalid
from tokprune.text.stopping import StopStrings

FEW = st.text("ab\n", min_size=1, max_size=5)
ANY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
PIECES = st.lists(st.text("ab\n", max_size=4), max_size=12)
STOPS = st.lists(FEW, max_size=4)


def cut(text: str, stops: list[str]) -> str | None:
    """Return the text before the stop string that begins first, or None if there is none."""
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else None


def passed(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    matcher = StopStrings(tuple(stops))
    given = list[str]()
    for piece in pieces:
        out, stopped = matcher.push(piece)
        given.append(out)
        if stopped:
            return given, True
    out, stopped = matcher.flush()
    return [*given, out], stopped


@settings(deadline=None, max_examples=600)
@given(PIECES, STOPS)
def test_the_pieces_given_out_are_the_text_up_to_its_first_stop_string(
    pieces: list[str], stops: list[str]
) -> None:
    given, stopped = passed(pieces, stops)
    expected = cut("".join(pieces), stops)
    assert stopped == (expected is not None)
    assert "".join(given) == ("".join(pieces) if expected is None else expected)


@settings(deadline=None, max_examples=300)
@given(st.lists(ANY, max_size=8), st.lists(ANY, max_size=3))
def test_any_characters_pass_and_stay_valid_unicode(pieces: list[str], stops: list[str]) -> None:
    given, _ = passed(pieces, stops)
    expected = cut("".join(pieces), stops)
    assert "".join(given) == ("".join(pieces) if expected is None else expected)
    for piece in given:
        piece.encode("utf-8")


@settings(deadline=None, max_examples=300)
@given(st.text("ab\n", max_size=30), STOPS)
def test_how_the_text_is_cut_into_pieces_makes_no_difference(text: str, stops: list[str]) -> None:
    whole, letters = passed([text], stops), passed(list(text), stops)
    assert "".join(whole[0]) == "".join(letters[0])
    assert whole[1] == letters[1]


@settings(deadline=None, max_examples=300)
@given(PIECES, STOPS)
def test_nothing_is_held_back_that_cannot_become_a_stop_string(
    pieces: list[str], stops: list[str]
) -> None:
    matcher, seen, given = StopStrings(tuple(stops)), "", ""
    for piece in pieces:
        seen += piece
        out, stopped = matcher.push(piece)
        given += out
        if stopped:
            assert any(seen[len(given) :].startswith(stop) for stop in stops)
            return
        held = seen[len(given) :]
        assert not held or any(len(stop) > len(held) and stop.startswith(held) for stop in stops)


def test_a_beginning_that_turns_out_harmless_is_given_out() -> None:
    matcher = StopStrings(("END",))
    assert matcher.push("a EN") == ("a ", False)
    assert matcher.push("t") == ("ENt", False)
    assert matcher.push("E") == ("", False)
    assert matcher.flush() == ("E", False)


def test_what_follows_a_stop_string_in_its_piece_is_dropped() -> None:
    matcher = StopStrings(("\n\n",))
    assert matcher.push("yes\n\nbecause") == ("yes", True)
    with pytest.raises(RuntimeError, match="has ended"):
        matcher.push("more")


def test_a_longer_stop_string_that_began_earlier_is_waited_for() -> None:
    assert passed(["xabc", "d"], ["bc", "abcd"]) == (["x", ""], True)
    assert passed(["xabc", "e"], ["bc", "abcd"]) == (["x", "a"], True)
    assert passed(["xabc"], ["bc", "abcd"]) == (["x", "a"], True)  # the answer ended


def test_no_stop_strings_hold_nothing_back() -> None:
    matcher = StopStrings(())
    assert matcher.push("anything") == ("anything", False)
    assert matcher.flush() == ("", False)


def test_sixteen_stop_strings_are_taken() -> None:
    assert passed(["0123"], [str(number) for number in range(15, -1, -1)]) == ([""], True)


@pytest.mark.parametrize(
    ("stops", "message"),
    [
        (("a", ""), "empty"),
        (tuple(str(number) for number in range(17)), "at most 16 strings, got 17"),
        ("END", r"one string: stop=\['END'\]"),
        (("\ud800",), "lone surrogate"),
    ],
)
def test_senseless_stop_strings_are_refused(stops: Any, message: str) -> None:
    with pytest.raises(RequestInvalid, match=message):
        StopStrings(stops)


def test_what_is_no_string_is_refused_where_nothing_checks_types() -> None:
    code = "from tokprune.text.stopping import StopStrings; StopStrings(['a', 3])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "RequestInvalid: stop takes strings, got 3" in done.stderr
