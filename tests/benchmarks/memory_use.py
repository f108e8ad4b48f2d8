"""What ONNX Runtime takes on the CPU, beside what `tokprune.memory_plan` says it will take.

python tests/benchmarks/memory_use.py BUNDLE... writes docs/results/memory.json and memory.md. Every
figure comes from a process of its own, since arenas keep what they had.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import products
import real_size
import tyro
from machine import RESULTS, machine
from rich.console import Console
from rich.progress import track

from tokprune import memory_estimates as estimates
from tokprune.bundle import Bundle, open_bundle
from tokprune.manifest import LlmForm
from tokprune.memory_plan import memory_plan
from tokprune_runtimes import Carry, Graph, load_graph

BUILT = Path(__file__).parents[2] / "build" / "benchmarks" / f"real_size-{real_size.sources()}"
PRODUCTS = BUILT.with_name("products")
ROWS = (256, 1024, 2048)
SQUARES = (64, 529, 1024, 2025)  # vision tokens of a picture
TILES = (1, 8, 24)
DECODED = 3
GOAL = 0.1
MATTERS = 128 << 20  # estimated growth from which on the goal holds
WIDTHS = estimates.Widths(real_size.HIDDEN, real_size.MLP, real_size.HEADS)


@dataclass(frozen=True)
class Options:
    """Measure memory at opening and at the peak of a request."""

    bundles: tyro.conf.Positional[tuple[Path, ...]]
    """Exported demo checkpoints."""
    threads: int = 1
    """Of each graph."""
    name: str = "memory"
    """Of the two files."""
    note: str = ""
    """What else is to be said."""


@dataclass(frozen=True)
class Cell:
    """One measurement: a graph at a size, or a whole bundle with a question."""

    kind: str  # llm, first_layer, vision_encoder, bundle
    path: str
    size: int  # prompt rows, vision tokens or tiles
    form: str = ""
    threads: int = 1


@dataclass(frozen=True)
class Measured:
    """Growth of the resident set, in bytes, from where `tokprune` was imported."""

    opening: int  # at the peak
    opened: int
    request: int  # at the peak of a request, from where it was open
    kept: int  # after it, from where it was open
    tokens: int = 0  # vision tokens that a bundle made of its picture


def main() -> None:
    """Measure every cell, and write it beside its estimate."""
    if sys.argv[1:2] == ["--cell"]:
        sys.stdout.write(json.dumps(asdict(run(Cell(**json.loads(sys.argv[2]))))) + "\n")
        return
    options = tyro.cli(Options)
    if not BUILT.exists():
        Console().print(f"Writing graphs of 0.5B random weights to {BUILT} (once, 2.6 GB)")
        subprocess.run([sys.executable, real_size.__file__, str(BUILT)], check=True)
    rows = [row(cell) for cell in track(cells(options), console=Console(stderr=True))]
    result = {
        **machine("onnxruntime", "numpy"),
        "note": options.note,
        "threads": options.threads,
        "goal": GOAL,
        "matters_bytes": MATTERS,
        "rows": rows,
    }
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"{options.name}.md").write_text(markdown(result))
    Console().print(markdown(result), markup=False, soft_wrap=True)


def cells(options: Options) -> list[Cell]:
    """Return what is measured."""
    found: list[Cell] = []
    for bundle in options.bundles:
        tiled = isinstance(_encoder(open_bundle(bundle, verify="sizes")).outputs[0].shape[1], int)
        sizes = TILES if tiled else SQUARES
        found += [Cell("vision_encoder", str(bundle), size) for size in sizes]
        found.append(Cell("bundle", str(bundle), 1024))
    for form in ("ort", "portable"):
        found += [Cell("llm", str(BUILT), rows, form) for rows in ROWS]
    found += [Cell("first_layer", str(BUILT), rows) for rows in ROWS]
    for precision in products.PRECISIONS:
        products.write(PRODUCTS, precision)
        found.append(Cell("products", str(PRODUCTS), 1, precision))
    return [Cell(**{**asdict(cell), "threads": options.threads}) for cell in found]


def row(cell: Cell) -> dict[str, Any]:
    """Measure a cell in a process of its own."""
    command = [sys.executable, __file__, "--cell", json.dumps(asdict(cell))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured = Measured(**json.loads(done.stdout.splitlines()[-1]))
    opening, request = estimate(cell, measured.tokens)
    return {
        **asdict(cell),
        "path": Path(cell.path).name,
        "size": measured.tokens or cell.size,
        **{f"measured_{name}": value for name, value in asdict(measured).items()},
        "estimated_opening": opening,
        "estimated_request": request,
        "opening_error": round(opening / measured.opening - 1, 3),
        "request_error": round(request / measured.request - 1, 3) if request else 0.0,
    }


def estimate(cell: Cell, tokens: int) -> tuple[int, int]:
    """Return what the product estimates of the same: opening, and what a request adds."""
    if cell.kind == "bundle":
        plan = memory_plan(cell.path, max_vision_tokens=tokens, kv_slots=1, vision_cache_bytes=0)
        added = sum(row.bytes or 0 for row in plan.rows if row.when == "request")
        kept = sum(row.bytes or 0 for row in plan.rows if row.name == "KV slots")
        return plan.opening_bytes - kept, added  # this release has no slots yet
    folder = Path(cell.path)
    if cell.kind == "vision_encoder":
        bundle = open_bundle(folder, verify="sizes")
        spec, models = _encoder(bundle), estimates.models(folder)
        weights = estimates.weights(bundle, cell.kind, spec)
        assert models.vision is not None
        shape = feeds(cell)["pixel_values"].shape
        if len(shape) == 4:
            patches, floats = (shape[2] // models.patch_px) ** 2, 3 * models.patch_px**2
        else:
            patches, floats = shape[1], shape[2]
        saliency = estimates.tells_saliency(spec)
        run = estimates.encoder_bytes(models.vision, shape[0], patches, floats, saliency=saliency)
    elif cell.kind == "products":
        packed = estimates.packed(products.precision(cell.form))
        weights, run = estimates.weights_of(folder, _file(cell), packed), 0
    else:
        weights = estimates.weights_of(folder, _file(cell))
        run = _llm_run(cell) if cell.kind == "llm" else _first_layer_run(cell)
    return estimates.ENGINE + weights.session + weights.bytes + weights.largest, run


def _llm_run(cell: Cell) -> int:
    form = _form(cell)
    written = estimates.scores_are_written(form)
    cache = 2 * real_size.LAYERS * real_size.KV_HEADS * real_size.HEAD_DIM * 4
    kept = (cell.size + DECODED) * cache * (1 if form.cache == "in_place" else 2)
    return kept + estimates.prefill_bytes(form, WIDTHS, cell.size, written=written)


def _first_layer_run(cell: Cell) -> int:
    return estimates.first_layer_bytes(WIDTHS, cell.size, real_size.TEXT_AFTER)


def run(cell: Cell) -> Measured:
    """Open and run one cell, in this process."""
    import tokprune

    if cell.kind == "bundle":
        return _ask(tokprune, cell)
    fed = feeds(cell)
    begin = resident()
    peak_again()
    graph = load_graph(Path(cell.path) / _file(cell), "cpu", threads=cell.threads)
    opening, opened = peak() - begin, resident()
    peak_again()
    held = _decode(graph, cell, fed) if cell.kind == "llm" else graph.run(fed)
    measured = Measured(opening, opened - begin, peak() - opened, resident() - opened)
    del held  # the cache, or the outputs, counted
    if cell.kind == "products":  # some unpack weights when they run
        whole = max(opening, measured.opened + measured.request)
        return Measured(whole, measured.opened + measured.request, 0, 0)
    return measured


def _ask(tokprune: Any, cell: Cell) -> Measured:
    begin = resident()
    peak_again()
    vlm = tokprune.load(cell.path, backend="cpu", threads=cell.threads, verify="sizes")
    opening, opened = peak() - begin, resident()
    side = isqrt(cell.size) * 28
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    peak_again()
    answer = vlm.ask(picture, "what is this?", 0.5, max_new_tokens=DECODED)
    growth = peak() - opened, resident() - opened
    return Measured(opening, opened - begin, *growth, answer.total)


def _decode(graph: Graph, cell: Cell, fed: dict[str, np.ndarray]) -> Any:
    """Prefill, and go on for some tokens; the loop holds the cache."""
    form = _form(cell)
    in_place = form.cache == "in_place"
    length = cell.size + DECODED if in_place else 0
    shape = (1, real_size.KV_HEADS, length, real_size.HEAD_DIM)
    loop = graph.loop(
        [
            Carry(f"present.{half}", f"past_key_values.{half}", shape, 2, in_place)
            for layer in range(real_size.LAYERS)
            for half in (f"{layer}.key", f"{layer}.value")
        ]
    )
    loop.step({**fed, **_lengths(form, cell.size)})
    for total in range(cell.size + 1, cell.size + DECODED + 1):
        one = {
            "inputs_embeds": fed["inputs_embeds"][:, :1],
            "position_ids": np.full((3, 1, 1), total),
            "attention_bias": np.zeros((1, total), np.float32),
        }
        loop.step({**one, **_lengths(form, total)})
    return loop


def _lengths(form: LlmForm, total: int) -> dict[str, np.ndarray]:
    if form.cache != "in_place":
        return {}
    return {
        "seqlens_k": np.asarray([total - 1], np.int32),
        "total_sequence_length": np.asarray(total, np.int32),
    }


def feeds(cell: Cell) -> dict[str, np.ndarray]:
    """Return random inputs."""
    random = np.random.default_rng(0)
    if cell.kind == "vision_encoder":
        shape = _encoder(open_bundle(cell.path, verify="sizes")).inputs[0].shape
        if len(shape) == 4:
            sides = [axis for axis in shape if isinstance(axis, int)]
            return {"pixel_values": random.normal(size=(cell.size, *sides)).astype(np.float32)}
        side = 2 * isqrt(cell.size)
        where = np.indices((side, side)).reshape(2, -1).T.copy()
        pixels = random.normal(size=(1, side * side, 1176)).astype(np.float32)
        return {"pixel_values": pixels, "positions": where}
    if cell.kind == "products":
        return {"x": random.normal(size=(cell.size, products.WIDE[0])).astype(np.float32)}
    size = cell.size
    prompt = {
        "inputs_embeds": random.normal(0, 0.02, (1, size, real_size.HIDDEN)).astype(np.float32),
        "position_ids": np.broadcast_to(np.arange(size), (3, 1, size)).copy(),
    }
    if cell.kind == "llm":
        return {**prompt, "attention_bias": np.zeros((1, size), np.float32)}
    text = real_size.TEXT_AFTER
    rows, columns = np.arange(size - text, size), np.arange(real_size.TEXT_BEFORE, size - text)
    return {**prompt, "rows": rows, "columns": columns}


def resident() -> int:
    """Return the resident set, file pages included."""
    return _status("VmRSS")


def peak() -> int:
    """Return its largest size since `peak_again`."""
    return _status("VmHWM")


def peak_again() -> None:
    """Forget the peak. See proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise KeyError(name)


