"""Ask many questions about one picture: its vision tokens are chosen once, and stay in the LLM.

    python samples/many_questions.py BUNDLE PICTURE QUESTION [QUESTION ...] [--budget B]

The first question pays for the picture; later ones run their own words alone. Beside it stands what
choosing the tokens anew for every question answers, and costs.
"""

import sys
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

import tokprune


def ask_all(
    bundle: Path, picture: Path, questions: tuple[str, ...], /, budget: float = 0.5
) -> None:
    """Ask several questions about one picture.

    Args:
        bundle: the folder that tokprune-export wrote.
        picture: a JPEG, PNG or WebP file.
        questions: one or more.
        budget: share of the picture's vision tokens that is kept, for all questions.
    """
    table = Table("question", "pinned", "first token", "rows run", "chosen anew", "first token")
    with tokprune.load(bundle, warmup=[budget]) as vlm:
        # A share or a count can be pinned; relevance and time depend on the question.
        view = vlm.pin(picture, budget=budget)
        for question in questions:
            pinned, anew = view.ask(question), vlm.ask(picture, question, budget)
            table.add_row(
                question,
                pinned.text,
                f"{pinned.ttft_ms:.0f} ms",
                f"{pinned.prompt_tokens - pinned.reused} of {pinned.prompt_tokens}",
                anew.text,
                f"{anew.ttft_ms:.0f} ms",
            )
    Console().print(table)


if __name__ == "__main__":
    try:
        tyro.cli(ask_all)
    except tokprune.TokpruneError as error:
        sys.exit(f"{error.code}: {error}")
