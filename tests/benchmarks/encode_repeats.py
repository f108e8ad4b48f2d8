"""Pixels that repeat: how much need not be encoded, how far off tokens are, what answers lose.

    python tests/benchmarks/encode_repeats.py BUNDLE

writes docs/results/encode-repeats.json and encode-repeats.md, for a bundle of the demo Qwen2-VL:
pages of the test split as a screen shows them, flat, and the same with a camera's noise.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import numpy as np
import tyro
from machine import RESULTS, machine
from rich.console import Console
from rich.progress import track

import tokprune
from tokprune.budgets import KeepRatio
from tokprune.looking import Asked
from tokprune.looking.repeats import Repeats
from tokprune.scenes import painting, suite
from tokprune.scenes.suite import Sample
from tokprune.vlm import VLM

TAUS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
BUDGETS = (1.0, 0.25)
SHOWN = {"screens": 0.0, "with a camera's noise": 3.0}  # standard deviation, in grey levels


@dataclass(frozen=True)
class Options:
    """Ask about pages, with ever more of them left out."""

    bundle: tyro.conf.Positional[Path]
    questions: int = 200
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS


def pages(count: int, noise: float) -> Iterator[Sample]:
    """Draw pages of the test split with noise of one strength."""
    steady = partial(painting.draw_noise, strength=noise)
    with patch("tokprune.scenes.drawing.draw_noise", steady):
        yield from suite("test", count, tokens=196, groups=("document",))


def token_error(vlm: VLM, sample: Sample, tau: float) -> tuple[float, float]:
    """Return the share of the tokens that is encoded, and how far tokens are off.

    That is |ours - full| / |full|, all vision tokens of the picture as one vector.
    """
    prompt, media = vlm.model.prepare(list(sample.pictures), sample.question)
    asked = Asked(prompt, media, KeepRatio(1.0))
    look = Repeats(vlm.model.processor.ways.cut, tau).first(asked)
    ours, full = (vlm.model.vision(shown).embeds for shown in (look.media, media))
    return look.encoded / asked.total, float(np.linalg.norm(ours - full) / np.linalg.norm(full))


def measure(options: Options) -> Iterator[dict[str, Any]]:
    """Yield a row for each kind of page and each tau; the first is the full look."""
    with tokprune.load(options.bundle, backend="cpu", threads=1) as vlm:
        for kind, noise in SHOWN.items():
            samples = list(pages(options.questions, noise))
            for tau in (None, *TAUS):
                way = "full" if tau is None else f"repeats:{tau:g}"
                shown = track(samples, description=f"{kind}, {way}")
                right: dict[float, list[bool]] = {budget: [] for budget in BUDGETS}
                seen: list[tuple[float, float]] = []
                for sample in shown:
                    seen.append((1.0, 0.0) if tau is None else token_error(vlm, sample, tau))
                    for budget in BUDGETS:
                        answer = vlm.ask(list(sample.pictures), sample.question, budget, encode=way)
                        right[budget].append(answer.text == sample.answer)
                yield {
                    "shown": kind,
                    "tau": tau,
                    "encoded": mean(share for share, _ in seen),
                    "token_error": mean(error for _, error in seen),
                    "right": {f"{budget:g}": mean(map(int, right[budget])) for budget in BUDGETS},
                }


def markdown(result: dict[str, Any]) -> str:
    """Return the table."""
    lines = [
        "# Pixels that repeat",
        "",
        f"{result['questions']} questions of the test split about drawn forms and charts of 196 "
        "vision tokens, as a screen shows them and with a camera's noise (3 grey levels). "
        "`tau` is on the scale of the encoder's pixels: 0.015 is about a grey level. Token error: "
        "|ours - full| / |full| of all vision tokens. Demo Qwen2-VL, which reads a third of such "
        f"pages rightly; {result['processor']}, {result['date']}. {result['note']}".strip(),
        "",
        "| | tau | encoded | token error | right, all kept | right, 25 % kept |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        tau = "full look" if row["tau"] is None else f"{row['tau']:g}"
        cells = [f"{row['right'][f'{budget:g}']:.1%}" for budget in BUDGETS]
        lines.append(
            f"| {row['shown']} | {tau} | {row['encoded']:.0%} | {row['token_error']:.3f} | "
            f"{' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options)
    rows = list(measure(options))
    told = {"note": options.note, "questions": options.questions}
    result = {**machine("onnxruntime", "numpy"), **told, "rows": rows}
    path = options.output / "encode-repeats.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(result))
    Console().print(markdown(result), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
