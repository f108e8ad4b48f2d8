"""What lmms-eval's requests become, without lmms-eval."""

import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from video_files import numbered, numbers

import tokprune
import tokprune_export.lmms_eval_model as plugin
from tokprune import VLM, Clip, KeepMass, RequestInvalid
from tokprune.pictures import load_picture
from tokprune.scenes import suite
from tokprune_export.lmms_eval_model.generation import generating
from tokprune_export.lmms_eval_model.likelihood import likelihoods, one_token_choices
from tokprune_export.lmms_eval_model.messages import asked_of, check_order, shown_first
from tokprune_export.lmms_eval_model.records import (
    Ledger,
    Place,
    Record,
    failed_record,
    record_of,
    summary,
    table,
)
from tokprune_export.lmms_eval_model.settings import Settings, settings_of

PICTURE = Pillow.new("RGB", (56, 56), "red")
PLAIN = Settings(bundle="there")


@pytest.fixture(scope="module")
def vlm(demo_bundle: Path) -> Iterator[VLM]:
    with tokprune.load(demo_bundle, backend="cpu", threads=1) as opened:
        yield opened


def test_model_args_are_read_as_the_harness_splits_them() -> None:
    given = {"bundle": 2024, "budget": 0.25, "fps": 2, "max_frames": 8, "batch_size": 1}
    settings = settings_of(given)
    assert (settings.bundle, settings.fps, settings.max_frames) == ("2024", 2.0, 8)
    assert settings_of({"bundle": "b", "budget": "mass:0.9"}).budget_asked == KeepMass(0.9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bundel": "b"}, "Unknown model argument 'bundel'. Did you mean 'bundle'?"),
        ({"bundle": "b", "bugdet": 0.5}, "Did you mean 'budget'?"),
        ({}, "give --model_args bundle=FOLDER"),
        ({"bundle": "b", "budget": 0.0}, "above 0 and up to 1.0"),
        ({"bundle": "b", "budget": "half"}, "Cannot read the budget 'half'"),
        ({"bundle": "b", "backend": "cdua"}, "Did you mean 'cuda'?"),
        ({"bundle": "b", "threads": 0}, "threads"),
        ({"bundle": "b", "on_error": "skip"}, "on_error"),
        ({"bundle": "b", "batch_size": "8"}, "one question at a time"),
        ({"bundle": "b", "batch_size": "auto"}, "one question at a time"),
        ({"bundle": "b", "device": "cuda:0"}, "backend=... in --model_args"),
        ({"bundle": "b", "fps": 2.0, "num_frames": 8}, "leave out fps and max_frames"),
        ({"bundle": "b", "max_frames": 64}, "Give fps too, or num_frames"),
    ],
)
def test_model_args_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestInvalid) as raised:
        settings_of(given)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("given", "options", "ignored"),
    [
        ({}, {"max_new_tokens": 128, "stop": []}, ()),
        (
            {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1,
             "do_sample": False, "until": ["\n\n"]},
            {"max_new_tokens": 16, "stop": ["\n\n"]},
            (),
        ),
        ({"max_gen_toks": 8, "until": "."}, {"max_new_tokens": 8, "stop": ["."]}, ()),
        (
            {"until": ["a", "b"], "stop_sequences": ["b", "c"]},
            {"max_new_tokens": 128, "stop": ["a", "b", "c"]},
            (),
        ),
        (
            {"temperature": 0.7, "top_p": 0.9},
            {"max_new_tokens": 128, "temperature": 0.7, "top_p": 0.9, "seed": 5, "stop": []},
            (),
        ),
        (
            {"do_sample": True, "seed": 2},
            {"max_new_tokens": 128, "temperature": 1.0, "seed": 7, "stop": []},
            (),
        ),
        ({"do_sample": True, "temperature": 0}, {"max_new_tokens": 128, "stop": []}, ()),
        (
            {"do_sample": False, "temperature": 0.5},
            {"max_new_tokens": 128, "stop": []},
            ("temperature",),
        ),
        (
            {"temperature": 0.7, "top_k": 1, "top_p": None},
            {"max_new_tokens": 128, "stop": []},
            ("temperature",),
        ),
        (
            {"image_aspect_ratio": "pad", "until": None},
            {"max_new_tokens": 128, "stop": []},
            ("image_aspect_ratio",),
        ),
    ],
)  # fmt: skip
def test_generation_keywords_become_options(
    given: dict[str, Any], options: dict[str, Any], ignored: tuple[str, ...]
) -> None:
    how = generating(given, seed=5)
    assert (how.options, how.ignored) == (options, ignored)


