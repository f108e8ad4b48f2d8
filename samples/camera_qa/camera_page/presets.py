"""Ready questions. Those on drawn scenes come first where a camera shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

Preset = tuple[str, tuple[str, ...]]  # question, choices

SCENES: tuple[Preset, ...] = (
    ("how many shapes are there?", ()),
    ("how many circles are there?", ()),
    ("what color is the star?", ()),
    ("is there a red square?", ("yes", "no")),
    ("what shape is blue?", ()),
    ("is the triangle large or small?", ("large", "small")),
)
ROBOTS: tuple[Preset, ...] = (
    ("Is the way ahead clear?", ("yes", "no")),
    ("Is there a person in the picture?", ("yes", "no")),
    ("Is the gripper holding something?", ("yes", "no")),
    ("Is the door open or closed?", ("open", "closed")),
    ("Is there smoke, fire or water on the floor?", ("yes", "no")),
    ("What is the largest obstacle, and on which side is it?", ()),
    ("What does the display or the sign say?", ()),
    ("Describe what you see in one sentence.", ()),
)


def first_question(*, drawn: bool) -> str:
    """Return what is asked before anybody has said anything."""
    return SCENES[0][0] if drawn else ROBOTS[-1][0]


def presets(*, drawn: bool) -> Sequence[Mapping[str, Any]]:
    """Return the groups as the page shows them."""
    groups = [("For robots", ROBOTS)]
    if drawn:
        groups.insert(0, ("For drawn scenes", SCENES))
    return [
        {
            "group": name,
            "items": [{"question": question, "choices": choices} for question, choices in items],
        }
        for name, items in groups
    ]
