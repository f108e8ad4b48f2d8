"""`tokprune bench`: what an answer costs here, by budget and by bundle."""

import json
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image as Pillow
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tokprune.backends import Asked
from tokprune.benching import Rows, fastest, machine, measure, row_of
from tokprune.budgets import Budget, parse_budget
from tokprune.errors import RequestInvalid
from tokprune.files import atomic_write
from tokprune.loading import load
from tokprune.looking import way_of
from tokprune.pictures import load_picture
from tokprune.scenes import suite
from tokprune.selectors import method_of
from tokprune.types import Answer, Image
from tokprune.vision_cache import VISION_CACHE_BYTES
from tokprune.vlm import VLM

_LARGEST_SIDE = 8192
_WIDTH = 120  # of the tables where there is no terminal
_STAGES = {  # headings
    "wait": "wait",
    "preprocess": "read",
    "vision": "vision",
    "first_layer": "layer 1",
    "scorer": "scorer",
    "select": "select",
    "prefill": "prefill",
}


@dataclass(frozen=True)
class Bench:
    """Measure time to the first token by stage, decode speed and memory, for several budgets.

    Budgets take turns in every round. Of several bundles, each is loaded and measured alone, one
    after the other.
    """

    bundles: tyro.conf.Positional[tuple[Path, ...]]
    """One bundle or several, such as fp32, int8 and int4 of one checkpoint."""
    image: Path | None = None
    """The picture to ask about; a drawn one if not given."""
    size: str | None = None
    """Width and height of the drawn picture (default: 392x392)."""
    question: str = "Describe this picture."
    """What to ask."""
    budgets: str = "1.0,0.5,0.25"
    """Budgets, with commas between them."""
    selector: str | None = None
    """How tokens are chosen; the bundle's default if not given."""
    encode: str = "full"
    """What the vision encoder is shown, as in `tokprune ask`."""
    rounds: int = 20
    """How often each budget is measured."""
    warmup: int = 3
    """Rounds before that, which do not count: engines allocate in the first ones."""
    max_new_tokens: int = 32
    """Bound of the answers' length."""
    backend: Asked = "auto"
    """What runs the graphs; auto takes the fastest that can."""
    threads: int | None = None
    """Threads of each graph."""
    json: bool = False
    """Print one JSON object instead of tables."""
    output: Path | None = None
    """Write the JSON object to this file, too."""


def run_bench(command: Bench) -> int:
    """Run `tokprune bench`. 1 where nothing could be measured."""
    picture, budgets = _checked(command)
    facts = machine()
    results = [_measured(command, bundle, picture, budgets) for bundle in command.bundles]
    height, width = picture.shape[:2]
    rows: dict[str, Rows] = {each["bundle"]: each["budgets"] for each in results}
    report = {
        "machine": facts,
        "picture": {"source": str(command.image or "drawn"), "size_wh": [width, height]},
        "question": command.question,
        "rounds": command.rounds,
        "warmup": command.warmup,
        "max_new_tokens": command.max_new_tokens,
        "bundles": results,
        "fastest": fastest(rows),
    }
    text = json.dumps(report, indent=1)
    if command.output is not None:
        atomic_write(command.output, f"{text}\n".encode())
    if command.json:
        print(text)
    else:
        _show(report)
    return 0 if any(row["rounds"] for each in rows.values() for row in each) else 1


def _checked(command: Bench) -> tuple[Image, dict[str, Budget]]:
    """Check everything that can be before a bundle is opened; return the picture and budgets."""
    if not command.bundles:
        raise RequestInvalid("bench needs a bundle: tokprune bench BUNDLE")
    if len(set(command.bundles)) < len(command.bundles):
        raise RequestInvalid("bench was given the same bundle twice")
    for name, least in (("rounds", 1), ("warmup", 1), ("max_new_tokens", 1)):
        if (given := getattr(command, name)) < least:
            hint = ": the first answers allocate, and would not tell" if name == "warmup" else ""
            option = name.replace("_", "-")
            raise RequestInvalid(f"--{option} must be {least} or more, got {given}{hint}")
    if command.image is not None and command.size is not None:
        raise RequestInvalid(
            "--size is of the drawn picture: give --image FILE or --size, not both"
        )
    if command.selector is not None:
        method_of(command.selector)
    way_of(command.encode)
    if command.output is not None and not command.output.absolute().parent.is_dir():
        raise RequestInvalid(f"--output: there is no folder {command.output.absolute().parent}")
    names = [name.strip() for name in command.budgets.split(",") if name.strip()]
    if not names:
        raise RequestInvalid("--budgets needs one budget or more, such as 1.0,0.5,128")
    budgets = {name: parse_budget(name) for name in names}
    if command.image is not None:
        return load_picture(command.image), budgets
    return drawn(command.size or "392x392"), budgets


