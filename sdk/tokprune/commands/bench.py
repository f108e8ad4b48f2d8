"""`tokprune bench`: what an answer costs here, by budget and by bundle."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image as Pillow
from rich.console import Console
from rich.progress import Progress

from tokprune.backends import Asked
from tokprune.benching import Memory, Rows, fastest, machine, measure, row_of
from tokprune.budgets import Budget, parse_budget
from tokprune.commands.bench_tables import show
from tokprune.errors import RequestInvalid
from tokprune.files import atomic_write
from tokprune.loading import load
from tokprune.looking import Following, stream_way
from tokprune.pictures import load_picture
from tokprune.scenes import slowly, suite
from tokprune.scenes.streams import NOISE, PART, STEP_PX
from tokprune.selectors import method_of
from tokprune.stream_benching import measure_stream, stream_row
from tokprune.types import Answer, Image
from tokprune.vision_cache import VISION_CACHE_BYTES
from tokprune.vlm import VLM

_LARGEST_SIDE = 8192


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
    """What the vision encoder is shown, as in `tokprune ask`; follow:8: of a stream that changes
    slowly, drawn from the picture, beside full looks at the same frames."""
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
        show(report)
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
    stream_way(command.encode)
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
    way = stream_way(command.encode)
    # Crops that are encoded by themselves repeat: the pixel that differs lies in one of them.
    cache = VISION_CACHE_BYTES if way == "full" else 0
    with (
        load(
            bundle, backend=command.backend, threads=command.threads, vision_cache_bytes=cache
        ) as vlm,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        vlm.model.check_encode(way, command.selector)
        rounds = command.warmup + command.rounds + isinstance(way, Following)  # the first frame
        task = progress.add_task(bundle.name, total=rounds)
        advance = partial(progress.advance, task)
        if isinstance(way, Following):
            measured = _followed(vlm, command, way, picture, budgets, advance)
        else:
            measured = _asked(vlm, command, picture, budgets, advance)
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
        **measured,
    }


def _asked(
    vlm: VLM,
    command: Bench,
    picture: Image,
    budgets: dict[str, Budget],
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Ask about one picture."""

    def ask(picture: Image, budget: Budget) -> Answer:
        return _ask(vlm, command, picture, budget, command.encode)

    cells, memory = measure(
        ask,
        picture,
        budgets,
        rounds=command.rounds,
        warmup=command.warmup,
        after_round=advance,
    )
    return {"budgets": [row_of(cell) for cell in cells], "memory": _memory(memory)}


def _followed(
    vlm: VLM,
    command: Bench,
    follow: Following,
    picture: Image,
    budgets: dict[str, Budget],
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Follow a stream that is made of the picture."""
    cells, memory = measure_stream(
        partial(_ask, vlm, command),
        slowly(picture, np.random.default_rng(0)),
        budgets,
        within=follow.within,
        rounds=command.rounds,
        warmup=command.warmup,
        after_round=advance,
    )
    return {
        "budgets": [stream_row(cell) for cell in cells],
        "memory": _memory(memory),
        "stream": {
            "within": follow.within,
            "frames": 1 + command.rounds,
            "noise": NOISE,
            "step_px": STEP_PX,
            "moving_share": round(1 / PART**2, 4),
            "seed": 0,
        },
    }


def _memory(memory: Memory) -> dict[str, int | None]:
    return {
        "warm_bytes": memory.warm,
        "end_bytes": memory.end,
        "growth_bytes": memory.growth,
    }


def _ask(
    vlm: VLM, command: Bench, picture: Image, budget: Budget, encode: str | Following
) -> Answer:
    return vlm.ask(
        picture,
        command.question,
        budget,
        command.selector,
        max_new_tokens=command.max_new_tokens,
        encode=encode,
    )
