"""What of a folder of results is used again, and odd things to ask for."""

from dataclasses import replace
from pathlib import Path

import pytest

from tokprune.errors import RequestInvalid
from tokprune.scenes import suite, write
from tokprune.timing.calibrations import SCHEMA, STAGES, Calibration, Curve
from tokprune.timing.latency import Latency
from tokprune_export.evaluation import planning
from tokprune_export.evaluation.evaluate import evaluate
from tokprune_export.evaluation.opening import open_bundle
from tokprune_export.evaluation.options import EvaluateOptions

pytestmark = pytest.mark.torch


@pytest.fixture
def options(demo_bundle: Path, tmp_path: Path) -> EvaluateOptions:
    """One drawn question, and one cell."""
    return EvaluateOptions(
        demo_bundle, "scenes", tmp_path / "out", "train", "0.25", "uniform",
        samples=1, tokens=64, turns=0, timed=0, processes=1,
    )  # fmt: skip


def test_times_of_one_file_are_not_those_of_another(
    options: EvaluateOptions, tmp_path: Path
) -> None:
    times = []
    for tokens in (64, 196):
        data = write(tmp_path / str(tokens), suite("train", 1, tokens=tokens))
        of_file = replace(options, suite=str(data), split=None, tokens=None, timed=1)
        times.append(evaluate(of_file)["latency"]["cells"])
        assert evaluate(of_file)["latency"]["cells"] == times[-1]  # not measured again
    assert times[0] != times[1]


def test_what_is_no_selector_can_be_asked_for_alone(options: EvaluateOptions) -> None:
    results = evaluate(replace(options, selectors="full,downsample"))
    assert list(results["figures"]["cells"]) == ["full", "downsample"]


def test_a_foreign_line_in_the_answers_is_named(options: EvaluateOptions) -> None:
    evaluate(options)
    (path,) = options.out.glob("samples-*.jsonl")
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(RequestInvalid, match=r"samples-\w+\.jsonl, line 2: .*Delete the line"):
        evaluate(options)


def test_budgets_in_time_are_asked_again_where_the_device_was_measured_again(
    options: EvaluateOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = open_bundle(options.bundle)
    timed = replace(options, budgets="auto:300ms,0.5", selectors="relevance", twins=False)
    keys: list[set[str]] = []
    for cost_ms in (1.0, 2.0):
        curves = dict.fromkeys(STAGES, Curve(cost_ms, 0.0, 0.0, 1.0, []))
        device = Calibration(SCHEMA, "", "cpu", "", 1, "", curves, "", 1, {}, "", 1.0)
        latency = Latency(device, "")
        monkeypatch.setattr(planning, "open_latency", lambda *_, found=latency: found)
        keys.append({cell.key for cell in planning.plan_inquiry(timed, vlm).cells})
    assert keys[0] & keys[1] == {"full@1.0", "relevance@0.5"}
    assert len(keys[0]) == len(keys[1]) == 3
