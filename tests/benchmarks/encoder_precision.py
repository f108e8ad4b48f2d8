"""What vision encoders in 16 and 8 bits cost and give: time on the CPU, closeness, answers.

    python tests/benchmarks/encoder_precision.py

Times are of encoders of the published sizes with random weights, on one thread; answers those of
the demo VLMs, and `parity` what their exports compared. Writes docs/results/encoder-precision.json
and encoder-precision.md; parts and demos' precisions that are not asked for stay.
"""

import gc
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import real_checkpoints
import tyro
from machine import RESULTS, machine
from rich.console import Console
from rich.progress import track
from shipped import scorers_of

import tokprune
from tokprune.families.qwen_patches import patch_positions
from tokprune.scenes import suite
from tokprune.types import Feeds
from tokprune_export import graphs, int8
from tokprune_export.families import FAMILIES
from tokprune_export.parity_report import cosine
from tokprune_export.static_scales import Scales
from tokprune_runtimes import load_graph

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "benchmarks" / "encoders"
CHECKPOINTS = ROOT / "samples" / "scenes" / "checkpoints"
PRECISIONS = ("fp32", "int8")  # whose time is measured
STATIC = ("--encoder-precision", "int8-static")
EXPORTS: dict[str, tuple[str, ...]] = {  # of a demo; fp32 first, as the others are compared with it
    "fp32": (),
    "int8": ("--encoder-precision", "int8"),
    "int8-static": STATIC,
    "fp16": ("--precision", "fp16"),
    "fp16, int8-static": ("--precision", "fp16", *STATIC),
}
BUDGETS = (1.0, 0.25)


class Encoder(NamedTuple):
    """A vision encoder, and what it is fed."""

    family: str
    checkpoint: Callable[[Path], None]
    shown: str
    feeds: Callable[[np.random.Generator], Feeds]


def a_tile(random: np.random.Generator) -> Feeds:
    """One tile of 384 x 384 pixels, 729 vision tokens."""
    return {"pixel_values": random.normal(0, 0.6, (1, 3, 384, 384)).astype(np.float32)}


def a_picture(random: np.random.Generator) -> Feeds:
    """One picture of 1,064 x 1,092 pixels, 1,482 vision tokens."""
    patches = (1, 38 * 39 * 4, 3 * 2 * 14 * 14)
    pixels = random.normal(0, 1, patches).astype(np.float32)
    return {"pixel_values": pixels, "positions": patch_positions(38, 39, 2)}


ENCODERS: dict[str, Encoder] = {
    "SigLIP-so400m (LLaVA-OneVision)": Encoder(
        "llava_onevision", real_checkpoints.write_llava_onevision, "a tile, 729 tokens", a_tile
    ),
    "Qwen2-VL": Encoder(
        "qwen2_vl", real_checkpoints.write_qwen2_vl, "a picture, 1,482 tokens", a_picture
    ),
}


@dataclass(frozen=True)
class Options:
    """Compare vision encoders in float32, 16 and 8 bits."""

    parts: tuple[Literal["speed", "answers", "parity"], ...] = ("speed", "answers", "parity")
    """What to measure."""
    precisions: tuple[str, ...] = tuple(EXPORTS)
    """Exports that the demos are asked in; fp32 is, in any case."""
    rounds: int = 5
    """Runs of each; precisions take turns, figures are medians."""
    families: tuple[str, ...] = ("qwen2_vl", "llava_onevision", "vila")
    """Demo VLMs that are asked."""
    scenes: int = 500
    """Test scenes that each is asked about."""
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS
    """Folder of the two files."""


def made(name: str) -> Path:
    """Write the two graphs of an encoder, unless they are there."""
    encoder, folder = ENCODERS[name], BUILT / ENCODERS[name].family
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        encoder.checkpoint(checkpoint)
        family = FAMILIES[encoder.family]
        model = family.load(checkpoint, 1)  # layers of the LLM, which is not asked
        for precision in PRECISIONS:
            source = family.vision(model, 0)
            columns = int8.encoder_columns(source.module) if precision == "int8" else {}
            (checkpoint / precision / graphs.FOLDER).mkdir(parents=True)
            target = graphs.Target(checkpoint / precision, 18, 0)
            graphs.write(source, target, "vision_encoder", Scales(columns))
            (checkpoint / precision).rename(checkpoint.with_suffix(f".{precision}"))
        folder.mkdir()
        for precision in PRECISIONS:
            checkpoint.with_suffix(f".{precision}").rename(folder / precision)
    finally:
        shutil.rmtree(checkpoint)
    return folder


def measure_speed(options: Options) -> dict[str, Any]:
    """Run both in turns."""
    rows = [row for name in ENCODERS for row in _timed(name, options.rounds)]
    return {**machine("onnxruntime", "numpy"), "note": options.note, "rows": rows}


