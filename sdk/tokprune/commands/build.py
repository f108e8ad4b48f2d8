"""`tokprune build`: its options, its progress and its closing table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tokprune.bundle import Bundle, open_bundle
from tokprune.engines.building import build_engines
from tokprune.engines.folders import Kind
from tokprune.engines.plans import BuildOptions, BuildStep, Built

_HARMLESS = "has Int64 binding."  # the parser's advice on inputs that are fed as int64


@dataclass(frozen=True)
class Build:
    """Build the TensorRT engines of a bundle, on the device that runs them."""

    bundle: tyro.conf.Positional[Path]
    """The folder that tokprune-export wrote."""
    engine: Kind
    """What the engines are for."""
    sm: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A GPU to build for, such as sm87; repeat for several (tensorrt-rtx only). If not given: the
    one that is here, or where there is none all that tensorrt-rtx offers from Ampere (sm80) on."""
    max_vision_tokens: int | None = None
    """Most vision tokens of a question, before pruning (default: the bundle's max-input-len). Fewer
    take less memory."""
    max_question_tokens: int | None = None
    """Most tokens of text after the last picture (default: 512)."""
    weight_streaming: bool = False
    """Keep weights in the host's memory and stream them, where the engine can."""
    low_memory: bool = False
    """For boards of 8 GB: as few optimisation profiles as possible, 512 MiB of workspace for a
    kernel, and 1024 vision tokens at most unless --max-vision-tokens says otherwise."""
    llm_form: Literal["portable", "trt"] | None = None
    """Which of the bundle's LLM graphs, where the best for the engine (trt, from TensorRT 10.15 on)
    is not wanted: portable takes size bias, and any version."""
    force: bool = False
    """Build engines that are fresh too."""

    def options(self) -> BuildOptions:
        """Return what the builder is told."""
        return BuildOptions(
            kind=self.engine,
            sm=self.sm,
            max_vision_tokens=self.max_vision_tokens,
            max_question_tokens=self.max_question_tokens,
            weight_streaming=self.weight_streaming,
            low_memory=self.low_memory,
            force=self.force,
            llm_form=self.llm_form,
        )


def run_build(command: Build) -> int:
    """Run `tokprune build`."""
    build_with_progress(open_bundle(command.bundle), command.options())
    return 0


def build_with_progress(bundle: Bundle, options: BuildOptions) -> None:
    """Build with progress on stderr, and end with a table."""
    with BuildProgress() as progress:
        built = build_engines(bundle, options, progress.show)
    console = Console()
    console.print(built_table(built, options))
    console.print(str(built[0].path.parent), soft_wrap=True, highlight=False)
    for engine in built:
        for warning in engine.warnings:
            if not warning.endswith(_HARMLESS):
                console.print(f"[yellow]{engine.name}[/]: {warning}", highlight=False)


class BuildProgress:
    """A line on stderr: engine, phase, step of how many, time left."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("checks", total=None, left="")

    def __enter__(self) -> "BuildProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, step: BuildStep) -> None:
        """Show how far it is."""
        self._progress.update(
            self._task,
            description=f"{step.engine} ({step.number} of {step.engines}) {step.phase}",
            completed=step.step,
            total=step.steps,
            left="" if step.eta_s is None else f"about {duration(step.eta_s)} left",
        )


def duration(seconds: float) -> str:
    """Return seconds as text."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def built_table(built: tuple[Built, ...], options: BuildOptions) -> Table:
    """Return what is there now."""
    table = Table(title=f"{options.kind} engines", title_justify="left")
    table.add_column("engine")
    for heading in ("bytes", "profiles", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for engine in built:
        state = "was fresh" if engine.skipped else "built"
        numbers = (f"{engine.bytes:,}", str(engine.profiles), f"{engine.seconds:.1f}")
        table.add_row(engine.name, *numbers, state)
    return table
