"""The tables of encode_ttft.py: medians by way to look, and what a stream took."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

FOLLOW = "follow"
WITHIN = 8  # looks


@dataclass(frozen=True)
class Sample:
    """One answer's first token."""

    model: str
    way: str
    budget: int
    round: int  # or the frame of a stream
    cpu_ms: float = 0.0
    ttft_ms: float = 0.0
    kept: int = 0
    encoded: int = 0
    total: int = 0
    encoder_runs: int = 0
    stages_ms: dict[str, float] = field(default_factory=dict[str, float])


def followed(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return what the frames of the stream took after the first, beside a full look at them."""
    whole = [sample for sample in samples if sample.way == "full"]
    later = [sample for sample in samples if sample.way == FOLLOW and sample.round > 0]
    means = {
        way: {
            "cpu_ms": round(mean(sample.cpu_ms for sample in some), 1),
            "vision_ms": round(mean(sample.stages_ms["vision"] for sample in some), 1),
            "prefill_ms": round(mean(sample.stages_ms["prefill"] for sample in some), 1),
            "encoded": round(mean(sample.encoded / sample.total for sample in some), 4),
        }
        for way, some in (("full", whole), (FOLLOW, later))
    }
    total, kept = whole[0].total, whole[0].kept
    faster = means["full"]["cpu_ms"] / means[FOLLOW]["cpu_ms"]
    return {"frames": len(later), "kept": kept, "total": total, "faster": faster, "ways": means}


def summary(
    samples: Sequence[Sample], kept_counts: Sequence[int], goals: Mapping[tuple[str, int], float]
) -> list[dict[str, Any]]:
    """Return medians by way and budget, beside the full look with as many kept tokens."""
    rows: list[dict[str, Any]] = []
    for kept in kept_counts:
        mine = {
            way: [s for s in samples if (s.way, s.budget) == (way, kept)]
            for way in dict.fromkeys(s.way for s in samples)
        }
        whole = median(sample.cpu_ms for sample in mine["full"])
        for way, found in mine.items():
            cpu_ms = median(sample.cpu_ms for sample in found)
            rows.append(
                {
                    "way": way,
                    "budget": kept,
                    "kept": found[0].kept,
                    "encoded": found[0].encoded,
                    "total": found[0].total,
                    "encoder_runs": found[0].encoder_runs,
                    "cpu_ms": round(cpu_ms, 1),
                    "faster": round(whole / cpu_ms, 3),
                    "goal": goals.get((way, kept)),
                    "stages_ms": {
                        stage: round(median(s.stages_ms[stage] for s in found), 1)
                        for stage in found[0].stages_ms
                    },
                }
            )
    return rows


def markdown(results: dict[str, Any]) -> str:
    """Return the tables."""
    lines = ["# First token by what the vision encoder is shown", ""]
    lines += [
        "Random weights of the published sizes, ONNX Runtime, float32, one thread; medians, the "
        "ways interleaved. `first token` is the process's processor time, from the picture to the "
        "first token; `faster` compares it with that of the full look with as many kept tokens. "
        "The stages are wall time, which what ran beside it lengthens, so that one may be longer "
        "than the first token. `attention-spread` says where to look, since random weights have "
        "no trained scorer.",
    ]
    for name, found in results.items():
        if "rows" not in found:
            continue
        told = f"{found['processor']}, {found['cores']} cores, {found['date']}. {found['note']}"
        lines += ["", f"## {name}", "", told]
        lines += [
            "",
            "| encode | kept | encoded | of | encoder runs | first token, s of processor | "
            "vision, s of wall | first layer, s of wall | prefill, s of wall | faster | goal |",
            "| --- |" + " ---: |" * 10,
        ]
        for row in found["rows"]:
            stages = row["stages_ms"]
            times = [stages[stage] / 1e3 for stage in ("vision", "first_layer", "prefill")]
            goal = "" if row["goal"] is None else f"{row['goal']:g}x"
            lines.append(
                f"| {row['way']} | {row['kept']} | {row['encoded']} | {row['total']} "
                f"| {row['encoder_runs']} | {row['cpu_ms'] / 1e3:.2f} | "
                + " | ".join(f"{value:.2f}" for value in times)
                + f" | {row['faster']:.2f}x | {goal} |"
            )
        lines += crops_table(found)
    return "\n".join([*lines, *streams(results)]) + "\n"


def crops_table(found: dict[str, Any]) -> Iterator[str]:
    """Yield the table of crops and kept tokens, where it was measured."""
    if "crops" not in found:
        return
    table = found["crops"]
    rows = {(row["way"], row["budget"]): row for row in table["rows"]}
    budgets = list(dict.fromkeys(budget for _, budget in rows))
    yield from (
        "",
        "So many crops in the second look, whatever is expected of them: seconds of processor to "
        "the first token, and how many times as soon as with everything encoded. "
        f"{table['processor']}, {table['date']}. {table['note']}",
        "",
        "| encoded | " + " | ".join(f"{budget} kept" for budget in budgets) + " |",
        "| --- |" + " ---: |" * len(budgets),
    )
    for way in dict.fromkeys(way for way, _ in rows):
        cells = [rows[way, budget] for budget in budgets]
        told = (f"{cell['cpu_ms'] / 1e3:.1f} s, {cell['faster']:.2f}x" for cell in cells)
        yield f"| {way}, {cells[0]['encoded']:,} tokens | " + " | ".join(told) + " |"


def streams(results: dict[str, Any]) -> Iterator[str]:
    """Yield the table of streams."""
    yield from (
        "",
        "## A stream that changes slowly",
        "",
        "Frames with a camera's noise, through which a square of 3 % of the picture moves by 4 px "
        f"a frame; `Following(within={WITHIN})`, means of the frames after the first, which is "
        "encoded as a whole. `faster`: against a full look at the same frames, in processor time. "
        "The goal is 3x.",
        "",
        "| model | frames | kept | of | encoded | first token, s of processor: full | followed | "
        "vision, s of wall: full | followed | prefill, s of wall | faster | measured |",
        "| --- |" + " ---: |" * 10 + " --- |",
    )
    for name, found in results.items():
        if "stream" not in found:
            continue
        stream = found["stream"]
        full, mine = stream["ways"]["full"], stream["ways"][FOLLOW]
        yield (
            f"| {name} | {stream['frames']} | {stream['kept']} | {stream['total']} "
            f"| {mine['encoded']:.1%} | {full['cpu_ms'] / 1e3:.1f} | {mine['cpu_ms'] / 1e3:.1f} "
            f"| {full['vision_ms'] / 1e3:.1f} | {mine['vision_ms'] / 1e3:.1f} "
            f"| {mine['prefill_ms'] / 1e3:.1f} | {stream['faster']:.2f}x "
            f"| {stream['processor']}, {stream['date']}. {stream['note']} |"
        )


def crops_summary(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return medians by crops and kept tokens, beside the full look with as many."""
    cells: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        cells.setdefault((sample.way, sample.budget), []).append(sample)
    medians = {cell: median(s.cpu_ms for s in some) for cell, some in cells.items()}
    return [
        {
            "way": way,
            "budget": budget,
            "kept": some[0].kept,
            "encoded": some[0].encoded,
            "cpu_ms": round(medians[way, budget], 1),
            "faster": round(medians["full", budget] / medians[way, budget], 3),
        }
        for (way, budget), some in cells.items()
    ]
