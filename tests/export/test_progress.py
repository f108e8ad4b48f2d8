"""How far a long command says it is."""

import pytest

from tokprune_export import progress
from tokprune_export.progress import Counting


def test_what_was_done_before_does_not_make_the_rest_look_quick(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 0.0
    monkeypatch.setattr(progress, "monotonic", lambda: now_s)
    with Counting("questions", 100) as counting:
        for _ in range(90):  # an earlier run has answered these
            counting.pass_over()
        for _ in range(4):
            now_s += 10.0
            counting.advance()
    assert "questions: 93/100, 30 s, 70 s left" in capsys.readouterr().err
