"""What a VLM answers about the frame that the change gate gives, and about the one it replaces."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from change_pairs import SIGMAS, Camera, Room
from rich.progress import track

import tokprune
from tokprune.scenes.questions import MAKERS, ask
from tokprune.scenes.scene import make_scene
from tokprune.types import Array, Frame, FrameStamp
from tokprune.watching.gate import ChangeGate

GRIDS = ((10, 10), (14, 14), (12, 16))  # what the demo VLMs were trained on
COUNTS: tuple[str, ...] = ("asked", "passed for changed", "differ", "two new frames differ",
                           "right with the gate", "right without")  # fmt: skip


def asked(questions: int) -> Iterator[tuple[Room, str, str]]:
    """Yield scenes, each with a question and its answer; the kinds of question take turns."""
    chance, kinds = Random("change answers"), list(MAKERS)
    count = 0
    while count < questions:
        scene = make_scene(chance, *GRIDS[count % len(GRIDS)])
        made = ask(chance, scene, (kinds[count % len(kinds)],), 1)
        if made:
            yield Room(scene.size_hw, scene.things, scene.seed), made[0].text, made[0].answer
            count += 1


def ask_all(bundle: Path, questions: int) -> dict[str, Any]:
    """Ask about frames that show the same with other noise; count what differs."""
    camera, counts = Camera(2), dict.fromkeys(COUNTS, 0)
    with tokprune.load(bundle, backend="cpu") as vlm:
        for number, (room, question, right) in enumerate(track(list(asked(questions)))):
            clean = room.picture(room.things)
            sigma = SIGMAS[number % len(SIGMAS)]
            first, second, third = (camera.shot(clean, sigma) for _ in range(3))
            given = through(first, second)
            if given is second:
                counts["passed for changed"] += 1
                continue
            texts = [vlm.ask(shown, question).text for shown in (given, second, third)]
            counts["asked"] += 1
            counts["differ"] += texts[0] != texts[1]
            counts["two new frames differ"] += texts[1] != texts[2]
            counts["right with the gate"] += texts[0] == right
            counts["right without"] += texts[1] == right
    return counts


def through(before: Array, now: Array) -> Array:
    """Return the pixels that the gate gives for a second frame."""
    gate = ChangeGate()
    shown = [
        gate.through(Frame(image, FrameStamp("drawn", number, 0.0, 0.0)))
        for number, image in enumerate((before, now))
    ]
    return shown[-1].image
