"""`tokprune calibrate`: measure the stages on this device, and keep what budgets in time need."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tokprune.backends import Asked
from tokprune.calibrating import SECONDS, Step, calibrate, plan_calibration
from tokprune.errors import RequestInvalid
from tokprune.files import atomic_write
from tokprune.loading import load
from tokprune.model import Model
from tokprune.timing.calibrations import STAGES, Calibration, Curve, Stage, save_calibration

_SIZES: dict[Stage, str] = {
    "vision": "numbers in pixel_values",
    "first_layer": "rows of the prompt",
    "scorer": "vision tokens",
    "select": "sqrt(vision tokens x kept)",
    "prefill": "rows that enter the LLM",
}


@dataclass(frozen=True)
class Calibrate:
    """Measure how long each stage takes on this device, for budgets such as ttft:300ms."""

    bundle: tyro.conf.Positional[Path]
    """The folder that tokprune-export wrote."""
    backend: Asked = "auto"
    """What runs the graphs; auto takes the fastest that can."""
    threads: int | None = None
    """Threads of each graph. Measure with those that you ask with."""
    seconds: float = SECONDS
    """How long to measure. Large models take longer: no fewer than five rounds are measured."""
    plot: Path | None = None
    """Draw measured points and curves here (PNG; needs matplotlib)."""
    json: bool = False
    """Print one JSON object instead of a table."""


def run_calibrate(command: Calibrate) -> int:
    """Run `tokprune calibrate`."""
    if not (math.isfinite(command.seconds) and command.seconds > 0):
        raise RequestInvalid(f"--seconds must be above 0, got {command.seconds}")
    check_plot(command.plot)  # now, and not after a minute
    with load(command.bundle, backend=command.backend, threads=command.threads) as vlm:
        calibration = measure(vlm.model, command.threads, command.seconds)
    path = save_calibration(vlm.bundle, calibration)
    if command.plot is not None:
        atomic_write(command.plot, plot(calibration))
    if command.json:
        shown = msgspec.to_builtins(calibration)
        print(json.dumps({**shown, "path": str(path)}))
        return 0
    console = Console()
    console.print(table(calibration))
    console.print(str(path), soft_wrap=True, highlight=False)
    return 0


def measure(loaded: Model, threads: int | None, seconds: float | int) -> Calibration:
    """Measure with progress on stderr, the plan said before."""
    console = Console(stderr=True)
    with CalibrationProgress(console) as show:
        plan = plan_calibration(loaded, seconds=seconds, progress=show)
    console.print(str(plan), soft_wrap=True, highlight=False)
    with CalibrationProgress(console) as show:
        return calibrate(loaded, plan, threads=threads, progress=show)


class CalibrationProgress:
    """A line on stderr: what is measured, step of how many."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Callable[[Step], None]:
        self._progress.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _show(self, step: Step) -> None:
        self._progress.update(self._task, description=step.what, completed=step.done, total=step.of)


def table(calibration: Calibration) -> Table:
    """Return what was measured, a line a stage."""
    place = f"{calibration.backend} on {calibration.device}"
    threads = "threads chosen by the engine"
    if calibration.threads is not None:
        threads = f"{calibration.threads} threads"
    found = Table(title=f"{place}, {threads}", title_justify="left")
    found.add_column("stage")
    for heading in ("from N", "ms", "to N", "ms", "p95", "runs"):
        found.add_column(heading, justify="right")
    for name, curve in _curves(calibration).items():
        points = sorted(curve.points, key=lambda point: point.median_ms)
        cells = [name]
        for point in (points[0], points[-1]):
            cells += [_number(sum(point.sizes)), _number(point.median_ms)]
        cells += [f"x {curve.spread:.2f}", str(sum(point.samples for point in points))]
        found.add_row(*cells)
    found.caption = "N: " + "; ".join(f"{stage}, {_SIZES[stage]}" for stage in STAGES)
    return found


def _curves(calibration: Calibration) -> dict[str, Curve]:
    """Return all curves by what they are called."""
    curves: dict[str, Curve] = {}
    for stage in STAGES:
        curves[stage] = calibration.stages[stage]
        if stage == "vision" and calibration.parts is not None:
            curves["vision, parts"] = calibration.parts
    return curves


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def check_plot(path: Path | None) -> None:
    """Refuse a plot that cannot be drawn.

    Raises:
        RequestInvalid: matplotlib is missing, or the name ends otherwise than in .png.
    """
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise RequestInvalid(f"--plot writes PNG: give a name ending in .png, got {path}")
    if find_spec("matplotlib") is None:
        raise RequestInvalid(
            "--plot needs matplotlib, which is not installed: pip install matplotlib, or leave "
            "--plot out and draw the points of --json on another machine"
        )


def plot(calibration: Calibration) -> bytes:
    """Return a picture (PNG) of the points and the curve of each stage."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(13, 7.5), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for axis, stage in zip(axes, STAGES, strict=False):
        _draw(axis, stage, calibration.stages[stage])
    if calibration.parts is not None:
        _draw_parts(axes[0], calibration.parts)
    axes[-1].axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[-1].legend(handles, labels, loc="center", frameon=False)
    threads = "auto" if calibration.threads is None else calibration.threads
    figure.suptitle(
        f"{calibration.backend} on {calibration.device}, threads {threads}, {calibration.date[:10]}"
    )
    data = BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def _draw(axis: Any, stage: Stage, curve: Curve) -> None:
    """Draw one stage. Points that stand for several runs are drawn as their mean."""
    sizes, medians, tops = _points(curve)
    above = [max(0.0, top - middle) for top, middle in zip(tops, medians, strict=True)]
    axis.errorbar(
        sizes, medians, yerr=[[0.0] * len(above), above], fmt="o", capsize=3, label="median, p95"
    )
    steps = [max(sizes) * step / 100 for step in range(101)]
    axis.plot(steps, [curve.ms(size) for size in steps], label="a + b N + c N²")
    safe = [curve.ms(size) * curve.spread for size in steps]
    axis.plot(steps, safe, linestyle="--", linewidth=1, label="its p95")
    axis.set(title=stage, xlabel=_SIZES[stage], ylabel="ms")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)


def _draw_parts(axis: Any, curve: Curve) -> None:
    """Draw what the vision encoder takes of parts beside what it takes of whole pictures."""
    sizes, medians, _ = _points(curve)
    steps = [max(sizes) * step / 100 for step in range(101)]
    (line,) = axis.plot(steps, [curve.ms(size) for size in steps], linewidth=1, label="of parts")
    axis.plot(sizes, medians, "x", color=line.get_color())


def _points(curve: Curve) -> tuple[list[float], list[float], list[float]]:
    """Return sizes, medians and 95th percentiles, each for one run."""
    points = sorted(curve.points, key=lambda point: sum(point.sizes) / len(point.sizes))
    return (
        [sum(point.sizes) / len(point.sizes) for point in points],
        [point.median_ms / len(point.sizes) for point in points],
        [point.p95_ms / len(point.sizes) for point in points],
    )