def test_until_may_be_switched_off_and_the_record_then_says_so() -> None:
    how = generating({"until": ["\n\n"]}, until=False)
    assert "stop" not in how.options
    assert how.ignored == ("until",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "num_beams=4 is asked for, and there is no beam search here"),
        ({"repetition_penalty": 1.2}, "logits are not penalised here"),
        ({"temperature": 0.7, "top_k": 50}, "top_k=50 is not offered here"),
        ({"max_new_token": 5}, "Did you mean 'max_new_tokens'?"),
        ({"max_new_tokens": 5, "max_gen_toks": 6}, "mean the same: give one"),
    ],
)
def test_what_is_not_offered_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestInvalid) as raised:
        generating(given)
    assert message in str(raised.value)


def message(role: str, *content: object) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "url": part}
        for part in content
    ]
    return {"role": role, "content": parts}


def test_messages_keep_their_order_and_their_turns() -> None:
    asked = asked_of(
        [
            {"role": "system", "content": "be brief"},
            message("user", "one", PICTURE, "two"),
            message("assistant", "red"),
            message("user", "and now?"),
        ],
        PLAIN,
    )
    assert asked.system == "be brief"
    assert asked.earlier == ((("one", PICTURE, "two"), "red"),)
    assert asked.question == ("and now?",)


def test_model_args_come_before_the_task_s_own_system_message() -> None:
    messages = [{"role": "system", "content": "theirs"}, message("user", PICTURE, "what?")]
    assert asked_of(messages, Settings(bundle="b", system="mine")).system == "mine"


