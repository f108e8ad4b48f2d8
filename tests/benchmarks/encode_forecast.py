"""How far forecasts of looks at parts of pictures are off, with and without parts measured.

    python tests/benchmarks/encode_forecast.py BUNDLE BUNDLE

writes docs/results/encode-forecast.json and encode-forecast.md. Calibration and questions take
turns, so that both meet the same machine: a round of measurements, then every question once. Both
are timed by the process's processor time, which other programs change little (give
OPENBLAS_NUM_THREADS=1: threads that wait for work would count). Then each look is forecast from the
curve of whole pictures, as calibrations of schema 1 have it, and from that of parts.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import exp, log
from pathlib import Path
from statistics import mean, median
from typing import Any

import msgspec
import tyro
from machine import RESULTS, machine
from rich.console import Console

import tokprune
from tokprune import calibrating, stopwatch
from tokprune.benching import marked
from tokprune.calibrating import Step, calibrate, plan_calibration
from tokprune.commands.bench import drawn
from tokprune.looking import Following
from tokprune.model import one_question
from tokprune.timing.calibrations import Calibration
from tokprune.timing.latency import Latency
from tokprune.timing.plans import Encoding, encoded_ms
from tokprune.timing.request_sizes import Sizes, sizes_of
from tokprune.types import Answer, Image
from tokprune.vlm import VLM

QUESTION = "what color is the ball?"
WAYS = {  # of families that take any tokens, and of those that take tiles
    True: ("coarse", "coarse:2", "repeats:0.2", "follow"),
    False: ("lazy", "follow"),
}
WHOLE, PARTS = "whole", "parts"
WARM = 2  # rounds that do not count
FOLLOWED_PX = 4  # that the picture of a followed stream is shifted by from look to look


@dataclass(frozen=True)
class Options:
    """Measure, ask and compare."""

    bundles: tyro.conf.Positional[tuple[Path, ...]]
    seconds: float = 30.0
    """That the calibration of each bundle takes."""
    sizes: tuple[str, ...] = ("280x280", "392x392", "560x560")
    kept: tuple[float, ...] = (0.11, 0.25, 0.5)
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS


@dataclass(frozen=True)
class Asked:
    """One answer, as far as it is compared."""

    size: str
    way: str
    kept: float
    encoded: int
    runs: int
    vision_ms: float
    read_ms: float  # until the request was planned: waiting, reading and cutting the picture
    small_ms: float  # cutting the small one
    ttft_ms: float


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options)
    calibrating.perf_counter = stopwatch.monotonic = time.process_time
    bundles = [measured(options, bundle) for bundle in options.bundles]
    told = {"seconds": options.seconds, "kept": options.kept}
    result = {**machine(), "note": options.note, **told, "bundles": bundles}
    path = options.output / "encode-forecast.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    path.with_suffix(".md").write_text(text)
    Console().print(text, markup=False, soft_wrap=True)


def measured(options: Options, bundle: Path) -> dict[str, Any]:
    """Calibrate a bundle between the questions, and compare."""
    asked: list[Asked] = []
    with tokprune.load(bundle, backend="cpu", threads=1, vision_cache_bytes=0) as vlm:
        rounds = _rounds(options, vlm)

        def ask(step: Step) -> None:
            if step.done < step.of:
                answers = next(rounds)
                asked.extend(answers if step.done >= WARM else ())

        plan = plan_calibration(vlm.model, seconds=options.seconds)
        calibration = calibrate(vlm.model, plan, threads=1, progress=ask)
        rows = [
            _row(vlm, calibration, mine)
            for cell in dict.fromkeys((each.size, each.way, each.kept) for each in asked)
            if (mine := [a for a in asked if (a.size, a.way, a.kept) == cell])
        ]
    return {"bundle": bundle.name, "rounds": plan.rounds - WARM, "rows": rows, **_summary(rows)}


def _rounds(options: Options, vlm: VLM) -> Iterator[list[Asked]]:
    """Ask everything once, again and again. No two pictures are equal."""
    ways = WAYS[vlm.model.processor.ways.cut is not None]
    pictures = {size: drawn(size) for size in options.sizes}
    follows = {(size, kept): Following() for size in options.sizes for kept in options.kept}
    number = 0
    while True:
        answers: list[Asked] = []
        for size, picture in pictures.items():
            for kept in options.kept:
                for way in ways:
                    number += 1
                    encode = follows[size, kept] if way == "follow" else way
                    shown = _shifted(picture, number) if way == "follow" else picture
                    answer = vlm.ask(
                        marked(shown, number), QUESTION, kept, encode=encode, max_new_tokens=1
                    )
                    answers.append(_asked(answer, size, way, kept))
        yield answers


def _shifted(picture: Image, number: int) -> Image:
    """Return the picture with a quarter of it moved: what a stream shows."""
    moved = picture.copy()
    height, width = (side // 2 for side in picture.shape[:2])
    at = number * FOLLOWED_PX % (width - 1)
    moved[:height, at : at + width] = picture[-height:, :width]
    return moved


def _asked(answer: Answer, size: str, way: str, kept: float) -> Asked:
    times = answer.timings_ms
    read = [span for span in answer.spans if span.name == "preprocess"]
    return Asked(
        size=size,
        way=way,
        kept=kept,
        encoded=answer.encoded,
        runs=answer.encoder_runs,
        vision_ms=times["vision"],
        read_ms=read[0].end_ms,
        small_ms=sum(span.duration_ms for span in read[1:]),
        ttft_ms=answer.ttft_ms,
    )


def _row(vlm: VLM, calibration: Calibration, mine: list[Asked]) -> dict[str, Any]:
    """Forecast one way to look at one picture, and say what it took."""
    one = mine[0]
    encoded = round(median(each.encoded for each in mine))
    small, looks = _sizes(vlm, one, encoded, round(median(each.runs for each in mine)))
    row: dict[str, Any] = {"size": one.size, "way": one.way, "kept": one.kept, "encoded": encoded}
    row["vision_ms"] = median(each.vision_ms for each in mine)
    if small is not None:
        row["ttft_ms"] = median(each.ttft_ms for each in mine)
    for name in (WHOLE, PARTS):
        known = calibration if name == PARTS else msgspec.structs.replace(calibration, parts=None)
        latency = Latency(known)
        found = {"vision_ms": latency.forecast(looks).stage_ms("vision", 0)}
        if small is not None:
            read_ms = median(a.read_ms + (a.small_ms if name == PARTS else 0.0) for a in mine)
            found["ttft_ms"] = read_ms + _ahead_ms(latency, small, looks, one.way)
        row[name] = found
    return row


def _sizes(vlm: VLM, one: Asked, encoded: int, runs: int) -> tuple[Sizes | None, Sizes]:
    """Return the sizes of a coarse first look, if there is one, and of all that is encoded."""
    model, picture = vlm.model, drawn(one.size)
    prompt, media = model.prepare(picture, QUESTION)
    text = replace(sizes_of(prompt, media), patches=())
    pixels = [call["pixel_values"] for call in media[0].calls]
    if model.processor.ways.cut is None:
        return None, replace(text, parts=(pixels[0][:1].size,) * runs)
    token = sum(call.size for call in pixels) // text.vision_tokens
    if not one.way.startswith("coarse"):
        return None, replace(text, parts=(encoded * token,))
    if runs == 1:  # it was looked at once: two looks would have encoded no less
        return None, sizes_of(prompt, media)
    cut = model.small(one_question((picture,), QUESTION, None), (picture,))
    assert cut is not None
    small = sizes_of(*cut())
    return small, replace(small, parts=((encoded - small.vision_tokens) * token,))


def _ahead_ms(latency: Latency, small: Sizes, looks: Sizes, way: str) -> float:
    """Return what is expected from when a coarse look is planned to the first token."""
    first, (pixels,) = latency.forecast(small), looks.parts
    token = small.patches[0] // small.vision_tokens
    tokens = pixels // token
    encoding = Encoding(token, 1, float(way.partition(":")[2] or 1))
    encode_ms, rest = encoded_ms(first, encoding, tokens, {})
    return first.before_ms + encode_ms + rest.p50_ms


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return by how much forecasts are off, up or down, in the mean of all rows that have one."""
    off: dict[str, Any] = {}
    for what in ("vision_ms", "ttft_ms"):
        for way in dict.fromkeys(row["way"] for row in rows if what in row):
            mine = [row for row in rows if row["way"] == way and what in row]
            off.setdefault(what, {})[way] = {
                name: exp(mean(abs(log(row[name][what] / row[what])) for row in mine)) - 1
                for name in (WHOLE, PARTS)
            }
    return {"off": off}


