"""Ask the same question about the frames of a video, one JSON object a line.

    python samples/video_to_jsonl.py BUNDLE VIDEO OUT.jsonl [--question Q] [--every-s 1.0]

A run that was stopped goes on behind its last whole line. Needs `pip install 'tokprune[camera]'`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import tyro

import tokprune
from tokprune.budgets import parse_budget


def resume(out: Path, asked: dict[str, Any]) -> float | None:
    """Cut off half a line, and return the time in the video that the last whole one is of."""
    if not out.exists():
        return None
    text = out.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        out.write_bytes(whole)
    if not whole:
        return None
    last = json.loads(whole.splitlines()[-1])
    if (before := {name: last[name] for name in asked}) != asked:
        sys.exit(f"{out} has answers to {before}, not to {asked}: choose another file")
    return last["at_s"]


def write(
    bundle: Path,
    video: Path,
    out: Path,
    /,
    question: str = "describe the image.",
    every_s: float = 0.0,
    budget: str = "0.5",
    max_new_tokens: int = 64,
) -> None:
    """Ask about the frames of a video.

    Args:
        bundle: the folder that tokprune-export wrote.
        video: a file.
        out: the lines; those that are there already are kept.
        question: asked about every frame.
        every_s: at most one frame in so many seconds of the video; 0: every frame.
        budget: vision tokens that may enter the LLM.
        max_new_tokens: bound of each answer's length.
    """
    asked = {"video": video.name, "question": question, "budget": budget, "every_s": every_s}
    last_s = resume(out, asked)
    with tokprune.load(bundle) as vlm, tokprune.open_camera(video) as camera, out.open("a") as file:
        for frame in camera:  # every frame of a file, in order; none waits in memory
            at_s = frame.stamp.media_s or 0.0
            if last_s is not None and (at_s <= last_s or at_s < last_s + every_s - 1e-6):
                continue
            last_s = at_s
            answer = vlm.ask(frame, question, parse_budget(budget), max_new_tokens=max_new_tokens)
            line = {
                **asked, "at_s": at_s, "frame": frame.stamp.number, "answer": answer.text,
                "finish_reason": answer.finish_reason, "kept": answer.kept, "total": answer.total,
                "ms": round(sum(answer.timings_ms.values()), 1),
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
            file.flush()  # what is answered stays answered
            print(f"{at_s:8.2f} s  {answer.text}", flush=True)


if __name__ == "__main__":
    try:
        tyro.cli(write)
    except tokprune.TokpruneError as error:
        sys.exit(f"{error.code}: {error}")
