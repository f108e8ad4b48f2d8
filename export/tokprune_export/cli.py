"""The commands `tokprune-export`, `tokprune-train`, `tokprune-eval`. torch is imported late."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import tyro
from rich.console import Console
from rich.status import Status
from rich.table import Table

from tokprune.bundle import open_bundle
from tokprune.commands.build import build_with_progress
from tokprune.engines.building import check_builder
from tokprune.engines.plans import BuildOptions
from tokprune.errors import RequestInvalid
from tokprune.manifest import Manifest
from tokprune_export.exits import guarded
from tokprune_export.options import ExportOptions

if TYPE_CHECKING:
    from tokprune_export.evaluation.options import EvaluateOptions


def export_main() -> None:
    """Run `tokprune-export`."""
    options = tyro.cli(ExportOptions, prog="tokprune-export")
    sys.exit(guarded("tokprune-export", lambda: run_export(options)))


def train_main() -> None:
    """Run `tokprune-train`."""
    from tokprune_export.train import main

    main()


def eval_main() -> None:
    """Run `tokprune-eval`. Exit 2 with one line where the request cannot be met."""
    from tokprune_export.evaluation.options import EvaluateOptions

    options = tyro.cli(EvaluateOptions, prog="tokprune-eval")
    sys.exit(guarded("tokprune-eval", lambda: run_evaluation(options)))


def merge_main() -> None:
    """Run `tokprune-eval-merge`."""
    from tokprune_export.evaluation.options import MergeOptions
    from tokprune_export.evaluation.rows import merge

    options = tyro.cli(MergeOptions, prog="tokprune-eval-merge")

    def run() -> None:
        rows = merge(options.runs, options.out)
        print(f"{options.out}: {len(rows)} rows of {len(options.runs)} runs")

    sys.exit(guarded("tokprune-eval-merge", run))


def run_evaluation(options: "EvaluateOptions") -> None:
    """Ask, write results, and show the tables."""
    from tokprune_export.evaluation.evaluate import evaluate
    from tokprune_export.evaluation.tables import markdown

    print(markdown(evaluate(options)))


def run_export(options: ExportOptions) -> None:
    """Export with progress, and end with tables; build engines where they were asked for."""
    if options.sm and options.engine is None:
        raise RequestInvalid("--sm says which GPUs engines are for: give --engine too")
    if options.engine is not None:
        check_builder(options.engine, options.sm)  # before an export that may take an hour
    from tokprune_export.export import export
    from tokprune_export.parity_report import Row, table

    console = Console()
    rows: list[Row] = []
    try:
        with Steps() as steps:
            manifest = export(options, steps, rows.extend)
    finally:
        if rows:
            console.print(table(rows))
    console.print(summary(manifest, str(options.output)))
    for line in notes(options.output):
        console.print(line, soft_wrap=True)
    if options.engine is not None:
        build_with_progress(open_bundle(options.output), BuildOptions(options.engine, options.sm))


class Steps:
    """Names on stderr: the step that runs, and how long each one before it took."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._current: tuple[str, float, Status] | None = None

    def __call__(self, name: str) -> None:
        """Say that the step before is done, and this one begins."""
        self._stop(done=True)
        status = self._console.status(name)
        status.start()
        self._current = (name, perf_counter(), status)

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop(done=kind is None)

    def _stop(self, *, done: bool) -> None:
        if self._current is None:
            return
        name, began, status = self._current
        status.stop()
        if done:
            self._console.print(f"[green]✓[/] {name} [dim]{perf_counter() - began:.1f} s")
        self._current = None


def notes(bundle: Path) -> Iterator[str]:
    """Yield what a reader of the tables would not guess."""
    report = json.loads((bundle / "reports" / "parity.json").read_bytes())
    if report["not_quantised"]:
        layers = ", ".join(report["not_quantised"])
        yield f"Linear layers in float16, not 4 bits: {layers} (their inputs fill no blocks of 128)"
    if report["calibrated_on"]:
        yield f"The vision encoder's scales were found on {report['calibrated_on']}"
    if report["encoder_not_quantised"]:
        layers = ", ".join(report["encoder_not_quantised"])
        yield f"Its layers that stay as they were, as 8 bits lose too much of them: {layers}"
    for line in report["unchecked"]:
        yield f"Not checked here: {line}"


def summary(manifest: Manifest, output: str) -> Table:
    """Return what was written: sizes, and what answers will be made with."""
    shown = Table(title=f"Bundle {output}", title_justify="left", show_header=False)
    shown.add_column()
    shown.add_column(justify="right")
    for name, file in manifest.files.items():
        shown.add_row(name, f"{file.bytes:,} bytes")
    shown.add_section()
    shown.add_row("all files", f"{sum(file.bytes for file in manifest.files.values()):,} bytes")
    trained = "trained" if manifest.scorer.trained else "untrained: train one with tokprune-train"
    shown.add_row("scorer", f"{manifest.scorer.kind} ({trained})")
    if manifest.scorer.modalities:
        shown.add_row("  trained on", " and ".join(f"{m}s" for m in manifest.scorer.modalities))
    for name, value in sorted(manifest.scorer.metrics.items()):
        shown.add_row(f"  {name}", f"{value:.4g}")
    shown.add_row("default selector", manifest.default_selector)
    limits = manifest.limits
    shown.add_row("prompt", f"at most {limits.max_input_len} rows, vision tokens as kept")
    shown.add_row("prompt and answer", f"at most {limits.max_kv_len} rows")
    return shown