def _file(cell: Cell) -> str:
    if cell.kind == "products":
        return f"{cell.form}.onnx"
    return f"onnx/llm.{cell.form}.onnx" if cell.kind == "llm" else f"onnx/{cell.kind}.onnx"


def _encoder(bundle: Bundle) -> Any:
    return bundle.manifest.graphs.vision_encoder


def _form(cell: Cell) -> LlmForm:
    forms = msgspec.json.decode((Path(cell.path) / "forms.json").read_bytes(), type=list[LlmForm])
    return next(form for form in forms if form.form == cell.form)


def markdown(result: dict[str, Any]) -> str:
    """Return the table that docs show."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        "# Memory on the CPU: estimated and measured",
        "",
        f"{result['processor']}, {result['date']}, {versions}, {result['threads']} thread(s), "
        f"fp32. {result['note']}".strip(),
        "Growth of the resident set in MiB: while a graph or a whole bundle opens, from "
        "`import tokprune` on, and what one request then adds at its peak. Each row is a process "
        "of its own. The LLM and the first layer are the 0.5B ones of `prefill.md`, size is prompt "
        "rows; the others are the demos, size is vision tokens of one picture, or tiles. Products "
        "are matrix products, 384 MiB of weights in float32, run once. The goal is an estimate "
        f"within {GOAL:.0%} of what is {MATTERS >> 20} MiB or more; smaller ones are the "
        "library's pages, which come as they are first used.",
        "",
        "| what | size | opening | estimate | off by | request | estimate | off by | goal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in result["rows"]:
        name = f"{each['kind']} {each['form']}".strip()
        made = each["path"].startswith(("real_size", "products"))
        what = name if made else f"{name}, {each['path']}"
        lines.append(f"| {what} | {each['size']} | {_shown(each)} |")
    return "\n".join(lines) + "\n"


def _shown(each: dict[str, Any]) -> str:
    parts: list[str] = []
    verdicts: list[bool] = []
    for phase in ("opening", "request"):
        measured, estimated = each[f"measured_{phase}"], each[f"estimated_{phase}"]
        error = each[f"{phase}_error"]
        parts += [f"{measured / 2**20:.0f}", f"{estimated / 2**20:.0f}", f"{error:+.0%}"]
        if measured >= MATTERS:
            verdicts.append(abs(error) <= GOAL)
    goal = ("reached" if all(verdicts) else "missed") if verdicts else ""
    return " | ".join([*parts, goal])


if __name__ == "__main__":
    main()
