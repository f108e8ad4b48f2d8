"""Drawn videos: what is asked is what was drawn."""

from collections import Counter
from random import Random

import numpy as np
import pytest

from tokprune import RequestInvalid
from tokprune.scenes.film import Event, Film, draw_film, make_film
from tokprune.scenes.film_questions import FILM_MAKERS, ask_film, ask_frame, describe_film
from tokprune.scenes.film_suite import film_suite
from tokprune.scenes.scene import COLORS, Thing

CIRCLE = Thing("red", "circle", large=True, radius=20, x=40, y=60, digit=None, rotation=0)
STAR = Thing("blue", "star", large=True, radius=20, x=160, y=160, digit=None, rotation=0)


def film(*events: Event) -> Film:
    return Film(8, 8, 8, (CIRCLE, STAR)[: len(events)], events, seed=3)


def color_at(frame: np.ndarray, x: int, y: int) -> str:
    seen = frame[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3).mean(0)
    return min(COLORS, key=lambda name: float(np.abs(seen - COLORS[name]).sum()))


def test_a_moving_thing_is_where_its_event_says() -> None:
    made = film(Event("moves", 1, 5, "right", 80))
    assert [made.at(frame)[0][1].x for frame in range(8)] == [40, 40, 60, 80, 100, 120, 120, 120]
    frames = draw_film(made)
    assert [color_at(frames[n], x, 60) for n, x in ((0, 40), (3, 80), (7, 120))] == ["red"] * 3
    assert color_at(frames[7], 40, 60) != "red"


def test_things_appear_disappear_and_turn_at_their_frame() -> None:
    frames = draw_film(film(Event("appears", 3, 3), Event("turns", 5, 5, color="yellow")))
    assert [color_at(frame, 40, 60) == "red" for frame in frames] == [False] * 3 + [True] * 5
    assert [color_at(frame, 160, 160) for frame in frames] == ["blue"] * 5 + ["yellow"] * 3
    gone = draw_film(film(Event("disappears", 2, 2)))
    assert [color_at(frame, 40, 60) == "red" for frame in gone] == [True] * 2 + [False] * 6


def test_what_stays_looks_the_same_but_for_noise() -> None:
    frames = draw_film(film(Event("moves", 0, 7, "down", 60), Event("stays"))).astype(int)
    still = frames[:, 140:180, 140:180]
    assert not (still[0] == still[1]).all()
    assert np.abs(still - still[0]).mean() < 12


def test_questions_have_the_drawn_answers() -> None:
    made = film(Event("moves", 0, 7, "down", 60), Event("turns", 4, 4, color="green"))
    found = {q.text: q.answer for seed in range(60) for q in ask_film(Random(seed), made,
             list(FILM_MAKERS), 5)}  # fmt: skip
    assert found["which way does the red circle move?"] == "down"
    assert found["which way does the moving shape go?"] == "down"
    assert found["what color does the blue star turn?"] == "green"
    assert found["what turns green?"] == "blue star"
    assert found["what does the red circle do?"] == "it moves down"
    assert found["what does the blue star do?"] == "it turns green"
    assert found["how many shapes move?"] == "one"
    assert not any("changes first" in text for text in found)  # only one thing changes


def test_the_order_of_changes_is_the_order_of_their_frames() -> None:
    made = film(Event("appears", 2, 2), Event("disappears", 6, 6))
    found = {q.text: q.answer for seed in range(40) for q in ask_film(Random(seed), made,
             ["order"], 1)}  # fmt: skip
    assert found["what changes first, the blue star or the red circle?"] == "red circle"
    assert found["what changes last, the red circle or the blue star?"] == "blue star"


def test_a_question_about_one_frame_has_the_answer_of_that_frame() -> None:
    made = film(Event("appears", 3, 3), Event("moves", 0, 7, "left", 120))
    asked = {q.text: q.answer for q in (ask_frame(Random(n), made) for n in range(400)) if q}
    expected = {
        "is there a red circle in the first frame?": "no",
        "is there a red circle in frame 3?": "no",
        "is there a red circle in frame 4?": "yes",
        "is there a red circle in the last frame?": "yes",
        "where is the blue star in the last frame?": "bottom left",
        "where is the red circle in frame 5?": "top left",
    }
    assert expected.items() <= asked.items()
    assert "where is the red circle in frame 2?" not in asked  # it is not there yet


def test_a_description_tells_everything_from_left_to_right() -> None:
    made = film(Event("turns", 2, 2, color="green"), Event("moves", 1, 5, "up", 60))
    assert describe_film(made).answer == "red circle turns green; blue star moves up"


def test_films_never_let_things_touch_and_always_let_something_happen() -> None:
    for seed in range(200):
        made = make_film(Random(seed), 6, 9, 6)
        assert any(event.kind != "stays" for event in made.events)
        for frame in range(6):
            shown = [thing for _, thing in made.at(frame)]
            assert len({thing.name for thing in shown}) == len(shown)
            for thing in shown:
                assert thing.radius <= thing.x < 9 * 28 - thing.radius
                assert thing.radius <= thing.y < 6 * 28 - thing.radius


def test_the_suite_repeats_itself_and_its_splits_share_nothing() -> None:
    once, again = ([(s.key, s.question, s.answer) for s in film_suite("dev", 12)] for _ in "ab")
    assert once == again
    other = [sample.clip.frames.tobytes() for sample in film_suite("test", 12)]
    assert not set(other) & {sample.clip.frames.tobytes() for sample in film_suite("dev", 12)}


def test_the_groups_of_the_suite_take_turns_and_no_answer_prevails() -> None:
    samples = list(film_suite("dev", 250, grid=(4, 4), frames=4))
    assert set(Counter(sample.group for sample in samples)) == set(FILM_MAKERS)
    for group in FILM_MAKERS:
        answers = Counter(sample.answer for sample in samples if sample.group == group)
        assert answers.most_common(1)[0][1] <= 0.6 * sum(answers.values()), group


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"frames": 3}, "expected 4 or more"),
        ({"groups": ["speed"]}, "Unknown groups"),
    ],
)
def test_a_wrong_request_is_refused(given: dict, words: str) -> None:
    with pytest.raises(RequestInvalid, match=words):
        next(film_suite(**{"split": "dev", "films": 1, **given}))
