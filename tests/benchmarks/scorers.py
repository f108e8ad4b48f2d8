"""What each scorer network and each loss is worth: three training seeds, same questions.

    python samples/scenes/make_scorer.py samples/scenes/checkpoints/qwen2_vl WORK
    python tests/benchmarks/scorers.py build/bundles/qwen2_vl samples/scenes/checkpoints/qwen2_vl \\
        WORK/questions-1/data.jsonl WORK qwen2_vl --cache WORK/labels

Trains what is not in WORK yet, asks questions of a split with every scorer, and writes
docs/results/scorers/NAME.json and .md: share of the full accuracy, mean over the groups of
questions, with the 95 % paired bootstrap interval of the difference to attention-spread, and the
worst group.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import tyro
from machine import RESULTS, machine

import tokprune
from tokprune import VLM
from tokprune.budgets import KeepRatio
from tokprune.llm import Generation
from tokprune.scenes import FilmSample, Sample, film_suite, suite
from tokprune.selection import keep_all, select
from tokprune.selectors.baselines import mean_attention
from tokprune.selectors.selector import descending, prefix_of
from tokprune.selectors.spread import Scale, spread
from tokprune.types import Array, FirstLayer, Prompt, Ranking, Scores, VisionTokens
from tokprune_export.evaluation.truth import scored
from tokprune_export.scorers import Scorer, Size, load_scorer

TARGET = RESULTS / "scorers"
KEPT = (0.5, 0.25, 0.11)
CASES = (
    ("paper", "relevance"),
    ("grid", "relevance"),
    ("asked", "relevance"),
    ("grid", "answers"),
    ("asked", "answers"),
)
ORDERS = {"alone": None, **{f"spread, power {p:g}": Scale(score_power=p) for p in (2.0, 1.0, 0.5)}}
RIVAL = "attention, spread, power 2"
AHEAD = "ahead_of_attention_spread"
RESAMPLES = 2000
NEW_TOKENS = 24


@dataclass(frozen=True)
class Options:
    """Train, ask and compare."""

    bundle: tyro.conf.Positional[Path]
    checkpoint: tyro.conf.Positional[Path]
    data: tyro.conf.Positional[Path]
    """What is trained on (JSON lines)."""
    work: tyro.conf.Positional[Path]
    """Where scorer files are kept."""
    name: tyro.conf.Positional[str]
    """Of the files to write."""
    cache: Path | None = None
    """Labels of an earlier training."""
    split: Literal["dev", "test"] = "dev"
    samples: int = 500
    tokens: int = 196
    """Vision tokens of a drawn picture, or of a frame."""
    frames: int | None = None
    """Drawn videos of so many frames, and not pictures."""
    seeds: int = 3
    cases: tuple[str, ...] = tuple(f"{arch}, {loss}" for arch, loss in CASES)
    """Which networks and losses."""
    limit: int | None = None
    """Train on the first so many questions of the file: its pictures come before its videos."""


Judge: TypeAlias = Callable[[Prompt, VisionTokens, FirstLayer], Scores]


class Asked(NamedTuple):
    """Whether one question was answered rightly, by scorer, order and kept share."""

    group: str
    right: dict[str, bool]


def train(options: Options) -> dict[str, Path]:
    """Train what is not there yet; return files by name."""
    files: dict[str, Path] = {}
    chosen = [case for case in CASES if ", ".join(case) in options.cases]
    for (arch, loss), seed in product(chosen, range(options.seeds)):
        path = files[f"{arch}, {loss}, {seed}"] = options.work / f"{arch}-{loss}-{seed}.safetensors"
        if not path.exists():
            command = [sys.executable, "-m", "tokprune_export.train", str(options.checkpoint)]
            asked = ("--scorer-arch", arch, "--loss", loss, "--seed", str(seed))
            cache = ("--cache", str(options.cache or options.work / "labels"))
            given = (str(options.data), str(path), "--glances", "0")  # the same for all networks
            limit = () if options.limit is None else ("--limit", str(options.limit))
            subprocess.run([*command, *given, *asked, *cache, *limit], check=True)
    return files


def ask(
    vlm: VLM,
    judges: Mapping[str, Judge],
    sample: Sample | FilmSample,
    orders: Mapping[str, Scale | None] = ORDERS,
) -> Asked:
    """Ask one question with every scorer, order and kept share."""
    media = [sample.clip] if isinstance(sample, FilmSample) else list(sample.pictures)
    prompt, prepared = vlm.model.prepare(media, sample.question)
    vision = vlm.model.vision(prepared)
    first = vlm.model.first_layer.run(prompt, vision)
    known: dict[bytes, bool] = {}

    def right(ranking: Ranking, share: float) -> bool:
        selection = select(ranking, vision, KeepRatio(share))
        key = selection.keep.tobytes()
        if key not in known:
            tokens = vlm.model.llm.generate(prompt, vision, selection, Generation(NEW_TOKENS))
            ids = [token.id for token in tokens if token.id is not None]
            text = vlm.model.tokenizer.decode(ids, skip_special_tokens=True)
            known[key] = text.strip().casefold() == sample.answer.strip().casefold()
        return known[key]

    found = {"full": right(keep_all(len(vision.embeds)), 1.0)}
    scores = {"attention": mean_attention(first)}
    scores |= {name: judge(prompt, vision, first) for name, judge in judges.items()}
    for (name, values), (order, scale) in product(scores.items(), orders.items()):
        plain = prefix_of(descending(values, vision))
        ranking = Ranking(plain if scale is None else spread(values, vision, scale))
        for share in KEPT:
            found[f"{name}, {order} @ {share:g}"] = right(ranking, share)
    return Asked(sample.group, found)


def questions(options: Options) -> Iterator[Sample | FilmSample]:
    """Draw what is asked."""
    if options.frames is None:
        return suite(options.split, options.samples, tokens=options.tokens)
    grid = (round(options.tokens**0.5),) * 2
    return film_suite(options.split, options.samples, grid=grid, frames=options.frames)


def judge_of(scorer: Scorer) -> Judge:
    """Return how a scorer judges vision tokens."""
    return lambda _, vision, first: scored(scorer, vision, first)


def summarise(
    asked: Sequence[Asked],
    rival_of: Callable[[str], str] = lambda _: RIVAL,
    ahead: str = AHEAD,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the figures of every cell, seeds of one training together.

    Args:
        asked: what was answered rightly.
        rival_of: the name of what a cell's name is compared with.
        ahead: what the difference to it is called.
    """
    groups = np.array([each.group for each in asked])
    names = sorted(set(groups))
    random = np.random.default_rng(0)
    drawn = random.integers(0, len(asked), (RESAMPLES, len(asked)))
    right = {cell: np.array([a.right[cell] for a in asked], float) for cell in asked[0].right}
    full = right.pop("full")
    means: dict[str, list[Array]] = {}
    for cell, values in right.items():
        name, _, share = cell.rpartition(" @ ")
        parts = [part for part in name.split(", ") if not part.isdigit()]  # without the seed
        means.setdefault(f"{', '.join(parts)} @ {share}", []).append(values)
    whole = np.mean([full[groups == group].mean() for group in names])
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for cell, seeds in means.items():
        name, _, share = cell.rpartition(" @ ")
        values, rival = (
            np.mean(seeds, axis=0),
            np.mean(means[f"{rival_of(name)} @ {share}"], axis=0),
        )
        low, high = np.percentile((values - rival)[drawn].mean(axis=1), [2.5, 97.5])
        of_full = {g: values[groups == g].mean() / full[groups == g].mean() for g in names}
        worst = min(of_full, key=lambda g: of_full[g])
        by_seed = [float(np.mean([s[groups == g].mean() for g in names]) / whole) for s in seeds]
        found.setdefault(name, {})[share] = {
            "retention": round(float(np.mean(by_seed)), 4),
            "by_seed": [round(each, 4) for each in by_seed],
            ahead: round(float((values - rival).mean()), 4),
            "ci_low": round(float(low), 4),
            "ci_high": round(float(high), 4),
            "worst_group": worst,
            "worst": round(float(of_full[worst]), 4),
        }
    return found


