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
from tokprune.vlm import VLM

STAGES = ("preprocess", "vision", "first_layer", "scorer", "select", "prefill", "decode")


def main() -> None:
    """Run the demo."""
    bundle, target = Path(sys.argv[1]), Path(sys.argv[2])
    (sample,) = suite("dev", 1, tokens=196, groups=("color",))
    (picture,) = sample.pictures
    vlm = tokprune.load(bundle)
    vlm.ask(picture, sample.question, budget=0.9)  # the first run of an engine is slower
    console = Console()
    console.print(f"\nQuestion: [bold]{sample.question}[/]  (drawn answer: {sample.answer})\n")
    console.print(comparison(vlm, picture, sample.question))
    answer = vlm.ask(picture, sample.question, budget=0.25)
    drawn = tokprune.overlay(picture, answer)
    Image.fromarray(drawn).resize((784, 784), Image.Resampling.NEAREST).save(target)
    console.print(f"\nThe {answer.kept} patches that the last answer was read from: {target}")


def comparison(vlm: VLM, picture: tokprune.types.Image, question: str) -> Table:
    """Ask at three budgets."""
    table = Table("budget", "answer", "kept/total", "TTFT ms", *(f"{stage} ms" for stage in STAGES))
    for budget in (1.0, 0.5, 0.25):
        answer = vlm.ask(picture, question, budget=budget)
        times = [f"{answer.timings_ms[stage]:.1f}" for stage in STAGES]
        kept = f"{answer.kept}/{answer.total}"
        table.add_row(f"{budget:.0%}", answer.text, kept, f"{answer.ttft_ms:.1f}", *times)
    return table


if __name__ == "__main__":
    main()