def test_pictures_are_read_from_wherever_tasks_keep_them(tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    PICTURE.save(file)
    data = file.read_bytes()
    url = f"data:image/png;base64,{b64encode(data).decode()}"
    parts = [
        {"type": "image", "url": str(file)},
        {"type": "image", "image": PICTURE},
        {"type": "image", "bytes": data, "path": "red.png"},
        {"type": "image", "url": url},
        {"type": "image", "url": np.asarray(PICTURE)},
        {"type": "text", "text": "what?"},
    ]
    *shown, words = asked_of([{"role": "user", "content": parts}], PLAIN).question
    assert words == "what?"
    for part in shown:
        assert (load_picture(part) == np.asarray(PICTURE)).all()  # type: ignore[arg-type]


def test_simple_tasks_show_first_in_lists_of_lists(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(numbered(30, rate=10))
    asked = shown_first([[PICTURE], str(film)], "what?", Settings(bundle="b", num_frames=3))
    picture, clip, words = asked.question
    assert (picture, words) == (PICTURE, "what?")
    assert isinstance(clip, Clip)
    assert numbers(clip) == [0, 10, 20]
    assert shown_first(None, "what?", PLAIN).question == ("what?",)


@pytest.mark.parametrize(
    ("options", "times", "expected"),
    [
        ({}, {}, [0, 5, 10, 15, 20, 25]),
        ({"fps": 1.0}, {}, [0, 10, 20]),
        ({"fps": 5.0, "max_frames": 3}, {}, [0, 10, 20]),
        ({"max_frames": 2}, {}, [0, 15]),
        ({"num_frames": 2}, {"start_time": 1.0, "end_time": 2.0}, [10, 15]),
        ({"num_frames": 2}, {"video_start": 1.0, "video_end": 2.0}, [10, 15]),
    ],
)
def test_videos_are_sampled_as_model_args_say(
    tmp_path: Path, options: dict[str, Any], times: dict[str, float], expected: list[int]
) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(numbered(30, rate=10))
    part = {"type": "video", "url": str(film), **times}
    settings = settings_of({"bundle": "b", **options})
    (clip,) = asked_of([{"role": "user", "content": [part]}], settings).question
    assert isinstance(clip, Clip)
    assert numbers(clip) == expected


def test_short_and_slow_videos_give_what_they_have(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(numbered(4, rate=2))
    part = {"type": "video", "url": str(film)}
    for options in ({"num_frames": 32}, {"fps": 25.0}, {"fps": 25.0, "max_frames": 9}):
        settings = settings_of({"bundle": "b", **options})
        (clip,) = asked_of([{"role": "user", "content": [part]}], settings).question
        assert isinstance(clip, Clip)
        assert numbers(clip) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "the last of 0 is not the user's"),
        ([message("assistant", "hi")], "message 0 has the role 'assistant'"),
        ([message("user", "a"), message("user", "b")], "message 1 has the role 'user'"),
        ([message("user", "a"), message("assistant", "b")], "the last of 2"),
        ([message("system", PICTURE), message("user", "a")], "not the user's"),
        ([message("user", 7)], "The task shows a int 7"),
        ([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}], "gives sound"),
        ([{"role": "user", "content": [{"type": "image"}]}], "expected text, a picture"),
        (
            [{"role": "user", "content": [{"type": "video", "url": "a.mp4", "nframes": 8}]}],
            r"asks for ['nframes'], which is not done here",
        ),
    ],
)
def test_messages_that_cannot_be_asked_are_refused(
    messages: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(RequestInvalid) as raised:
        asked_of(messages, PLAIN)
    assert problem in str(raised.value)


def test_sound_files_of_simple_tasks_are_refused() -> None:
    with pytest.raises(RequestInvalid, match="gives sound"):
        shown_first(["speech.WAV"], "what is said?", PLAIN)


def test_interleaved_words_are_refused_where_the_template_moves_them() -> None:
    mixed = asked_of([message("user", "one", PICTURE, "two")], PLAIN)
    check_order(mixed, media_first=False)
    with pytest.raises(RequestInvalid, match="Give media_first=True in --model_args"):
        check_order(mixed, media_first=True)
    earlier = asked_of(
        [message("user", "one", PICTURE), message("assistant", "red"), message("user", "two")],
        PLAIN,
    )
    with pytest.raises(RequestInvalid, match="words before a picture"):
        check_order(earlier, media_first=True)
    moved = asked_of(
        [message("user", "one", PICTURE, "two")], Settings(bundle="b", media_first=True)
    )
    assert moved.question == (PICTURE, "one", "two")
    check_order(moved, media_first=True)


@pytest.mark.demo
def test_likelihoods_are_of_the_free_model_whatever_else_is_offered(vlm: VLM) -> None:
    for sample in suite("test", 6, groups=("exist", "color")):
        words = ("yes", "no", "red", "blue", "green", "cyan")

        def ask(options: Any, sample: Any = sample) -> Any:
            return vlm.ask(sample.pictures, sample.question, 0.5, **options)

        many, _ = likelihoods(one_token_choices([f" {word}" for word in words], vlm.model), ask)
        few, answer = likelihoods(one_token_choices(["no", "red"], vlm.model), ask)
        assert few[0].loss == pytest.approx(many[1].loss, abs=1e-5)
        assert few[1].loss == pytest.approx(many[2].loss, abs=1e-5)
        assert answer.choice_mass == pytest.approx(sum(exp(-each.loss) for each in few))
        free = vlm.ask(sample.pictures, sample.question, 0.5)
        assert [words[index] for index in range(6) if many[index].greedy] == [
            word for word in words if free.text == word
        ]


@pytest.mark.demo
def test_a_greedy_choice_below_one_half_is_found_by_asking(vlm: VLM) -> None:
    (sample,) = suite("test", 1, groups=("exist",))
    choices = one_token_choices(["yes", "no"], vlm.model)
    real = vlm.ask(sample.pictures, sample.question, 0.5, choices=["yes", "no"])
    best = int(real.probabilities["yes"] < real.probabilities["no"])  # type: ignore[index]
    asked: list[Any] = []

    def ask(options: Any) -> Any:
        asked.append(options)
        token = (choices.ids[best],) if len(asked) < 3 else (0,)
        return replace(real, choice_mass=0.4, token_ids=token)

    assert [each.greedy for each in likelihoods(choices, ask)[0]] == [best == 0, best == 1]
    assert asked[1] == {"max_new_tokens": 1}
    found, _ = likelihoods(choices, ask)
    assert not any(each.greedy for each in found)
    assert min(each.loss for each in found) >= -log(0.4)


@pytest.mark.demo
@pytest.mark.parametrize(
    ("continuations", "problem"),
    [
        (["yellow circle", "no"], r"'yellow circle' \(\d tokens\) is not computed here"),
        ([" yes"], "of one continuation alone"),
    ],
)
def test_likelihoods_that_are_not_known_are_refused(
    vlm: VLM, continuations: list[str], problem: str
) -> None:
    with pytest.raises(NotImplementedError, match=problem):
        one_token_choices(continuations, vlm.model)


def record(task: str, **fields: Any) -> Record:
    usual = {
        "split": "test", "doc_id": 0, "request": "generate_until", "round": 0, "text": "",
        "kept": 25, "total": 100, "reason": "ratio", "selector": "s", "finish_reason": "stop",
        "prompt_tokens": 40, "output_tokens": 2, "ttft_ms": 10.0, "total_ms": 12.0,
        "encoder_runs": 1, "encoder_hits": 0,
    }  # fmt: skip
    return Record(task=task, **{**usual, **fields})


def test_the_summary_has_means_by_task_and_leaves_cached_pictures_out_of_times() -> None:
    records = [
        record("a"),
        record("a", kept=50, ttft_ms=2.0, encoder_hits=1, finish_reason="length"),
        record("b", kept=30, total=30, ttft_ms=30.0, ignored=("until",)),
        record("words", kept=0, total=0),
        failed_record(Place("b", "test", 1, "generate_until"), ValueError("damaged")),
    ]
    found = summary(records)
    assert found["kept_share/a"] == pytest.approx(0.375)
    assert found["kept_share/b"] == 1.0
    assert "kept_share/words" not in found
    assert found["kept_share"] == pytest.approx((0.25 + 0.5 + 1) / 3)
    assert found["ttft_ms"] == pytest.approx((10 + 30 + 10) / 3)
    assert (found["cut_at_max_new_tokens"], found["not_asked"]) == (1, 1)
    lines = table(records).splitlines()
    assert lines[1] == "a: 2, 37.5% (37.5 of 100.0), 10.0 ms, 1 cut at max new tokens"
    assert lines[2] == "b: 2, 100.0% (30.0 of 30.0), 30.0 ms, 1 not asked; ignored: until"
    assert lines[3] == "words: 1, 10.0 ms"


def test_a_cached_hit_alone_has_no_time() -> None:
    assert "ttft_ms" not in summary([record("a", encoder_hits=1)])


@pytest.mark.demo
def test_the_answers_file_has_a_line_for_every_answer(vlm: VLM, tmp_path: Path) -> None:
    (sample,) = suite("test", 1)
    answer = vlm.ask(sample.pictures, sample.question, 0.25)
    path = tmp_path / "new" / "answers.jsonl"
    ledger = Ledger(str(path))
    ledger.add(record_of(Place("t", "test", 3, "generate_until", 1), answer, ("until",)))
    ledger.add(failed_record(Place("t", "test", 4, "generate_until"), ValueError("damaged")))
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["task"], first["doc_id"], first["round"]) == ("t", 3, 1)
    assert (first["kept"], first["total"]) == (answer.kept, answer.total)
    assert first["total_ms"] >= first["ttft_ms"] * 0.5
    assert first["ignored"] == ["until"]
    assert (second["error"], second["kept"], second["text"]) == ("damaged", None, "")
    with pytest.raises(RequestInvalid, match="give the name of a new file"):
        Ledger(str(path))


def test_importing_the_plug_in_imports_nothing_heavy() -> None:
    code = (
        f"import sys, {plugin.__name__}; "
        "heavy = {'torch', 'onnxruntime', 'tokprune.vlm', 'lmms_eval'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