def drawn(size: str) -> Image:
    """Return a drawn scene of a size such as "392x392", width first."""
    match = re.fullmatch(r"([1-9][0-9]*)[xX]([1-9][0-9]*)", size)
    sides = tuple(map(int, match.groups())) if match else ()
    if not sides or max(sides) > _LARGEST_SIDE:
        raise RequestInvalid(
            f"Cannot read the size {size!r}. Give width and height in pixels, such as 392x392, up "
            f"to {_LARGEST_SIDE}"
        )
    (sample,) = suite("dev", 1, tokens=196, groups=["color"])
    scene = Pillow.fromarray(sample.pictures[0])
    return np.asarray(scene.resize((sides[0], sides[1]), Pillow.Resampling.BICUBIC))


def _measured(
    command: Bench, bundle: Path, picture: Image, budgets: dict[str, Budget]
) -> dict[str, Any]:
    """Load a bundle and measure it; its memory goes back when this returns."""
    # Crops that are encoded by themselves repeat: the pixel that differs lies in one of them.
    cache = VISION_CACHE_BYTES if command.encode == "full" else 0
    with (
        load(
            bundle, backend=command.backend, threads=command.threads, vision_cache_bytes=cache
        ) as vlm,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task(bundle.name, total=command.warmup + command.rounds)
        cells, memory = measure(
            partial(_ask, vlm, command),
            picture,
            budgets,
            rounds=command.rounds,
            warmup=command.warmup,
            after_round=partial(progress.advance, task),
        )
    manifest = vlm.bundle.manifest
    return {
        "bundle": str(bundle),
        "family": manifest.family,
        "precision": manifest.precision,
        "backend": vlm.backend,
        "llm_form": vlm.model.llm.form.form,
        "threads": command.threads,
        "selector": command.selector or manifest.default_selector,
        "encode": command.encode,
        "budgets": [row_of(cell) for cell in cells],
        "memory": {
            "warm_bytes": memory.warm,
            "end_bytes": memory.end,
            "growth_bytes": memory.growth,
        },
    }


def _ask(vlm: VLM, command: Bench, picture: Image, budget: Budget) -> Answer:
    return vlm.ask(
        picture,
        command.question,
        budget,
        command.selector,
        max_new_tokens=command.max_new_tokens,
        encode=command.encode,
    )


def _show(report: dict[str, Any]) -> None:
    """Print a table for each bundle, and which is fastest."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    for result in report["bundles"]:
        console.print(_table(result))
        if result["encode"] != "full":
            console.print(_encoded(result), soft_wrap=True)
        memory = result["memory"]
        if memory["growth_bytes"] is not None:
            console.print(
                f"resident memory after the warm-up {memory['warm_bytes'] / 2**20:.1f} MiB, "
                f"growth {memory['growth_bytes'] / 2**20:+.2f} MiB"
            )
    for rank in report["fastest"]:
        console.print(
            f"{rank['budget']}: fastest {rank['stage']}: {rank['bundle']}, {rank['lead']:.2f} "
            f"times the speed of {rank['next']}",
            soft_wrap=True,
        )
    facts = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    console.print(
        f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, load "
        f"{facts['load_average'][0]} before, {versions}; {report['rounds']} rounds after "
        f"{report['warmup']}",
        soft_wrap=True,
    )


def _table(result: dict[str, Any]) -> Table:
    """Return medians of one bundle; of the time to the first token the 95th percentile, too."""
    rows: Rows = result["budgets"]
    stages = [name for name in _STAGES if any(name in row.get("stages_ms", {}) for row in rows)]
    title = f"{result['bundle']} ({result['precision']}, {result['backend']}, {result['llm_form']})"
    table = Table(title=f"{title}: ms, medians", title_justify="left", box=SIMPLE, padding=(0, 1))
    table.add_column("budget")
    headings = ["kept", "TTFT", "p95", *(_STAGES[name] for name in stages), "a token", "tokens/s"]
    for heading in headings:
        table.add_column(heading, justify="right")
    if any(row["error"] for row in rows):
        table.add_column("refused", overflow="fold")
    for row in rows:
        refused = _refusal(row)
        table.add_row(row["budget"], *_figures(row, stages), *([refused] if refused else []))
    return table


def _figures(row: dict[str, Any], stages: list[str]) -> list[str]:
    if not row["rounds"]:
        return ["-"] * (5 + len(stages))
    each, ttft = row["decode_ms_per_token"], row["ttft_ms"]
    return [
        f"{row['kept']['mean']:g} of {row['total']}",
        *(f"{ttft[name]:.1f}" for name in ("p50", "p95")),
        *(f"{row['stages_ms'][name]['p50']:.1f}" for name in stages),
        "-" if each is None else f"{each['p50']:.2f}",
        "-" if row["decode_tokens_per_s"] is None else f"{row['decode_tokens_per_s']:.1f}",
    ]


def _encoded(result: dict[str, Any]) -> str:
    counts = ", ".join(
        f"{row['encoded']['mean']:g} of {row['total']} at {row['budget']}"
        for row in result["budgets"]
        if row["rounds"]
    )
    return f"vision tokens encoded by {result['encode']}: {counts or 'none'}"


def _refusal(row: dict[str, Any]) -> str:
    error = row["error"]
    if error is None:
        return ""
    asked = row["rounds"] + row["refused"]
    return f"{row['refused']} of {asked}: {error['code']}: {error['message']}"
