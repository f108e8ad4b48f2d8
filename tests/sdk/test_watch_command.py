"""`tokprune watch`."""

import json
from pathlib import Path

import pytest
from stub_model import a_vlm

from tokprune.cli import main

QUESTION = "what color is the circle?"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["tokprune", "watch", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.demo
def test_answers_are_printed_with_the_age_of_their_frames(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ("--source", "fake://scenes?seed=7", "--name", "door")
    asked = (str(demo_bundle), *source, "--question", QUESTION, "--budget", "0.25")
    assert run(monkeypatch, *asked, "--count", "3") == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert len(lines) == 3
    assert all("kept 64 of 256" in line and " s old" in line for line in lines)
    assert "camera door is LIVE" in shown.err


@pytest.mark.demo
def test_json_lines_tell_answers_failures_and_states(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ("--source", "fake://scenes?seed=7&drop=0:1&every=2.5&fps=30")
    asked = (
        str(demo_bundle),
        *source,
        "--question",
        QUESTION,
        "--choice",
        "red",
        "--choice",
        "blue",
    )
    assert run(monkeypatch, *asked, "--count", "25", "--json", "--window", "2") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    answers = [event for event in events if event["event"] == "answer"]
    assert len(answers) == 25
    assert {event["state"] for event in events if event["event"] == "state"} >= {"LOST", "LIVE"}
    for event in answers:
        assert event["choice"] in ("red", "blue")
        assert 0 <= event["age_s"] < 1.0 + 1.0
        assert event["frame_age_s"] == event["age_s"]
        assert event["kept"] <= event["total"]
    numbers = [event["frame"] for event in answers]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("json_lines", [False, True])
def test_a_window_of_frames_is_encoded_as_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, json_lines: bool
) -> None:
    monkeypatch.setattr("tokprune.commands.watch.load", lambda *_, **__: a_vlm())
    window = ("--source", "fake://scenes?size=112x112&fps=30", "--window", "8", "--count", "12")
    asked = ("none", *window, "--question", QUESTION, "--selector", "attention")
    told = ("--json",) if json_lines else ()
    assert run(monkeypatch, *asked, "--encode", "lazy:1", "--budget", "0.05", *told) == 0
    lines = capsys.readouterr().out.splitlines()
    if json_lines:
        seen = [event for line in lines if (event := json.loads(line))["event"] == "answer"][-1]
        assert (seen["encode"], seen["encoded"], seen["total"]) == ("lazy", 3 * 196, 8 * 196)
        assert seen["encode_reason"].startswith("1 of 6 ")
    else:
        assert "of 1568, 588 encoded]" in lines[-1]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--source", "0"), "CSI|USB|Unknown source"),
        (("--source", "fake://scenes", "--mode", "on_demand"), "Nobody would ask"),
        (("--source", "fake://scenes", "--count", "0"), "--count must be 1 or more"),
        (("--source", "fake://scenes", "--selector", "relevanse"), "Did you mean 'relevance'"),
        (("--source", "fake://scenes", "--encode", "lasy"), "Did you mean 'lazy'"),
        (("--source", "fake://scenes?fps=0"), "fps must be above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    extra: tuple[str, ...],
    message: str,
) -> None:
    assert run(monkeypatch, str(tmp_path), "--question", QUESTION, *extra) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|"))
