"""The suite of held-out questions: the same everywhere, balanced, written as training data."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from tokprune.errors import RequestInvalid
from tokprune.scenes import GROUPS, film_suite, suite, write


def test_a_suite_is_the_same_every_time():
    first, second = (list(suite("dev", 6, questions=2)) for _ in range(2))
    assert [(s.key, s.question, s.answer) for s in first] == [
        (s.key, s.question, s.answer) for s in second
    ]
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one.pictures, other.pictures, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_longer_suite_only_adds_samples():
    short, long = list(suite("dev", 4)), list(suite("dev", 8))
    assert [s.question for s in long[: len(short)]] == [s.question for s in short]


def test_splits_share_no_picture():
    seen = {}
    for split in ("train", "dev", "test"):
        for sample in suite(split, 20, tokens=64):
            for picture in sample.pictures:
                assert seen.setdefault(picture.tobytes(), split) == split


def test_keys_are_unique():
    keys = [s.key for s in suite("test", 12, questions=3)]
    assert len(set(keys)) == len(keys)
    assert keys[0].startswith("test/mixed/000000/")


@pytest.mark.parametrize(("tokens", "shape"), [(64, (224, 224)), (196, (392, 392))])
def test_pictures_have_the_tokens_asked_for(tokens, shape):
    samples = list(suite("test", 4, tokens=tokens, groups=("color", "exist")))
    assert {picture.shape for s in samples for picture in s.pictures} == {(*shape, 3)}


def test_mixed_sizes_are_not_all_square():
    shapes = {s.pictures[0].shape[:2] for s in suite("dev", 30, groups=("exist",))}
    assert any(height != width for height, width in shapes)
    assert all(64 <= height * width // 28**2 <= 256 for height, width in shapes)


def test_every_group_is_asked_about_equally_often():
    counts = Counter(s.group for s in suite("test", 60))
    assert counts == dict.fromkeys(GROUPS, 6)


def test_there_are_ten_groups():
    wanted = "color shape exist count position relation digit text document compare"
    assert sorted(GROUPS) == sorted(wanted.split())


def test_some_large_scenes_are_dense_and_small_ones_are_not():
    large, small = (list(suite("dev", 60, tokens=tokens)) for tokens in (196, 64))
    assert 5 <= sum(sample.dense for sample in large) <= 25
    assert not any(sample.dense for sample in small)


def test_further_questions_are_about_the_same_picture():
    for samples in _by_scene(suite("dev", 20, tokens=64, questions=3)):
        assert len({sample.question for sample in samples}) == len(samples)
        for sample in samples[1:]:
            for one, other in zip(samples[0].pictures, sample.pictures, strict=True):
                np.testing.assert_array_equal(one, other)


def _by_scene(samples):
    scenes = {}
    for sample in samples:
        scenes.setdefault(sample.key.rsplit("/", 1)[0], []).append(sample)
    assert max(map(len, scenes.values())) == 3
    return scenes.values()


def test_only_the_groups_asked_for_come():
    groups = {s.group for s in suite("test", 10, groups=("digit", "position"))}
    assert groups == {"digit", "position"}


def test_comparisons_show_two_pictures():
    samples = list(suite("test", 10, tokens=64, groups=("compare",)))
    assert samples
    assert {len(s.pictures) for s in samples} == {2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": 65}, "No grid of 65 vision tokens"),
        ({"groups": ("colour",)}, "Unknown groups"),
    ],
)
def test_unknown_requests_name_what_is_known(arguments, message):
    with pytest.raises(RequestInvalid, match=message):
        list(suite("test", 1, **arguments))


def test_written_samples_are_read_back(tmp_path):
    samples = list(islice(suite("train", 12, tokens=64), 12))
    write(tmp_path, samples)
    lines = (tmp_path / "data.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(samples)
    for line, sample in zip(map(json.loads, lines), samples, strict=True):
        assert {"question", "answer", "group"} < set(line)
        assert (line["question"], line["answer"]) == (sample.question, sample.answer)
        names = line["images"] if "images" in line else [line["image"]]
        assert ("images" in line) == (len(sample.pictures) > 1)
        for name, picture in zip(names, sample.pictures, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), picture)


def test_questions_about_one_scene_share_its_file(tmp_path):
    samples = list(suite("train", 3, tokens=64, questions=3, groups=["color", "exist", "count"]))
    write(tmp_path, samples)
    lines = list(map(json.loads, (tmp_path / "data.jsonl").read_text().splitlines()))
    scenes = [sample.key.rsplit("/", 1)[0] for sample in samples]
    names = {scene: {line["image"] for line, s in zip(lines, scenes, strict=True) if s == scene}
             for scene in scenes}  # fmt: skip
    assert all(len(each) == 1 for each in names.values())
    assert len(set.union(*names.values())) == 3 == len(list((tmp_path / "pictures").iterdir()))


def test_videos_are_written_beside_pictures(tmp_path):
    films = list(film_suite("train", 2, grid=(4, 4), frames=4, questions=2))
    pictures = list(suite("train", 1, tokens=64, groups=("exist",)))
    write(tmp_path, [*films, *pictures])
    lines = list(map(json.loads, (tmp_path / "data.jsonl").read_text().splitlines()))
    for line, sample in zip(lines, films, strict=False):
        assert (line["question"], line["answer"], line["group"]) == (
            sample.question, sample.answer, sample.group,
        )  # fmt: skip
        assert line["fps"] == sample.clip.fps
        shown = [np.asarray(Image.open(tmp_path / name)) for name in line["frames"]]
        np.testing.assert_array_equal(shown, sample.clip.frames)
    assert set(lines[-1]) == {"image", "question", "answer", "group"}
    assert len({tuple(line["frames"]) for line in lines[:-1]}) == 2 < len(films)
