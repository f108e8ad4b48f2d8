"""Which questions are asked, what the twins read, and which are asked one after the other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokprune.errors import PictureInvalid, RequestInvalid
from tokprune.scenes import film_suite, stream_suite, suite
from tokprune_export.evaluation.suites import open_suite, pairs, tasks


def data_file(folder: Path, *lines: dict[str, Any]) -> str:
    """Write questions about two pictures, which are there."""
    for name in ("a.png", "b.png"):
        shade = np.full((60, 60, 3), ord(name[0]), np.uint8)
        Image.fromarray(shade).save(folder / name)
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps({"image": "a.png", **line}) + "\n" for line in lines))
    return str(path)


def test_drawn_questions_are_those_of_the_suites() -> None:
    made = list(tasks(open_suite("scenes", "train", 64), 5))
    drawn = list(suite("train", 5, tokens=64))
    assert [(t.key, t.question, t.answer, t.group) for t in made] == [
        (s.key, s.question, s.answer, s.group) for s in drawn
    ]
    films = list(tasks(open_suite("scenes-video", "train", 64, 4), 2))
    assert [t.key for t in films] == [f.key for f in film_suite("train", 2, grid=(8, 8), frames=4)]
    assert {t.modality for t in films} == {"video"}


def test_a_stream_is_asked_about_at_its_last_frame(tmp_path: Path) -> None:
    drawn = open_suite("scenes-stream", "train", 64, 5)
    assert drawn.streams
    assert drawn.modalities == {"picture"}
    for task, sample in zip(
        tasks(drawn, 3), stream_suite("train", 3, tokens=64, frames=5), strict=True
    ):
        assert (task.key, task.question, task.answer) == (
            sample.key,
            sample.question,
            sample.answer,
        )
        shown = [np.asarray(frame) for frame in (*task.seen, *task.media)]
        assert all(map(np.array_equal, shown, sample.frames))
        assert len(task.media) == 1
    assert list(pairs(drawn, 3)) == []
    line = {"image": None, "stream": ["a.png", "b.png", "a.png"], "question": "what?"}
    given = open_suite(data_file(tmp_path, line, {"question": "what?"}))
    stream, picture = tasks(given, 2)
    assert stream.seen == (tmp_path / "a.png", tmp_path / "b.png")
    assert (stream.media, picture.seen) == (picture.media, ())
    assert stream.key != picture.key, "what was seen before decides the answer"
    assert given.streams
    assert not open_suite(data_file(tmp_path, {"question": "what?"})).streams


def test_a_twin_reads_the_next_question_that_says_something_else(tmp_path: Path) -> None:
    name = data_file(tmp_path, *({"question": each} for each in ("a?", "a?", "b?", "c?", "c?")))
    made = list(tasks(open_suite(name), 10))
    assert [task.other_question for task in made] == ["b?", "b?", "c?", "a?", "a?"]


def test_a_twin_has_nothing_to_read_where_all_questions_are_one(tmp_path: Path) -> None:
    name = data_file(tmp_path, {"question": "what?"}, {"image": "b.png", "question": "what?"})
    assert {task.other_question for task in tasks(open_suite(name), 10)} == {""}


def test_a_drawn_question_is_the_same_however_many_are_asked() -> None:
    few, many = (list(tasks(open_suite("scenes", "train", 64), count)) for count in (3, 6))
    for one, other in zip(few, many, strict=False):
        assert (one.key, one.other_question) == (other.key, other.other_question)
        assert one.other_question not in ("", one.question)


def test_a_line_is_known_by_what_it_asks_and_not_by_its_place(tmp_path: Path) -> None:
    lines = [{"question": "one?"}, {"question": "two?"}, {"image": "b.png", "question": "one?"}]
    first = [task.key for task in tasks(open_suite(data_file(tmp_path, *lines)), 9)]
    assert len(set(first)) == 3
    moved = [task.key for task in tasks(open_suite(data_file(tmp_path, *lines[1:], lines[0])), 9)]
    assert first[1] in moved


def test_second_questions_are_about_the_same_pictures() -> None:
    for name in ("scenes", "scenes-video"):
        made = list(pairs(open_suite(name, "train", 64), 4))
        assert len(made) == 4
        for task in made:
            assert task.before not in ("", task.question)
    asked = {sample.key: sample.question for sample in suite("train", 20, tokens=64, questions=2)}
    for task in pairs(open_suite("scenes", "train", 64), 20):
        scene = task.key.partition(" ")[0].rpartition("/")[0]
        assert (asked[f"{scene}/0"], asked[f"{scene}/1"]) == (task.before, task.question)


def test_lines_about_one_picture_are_second_questions(tmp_path: Path) -> None:
    name = data_file(
        tmp_path,
        {"question": "one?"},
        {"image": "b.png", "question": "two?"},
        {"question": "three?"},
        {"question": "four?"},
    )
    made = [(task.before, task.question) for task in pairs(open_suite(name), 9)]
    assert made == [("one?", "three?"), ("three?", "four?")]


def test_answers_may_be_missing_in_all_lines_and_not_in_some(tmp_path: Path) -> None:
    unlabelled = open_suite(data_file(tmp_path, {"question": "what?"}))
    assert not unlabelled.labelled
    assert open_suite(data_file(tmp_path, {"question": "what?", "answer": "a cup"})).labelled
    name = data_file(tmp_path, {"question": "a?", "answer": "b"}, {"question": "c?"})
    with pytest.raises(
        RequestInvalid, match="line 2: missing required field `answer`, which other"
    ):
        open_suite(name)


def test_a_file_may_begin_with_the_mark_that_editors_write(tmp_path: Path) -> None:
    path = Path(data_file(tmp_path, {"question": "what?", "answer": "a cup"}))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (example,) = open_suite(str(path)).examples
    assert (example.question, example.line) == ("what?", 1)


@pytest.mark.parametrize("size", [(7100, 7100), (11_000, 10_000), (20_000, 10_000)])
def test_a_picture_that_is_too_large_is_found_before_anything_is_asked(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """Pillow opens the first, warns of the second, and calls the third a decompression bomb."""
    name = data_file(tmp_path, {"question": "a?"}, {"question": "b?", "image": "large.png"})
    Image.new("1", size).save(tmp_path / "large.png")
    with pytest.raises(PictureInvalid, match=r"line 2: .*large\.png.*(far too large|max_pixels)"):
        open_suite(name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"name": "cooking"},
            "Unknown suite 'cooking': give scenes, scenes-video, scenes-stream, or a",
        ),
        ({"name": "scenes", "frames": 8}, "--frames is for drawn videos"),
        ({"name": "scenes", "tokens": 65}, "No grid of 65 vision tokens"),
        ({"name": "FILE", "split": "dev"}, "--split is for drawn scenes"),
        ({"name": "FILE", "tokens": 64}, "--tokens is for drawn scenes"),
        ({"name": "FILE", "group": "all"}, "has the group 'all', which the tables use"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    group = given.pop("group", "")
    if given["name"] == "FILE":
        given["name"] = data_file(tmp_path, {"question": "what?", "group": group})
    with pytest.raises(RequestInvalid, match=message):
        open_suite(**given)