def _timed(name: str, rounds: int) -> Iterator[dict[str, Any]]:
    encoder, folder = ENCODERS[name], made(name)
    feeds = encoder.feeds(np.random.default_rng(0))
    paths = {p: folder / p / graphs.FOLDER / "vision_encoder.onnx" for p in PRECISIONS}
    opened = {p: load_graph(path, "cpu", threads=1) for p, path in paths.items()}
    given = {p: graph.run(feeds)["vision_tokens"] for p, graph in opened.items()}
    if not np.abs(given["fp32"]).max() > 0:
        raise ValueError(f"{name} gives nothing: are its weights those of a norm that is zero?")
    times: dict[str, list[tuple[float, float]]] = {p: [] for p in PRECISIONS}
    for _ in track(range(rounds), description=name):
        for precision, graph in opened.items():
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            graph.run(feeds)
            times[precision].append((time.process_time() - cpu, time.perf_counter() - wall))
    whole = median(cpu for cpu, _ in times["fp32"])
    for precision in PRECISIONS:
        cpu, wall = (median(each[i] for each in times[precision]) for i in range(2))
        data = [paths[precision], paths[precision].with_suffix(".onnx.data")]
        off = np.abs(given[precision] - given["fp32"]).max() / np.abs(given["fp32"]).max()
        yield {
            "encoder": name,
            "shown": encoder.shown,
            "precision": precision,
            "megabytes": round(sum(p.stat().st_size for p in data if p.exists()) / 1e6),
            "cpu_ms": round(cpu * 1e3, 1),
            "wall_ms": round(wall * 1e3, 1),
            "faster": round(whole / cpu, 3),
            "cosine": cosine(given[precision], given["fp32"]),
            "largest_difference": float(off),
        }


def measure_answers(options: Options, before: dict[str, Any]) -> dict[str, Any]:
    """Ask the demos with every encoder, at every budget; rows that were not asked for stay."""
    samples = list(suite("test", options.scenes))
    asked = [name for name in EXPORTS if name in ("fp32", *options.precisions)]
    rows: list[dict[str, Any]] = []
    for family in options.families:
        texts: dict[tuple[str, float], list[str]] = {}
        for precision in asked:
            with tokprune.load(demo(family, precision), backend="cpu", threads=1) as vlm:
                for one in track(samples, description=f"{family} {precision}"):
                    for budget in BUDGETS:
                        answer = vlm.ask(list(one.pictures), one.question, budget)
                        texts.setdefault((precision, budget), []).append(answer.text)
        for (precision, budget), found in texts.items():
            rows.append(
                {
                    "family": family,
                    "precision": precision,
                    "budget": budget,
                    "right": _equal(found, [sample.answer for sample in samples]),
                    "alike": _equal(found, texts["fp32", budget]),
                }
            )
    told = {**machine("onnxruntime", "numpy"), "questions": len(samples)}
    return {**told, "rows": _with_older(rows, before, len(samples))}


def _with_older(
    rows: list[dict[str, Any]], before: dict[str, Any], questions: int
) -> list[dict[str, Any]]:
    """Put rows beside earlier ones, if fp32 answers as it did then."""
    key = itemgetter("family", "precision", "budget")
    new = {key(row): row for row in rows}
    old = {key(row): row for row in before.get("rows", ())}
    stays = {name: row for name, row in old.items() if name not in new}
    families = {row["family"] for row in rows} & {row["family"] for row in stays.values()}
    same = all(
        old.get((family, "fp32", b), {}).get("right") == new[family, "fp32", b]["right"]
        for family in families
        for b in BUDGETS
    )
    if stays and (before["questions"] != questions or not same):
        raise ValueError("fp32 answers otherwise than before: measure every precision again")
    ordered = {**stays, **new}
    places = list(dict.fromkeys(family for family, *_ in (*old, *new)))
    return sorted(
        ordered.values(),
        key=lambda r: (places.index(r["family"]), [*EXPORTS].index(r["precision"]), -r["budget"]),
    )


def measure_parity(options: Options) -> list[dict[str, Any]]:
    """Read what the exports compared of their vision encoders."""
    rows: list[dict[str, Any]] = []
    for family in options.families:
        for precision in EXPORTS:
            report = json.loads((demo(family, precision) / "reports/parity.json").read_bytes())
            for what in ("vision_encoder", "rounding"):
                found = [
                    row
                    for row in report["rows"]
                    if row["graph"] == what and row["form"] in ("", "vision_encoder")
                ]
                if found:
                    rows.append({"family": family, "precision": precision} | _worst(what, found))
    return rows


def _worst(what: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "compared": what,
        "cases": len(rows),
        "cosine": min(row["cosine"] for row in rows),
        "of_largest": max(row["max_abs_diff"] / max(1, row["max_abs"]) for row in rows),
        "limit": max(row["tolerance"] / max(1, row["max_abs"]) for row in rows),
    }


