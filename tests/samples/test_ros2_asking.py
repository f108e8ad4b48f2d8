"""What the ROS 2 node does with pictures and goals, without ROS."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_ros_actions import wait_for
from ros_pictures import SCENE, Publisher, first_picture, slow_words
from tokprune_ros.asking import Asking, Question
from tokprune_ros.images import rgb_of
from tokprune_ros.settings import Settings

DESCRIBE = "describe the image."
pytestmark = [pytest.mark.demo, pytest.mark.torch]


def eyes(asking: Asking[Any]) -> Publisher:
    """Return what publishes to the logic, without a node."""
    return Publisher(lambda message: asking.see(message.header, lambda: rgb_of(message)))


@pytest.fixture(scope="module")
def asking(demo_bundle: Path) -> Iterator[Asking[Any]]:
    made: Asking[Any] = Asking(Settings(bundle=str(demo_bundle)))
    made.activate()
    yield made
    made.close()


def nothing(text: str) -> None:
    del text


def test_an_answer_has_the_header_of_the_picture_that_it_was_read_from(
    asking: Asking[Any],
) -> None:
    with eyes(asking) as camera:
        first_picture(asking)
        for _ in range(4):
            outcome = asking.ask(b"1", Question(SCENE.question), nothing)
            answer = outcome.answer
            assert answer is not None
            assert outcome.header is not None
            assert (outcome.error_code, answer.text) == ("", SCENE.answer)
            number, came_s = outcome.header.stamp.sec, answer.frames[0].captured_s
            wait_for(lambda: camera.count > number)  # noqa: B023
            assert camera.times_s[number] <= came_s < camera.times_s[number + 1]


def test_pictures_are_decoded_no_faster_than_asked(asking: Asking[Any]) -> None:
    decodings = 0

    def picture() -> Any:
        nonlocal decodings
        decodings += 1
        return SCENE.pictures[0]

    began_s = time.monotonic()
    calls = 0
    while calls <= 100 or time.monotonic() < began_s + 0.5:
        asking.see(None, picture)
        calls += 1
        time.sleep(0.001)
    assert 2 <= decodings <= 10 * (time.monotonic() - began_s) + 1


def test_questions_that_make_no_sense_are_told_by_their_code(asking: Asking[Any]) -> None:
    with eyes(asking):
        first_picture(asking)
        for question, code in (
            (Question("what?", budget="70%"), "request_invalid"),
            (Question("what?", encode="lasy"), "request_invalid"),
            (Question("what?", max_frame_age_s=2.0), "request_invalid"),
            (Question("what?", deadline_s=float("nan")), "request_invalid"),
            (Question("what?", choices=("yes",) * 2), "request_invalid"),
            (Question("what? " * 5000), "context_overflow"),
            (Question("what?", deadline_s=1e-4), "deadline_exceeded"),
        ):
            outcome = asking.ask(b"1", question, nothing)
            assert (outcome.error_code, outcome.answer) == (code, None)
            assert outcome.error


def test_goals_with_one_prompt_follow_the_topic(asking: Asking[Any]) -> None:
    question, other = (
        Question(SCENE.question, encode="follow:8"),
        Question("what?", encode="follow:8"),
    )
    asking.deactivate()
    asking.activate()  # nothing is seen yet
    encoded: list[int] = []
    with eyes(asking):
        first_picture(asking)
        for asked in (question, question, other, question):
            answer = asking.ask(b"1", asked, nothing).answer
            assert answer is not None
            assert answer.encode == "follow"
            encoded.append(answer.encoded)
    assert encoded[0] == encoded[2] == encoded[3] == answer.total
    assert 0 < encoded[1] < answer.total / 2


def test_no_answer_is_given_from_old_or_missing_or_frozen_pictures(demo_bundle: Path) -> None:
    settings = Settings(bundle=str(demo_bundle), max_frame_age_s=1.5, frozen_after_s=0.5)
    asking: Asking[Any] = Asking(settings)
    question = Question(SCENE.question)
    assert asking.ask(b"1", question, nothing).error_code == "inactive"
    asking.activate()
    assert asking.ask(b"1", question, nothing).error_code == "camera_lost"
    with eyes(asking):
        first_picture(asking)
        young = Question(SCENE.question, max_frame_age_s=1e-6)
        assert asking.ask(b"1", young, nothing).error_code == "frame_too_old"
        assert not asking.ask(b"1", question, nothing).error_code
    time.sleep(1.6)
    assert asking.ask(b"1", question, nothing).error_code == "frame_too_old"
    with Publisher(lambda message: asking.see(None, lambda: SCENE.pictures[0])):
        time.sleep(0.9)
        assert asking.ask(b"1", question, nothing).error_code == "camera_frozen"
    asking.unplugged()
    wait_for(lambda: asking.ask(b"1", question, nothing).error_code == "camera_lost", 1.0)
    with eyes(asking):
        wait_for(lambda: not asking.ask(b"1", question, nothing).error_code, 2.0)
    asking.close()
    assert asking.ask(b"1", question, nothing).error_code == "inactive"


def test_a_goal_is_cancelled_before_it_begins_and_while_it_runs(
    asking: Asking[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_words(monkeypatch)
    with eyes(asking):
        first_picture(asking)
        asking.cancel(b"early")
        assert asking.ask(b"early", Question(DESCRIBE), nothing).error_code == "cancelled"
        assert not asking.ask(b"early", Question(SCENE.question), nothing).error_code
        texts: list[str] = []

        def cancel(text: str) -> None:
            texts.append(text)
            asking.cancel(b"late")

        outcome = asking.ask(b"late", Question(DESCRIBE), cancel)
    assert outcome.error_code == "cancelled"
    assert outcome.answer is not None
    assert outcome.answer.finish_reason == "cancelled"
    assert outcome.answer.text.startswith(texts[0])
