"""What else a scorer could be: heads, rotary positions, frames and losses, by several seeds each.

    python samples/scenes/make_scorer.py samples/scenes/checkpoints/llava_onevision WORK
    python tests/benchmarks/scorer_ablation.py build/bundles/llava_onevision \\
        samples/scenes/checkpoints/llava_onevision WORK/questions-1/data.jsonl WORK/ablation \\
        llava_onevision --cache WORK/labels

Trains the variants (scorer_variants.py) that are not in WORK yet, asks questions of the development
split with each, and writes docs/results/scorers/NAME-ablation.json and .md, NAME-ablation-video of
videos, NAME-ablation-both and NAME-ablation-both-video of what learns from both: the share of the
full accuracy, and the 95 % paired bootstrap interval of the difference to what each variant varies.
Several processes may train into one folder: give each its own --only, and --train.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from machine import machine
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from scorer_variants import BOTH, PICTURES, VIDEOS, Labels, Rotations, Variant
from scorers import TARGET, Judge, ask, judge_of, summarise

import tokprune
from tokprune.scenes import FilmSample, Sample, film_suite, suite
from tokprune.selectors.spread import Scale
from tokprune_export.checkpoint import open_checkpoint
from tokprune_export.division import divide
from tokprune_export.examples import read_examples
from tokprune_export.fitting import Classroom
from tokprune_export.label_cache import LabelCache
from tokprune_export.scorers import Scorer, Size, size_of
from tokprune_export.teacher import fingerprint, open_text

ORDERS = {"alone": None, "spread": Scale(score_power=1.0)}
Kind = Literal["pictures", "videos"]
HELD = ("recall_at_25", "spearman", "answers_lost")
DEVICE = torch.device("cpu")
FILM_GRID, FILM_FRAMES = (6, 6), 8


@dataclass(frozen=True)
class Options:
    """Train, ask and compare."""

    bundle: tyro.conf.Positional[Path]
    checkpoint: tyro.conf.Positional[Path]
    data: tyro.conf.Positional[Path]
    """What is trained on (JSON lines); questions about pictures or about videos are taken."""
    work: tyro.conf.Positional[Path]
    """Where trained networks are kept."""
    name: tyro.conf.Positional[str]
    """Of the files to write."""
    cache: Path | None = None
    """Labels of an earlier training."""
    about: Literal["pictures", "videos", "both"] = "pictures"
    """What is trained on and asked. Both: as shipped scorers are, first looks too."""
    samples: int = 500
    tokens: int = 196
    """Vision tokens of a drawn picture."""
    seeds: int = 3
    only: tuple[str, ...] = ()
    """Names of variants to train; none: all. What is compared is all of them."""
    train: bool = False
    """Train, and do not ask."""


def variants(options: Options) -> list[Variant]:
    """Return what is compared."""
    known = {"pictures": PICTURES, "videos": VIDEOS, "both": BOTH}[options.about]
    return [variant for variant in known if not options.only or variant.name in options.only]


def path_of(options: Options, variant: Variant, seed: int) -> Path:
    """Return where a trained network is kept."""
    name = variant.name.replace(", ", "-").replace(" ", "-")
    return options.work / f"{options.about}-{name}-{seed}.safetensors"


def train(options: Options, rotations: Rotations, classroom: Callable[[int], Classroom]) -> None:
    """Train what is not there yet."""
    options.work.mkdir(parents=True, exist_ok=True)
    for seed, variant in product(range(options.seeds), variants(options)):
        path = path_of(options, variant, seed)
        if path.exists():
            continue
        plain = classroom(seed)
        labels = Labels(plain.cache, rotations, variant.rows)
        held = [rotations.of_label(label, variant.rows) for label in plain.division.held.labels]
        division = replace(plain.division, held=plain.division.held._replace(labels=held))
        room = replace(plain, division=division, cache=labels)
        Console().print(f"{variant.name}, seed {seed}", highlight=False)
        network = variant.untrained(plain.size, seed)
        fitted = room.teach(network, variant.arch, variant.loss, objective=variant.objective)
        metrics = {"metrics": json.dumps(fitted.scorer.metrics)}
        tensors = {k: v.contiguous() for k, v in network.state_dict().items()}
        save_file(tensors, path, metrics)


def load(path: Path, variant: Variant, size: Size) -> tuple[Scorer, dict[str, float]]:
    """Read a trained network and what was said of it."""
    network = variant.untrained(size, 0)
    with safe_open(path, framework="pt") as file:
        metrics = json.loads(file.metadata()["metrics"])
        network.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return Scorer(network.eval(), variant.arch, (), metrics, {}), metrics


def questions(options: Options, kind: Kind) -> Iterator[Sample | FilmSample]:
    """Draw what is asked, of the development split: choices are made by these figures."""
    if kind == "pictures":
        return suite("dev", options.samples, tokens=options.tokens)
    return film_suite("dev", options.samples, grid=FILM_GRID, frames=FILM_FRAMES)


def seen_by(variant: Variant, rotations: Rotations, scorer: Scorer) -> Judge:
    """Return how a variant judges vision tokens."""
    judge = judge_of(scorer)
    return lambda prompt, vision, first: judge(
        prompt, vision, rotations.of_prompt(prompt, vision, first, variant.rows)
    )


def write(
    options: Options,
    kind: Kind,
    cells: dict[str, dict[str, dict[str, Any]]],
    held: dict[str, dict[str, list[float]]],
    facts: dict[str, Any],
) -> None:
    """Write the results files."""
    name = f"{options.name}-ablation"
    name += ("-both" if options.about == "both" else "") + ("-video" if kind == "videos" else "")
    trained = "as shipped ones are, on both" if options.about == "both" else f"on {kind}"
    content = {**facts, "scorers": cells, "held_out": held}
    text = json.dumps(content, indent=1) + "\n"
    (TARGET / f"{name}.json").write_text(text, encoding="utf-8")
    bases = {variant.name: variant.base for variant in variants(options)}
    seeds = "one training seed" if options.seeds == 1 else f"{options.seeds} training seeds"
    lines = [
        f"# What else a scorer could be: {options.name}, {kind}",
        "",
        f"{facts['questions']}; full accuracy {facts['full_accuracy']:.1%}. Share of it, mean over "
        f"groups and {seeds} (trained {trained}); in brackets the difference to what the "
        "variant varies in points, with its 95 % paired bootstrap interval. `paper` and `grid` "
        "learn from explanations of answers, `asked` from what answers lose, but for the rows that "
        "say otherwise. Recall of the true quarter, and what answers lose, are of held-out labels "
        f"of all that was learnt from. {facts['processor']}, {facts['date']}.",
        "",
        "| scorer, order | varies | 25% | 11% | recall at 25 % | answers lost |",
        "|---|---|---|---|---|---|",
    ]
    for name_of, row in cells.items():
        variant, _, order = name_of.rpartition(", ")
        figures = [
            f"{c['retention']:.1%} ({100 * c['ahead_of_base']:+.1f}; {100 * c['ci_low']:+.1f} to "
            f"{100 * c['ci_high']:+.1f})"
            for share in ("0.25", "0.11")
            for c in (row[share],)
        ]
        told = [
            f"{np.mean(held[variant][key]):.3f}" if variant in held else "-"
            for key in ("recall_at_25", "answers_lost")
        ]
        lines.append(
            f"| {variant}, {order} | {bases.get(variant, '-')} | {' | '.join(figures + told)} |"
        )
    (TARGET / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def compare(options: Options, rotations: Rotations, size: Size) -> None:
    """Ask with every trained network, and write."""
    vlm = tokprune.load(options.bundle, backend="cpu", threads=1)
    judges: dict[str, Judge] = {}
    held: dict[str, dict[str, list[float]]] = {}
    for variant, seed in product(variants(options), range(options.seeds)):
        scorer, metrics = load(path_of(options, variant, seed), variant, size)
        judges[f"{variant.name}, {seed}"] = seen_by(variant, rotations, scorer)
        for key in HELD:
            held.setdefault(variant.name, {}).setdefault(key, []).append(round(metrics[key], 4))
    bases = {variant.name: variant.base for variant in variants(options)}

    def rival(cell: str) -> str:
        name, _, order = cell.rpartition(", ")
        return f"{bases.get(name, name)}, {order}"

    kinds: tuple[Kind, ...] = ("pictures", "videos")
    for kind in kinds if options.about == "both" else (options.about,):
        asked = [ask(vlm, judges, sample, ORDERS) for sample in questions(options, kind)]
        cells = summarise(asked, rival, "ahead_of_base")
        shape = f"{options.tokens} vision tokens"
        if kind == "videos":
            shape = f"{FILM_FRAMES} frames of {FILM_GRID[0]} x {FILM_GRID[1]} vision tokens"
        facts = {
            **machine("torch", "onnxruntime", "numpy"),
            "questions": f"{len(asked)} dev questions, {shape}",
            "full_accuracy": round(float(np.mean([each.right["full"] for each in asked])), 4),
        }
        write(options, kind, cells, held, facts)


def main() -> None:
    """Train, ask, write."""
    options = tyro.cli(Options)
    if options.only and not options.train:
        raise SystemExit("Got --only without --train: what is compared needs what it varies")
    checkpoint = open_checkpoint(str(options.checkpoint))
    text, size = open_text(checkpoint, DEVICE), size_of(checkpoint.text_config)
    rotations = Rotations(text)
    wanted = {"pictures": ("picture",), "videos": ("video",)}.get(options.about)
    examples = [
        example
        for example in read_examples(options.data, None, shown=False)
        if wanted is None or example.modality in wanted
    ]
    folder = (options.cache or options.work / "labels") / fingerprint(checkpoint)[:16]
    cache, rooms = LabelCache(folder), {}
    glances = 1 / 3 if options.about == "both" else 0.0

    def classroom(seed: int) -> Classroom:
        if seed not in rooms:
            division = divide(examples, cache, folder, seed)
            rooms[seed] = Classroom(text, size, division, cache, DEVICE, seed, glances)
        return rooms[seed]

    train(options, rotations, classroom)
    if not options.train:
        compare(options, rotations, size)


if __name__ == "__main__":
    main()