def demo(family: str, precision: str) -> Path:
    """Export a demo with its scorer, unless it was."""
    name = f"demo-{family}-{precision.replace(', ', '-')}"
    folder, checkpoint = BUILT / name, CHECKPOINTS / family
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        code = "from tokprune_export.cli import export_main; export_main()"
        given = scorers_of(checkpoint)
        narrow = EXPORTS[precision]
        command = [sys.executable, "-c", code, str(checkpoint), str(folder), *given, *narrow]
        subprocess.run(command, check=True)
    return folder


def _equal(found: list[str], others: list[str]) -> float:
    return sum(a == b for a, b in zip(found, others, strict=True)) / len(found)


def markdown(result: dict[str, Any]) -> str:
    """Return the tables that docs show."""
    lines = ["# Vision encoders in 16 and 8 bits", ""]
    if speed := result.get("speed"):
        lines += [
            "Published sizes, random weights, one thread. Medians of interleaved rounds by "
            "processor time, wall time in brackets. Cosine and largest difference (as a share of "
            f"the largest value) are against float32. {speed['processor']}, {speed['date']}. "
            f"{speed['note']}".strip(),
            "",
            "| encoder | shown | precision | MB | ms | times fp32 | cosine | difference |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in speed["rows"]:
            lines.append(
                f"| {row['encoder']} | {row['shown']} | {row['precision']} | {row['megabytes']} "
                f"| {row['cpu_ms']:.0f} ({row['wall_ms']:.0f}) | {row['faster']:.2f} "
                f"| {row['cosine']:.5f} | {row['largest_difference']:.1%} |"
            )
        lines.append("")
    if answers := result.get("answers"):
        lines += [
            "`int8` rounds inputs as they come; `int8-static` with scales that were found on 64 "
            "drawn scenes of the training split (the form for TensorRT). `fp16` is "
            "`--precision fp16`: the LLM is in float16 too.",
            "",
            "**All of this ran on ONNX Runtime's CPU, no GPU.** It rounds to 8 bits as the graph "
            "says, as any engine must; sums of 8-bit products are exact in 32-bit integers "
            "(fp16, int8-static: it multiplies the rounded values in float32). Products of fp16 "
            "it computes in float32. So a GPU's sums, and float16 between kernels that it fuses, "
            "are what these rows do not show.",
            "",
            f"Answers of the demo VLMs to {answers['questions']} questions of the test split "
            f"({answers['date']}): right, and in brackets the same text as with the encoder in "
            f"float32, with {' and '.join(f'{b:.0%}' for b in BUDGETS)} of the vision tokens.",
            "",
            f"| demo | encoder | {' | '.join(f'{b:.0%}' for b in BUDGETS)} |",
            "|---|---|" + "---|" * len(BUDGETS),
        ]
        told = {(r["family"], r["precision"], r["budget"]): r for r in answers["rows"]}
        for family, precision in dict.fromkeys(key[:2] for key in told):
            rows = [told[family, precision, budget] for budget in BUDGETS]
            cells = [f"{row['right']:.1%} ({row['alike']:.1%})" for row in rows]
            lines.append(f"| {family} | {precision} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, *parity_lines(result.get("parity", []))]).rstrip() + "\n"


def parity_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of what the exports compared."""
    if not rows:
        return []
    told = {(row["family"], row["precision"], row["compared"]): row for row in rows}
    lines = [
        "What the exports of these demos compared of their vision encoders, the worst case each: "
        "least cosine, and in brackets the largest difference as a share of the largest value. "
        "*Checkpoint*: random pixels of several sizes, against the checkpoint in float32, which in "
        "8 bits rounds as the graph does. The last column tells what rounding itself changes: "
        "`int8` with those random pixels, `int8-static` with four pictures that no scale was found "
        "on.",
        "",
        "| demo | encoder | checkpoint | must hold | before rounding |",
        "|---|---|---|---|---|",
    ]
    for family, precision in dict.fromkeys(key[:2] for key in told):
        row = told[family, precision, "vision_encoder"]
        cells = [_closeness(row), f"{row['limit']:.0e}"]
        rounded = told.get((family, precision, "rounding"))
        cells.append(_closeness(rounded) if rounded else "")
        lines.append(f"| {family} | {precision} | {' | '.join(cells)} |")
    return lines


def _closeness(row: dict[str, Any]) -> str:
    return f"{row['cosine']:.5f} ({row['of_largest']:.1e})"


def main() -> None:
    """Measure, write."""
    options = tyro.cli(Options)
    path = options.output / "encoder-precision.json"
    result: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    for part in options.parts:
        match part:
            case "speed":
                result[part] = measure_speed(options)
            case "answers":
                result[part] = measure_answers(options, result.get(part, {}))
            case "parity":
                result[part] = measure_parity(options)
        path.write_text(json.dumps(result, indent=1) + "\n")
        (options.output / "encoder-precision.md").write_text(markdown(result))
    Console().print(markdown(result), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
