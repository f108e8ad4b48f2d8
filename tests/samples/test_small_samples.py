"""Each small sample, run alone as a user runs it."""

import ast
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sparse_scene import SCENE

import tokprune
from tokprune.scenes import film_suite

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "samples"
SMALL = ("describe", "patrol", "many_questions", "video_to_jsonl", "async_robot", "openai_client")
# `pip install .` brings these (README); openai is what its part about serving uses.
INSTALLED = {"PIL", "numpy", "rich", "tokprune", "tyro"}
OF_ONE = {"openai_client": {"openai"}}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Image.fromarray(SCENE.pictures[0]).save(path)
    return path


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(FOLDER / f"{name}.py"), *map(str, arguments)]


def surroundings(**more: str) -> dict[str, str]:
    path = os.pathsep.join([*sys.path, str(Path(tokprune.__file__).parents[1])])
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **more}


def run(name: str, *arguments: object, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(name, *arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=surroundings(**more),
    )


def printed(name: str, *arguments: object, **more: str) -> str:
    done = run(name, *arguments, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What they are


def test_these_are_all_of_them() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*SMALL, "demo"}


@pytest.mark.parametrize("name", SMALL)
def test_a_sample_is_short_and_says_how_it_is_run(name: str) -> None:
    source = (FOLDER / f"{name}.py").read_text()
    assert len(source.splitlines()) < 80
    assert f"python samples/{name}.py " in str(ast.get_docstring(ast.parse(source)))


@pytest.mark.parametrize("name", SMALL)
def test_a_sample_imports_nothing_that_the_readme_does_not_install(name: str) -> None:
    tree = ast.walk(ast.parse((FOLDER / f"{name}.py").read_text()))
    imported: set[str] = set()
    for node in tree:
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    allowed = INSTALLED | OF_ONE.get(name, set())
    assert imported - set(sys.stdlib_module_names) <= allowed
    text = (ROOT / "pyproject.toml").read_text()
    for package in (allowed & imported) - {"PIL", "tokprune"}:
        assert re.search(rf'"{package}>=', text)


@pytest.mark.parametrize("name", sorted({*SMALL} - {"openai_client"}))
def test_help_tells_what_is_wanted(name: str) -> None:
    told = printed(name, "--help")
    assert f"{name}.py" in told
    assert "--question" in told or "QUESTION" in told or "[STR" in told


# What they do


@pytest.mark.demo
@pytest.mark.torch
def test_describe_writes_words_figures_and_an_overlay(
    demo_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    target = tmp_path / "kept.png"
    told = printed("describe", demo_bundle, picture, "--overlay", target)
    assert "large yellow star" in told.splitlines()[0]
    assert "98 of 196 vision tokens, chosen by relevance-spread" in told
    assert re.search(r"first token after \d+ ms; ended by 'stop'", told)
    drawn = np.asarray(Image.open(target))
    assert drawn.shape == SCENE.pictures[0].shape
    assert (drawn != SCENE.pictures[0]).any()


@pytest.mark.demo
@pytest.mark.torch
def test_samples_end_with_the_code_of_an_error(demo_bundle: Path, tmp_path: Path) -> None:
    for name, more in (("many_questions", ["what?"]), ("video_to_jsonl", [tmp_path / "out"])):
        done = run(name, demo_bundle, tmp_path / "none", *more)
        assert done.returncode == 1
        assert re.match(r"(picture|request)_invalid: ", done.stderr)


@pytest.mark.demo
@pytest.mark.torch
def test_many_questions_run_the_picture_once(demo_bundle: Path, picture: Path) -> None:
    questions = [SCENE.question, "is there a circle?", "how many shapes are there?"]
    told = printed("many_questions", demo_bundle, picture, *questions, "--budget", 0.75)
    rows = [row for row in map(cells, told.splitlines()) if row and row[0] in questions]
    assert [row[0] for row in rows] == questions
    assert [row[1] for row in rows] == [SCENE.answer, "no", "four"]
    ran = [[int(number) for number in row[3].split(" of ")] for row in rows]
    assert ran[0][0] == ran[0][1] > 147
    assert all(run < 30 < 147 < whole for run, whole in ran[1:])


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]


def lines_of(patrolled: str) -> list[tuple[str, str]]:
    """Return action and reason of each line."""
    found = [re.fullmatch(r"\d\d:\d\d:\d\d (GO|STOP) +(.+)", row) for row in patrolled.splitlines()]
    assert all(found), patrolled
    return [(match[1], match[2]) for match in found if match]


def codes(lines: Sequence[tuple[str, str]]) -> set[str]:
    return {why.partition(":")[0] for action, why in lines if action == "STOP" and ":" in why}


@pytest.mark.demo
@pytest.mark.torch
def test_a_patrol_moves_on_the_right_answer_alone(demo_bundle: Path) -> None:
    asked = (demo_bundle, "--every-s", 0.1, "--seconds", 1.2)
    moving = lines_of(printed("patrol", *asked))
    assert "GO" in {action for action, _ in moving}
    assert moving[-1][0] == "STOP"
    assert all(why.startswith("no (") for action, why in moving if action == "GO")
    standing = lines_of(printed("patrol", *asked, "--go-on", "yes"))
    assert {action for action, _ in standing} == {"STOP"}
    assert any(why.startswith("no (") for _, why in standing)


@pytest.mark.demo
@pytest.mark.torch
def test_a_patrol_stops_for_a_camera_that_is_lost_frozen_or_slow(demo_bundle: Path) -> None:
    source = "fake://scenes?seed=7&drop=1:0.5&freeze=2:2.7&stall=5.2:9"
    asked = (demo_bundle, source, "--every-s", 0.1, "--seconds", 6.8)
    lines = lines_of(printed("patrol", *asked))
    went = [number for number, (action, _) in enumerate(lines) if action == "GO"]
    for code in ("camera_lost", "camera_frozen"):
        stood = [number for number, (_, why) in enumerate(lines) if why.startswith(code)]
        assert went[0] < stood[-1] < went[-1]  # it stops, and goes on afterwards
    assert [why.partition(":")[0] for _, why in lines[-4:-1]] == ["frame_too_old"] * 3
    assert lines[-1] == ("STOP", "the patrol has ended")


@pytest.mark.demo
@pytest.mark.torch
def test_a_patrol_stops_for_late_answers(demo_bundle: Path) -> None:
    asked = ("--every-s", 0.1, "--seconds", 1.0, "--deadline-s", 0.001)
    lines = lines_of(printed("patrol", demo_bundle, "fake://scenes?seed=7", *asked))
    assert {action for action, _ in lines} == {"STOP"}
    assert "deadline_exceeded" in codes(lines)


@pytest.mark.demo
@pytest.mark.torch
@pytest.mark.parametrize("abstract", [False, True])
def test_a_patrol_tells_systemd_and_stops_when_systemd_does(
    demo_bundle: Path, tmp_path: Path, *, abstract: bool
) -> None:
    name = f"@tokprune-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name.replace("@", "\0", 1))
        systemd.settimeout(30.0)
        started = subprocess.Popen(
            command("patrol", demo_bundle, "--every-s", 0.1),
            stdout=subprocess.PIPE,
            text=True,
            env=surroundings(NOTIFY_SOCKET=name),
        )
        heard = [systemd.recv(64)]
        times = []
        while len(heard) < 6:
            heard.append(systemd.recv(64))
            times.append(time.monotonic())
        started.send_signal(signal.SIGTERM)
        told, _ = started.communicate(timeout=20)
    assert heard == [b"READY=1", *[b"WATCHDOG=1"] * 5]
    assert max(np.diff(times)) < 2.0
    assert lines_of(told)[-1] == ("STOP", "the patrol has ended")
    assert started.returncode == 0


@pytest.fixture
def video(tmp_path: Path) -> tuple[Path, int]:
    """A film of a scene, and how many frames it has."""
    video_files = pytest.importorskip("video_files", reason="PyAV is not installed (extra camera)")
    (film,) = film_suite("dev", 1, groups=("direction",))
    path = tmp_path / "film.mp4"
    path.write_bytes(video_files.encoded(list(film.clip.frames), rate=4))
    return path, len(film.clip.frames)


def answers_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.demo
@pytest.mark.torch
def test_a_video_becomes_lines_and_a_stopped_run_goes_on(
    demo_bundle: Path, video: tuple[Path, int], tmp_path: Path
) -> None:
    path, count = video
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    printed("video_to_jsonl", demo_bundle, path, whole, "--max-new-tokens", 24)
    lines = answers_in(whole)
    assert [line["at_s"] for line in lines] == [number / 4 for number in range(count)]
    assert all("yellow cross" in line["answer"] for line in lines)
    assert (lines[0]["kept"], lines[0]["total"], lines[0]["finish_reason"]) == (18, 36, "stop")
    text = whole.read_bytes()
    second_line_end = text.index(b"\n", text.index(b"\n") + 1)
    cut.write_bytes(text[: second_line_end + 40])  # in the middle of the third
    told = printed("video_to_jsonl", demo_bundle, path, cut, "--max-new-tokens", 24)
    assert len(told.splitlines()) == count - 2
    again = answers_in(cut)
    same = [{**line, "ms": 0} for line in again]
    assert same == [{**line, "ms": 0} for line in lines]
    other = run("video_to_jsonl", demo_bundle, path, cut, "--question", "what?")
    assert other.returncode == 1
    assert "choose another file" in other.stderr
    assert answers_in(cut) == again


@pytest.mark.demo
@pytest.mark.torch
def test_a_video_is_asked_about_every_so_many_seconds(
    demo_bundle: Path, video: tuple[Path, int], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    printed("video_to_jsonl", demo_bundle, video[0], out, "--every-s", 0.75)
    assert [line["at_s"] for line in answers_in(out)] == [0.0, 0.75, 1.5]


@pytest.mark.demo
@pytest.mark.torch
def test_a_control_loop_is_not_held_up_by_questions(demo_bundle: Path) -> None:
    told = printed("async_robot", demo_bundle, "--seconds", 1.5)
    late = r": 75 steps, late by ([\d.]+) ms \(median\), ([\d.]+) ms \(p99\)\n"
    alone = re.search("without questions" + late, told)
    asking = re.search("with questions" + late, told)
    assert alone is not None
    assert asking is not None
    # A loop that waited for answers would fall behind for good, by more with every answer.
    assert float(asking[1]) < 20.0
    answers = re.search(r"with questions: (\d+) answers, heard: \w+\n$", told)
    assert answers is not None
    assert int(answers[1]) >= 3


@pytest.mark.demo
@pytest.mark.torch
def test_openais_client_gets_the_answer_of_the_server(demo_bundle: Path, picture: Path) -> None:
    pytest.importorskip("openai", reason="openai is not installed (group dev)")
    from http_server import served

    with served(demo_bundle) as server:
        where = ("--url", f"{server.url}/v1")
        told = printed("openai_client", picture, SCENE.question, *where, "--budget", "0.25")
        assert told.splitlines() == [SCENE.answer, "49 of 196 vision tokens"]
        bad = run("openai_client", picture, SCENE.question, *where, "--budget", "70%")
        assert bad.returncode == 1
        assert bad.stderr.startswith("400 request_invalid: ")
