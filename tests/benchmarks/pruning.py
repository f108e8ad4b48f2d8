"""What pruning does to the answers of every demo VLM, about pictures and about videos.

    make bundles
    python samples/scenes/make_scorer.py samples/scenes/checkpoints/vila SCORERS/vila ...
    python tests/benchmarks/pruning.py WORK SCORERS

Each case is one run of `tokprune_export.evaluate` on the test split; its tables and plot go to
docs/results/pruning, and a line of each to docs/results/pruning.md. SCORERS holds a run of
make_scorer.py for each FAMILY, whose other network is compared, and one with --small as
FAMILY-small: its cases ask how far a scorer carries that has seen 64 vision tokens at most. Cases
that are not asked keep their figures. A case takes ten minutes on two cores; a broken run goes on.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from machine import RESULTS, machine

NOTE = (
    "The VLM was trained with dropout of vision tokens, even and biased towards background: one "
    "that never missed a token bears pruning worse."
)
CHECKPOINTS = Path(__file__).parents[2] / "samples" / "scenes" / "checkpoints"
DETAILS = RESULTS / "pruning"
PRUNED = "default"  # the bundle's own selector
BESIDE = ("oracle", "uniform", "random")
GOALS = {"0.5": 0.98, "0.25": 0.965, "0.125": 0.93}
SMALL_GOALS = {"0.5": 0.95}


class Case(NamedTuple):
    """One bundle and one kind of question."""

    family: str
    shown: str
    asked: tuple[str, ...]  # options of the evaluation
    small: bool = False  # with the scorer that has seen small pictures and short videos only


PICTURES = ("--tokens", "196")
VIDEOS = ("--tokens", "36", "--frames", "8")
LONG = ("--tokens", "36", "--frames", "16")
CASES = {
    "qwen2_vl-pictures": Case("qwen2_vl", "392 x 392 px", PICTURES),
    "llava_onevision-pictures": Case("llava_onevision", "392 x 392 px", PICTURES),
    "vila-pictures": Case("vila", "392 x 392 px", PICTURES),
    "qwen2_vl-videos": Case("qwen2_vl", "8 frames of 168 x 168 px", VIDEOS),
    "llava_onevision-videos": Case("llava_onevision", "8 frames of 168 x 168 px", VIDEOS),
    "qwen2_vl-larger": Case("qwen2_vl", "448 x 448 px", ("--tokens", "256"), small=True),
    "qwen2_vl-longer": Case("qwen2_vl", "16 frames of 168 x 168 px", LONG, small=True),
    "llava_onevision-longer": Case(
        "llava_onevision", "16 frames of 168 x 168 px", LONG, small=True
    ),
}


@dataclass(frozen=True)
class Options:
    """Ask every demo VLM test questions, with every selector at every budget."""

    work: tyro.conf.Positional[Path]
    """Where answers are kept until all are there."""
    scorers: tyro.conf.Positional[Path]
    """Folder with the runs of make_scorer.py: FAMILY and FAMILY-small."""
    cases: tuple[str, ...] = tuple(CASES)
    """Which of them."""
    bundles: Path = Path("build/bundles")
    """Where the bundles are."""
    samples: int = 1000
    """Questions of a case."""
    processes: int = 2
    note: str = ""
    """What else the machine was doing."""


def run(options: Options, name: str) -> None:
    """Ask the questions of one case, and put its tables among the results."""
    case = CASES[name]
    bundle = options.bundles / case.family
    made = options.scorers / (f"{case.family}-small" if case.small else case.family)
    if case.small:
        bundle = small_bundle(options, case.family, made / "scorer.safetensors")
    out = options.work / name
    subprocess.run(
        [
            *(sys.executable, "-m", "tokprune_export.evaluate", str(bundle), "--out", str(out)),
            *("--split", "test", *case.asked, "--samples", str(options.samples)),
            *("--oracle", str(CHECKPOINTS / case.family), "--note", NOTE),
            *("--processes", str(options.processes)),
            *("--paper-scorer", str(made / "other.safetensors")),
        ],
        check=True,
    )
    DETAILS.mkdir(exist_ok=True)
    for made, kept in (("results.json", "json"), ("results.md", "md"), ("accuracy.png", "png")):
        shutil.copyfile(out / made, DETAILS / f"{name}.{kept}")


def small_bundle(options: Options, family: str, scorer: Path) -> Path:
    """Export a checkpoint with the scorer that has seen little."""
    bundle = options.work / "bundles" / family
    if not bundle.exists():
        bundle.parent.mkdir(parents=True, exist_ok=True)
        code = "from tokprune_export.cli import export_main; export_main()"
        given = (str(CHECKPOINTS / family), str(bundle), "--scorer", str(scorer))
        subprocess.run([sys.executable, "-c", code, *given], check=True)
    return bundle


def markdown(results: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """Return one line a case."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    kept = tuple(GOALS)
    heads = [*(f"default {share}" for share in kept), *(f"{b}" for b in BESIDE)]
    lines = [
        "# What pruning does to the answers of the demo VLMs",
        "",
        "Share of the full accuracy on questions of the test split, with 95 % paired bootstrap "
        "intervals; beside the bundle's default selector what the true relevance of the answer, "
        f"an even lattice and chance keep, at {', '.join(kept)}. {NOTE} Goals: "
        + ", ".join(f"{goal:.1%} at {share}" for share, goal in GOALS.items())
        + "; for scorers that saw 64 vision tokens at most, "
        + f"{SMALL_GOALS['0.5']:.0%} at 0.5. A goal that was missed says so. "
        f"{facts['processor']}, {facts['date']}, {versions}. {facts['note']}".rstrip(),
        "",
        f"| case | questions | vision tokens | full | {' | '.join(heads)} |",
        "|---|" + "---|" * (3 + len(heads)),
    ]
    lines += [line(name, results[name]) for name in CASES if name in results]
    return "\n".join(lines) + "\n"


def line(name: str, found: Mapping[str, Any]) -> str:
    """Return the line of a case."""
    case = CASES[name]
    what = f"[{case.family}, {case.shown}](pruning/{name}.md)"
    what += ", scorer of 64 tokens" if case.small else ""
    cells = [what, str(found["samples"]), f"{found['mean_vision_tokens']:.0f}"]
    cells.append(f"{found['full']['mean']:.1%}")
    goals = SMALL_GOALS if case.small else GOALS
    for share in GOALS:
        part = found["selectors"][PRUNED][share]["of_full"]
        missed = share in goals and part["mean"] < goals[share]
        text = f"{part['mean']:.1%} ({part['low']:.1%} to {part['high']:.1%})"
        cells.append(text + (" missed" if missed else ""))
    for other in BESIDE:
        shares = (found["selectors"][other][share]["of_full"]["mean"] for share in GOALS)
        cells.append(", ".join(f"{share:.1%}" for share in shares))
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run the cases, and write the line of each."""
    options = tyro.cli(Options)
    for name in options.cases:
        run(options, name)
    paths = {name: DETAILS / f"{name}.json" for name in CASES}
    results = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if path.exists()
    }
    facts = {**machine("torch", "onnxruntime", "numpy"), "note": options.note}
    (RESULTS / "pruning.md").write_text(markdown(results, facts), encoding="utf-8")


if __name__ == "__main__":
    main()
