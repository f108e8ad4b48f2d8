"""`tokprune`: ask a bundle, look at it, check it, build its engines."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro
from PIL import Image as Pillow
from rich.console import Console
from rich.table import Table

from tokprune.backends import Asked
from tokprune.budgets import parse_budget
from tokprune.build_cli import Build, engine_table, engines_json, run_build
from tokprune.bundle import VerifyReport, describe, open_bundle, verify_bundle
from tokprune.engines.states import EngineState, list_engines
from tokprune.errors import RequestInvalid, TokpruneError, lookup
from tokprune.files import atomic_write
from tokprune.loading import load
from tokprune.overlay import overlay
from tokprune.pictures import load_picture
from tokprune.selectors import SELECTORS
from tokprune.types import Answer, Clip, Medium
from tokprune.video import load_video
from tokprune_runtimes.errors import EngineError


@dataclass(frozen=True)
class Ask:
    """Ask a question about pictures and videos."""

    bundle: tyro.conf.Positional[Path]
    """The folder that tokprune-export wrote."""
    question: str
    """What to ask."""
    image: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A picture; repeat for several, in order."""
    video: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A video; repeat for several. Videos come after the pictures."""
    fps: float | None = None
    """Take a frame of each video every 1/fps s. If neither this nor --num-frames is given: two a
    second, at most 32."""
    num_frames: int | None = None
    """Take this many frames of each video, evenly spread."""
    budget: str = "0.5"
    """Vision tokens that may enter the LLM: a share (0.5) or a count (128)."""
    selector: str | None = None
    """How tokens are chosen; the bundle's default if not given. One of
    relevance-spread, relevance-coverage, relevance, attention-spread, attention-coverage,
    attention, random, uniform."""
    max_new_tokens: int = 128
    """Bound of the answer's length."""
    system: str | None = None
    """A system message."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens that holds this probability."""
    seed: int = 0
    """Equal seeds draw equal answers."""
    overlay: Path | None = None
    """Write a picture of the kept patches here (PNG); several are numbered. Of a video, a sheet of
    its frames; where the model takes frames in pairs (Qwen), the first of each pair."""
    json: bool = False
    """Print one JSON object instead of text."""
    backend: Asked = "auto"
    """What runs the graphs; auto takes the fastest that can."""
    threads: int | None = None
    """Threads of each graph."""


