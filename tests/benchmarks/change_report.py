"""The table and the plot of change_gate.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from change_pairs import CHANGES, HARD

mpl.use("Agg")
import matplotlib.pyplot as plt


def markdown(result: Mapping[str, Any]) -> str:
    """Return what docs show."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    side = f"{result['block_px']} x {result['block_px']}"
    costs = ", ".join(f"{ms} ms at {size}" for size, ms in result["cost_ms"].items())
    noises = [kind for kind in result["false_changed"] if not kind.startswith("H.264")]
    streams = [kind for kind in result["false_changed"] if kind.startswith("H.264")]
    return "\n".join(
        [
            "# The change gate",
            "",
            f"{result['rooms']} drawn scenes of 448 x 448, 896 x 672 and 1280 x 720 pixels, "
            f"before and after one thing has happened. {result['processor']}, {result['cores']} "
            f"cores, {result['date']}, {versions}. {result['note']}".rstrip(),
            "",
            f"The score of two frames is the largest change of the mean of {side} pixels, in "
            "levels of 255: of its luma, or half of its red, green or blue; what the whole "
            "picture "
            f"gained or lost in brightness, up to 3 %, is taken off. Above {result['threshold']:g} "
            f"a frame has changed. Cost, numpy, one thread: {costs}.",
            "",
            "## What showed the same passed for changed",
            "",
            "Share of pairs, by threshold: what it costs is one more run of the vision encoder. "
            "Every pixel has its own noise of so many levels (standard deviation), the light "
            f"flickers by {result['flicker']:.0%}. Streams have 1, 2 and 4 Mbit/s at 30 frames a "
            "second, veryfast, zerolatency.",
            "",
            *_table(result, "false_changed", [*noises, *streams], "most", "highest score"),
            "",
            "## What had changed passed for the same",
            "",
            "Share of pairs, with all of these noises: what it costs may be a wrong answer. Digits "
            "are 16 pixels high. The last three lines are no promise: they show where sight ends.",
            "",
            *_table(result, "false_unchanged", [*CHANGES, *HARD], "least", "lowest score"),
            "",
            "## Other measures",
            "",
            "Each with the highest threshold that misses no change of the first nine kinds: the "
            "share of pairs that show the same and pass for changed.",
            "",
            "| measure | threshold | noise 1 to 7 (highest) | H.264, noise 1 to 5 (highest) "
            "| ms, two frames of 1280 x 720 |",
            "|---|---|---|---|---|",
            *(
                f"| {row['measure']} | {row['least_change']:.2f} | "
                f"{row['false_changed']:.1%} ({row['most_noise']:.2f}) | "
                f"{row['false_changed_h264']:.1%} ({row['most_h264']:.2f}) | "
                f"{row['ms']:.1f} |"
                for row in result["measures"]
            ),
            "",
            *_answers(result.get("answers")),
        ]
    )


def _table(
    result: Mapping[str, Any], rates: str, kinds: Sequence[str], extreme: str, name: str
) -> list[str]:
    thresholds = list(result[rates][kinds[0]])
    heads = [f"**{t}**" if float(t) == result["threshold"] else t for t in thresholds]
    lines = [f"| | pairs | {' | '.join(heads)} | {name} |", "|---" * (len(heads) + 3) + "|"]
    for kind in kinds:
        cells = [_share(result[rates][kind][t]) for t in thresholds]
        cells = [str(result["pairs"][kind]), *cells, f"{result[extreme][kind]:.1f}"]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def _share(rate: float) -> str:
    return "0" if rate == 0 else f"{rate:.1%}" if rate >= 0.001 else "< 0.1%"


def _answers(answers: Mapping[str, int] | None) -> list[str]:
    if answers is None:
        return []
    asked = answers["asked"]
    return [
        "## Answers",
        "",
        f"Questions to the demo Qwen2-VL about frames that show the same with other noise: {asked} "
        f"passed for unchanged, {answers['passed for changed']} did not. The answer about the "
        f"pixels that the gate gave differs from that about the new ones in {answers['differ']} of "
        f"{asked}; the answers about two new frames of one scene, no gate, differ in "
        f"{answers['two new frames differ']}. Right with the gate: "
        f"{answers['right with the gate'] / asked:.1%}, without: "
        f"{answers['right without'] / asked:.1%}.",
        "",
    ]


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw the scores of every kind of pair, and the threshold."""
    scores: Mapping[str, Sequence[float]] = result["scores"]
    kinds = [*result["false_changed"], *CHANGES, *HARD][::-1]
    colors = ["#1b7837" if "noise" in kind else "#999999" if kind in HARD else "#b2182b"
              for kind in kinds]  # fmt: skip
    figure, axes = plt.subplots(figsize=(9, 6.5), constrained_layout=True)
    for row, (kind, color) in enumerate(zip(kinds, colors, strict=True)):
        each = scores[kind]
        quarter = len(each) // 4
        axes.plot([each[0], each[-1]], [row, row], color=color, linewidth=1.2)
        axes.plot([each[quarter], each[-1 - quarter]], [row, row], color=color, linewidth=7)
        axes.plot(each[len(each) // 2], row, "|", color="white", markersize=9, markeredgewidth=2)
    axes.axvline(result["threshold"], color="black", linestyle="--", linewidth=1)
    axes.text(result["threshold"] * 1.03, len(kinds) - 0.3, f"threshold {result['threshold']:g}")
    axes.set_xscale("log")
    ticks = (0.5, 1, 2, 5, 10, 20, 50, 100, 200)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("largest change of a block, levels of 255: lowest, middle half, highest")
    axes.set_title("The same (green), changed (red), too small or faint to promise (grey)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
