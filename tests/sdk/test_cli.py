"""`tokprune` as scripts call it, on the demo bundle."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stub_model import a_picture, a_vlm

from tokprune import Clip
from tokprune.commands.ask import Ask, run_ask
from tokprune.scenes import suite

pytestmark = pytest.mark.demo


def tokprune(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from tokprune.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    (sample,) = suite("dev", 1, tokens=64, groups=["color"])
    Image.fromarray(sample.pictures[0]).save(path)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("av", reason="PyAV is not installed (extra camera)")
    from video_files import encoded

    path = tmp_path_factory.mktemp("videos") / "scene.mp4"
    (sample,) = suite("dev", 1, tokens=64, groups=["color"])
    frames = [np.roll(sample.pictures[0], 8 * step, axis=1) for step in range(20)]
    path.write_bytes(encoded(frames, rate=10))
    return path


def asked(bundle: Path, picture: Path, *options: object) -> dict[str, Any]:
    question = ("--question", "how many shapes are there?")
    result = tokprune("ask", bundle, "--image", picture, *question, "--json", *options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_json_has_the_promised_keys(demo_bundle: Path, picture: Path) -> None:
    answer = asked(demo_bundle, picture, "--budget", "0.25", "--selector", "attention")
    assert {
        "text", "finish_reason", "kept", "total", "need", "cap", "reason", "keep", "grid",
        "scores", "selector", "timings_ms", "ttft_ms",
    } <= set(answer)  # fmt: skip
    assert (answer["kept"], answer["total"], answer["grid"]) == (16, 64, [[8, 8]])
    assert answer["selector"] == "attention"
    assert len(answer["scores"]) == 64
    assert answer["keep"] == sorted(answer["keep"])


def test_a_count_is_a_budget_too_and_more_than_all_says_so(
    demo_bundle: Path, picture: Path
) -> None:
    answer = asked(demo_bundle, picture, "--budget", "500")
    assert (answer["kept"], answer["cap"], answer["reason"]) == (64, 500, "all")


def test_several_pictures_are_given_one_by_one_and_get_an_overlay_each(
    demo_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    answer = asked(
        demo_bundle, picture, "--image", picture, "--overlay", tmp_path / "kept.png"
    )  # fmt: skip
    assert answer["grid"] == [[8, 8], [8, 8]]
    drawn = [np.asarray(Image.open(tmp_path / f"kept-{number}.png")) for number in (0, 1)]
    assert [overlay.shape for overlay in drawn] == [(224, 224, 3)] * 2


def test_a_video_is_asked_about_and_its_overlay_is_a_sheet_of_frames(
    demo_bundle: Path, video: Path, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    options = ("--video", video, "--num-frames", "7", "--question", "what moves?")
    result = tokprune(
        "ask", demo_bundle, *options, "--budget", "0.25", "--json", "--overlay", sheet
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["kept"], answer["total"]) == (64, 256)
    assert answer["grid"] == [[8, 8]] * 4  # frames are taken in pairs, the last one alone
    assert answer["regions"] == [[0, frame, 0] for frame in range(4)]
    assert answer["videos"] == [{"picture": 0, "frames": 7, "fps": 3.5}]
    assert np.asarray(Image.open(sheet)).shape == (2 * 224 + 4, 2 * 224 + 4, 3)


def test_pictures_come_before_videos_and_get_an_overlay_each(
    demo_bundle: Path, picture: Path, video: Path, tmp_path: Path
) -> None:
    options = ("--video", video, "--fps", "1", "--overlay", tmp_path / "kept.png")
    answer = asked(demo_bundle, picture, *options)
    assert answer["regions"] == [[0, 0, 0], [1, 0, 0]]
    assert answer["videos"] == [{"picture": 1, "frames": 2, "fps": 1.0}]
    drawn = [np.asarray(Image.open(tmp_path / f"kept-{number}.png")) for number in (0, 1)]
    assert [overlay.shape for overlay in drawn] == [(224, 224, 3)] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "ask needs a picture or a video: give --image FILE or --video FILE"),
        (("--image", "a.png", "--fps", "2"), "--fps and --num-frames are about videos"),
        (("--video", "a.mp4", "--fps", "2", "--num-frames", "3"), "give one of the two"),
        (("--image", "a.png", "--encode", "lasy"), "Unknown way to encode 'lasy'. Did you mean"),
        (("--image", "a.png", "--encode", "coarse:0.5"), "expected one of full, lazy, coarse"),
        (("--video", "no/such.mp4"), "no/such.mp4"),
        (("--video", __file__), "cannot be decoded"),
    ],
)
def test_what_to_look_at_is_checked_before_the_bundle_is_opened(
    options: tuple[str, ...], message: str
) -> None:
    result = tokprune("ask", "no/such/bundle", "--question", "why?", *options)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_text_is_followed_by_what_was_kept_and_what_it_cost(
    demo_bundle: Path, picture: Path
) -> None:
    result = tokprune("ask", demo_bundle, "--image", picture, "--question", "what shape is red?")
    assert result.returncode == 0
    assert "kept 32 of 64 vision tokens by" in result.stdout
    assert "prefill" in result.stdout


def asked_of_a_stub(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **options: Any
) -> str:
    """Ask about eight frames, each of which the encoder takes by itself."""
    clip = Clip(np.stack([a_picture(seed) for seed in range(8)]), 4.0)
    monkeypatch.setattr("tokprune.commands.ask.load", lambda *_, **__: a_vlm())
    monkeypatch.setattr("tokprune.commands.ask.load_video", lambda *_, **__: clip)
    question: dict[str, Any] = {"question": "what?", "video": (Path("a.mp4"),), "budget": "0.25"}
    assert run_ask(Ask(Path("none"), selector="attention", **question, **options)) == 0
    return capsys.readouterr().out


def test_json_says_what_was_encoded_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for encode, used, encoded in (("full", "full", 192), ("lazy:1", "lazy", 72)):
        told = json.loads(asked_of_a_stub(monkeypatch, capsys, encode=encode, json=True))
        assert (told["encode"], told["encoded"], told["total"]) == (used, encoded, 192)
        assert bool(told["encode_reason"]) == (used == "lazy")


def test_text_says_what_was_encoded_where_that_is_not_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = asked_of_a_stub(monkeypatch, capsys, encode="lazy:1")
    assert "by attention (ratio), 72 encoded by lazy (1 of 6 crops and frames, where" in part
    whole = asked_of_a_stub(monkeypatch, capsys)
    assert "by attention (ratio); first token after" in whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "50%"), "error [request_invalid]: Cannot read the budget '50%'"),
        (("--selector", "attenton"), "Did you mean 'attention'?"),
        (("--overlay", "kept.jpg"), "--overlay writes PNG"),
        (("--image", "no/such.png"), "no/such.png"),
        (("--threads", "0"), "threads must be 1 or more"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_2(
    demo_bundle: Path, picture: Path, options: tuple[str, ...], message: str
) -> None:
    result = tokprune("ask", demo_bundle, "--image", picture, "--question", "why?", *options)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_inspect_shows_what_the_bundle_holds(demo_bundle: Path) -> None:
    result = tokprune("inspect", demo_bundle, "--json")
    assert result.returncode == 0, result.stderr
    assert "qwen2_vl" in result.stdout


def test_verify_tells_a_changed_file_and_exits_1(demo_bundle: Path, tmp_path: Path) -> None:
    from shutil import copytree

    copy = copytree(demo_bundle, tmp_path / "bundle")
    assert tokprune("verify", copy).returncode == 0
    data = bytearray((copy / "tokenizer.json").read_bytes())
    data[100] ^= 1
    (copy / "tokenizer.json").write_bytes(bytes(data))
    result = tokprune("verify", copy)
    assert result.returncode == 1
    assert "tokenizer.json" in result.stdout
