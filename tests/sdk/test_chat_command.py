"""`tokprune chat` with a script on its standard input, and `tokprune ask --trace`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stub_model import a_picture, a_vlm

import tokprune
from tokprune.commands.chat import ChatCommand, run_chat
from tokprune.running.answering import STAGES
from tokprune.scenes import suite
from tokprune.types import Array
from tokprune.vlm import VLM
from tokprune_runtimes import Carry, Feeds, Graph, Interrupt

pytestmark = pytest.mark.demo
COUNT, RED, DESCRIBE = "how many shapes are there?", "is there a red star?", "describe the image."
PRESSED_AT = 6  # steps of the LLM: the prompt, then a token each
PROGRAM = (sys.executable, "-c", "from tokprune.cli import main; main()")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("my pictures") / "a scene.png"
    (sample,) = suite("dev", 1, tokens=64, groups=["color"])
    Image.fromarray(sample.pictures[0]).save(path)
    return path


@pytest.fixture(scope="module")
def said(demo_bundle: Path, picture: Path) -> list[str]:
    """What the library answers, for the same questions."""
    with tokprune.load(demo_bundle, backend="cpu", threads=1) as vlm:
        chat = vlm.chat()
        return [
            chat.ask(COUNT, picture).text,
            chat.ask(RED, budget=1.0).text,
            chat.ask(DESCRIBE, budget=0.25).text,
        ]


def chatted(
    bundle: Path, lines: Sequence[str], *options: object
) -> "subprocess.CompletedProcess[str]":
    command = [*PROGRAM, "chat", str(bundle), "--threads", "1", *map(str, options)]
    typed = "".join(f"{line}\n" for line in lines)
    return subprocess.run(command, input=typed, capture_output=True, text=True, check=False)


def asked(bundle: Path, *options: object) -> "subprocess.CompletedProcess[str]":
    command = [*PROGRAM, "ask", str(bundle), "--threads", "1", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_answers_go_to_standard_output_and_all_else_to_standard_error(
    demo_bundle: Path, picture: Path, said: list[str]
) -> None:
    lines = [f"/image {picture}", COUNT, "", "/budget 1.0", RED, "/budget 0.25", DESCRIBE]
    done = chatted(demo_bundle, [*lines, "/quit", "never asked"])
    assert done.returncode == 0
    assert done.stdout.splitlines() == said
    kept = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert [line.partition(" by ")[0] for line in kept] == [
        "[kept 32 of 64 vision tokens",
        "[kept 64 of 64 vision tokens",
        "[kept 16 of 64 vision tokens",
    ]


def test_pictures_may_be_given_beforehand_and_the_input_may_just_end(
    demo_bundle: Path, picture: Path, said: list[str]
) -> None:
    done = chatted(demo_bundle, [COUNT], "--image", picture)
    assert (done.returncode, done.stdout.splitlines()) == (0, said[:1])


def test_a_mistake_is_told_in_one_line_and_the_conversation_goes_on(
    demo_bundle: Path, picture: Path, said: list[str]
) -> None:
    mistakes = {
        "/imag x.png": "error [request_invalid]: Unknown command 'imag'",
        "/image": "error [request_invalid]: /image needs a file",
        "/image nothing there.png": "error [picture_invalid]",
        "/budget much": "error [request_invalid]",
        "/budget": "error [request_invalid]",
        "/undo": "error [request_invalid]: There is no turn to take back",
    }
    done = chatted(demo_bundle, [*mistakes, f"/image {picture}", COUNT])
    assert (done.returncode, done.stdout.splitlines()) == (0, said[:1])
    *errors, summary = done.stderr.splitlines()
    assert summary.startswith("[kept 32 of 64 ")  # the budget is what it was
    for error, start in zip(errors, mistakes.values(), strict=True):
        assert error.startswith(start)


def test_a_picture_is_still_there_after_a_question_that_failed(
    demo_bundle: Path, picture: Path, said: list[str]
) -> None:
    lines = [f"/image {picture}", "/budget ttft:300ms", COUNT, "/budget 0.5", COUNT]
    done = chatted(demo_bundle, lines)
    assert (done.returncode, done.stdout.splitlines()) == (0, said[:1])
    error, summary = done.stderr.splitlines()
    assert error.startswith("error [not_calibrated]: ")
    assert summary.startswith("[kept 32 of 64 ")


def test_undo_takes_a_turn_and_its_picture_back(
    demo_bundle: Path, picture: Path, said: list[str]
) -> None:
    lines = [DESCRIBE, "/undo", f"/image {picture}", COUNT]
    done = chatted(demo_bundle, lines, "--image", picture)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1] == said[0]
    assert "kept 32 of 64" in done.stderr.splitlines()[-1]


def test_pinned_pictures_refuse_what_reads_the_question(demo_bundle: Path, picture: Path) -> None:
    done = chatted(demo_bundle, [COUNT, RED], "--image", picture, "--pin")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    assert "by spread" in done.stderr
    refused = chatted(demo_bundle, [COUNT], "--pin", "--selector", "relevance")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error [request_invalid]: Pinned pictures")
    assert len(refused.stderr.splitlines()) == 1


def test_every_question_of_a_chat_is_encoded_as_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tokprune.Clip(np.stack([a_picture(seed) for seed in range(8)]), 4.0)
    monkeypatch.setattr("tokprune.commands.chat.load", lambda *_, **__: a_vlm())
    monkeypatch.setattr("tokprune.commands.chat.load_video", lambda _: clip)
    for encode, told in (
        ("lazy:1", [", 72 encoded by lazy (1 of 6 crops and frames, where the relevance is)"] * 2),
        ("full", ["", ", 0 encoded"]),  # the second time they are there already
    ):
        monkeypatch.setattr(sys, "stdin", StringIO("what?\nwhere?\n"))
        options: dict[str, Any] = {"video": (Path("a.mp4"),), "selector": "attention"}
        assert run_chat(ChatCommand(Path("none"), budget="0.25", encode=encode, **options)) == 0
        noted = capsys.readouterr().err.splitlines()
        assert [line.partition(" (ratio)")[2].partition(";")[0] for line in noted] == told


def test_a_way_to_encode_that_is_none_is_refused_before_the_bundle_is_opened() -> None:
    with pytest.raises(tokprune.RequestInvalid, match="Did you mean 'lazy'"):
        run_chat(ChatCommand(Path("none"), encode="lasy"))


def test_help_lists_every_command(demo_bundle: Path) -> None:
    done = chatted(demo_bundle, ["/help"])
    for name in ("/image", "/video", "/budget", "/undo", "/help", "/quit", "Ctrl-C"):
        assert name in done.stderr


def test_an_interrupt_between_questions_ends_it_without_a_traceback(
    demo_bundle: Path, picture: Path, said: list[str]
) -> None:
    command = [*PROGRAM, "chat", str(demo_bundle), "--threads", "1", "--image", str(picture)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as chat:
        assert chat.stdin is not None
        assert chat.stdout is not None
        assert chat.stderr is not None
        chat.stdin.write(f"{COUNT}\n")
        chat.stdin.flush()
        assert chat.stdout.readline().strip() == said[0]
        chat.stderr.readline()  # the summary: the answer is over
        chat.send_signal(signal.SIGINT)
        assert chat.wait(timeout=60) == 130
        assert "Traceback" not in chat.stderr.read()


class Interrupting:
    """Passes everything on, but a step of the LLM presses Ctrl-C and waits for its effect."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.steps = graph, 0

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        return self.graph.run(feeds, interrupt)

    def loop(self, carries: Sequence[Carry]) -> "Interrupting":
        self.held = self.graph.loop(carries)
        return self

    def step(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        self.steps += 1
        if self.steps == PRESSED_AT:
            assert interrupt is not None
            os.kill(os.getpid(), signal.SIGINT)
            until = time.monotonic() + 60
            while not interrupt.is_set and time.monotonic() < until:
                time.sleep(0.001)
        return self.held.step(feeds, interrupt)

    def rewind(self, length: int) -> None:
        self.held.rewind(length)


def test_an_interrupt_while_it_answers_keeps_what_was_written_and_goes_on(
    demo_bundle: Path,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tokprune.load(demo_bundle, backend="cpu", threads=1) as plain:
        whole = plain.ask(picture, DESCRIBE)
        llm = replace(plain.model.llm, graph=Interrupting(plain.model.llm.graph))
        vlm = VLM(replace(plain.model, llm=llm))
        monkeypatch.setattr("tokprune.commands.chat.load", lambda *_, **__: vlm)
        monkeypatch.setattr(sys, "stdin", StringIO(f"{DESCRIBE}\n{COUNT}\n"))
        assert run_chat(ChatCommand(demo_bundle, image=(picture,))) == 0
    said, noted = capsys.readouterr()
    first, second = said.splitlines()
    assert whole.text.startswith(first)
    assert 0 < len(first) < len(whole.text)
    assert second
    stopped, after = noted.splitlines()
    assert stopped.startswith("[ended by cancelled; kept 32 of 64 ")
    assert after.startswith("[kept 32 of 64 ")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_trace_holds_the_stages_of_the_answer(
    demo_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    target = tmp_path / "trace.json"
    question = ("--image", picture, "--question", COUNT, "--json")
    done = asked(demo_bundle, *question, "--trace", target)
    assert done.returncode == 0, done.stderr
    answer, trace = json.loads(done.stdout), json.loads(target.read_bytes())
    whole = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    (request,) = [event for event in whole if event["cat"] == "request"]
    stages = [event for event in whole if event["cat"] == "stage"]
    assert {event["name"] for event in stages} == set(STAGES)
    assert request["args"]["ttft_ms"] == answer["ttft_ms"]
    assert all(_within(event, request) for event in stages)
    for stage, ms in answer["timings_ms"].items():
        spans = [event["dur"] for event in stages if event["name"] == stage]
        assert sum(spans) >= 1e3 * ms - len(spans)  # whole microseconds; stages within included


def _within(event: dict[str, Any], request: dict[str, Any]) -> bool:
    end = request["ts"] + request["dur"]
    return request["ts"] <= event["ts"] and event["ts"] + event["dur"] <= end


def test_a_trace_that_cannot_be_written_is_one_line_after_the_answer(
    demo_bundle: Path, picture: Path, tmp_path: Path, said: list[str]
) -> None:
    target = tmp_path / "no such folder" / "trace.json"
    done = asked(
        demo_bundle, "--image", picture, "--question", COUNT, "--trace", target
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout.startswith(said[0])
    assert done.stderr.startswith("error [os]: ")
    assert len(done.stderr.splitlines()) == 1