def agreements(scorers: Mapping[str, Scorer]) -> dict[str, dict[str, list[float]]]:
    """Return what each training's file says of held-out labels, by network and loss."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, scorer in scorers.items():
        case, _, _ = name.rpartition(", ")
        for key in ("recall_at_25", "spearman", "answers_lost"):
            found.setdefault(case, {}).setdefault(key, []).append(round(scorer.metrics[key], 4))
    return found


def write(options: Options, asked: Sequence[Asked], scorers: Mapping[str, Scorer]) -> None:
    """Write the results files."""
    full = float(np.mean([each.right["full"] for each in asked]))
    cells = summarise(asked)
    facts = machine("torch", "onnxruntime", "numpy")
    trained = "one training seed" if options.seeds == 1 else f"{options.seeds} training seeds"
    what = f"{len(asked)} {options.split} questions, {options.tokens} vision tokens"
    what += "" if options.frames is None else f" a frame, {options.frames} frames"
    held = agreements(scorers)
    content = {**facts, "questions": what, "full_accuracy": round(full, 4), "scorers": cells}
    content["held_out"] = held
    TARGET.mkdir(exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    (TARGET / f"{options.name}.json").write_text(text, encoding="utf-8")
    lines = [
        f"# Scorers: {options.name}",
        "",
        f"{what}; full accuracy {full:.1%}. Share of it, mean over groups and {trained}; "
        "in brackets the 95 % paired bootstrap interval of the difference to "
        f"attention-spread in points, and the worst group. {facts['processor']}, {facts['date']}.",
        "",
        f"| scorer, loss, order | {' | '.join(f'{share:.0%}' for share in KEPT)} |",
        "|---|" + "---|" * len(KEPT),
    ]
    for name, row in cells.items():
        parts = (
            f"{c['retention']:.1%} ({100 * c['ci_low']:+.1f} to {100 * c['ci_high']:+.1f}; "
            f"{c['worst_group']} {c['worst']:.0%})"
            for c in row.values()
        )
        lines.append(f"| {name} | {' | '.join(parts)} |")
    lines += [
        "",
        "Agreement with the true relevance of held-out labels, and how far their answers move when "
        "the best-scored 25 and 11 % are left (KL): mean of the seeds, and each.",
        "",
        "| scorer, loss | recall at 25 % | Spearman | answers lost |",
        "|---|---|---|---|",
    ]
    for case, figures in held.items():
        cells_of = (
            f"{np.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"
            for values in figures.values()
        )
        lines.append(f"| {case} | {' | '.join(cells_of)} |")
    (TARGET / f"{options.name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Train, ask, write."""
    options = tyro.cli(Options)
    files = train(options)
    vlm = tokprune.load(options.bundle, backend="cpu", threads=1)
    llm = vlm.bundle.manifest.llm
    size = Size(llm.heads, llm.hidden_size)
    scorers = {name: load_scorer(path, size) for name, path in files.items()}
    judges = {name: judge_of(scorer) for name, scorer in scorers.items()}
    write(options, [ask(vlm, judges, sample) for sample in questions(options)], scorers)


if __name__ == "__main__":
    main()
