"""Ask about a drawn picture and a drawn video, with all, half and a quarter of the vision tokens.

    python samples/demo.py BUNDLE OVERLAY.png

Copy from here: `load`, `ask` and `overlay` are all that a program needs. What was kept of the video
goes beside OVERLAY.png, as a sheet of its frames.
"""

import sys
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

import tokprune
from tokprune.scenes import film_suite, suite
from tokprune.types import Medium

BUDGETS = (1.0, 0.5, 0.25)
STAGES = ("preprocess", "vision", "first_layer", "scorer", "select", "prefill", "decode")


def main() -> None:
    """Run the demo."""
    bundle, target = Path(sys.argv[1]), Path(sys.argv[2])
    vlm = tokprune.load(bundle)
    console = Console()
    (drawn,) = suite("dev", 1, tokens=196, groups=("color",))
    (picture,) = drawn.pictures
    show(console, vlm, picture, drawn.question, drawn.answer, target)
    (film,) = film_suite("dev", 1, groups=("direction",))
    try:
        vlm.model.prepare(film.clip, film.question)
    except tokprune.RequestInvalid as error:
        console.print(f"\nNo video: {error}")
        return
    sheet = target.with_stem(f"{target.stem}-video")
    show(console, vlm, film.clip, film.question, film.answer, sheet)


def show(
    console: Console, vlm: tokprune.VLM, medium: Medium, question: str, right: str, target: Path
) -> None:
    """Ask, print answers and timings, and draw what was kept."""
    comparison(vlm, medium, question)  # the first runs of an engine are slower
    console.print(f"\nQuestion: [bold]{question}[/]  (drawn answer: {right})\n")
    console.print(comparison(vlm, medium, question))
    answer = vlm.ask(medium, question, budget=0.25)
    drawn = tokprune.overlay(medium, answer)
    height, width = drawn.shape[:2]
    larger = Image.fromarray(drawn).resize((2 * width, 2 * height), Image.Resampling.NEAREST)
    larger.save(target)
    console.print(f"\nThe {answer.kept} patches that the last answer was read from: {target}")


def comparison(vlm: tokprune.VLM, medium: Medium, question: str) -> Table:
    """Ask at three budgets, one column each."""
    answers = [vlm.ask(medium, question, budget=budget) for budget in BUDGETS]
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