def markdown(result: dict[str, Any]) -> str:
    """Return the tables."""
    lines = [
        "# Forecasts of looks at parts of pictures",
        "",
        "What the vision encoder is expected to take of parts, read off the curve of whole "
        "pictures and off that of parts, which `tokprune calibrate` measures since schema 2; and "
        "the time to the first token of a coarse look, the second with the time in which the small "
        "picture was cut. Calibration and questions took turns; one thread, processor time, "
        f"{result['processor']}, {result['date']}. {result['note']}".rstrip(),
    ]
    names = {"vision_ms": "encoder", "ttft_ms": "first token"}
    for bundle in result["bundles"]:
        lines += [
            "",
            f"## {bundle['bundle']}",
            "",
            f"{bundle['rounds']} rounds. Off by, up or down:",
        ]
        lines += ["", "| | way | whole pictures | parts |", "| --- | --- | ---: | ---: |"]
        for what, ways in bundle["off"].items():
            for way, off in ways.items():
                shares = " | ".join(f"{off[name]:.0%}" for name in (WHOLE, PARTS))
                lines.append(f"| {names[what]} | {way} | {shares} |")
        lines += ["", "| picture | way | kept | encoded | encoder, ms | from whole | from parts "]
        lines[-1] += "| first token, ms | from whole | from parts |"
        lines.append("| --- | --- |" + " ---: |" * 8)
        for row in bundle["rows"]:
            cells = [row["size"], row["way"], f"{row['kept']:g}", str(row["encoded"])]
            for what in names:
                given = [row.get(what), *(row[name].get(what) for name in (WHOLE, PARTS))]
                cells += ["" if ms is None else f"{ms:.1f}" for ms in given]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
