"""What it costs, or gains, that no picture, frame or tile goes blind (tokprune/allocation.py).

    python tests/benchmarks/allocation.py BUNDLES

writes docs/results/allocation.json and allocation.md. Questions of the development split are asked
with the ranking's own tokens, with those of `fair`, and with quotas in proportion to each region's
relevance (ATA). BUNDLES holds qwen2_vl and llava_onevision. Ten minutes on one core.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from machine import RESULTS, machine
from rich.console import Console
from rich.progress import track

from tokprune.allocation import fair, least_kept
from tokprune.budgets import KeepRatio
from tokprune.canvas import members
from tokprune.selection import keep_all, select
from tokprune.selectors.relevance import relevance, relevance_spread
from tokprune.types import Array, Ranking, Take, VisionTokens
from tokprune.vlm import VLM
from tokprune_export.evaluation.opening import Answers, encode, open_bundle
from tokprune_export.evaluation.suites import Task, open_suite, tasks

SHARES = (0.5, 0.25, 0.125, 0.06)
RESAMPLES = 10_000
SELECTORS = {"relevance-spread": relevance_spread, "relevance": relevance}


class Case(NamedTuple):
    """One bundle and one kind of question."""

    family: str
    shown: str
    tokens: int
    frames: int | None
    samples: int


CASES = (
    Case("llava_onevision", "8 frames", 36, 8, 1000),
    Case("llava_onevision", "16 frames", 36, 16, 500),
    Case("qwen2_vl", "8 frames", 36, 8, 500),
    Case("llava_onevision", "picture and its crops", 196, None, 300),
)


@dataclass(frozen=True)
class Options:
    """Compare ways to split tokens over regions."""

    bundles: tyro.conf.Positional[Path]
    """Folder with the demo bundles."""
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS
    """Folder of the two files."""


def quotas(ranking: Ranking, vision: VisionTokens, k: int) -> Take:
    """Split by ATA (arXiv:2604.08120): k_i = kmin + floor(s_i / sum s * (k - regions * kmin))."""
    assert ranking.scores is not None
    inside = [members(vision.where, region) for region in vision.regions]
    least = least_kept(k, len(inside))
    mass = np.asarray([ranking.scores[tokens].sum() for tokens in inside])
    shares = least + np.floor(mass / mass.sum() * (k - len(inside) * least)).astype(int)
    order = ranking.take(len(vision.embeds))
    parts = [
        order[np.isin(order, tokens)][:count]
        for tokens, count in zip(inside, shares.tolist(), strict=True)
    ]
    first = np.concatenate(parts)
    whole = np.concatenate([first, order[~np.isin(order, first)]])
    return lambda count: whole[:count]


def ask(vlm: VLM, task: Task) -> dict[str, bool]:
    """Answer one question with every split; "changed" where a split takes other tokens."""
    _, prompt, _, vision, first = encode(vlm, task)
    answers = Answers(vlm, prompt, vision)
    total = len(vision.embeds)

    def right(take: Take, share: float) -> bool:
        return answers(select(Ranking(take), vision, KeepRatio(share)))[0] == task.answer

    found = {"full": right(keep_all(total).take, 1.0)}
    for name, make in SELECTORS.items():
        ranking = make(vlm.model.scorer)(prompt, vision, first)
        for share in SHARES:
            k = KeepRatio(share).plan(total).keep
            split = fair(ranking, vision)(k)
            found[f"{name} @ {share:g} own"] = right(ranking.take, share)
            found[f"{name} @ {share:g} fair"] = right(split, share)
            found[f"{name} @ {share:g} ATA"] = right(quotas(ranking, vision, k), share)
            found[f"{name} @ {share:g} changed"] = split is not ranking.take
    return found


def row(answers: Sequence[Mapping[str, bool]], case: Case, cell: str) -> dict[str, Any]:
    """Sum up one selector and share."""
    own, split, ata, changed = (
        np.asarray([each[f"{cell} {way}"] for each in answers], float)
        for way in ("own", "fair", "ATA", "changed")
    )
    return {
        "case": f"{case.family}, {case.shown}",
        "cell": cell,
        "questions": len(answers),
        "changed": round(float(changed.mean()), 3),
        "own": round(float(own.mean()), 4),
        "fair": interval(split - own),
        "ata": interval(ata - own),
    }


def interval(difference: Array) -> list[float]:
    """Return a mean with its 95 % bootstrap interval."""
    count = len(difference)
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    low, high = np.percentile(difference[drawn].mean(axis=1), [2.5, 97.5])
    return [round(float(value), 4) for value in (difference.mean(), low, high)]


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table that docs show."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        "# No region goes blind: what it costs",
        "",
        "Accuracy on questions of the development split with the ranking's own tokens, and the "
        "difference, with a 95 % paired bootstrap interval, where every picture, frame and tile is "
        "sure of a few tokens (`fair`) and where regions get quotas by their relevance (ATA). "
        f"{result['processor']}, {result['date']}, {versions}. {result['note']}".rstrip(),
        "",
        "| case | tokens | choices changed | own | fair | ATA |",
        "|---|---|---|---|---|---|",
    ]
    for each in result["rows"]:
        gains = [
            f"{mean:+.1%} ({low:+.1%} to {high:+.1%})"
            for mean, low, high in (each["fair"], each["ata"])
        ]
        cells = [each["case"], each["cell"], f"{each['changed']:.0%}", f"{each['own']:.1%}", *gains]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Ask, and write the table."""
    options = tyro.cli(Options)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        vlm = open_bundle(options.bundles / case.family)
        name = "scenes" if case.frames is None else "scenes-video"
        asked = tasks(open_suite(name, "dev", case.tokens, case.frames), case.samples)
        answers = [
            ask(vlm, task) for task in track(asked, description=case.family, total=case.samples)
        ]
        cells = [f"{name} @ {share:g}" for name in SELECTORS for share in SHARES]
        rows += [row(answers, case, cell) for cell in cells]
    result = {**machine("onnxruntime", "numpy"), "note": options.note, "rows": rows}
    (options.output / "allocation.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.output / "allocation.md").write_text(markdown(result))
    Console().print(markdown(result), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
