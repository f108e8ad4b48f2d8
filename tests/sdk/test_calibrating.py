import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokprune
from tokprune import calibrating
from tokprune.bundle import open_bundle
from tokprune.calibrating import Plan, Step, calibrate, plan_calibration
from tokprune.commands import calibrate as command
from tokprune.commands.calibrate import Calibrate, run_calibrate
from tokprune.errors import EngineTooSmall, NotCalibrated, RequestInvalid
from tokprune.graphs import FirstLayerGraph, VisionEncoder
from tokprune.model import Model
from tokprune.timing.calibrations import STAGES, Curve, Stage, load_calibration
from tokprune.timing.latency import open_latency
from tokprune.timing.request_sizes import sizes_of
from tokprune_runtimes import Carry, Graph, Interrupt

pytestmark = pytest.mark.demo

VISION, FIRST, PREFILL = (
    Curve(2, 1e-5, 0, 1, []),
    Curve(1, 0.02, 0, 1, []),
    Curve(5, 0.3, 0, 1, []),
)


class Paper:
    """Clock and graphs of a machine whose graphs take no other time than these curves say."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def spend(self, name: str, ms: float) -> None:
        self.calls.append(name)
        self.now += ms / 1000


class TimedGraph:
    """A real graph, its time replaced; it runs once for each shape of its inputs."""

    def __init__(self, graph: Graph, spend: Callable[[Mapping[str, Any]], None]) -> None:
        self.graph, self.spend = graph, spend
        self.known: dict[str, dict[str, Any]] = {}

    def once(self, feeds: Mapping[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        self.spend(feeds)
        shapes = repr([value.shape for value in feeds.values()])
        if shapes not in self.known:
            self.known[shapes] = run()
        return self.known[shapes]

    def run(self, feeds: Mapping[str, Any], interrupt: Interrupt | None = None) -> dict[str, Any]:
        return self.once(feeds, lambda: self.graph.run(feeds, interrupt))

    def loop(self, carries: Sequence[Carry]) -> Any:
        outer = self

        class Timed:
            def step(
                self, feeds: Mapping[str, Any], interrupt: Interrupt | None = None
            ) -> dict[str, Any]:
                return outer.once(feeds, lambda: outer.graph.loop(carries).step(feeds, interrupt))

            def rewind(self, length: int) -> None:
                raise AssertionError("nothing rewinds")

        return Timed()


def on_paper(vlm: Model, paper: Paper, factor: float = 1.0) -> Model:
    def rows(feeds: Mapping[str, Any]) -> int:
        return int(feeds["inputs_embeds"].shape[1])

    def vision(feeds: Mapping[str, Any]) -> None:
        paper.spend("vision", factor * VISION.ms(int(feeds["pixel_values"].size)))

    def first(feeds: Mapping[str, Any]) -> None:
        paper.spend("first", factor * FIRST.ms(rows(feeds)))

    def prefill(feeds: Mapping[str, Any]) -> None:
        paper.spend("prefill", factor * PREFILL.ms(rows(feeds)))

    def scorer(feeds: Mapping[str, Any]) -> None:
        paper.spend("scorer", factor)

    llm = replace(vlm.llm, graph=TimedGraph(vlm.llm.graph, prefill))
    return replace(
        vlm,
        vision=VisionEncoder(TimedGraph(vlm.vision.graph, vision), vlm.vision.check),
        first_layer=FirstLayerGraph(TimedGraph(vlm.first_layer.graph, first), llm),
        scorer=replace(vlm.scorer, graph=TimedGraph(vlm.scorer.graph, scorer)),
        llm=llm,
    )


@pytest.fixture(scope="module")
def vlm(demo_bundle: Path) -> Model:
    return tokprune.load(demo_bundle, backend="cpu", threads=1, verify="sizes").model


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Paper:
    made = Paper()
    monkeypatch.setattr(calibrating, "perf_counter", made)
    return made


def test_the_curves_of_a_machine_on_paper_are_found(vlm: Model, paper: Paper) -> None:
    timed = on_paper(vlm, paper)
    plan = plan_calibration(timed, seconds=3)
    found = calibrate(timed, plan, threads=1)
    curves: dict[Stage, Curve] = {"vision": VISION, "first_layer": FIRST, "prefill": PREFILL}
    for stage, curve in curves.items():
        for size in (50, 200, 1000):
            size *= 1000 if stage == "vision" else 1
            assert found.stages[stage].ms(size) == pytest.approx(curve.ms(size), rel=1e-3)
        assert found.stages[stage].spread == pytest.approx(1.0, abs=1e-6)
    assert found.threads == 1
    assert found.selector == vlm.bundle.manifest.default_selector


def test_parts_of_pictures_are_measured_apart(vlm: Model, paper: Paper) -> None:
    """The encoder of this machine takes twice as long for what is no whole picture."""

    def vision(feeds: Mapping[str, Any]) -> None:
        slower = 1 if _is_grid(feeds["positions"]) else 2
        paper.spend("vision", slower * VISION.ms(int(feeds["pixel_values"].size)))

    encoder = VisionEncoder(TimedGraph(vlm.vision.graph, vision), vlm.vision.check)
    plan = plan_calibration(replace(on_paper(vlm, paper), vision=encoder), seconds=3)
    assert "parts of such" in str(plan)
    found = calibrate(vlm, plan, threads=1)
    assert found.parts is not None
    for size in (50_000, 200_000, 1_000_000):
        assert found.stages["vision"].ms(size) == pytest.approx(VISION.ms(size), rel=1e-3)
    cut = [
        point for point in found.parts.points if point.median_ms > 1.5 * VISION.ms(point.sizes[0])
    ]
    assert len(cut) >= 6


def _is_grid(positions: np.ndarray) -> bool:
    return len(positions) == int(np.prod(positions.max(axis=0) + 1))


def test_rounds_are_interleaved_and_the_trial_is_left_out(vlm: Model, paper: Paper) -> None:
    timed = on_paper(vlm, paper)
    plan = plan_calibration(timed, seconds=1)
    paper.calls.clear()
    steps: list[Step] = []
    found = calibrate(timed, plan, threads=None, progress=steps.append)
    one = len(paper.calls) // plan.rounds
    assert paper.calls == paper.calls[:one] * plan.rounds
    assert all(p.samples == plan.rounds for s in STAGES for p in found.stages[s].points)
    assert [step.done for step in steps] == list(range(plan.rounds + 1))


def test_the_plan_says_its_time_and_keeps_it(vlm: Model, paper: Paper) -> None:
    timed = on_paper(vlm, paper)
    plan = plan_calibration(timed, seconds=5)
    began = paper.now
    calibrate(timed, plan, threads=1)
    assert paper.now - began == pytest.approx(plan.seconds, rel=0.01)
    assert plan.rounds == calibrating.MOST_ROUNDS or plan.seconds == pytest.approx(5, rel=0.3)
    assert f"about {plan.seconds:.0f} s" in str(plan)


def test_a_slow_machine_gets_smaller_pictures_and_five_rounds(vlm: Model, paper: Paper) -> None:
    quick = plan_calibration(on_paper(vlm, paper), seconds=5)
    slow = plan_calibration(on_paper(vlm, paper, factor=200.0), seconds=5)
    assert slow.rounds == calibrating.LEAST_ROUNDS
    assert max(slow.vision_tokens) <= max(quick.vision_tokens)
    assert len(slow.vision_tokens) >= 2


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision", "vila"])
def test_every_family_is_measured_at_several_sizes_up_to_its_limits(
    demo_bundles: Callable[..., Path], family: str, paper: Paper
) -> None:
    timed = on_paper(tokprune.load(demo_bundles(family), backend="cpu", threads=1).model, paper)
    plan = plan_calibration(timed, seconds=9)
    assert len(set(plan.vision_tokens)) >= 3
    parts = [cell for cell in plan.cells if cell.part]
    assert bool(parts) == (family != "vila"), "an encoder of one size takes no parts"
    assert len({cell.sizes for cell in parts}) == len(parts)
    whole = max(sum(cell.sizes) for cell in plan.cells if cell.stage == "vision")
    assert all(sum(cell.sizes) <= whole for cell in parts)
    assert plan.vision_tokens == tuple(sorted(plan.vision_tokens))
    assert plan.kept == tuple(sorted(set(plan.kept)))
    assert plan.kept[-1] == plan.vision_tokens[-1]
    assert plan.kept[0] <= 16
    assert plan.kept[-1] < timed.bundle.manifest.limits.max_input_len


def test_engines_that_are_too_small_bound_the_pictures(vlm: Model, paper: Paper) -> None:
    timed = on_paper(vlm, paper)

    def bounded(most: int) -> Model:
        def spend(feeds: Mapping[str, Any]) -> None:
            if len(feeds["columns"]) > most:
                raise EngineTooSmall("built for less")

        graph = TimedGraph(timed.first_layer.graph, spend)
        return replace(timed, first_layer=FirstLayerGraph(graph, timed.llm))

    assert max(plan_calibration(bounded(100), seconds=5).vision_tokens) <= 100
    with pytest.raises(EngineTooSmall):
        plan_calibration(bounded(1), seconds=5)


def test_a_bundle_that_takes_no_drawn_picture_says_why(vlm: Model) -> None:
    def check(feeds: object) -> None:
        raise EngineTooSmall("built for pictures of one token")

    refusing = replace(vlm, vision=VisionEncoder(vlm.vision.graph, check))
    with pytest.raises(NotCalibrated, match="pictures of one token"):
        plan_calibration(refusing)


@pytest.fixture
def copied(demo_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(demo_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_the_verb_measures_saves_and_prints(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real graphs, a real clock; nothing is said of how long they take."""
    assert run_calibrate(Calibrate(copied, "cpu", 1, seconds=0.2, json=True)) == 0
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    assert "rounds of" in shown.err
    bundle = open_bundle(copied)
    found = load_calibration(bundle, "cpu", 1)
    assert found is not None
    assert Path(printed.pop("path")).is_file()
    assert set(printed["stages"]) == set(STAGES)
    assert printed["device"] == found.device
    vlm = tokprune.load(copied, backend="cpu", threads=1, verify="sizes").model
    prompt, media = calibrating.trial_requests(vlm, 2)[-1]
    forecast = open_latency(bundle, "cpu", 1).forecast(sizes_of(prompt, media))
    assert 0 < forecast.prefill_ms(10).p50_ms < forecast.prefill_ms(1000).p95_ms
    assert run_calibrate(Calibrate(copied, "cpu", 1, seconds=0.2)) == 0
    table = capsys.readouterr().out
    for stage in STAGES:
        assert stage in table


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_seconds_must_make_sense(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(RequestInvalid, match="--seconds"):
        run_calibrate(Calibrate(tmp_path, seconds=seconds))


def test_a_plot_without_matplotlib_says_so_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    with pytest.raises(RequestInvalid, match="pip install matplotlib"):
        run_calibrate(Calibrate(tmp_path / "no bundle", plot=tmp_path / "plot.png"))


def test_a_plot_is_png(tmp_path: Path) -> None:
    with pytest.raises(RequestInvalid, match=r"ending in \.png"):
        run_calibrate(Calibrate(tmp_path / "no bundle", plot=tmp_path / "plot.pdf"))


def test_a_plot_shows_every_stage(vlm: Model, paper: Paper) -> None:
    pytest.importorskip("matplotlib")
    timed = on_paper(vlm, paper)
    plan: Plan = plan_calibration(timed, seconds=1)
    drawn = command.plot(calibrate(timed, plan, threads=1))
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) > 20_000
