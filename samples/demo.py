"""Ask one question about one drawn picture, with all, half and a quarter of its vision tokens.

    python samples/demo.py BUNDLE OVERLAY.png

Copy from here: `load`, `ask` and `overlay` are all that a program needs.
"""

import sys
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

import tokprune
from tokprune.scenes import suite
from tokprune.types import Image as Picture

BUDGETS = (1.0, 0.5, 0.25)
STAGES = ("preprocess", "vision", "first_layer", "scorer", "select", "prefill", "decode")


def main() -> None:
    """Run the demo."""
    bundle, target = Path(sys.argv[1]), Path(sys.argv[2])
    (sample,) = suite("dev", 1, tokens=196, groups=("color",))
    (picture,) = sample.pictures
    vlm = tokprune.load(bundle)
    comparison(vlm, picture, sample.question)  # the first runs of an engine are slower
    console = Console()
    console.print(f"\nQuestion: [bold]{sample.question}[/]  (drawn answer: {sample.answer})\n")
    console.print(comparison(vlm, picture, sample.question))
    answer = vlm.ask(picture, sample.question, budget=0.25)
    drawn = tokprune.overlay(picture, answer)
    Image.fromarray(drawn).resize((784, 784), Image.Resampling.NEAREST).save(target)
    console.print(f"\nThe {answer.kept} patches that the last answer was read from: {target}")


def comparison(vlm: tokprune.VLM, picture: Picture, question: str) -> Table:
    """Ask at three budgets, one column each."""
    answers = [vlm.ask(picture, question, budget=budget) for budget in BUDGETS]
    table = Table("budget", *(f"{budget:.0%}" for budget in BUDGETS))
    table.add_row("answer", *(f"[bold]{answer.text}[/]" for answer in answers))
    table.add_row("kept/total", *(f"{answer.kept}/{answer.total}" for answer in answers))
    table.add_row(
        "selector", *("none: all kept" if a.kept == a.total else a.selector for a in answers)
    )
    for stage in STAGES:
        table.add_row(f"{stage} ms", *(f"{answer.timings_ms[stage]:.1f}" for answer in answers))
    table.add_row("TTFT ms", *(f"{answer.ttft_ms:.1f}" for answer in answers))
    return table


if __name__ == "__main__":
    main()