@dataclass(frozen=True)
class Inspect:
    """Show what a bundle holds."""

    bundle: tyro.conf.Positional[Path]
    """The folder that tokprune-export wrote."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class Verify:
    """Check every file of a bundle against its manifest."""

    bundle: tyro.conf.Positional[Path]
    """The folder that tokprune-export wrote."""
    json: bool = False
    """Print one JSON object instead of a table."""


Command: TypeAlias = (
    Annotated[Ask, tyro.conf.subcommand("ask")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Build, tyro.conf.subcommand("build")]
)


def main() -> None:
    """Run the command line. Exit 2 on a wrong request, 1 where a check failed."""
    command = tyro.cli(Command, prog="tokprune", config=(tyro.conf.OmitArgPrefixes,))
    sys.exit(guarded(lambda: _run(command)))


def guarded(run: Callable[[], int]) -> int:
    """Turn expected errors into one line on stderr."""
    try:
        return run()
    except TokpruneError as error:
        print(f"error [{error.code}]: {error}", file=sys.stderr)
        return 2
    except EngineError as error:  # while it ran: out of device memory, say
        print(f"error [engine]: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error [os]: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(command: Ask | Inspect | Verify | Build) -> int:
    match command:
        case Ask():
            return _ask(command)
        case Inspect():
            return _inspect(command)
        case Verify():
            return _verify(command)
        case Build():
            return run_build(command)


def _ask(command: Ask) -> int:
    budget = parse_budget(command.budget)
    if command.selector is not None:
        lookup(SELECTORS, command.selector, "selector")
    if command.overlay is not None and command.overlay.suffix.lower() != ".png":
        raise RequestInvalid(
            f"--overlay writes PNG: give a name ending in .png, got {command.overlay}"
        )
    media = _media(command)
    vlm = load(command.bundle, backend=command.backend, threads=command.threads)
    stream = vlm.stream(
        media,
        command.question,
        budget,
        command.selector,
        max_new_tokens=command.max_new_tokens,
        system=command.system,
        temperature=command.temperature,
        top_p=command.top_p,
        seed=command.seed,
    )
    for piece in stream:
        if not command.json:
            print(piece, end="", flush=True)
    answer = stream.answer
    shown = json.dumps(as_json(answer, media)) if command.json else f"\n{summary(answer)}"
    print(shown)
    if command.overlay is not None:
        _write_overlays(command.overlay, media, answer)
    return 0


def _media(command: Ask) -> list[Medium]:
    """Read pictures, then videos."""
    if not command.image and not command.video:
        raise RequestInvalid(
            "ask needs a picture or a video: give --image FILE or --video FILE, or both"
        )
    if not command.video and (command.fps is not None or command.num_frames is not None):
        raise RequestInvalid("--fps and --num-frames are about videos: give --video FILE")
    pictures = [load_picture(path) for path in command.image]
    videos = [
        load_video(path, fps=command.fps, num_frames=command.num_frames) for path in command.video
    ]
    return [*pictures, *videos]


def _write_overlays(target: Path, media: Sequence[Medium], answer: Answer) -> None:
    for index, medium in enumerate(media):
        name = f"{target.stem}-{index}.png" if len(media) > 1 else target.name
        data = BytesIO()
        Pillow.fromarray(overlay(medium, answer, picture=index)).save(data, "PNG")
        atomic_write(target.with_name(name), data.getvalue())


def as_json(answer: Answer, media: Sequence[Medium]) -> dict[str, Any]:
    """Return the answer as `--json` prints it. Keys are only ever added."""
    selection = answer.selection
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "kept": answer.kept,
        "total": answer.total,
        "need": selection.need,
        "cap": selection.cap,
        "reason": selection.reason,
        "keep": selection.keep.tolist(),
        "grid": [[region.rows, region.columns] for region in answer.regions],
        "scores": None if selection.scores is None else selection.scores.tolist(),
        "selector": answer.selector,
        "timings_ms": dict(answer.timings_ms),
        "ttft_ms": answer.ttft_ms,
        "regions": [[region.picture, region.frame, region.tile] for region in answer.regions],
        "videos": [
            {"picture": index, "frames": len(medium.frames), "fps": medium.fps}
            for index, medium in enumerate(media)
            if isinstance(medium, Clip)
        ],
    }


def summary(answer: Answer) -> str:
    """Return kept tokens and timings as one line."""
    stages = ", ".join(f"{name} {ms:.1f}" for name, ms in answer.timings_ms.items())
    return (
        f"[kept {answer.kept} of {answer.total} vision tokens by {answer.selector} "
        f"({answer.selection.reason}); first token after {answer.ttft_ms:.1f} ms; ms: {stages}]"
    )


def _inspect(command: Inspect) -> int:
    bundle = open_bundle(command.bundle, verify="sizes")
    rows, engines = describe(bundle), list_engines(bundle)
    if command.json:
        print(json.dumps({**rows, "engines": engines_json(engines)}))
        return 0
    table = Table(title=str(command.bundle), show_header=False)
    for name, value in rows.items():
        table.add_row(name, value if isinstance(value, str) else json.dumps(value))
    console = Console()
    console.print(table)
    if engines:
        console.print(engine_table(engines))
    return 0


def _verify(command: Verify) -> int:
    report = verify_bundle(command.bundle)
    engines = _engines(command.bundle, report)
    if command.json:
        print(json.dumps({**report.as_json(), "engines": engines_json(engines)}))
    else:
        table = Table("file", "bytes", "status", title=str(command.bundle))
        for row in report.files:
            table.add_row(row.name, str(row.bytes), row.status)
        console = Console()
        console.print(table)
        if engines:
            console.print(engine_table(engines))
        console.print("[green]as exported[/]" if report.ok else f"[red]{report.message}[/]")
    return 0 if report.ok else 1


def _engines(path: Path, report: VerifyReport) -> list[EngineState]:
    """Return the engines of a bundle that was found good; of another none can be fresh."""
    return list_engines(open_bundle(path, verify="sizes")) if report.ok else []
