"""`tokprune-eval` and `tokprune-eval-merge` on the command line."""

import sys
from pathlib import Path

import pytest

from tokprune_export.cli import eval_main, merge_main

pytestmark = pytest.mark.torch


def test_what_cannot_work_is_one_line_and_exit_status_2(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle, out = str(demo_bundle), str(tmp_path / "out")
    drawn = [bundle, "--suite", "scenes", "--out", out]
    for arguments, message in (
        ([*drawn, "--samples", "0"], "Got --samples 0: give 1 or more"),
        ([*drawn, "--processes", "0"], "Got --processes 0: give 1 or more"),
        ([*drawn, "--tokens", "65"], "No grid of 65 vision tokens"),
        ([*drawn, "--budgets", "1.5"], "KeepRatio takes a share above 0 and up to 1.0"),
        ([*drawn, "--budgets", "half"], "Cannot read the budget 'half'"),
        ([*drawn, "--budgets", ","], "There are no budgets"),
        ([*drawn, "--selectors", "relevence"], "Did you mean 'relevance'"),
        ([*drawn, "--selectors", "oracle"], "give --oracle CHECKPOINT too"),
        ([*drawn, "--more", "2000"], "give SAMPLES:BUDGETS:NAMES"),
        ([*drawn, "--more", "2000:0.5:oracle"], "--more has 'oracle', which is not asked"),
        ([*drawn, "--scorer", out], "There is no scorer file"),
        ([bundle, "--suite", "cooking", "--out", out], "Unknown suite 'cooking'"),
        ([str(tmp_path / "none"), "--suite", "scenes", "--out", out], "none"),
    ):
        monkeypatch.setattr(sys, "argv", ["tokprune-eval", *arguments])
        with pytest.raises(SystemExit) as stopped:
            eval_main()
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert not Path(out).exists()


def test_the_commands_print_what_they_made(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, joined = str(tmp_path / "out"), str(tmp_path / "scenes.json")
    small_run = ["--samples", "1", "--timed", "0", "--turns", "0", "--processes", "1"]
    monkeypatch.setattr(
        sys,
        "argv",
        [
            *("tokprune-eval", str(demo_bundle), "--suite", "scenes", "--tokens", "64"),
            *("--out", out, "--budgets", "0.5", "--selectors", "uniform", *small_run),
        ],
    )
    with pytest.raises(SystemExit) as stopped:
        eval_main()
    assert stopped.value.code == 0
    assert "# What pruning does to answers" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["tokprune-eval-merge", joined, out])
    with pytest.raises(SystemExit) as stopped:
        merge_main()
    assert stopped.value.code == 0
    assert "scenes.json: 2 rows of 1 runs" in capsys.readouterr().out.replace("\n", "")
