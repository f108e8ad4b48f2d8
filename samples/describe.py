"""Describe a picture in the model's own words, and draw what the description was read from.

    python samples/describe.py BUNDLE PICTURE [--question Q] [--budget B] [--overlay OUT.png]

Words appear as they are written. `python samples/describe.py --help` says the rest.
"""

import sys
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

import tokprune
from tokprune.budgets import parse_budget


def describe(
    bundle: Path,
    picture: Path,
    /,
    question: str = "describe the image.",
    budget: str = "0.5",
    max_new_tokens: int = 128,
    overlay: Path | None = None,
) -> None:
    """Describe a picture.

    Args:
        bundle: the folder that tokprune-export wrote.
        picture: a JPEG, PNG or WebP file.
        question: what the model is told to do.
        budget: vision tokens that may enter the LLM, such as 0.5, 128 or mass:0.9.
        max_new_tokens: bound of the description's length.
        overlay: write a picture of the kept patches here (PNG).
    """
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    with tokprune.load(bundle) as vlm:
        stream = vlm.stream(pixels, question, parse_budget(budget), max_new_tokens=max_new_tokens)
        for piece in stream:
            print(piece, end="", flush=True)
        answer = stream.answer
    print(f"\n\n{answer.kept} of {answer.total} vision tokens, chosen by {answer.selector}")
    print(f"first token after {answer.ttft_ms:.0f} ms; ended by {answer.finish_reason!r}")
    if overlay is not None:
        Image.fromarray(tokprune.overlay(pixels, answer)).save(overlay)
        print(f"The patches that it was read from: {overlay}")


if __name__ == "__main__":
    try:
        tyro.cli(describe)
    except tokprune.TokpruneError as error:
        sys.exit(f"{error.code}: {error}")
