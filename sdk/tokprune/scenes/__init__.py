"""Drawn pictures with questions: demo data, and a suite that needs no download."""

from tokprune.scenes.drawing import draw
from tokprune.scenes.questions import Question, ask, compare, describe, in_picture
from tokprune.scenes.scene import Scene, Thing, make_scene
from tokprune.scenes.suite import GROUPS, Sample, Split, make_companion, suite, write

__all__ = [
    "GROUPS",
    "Question",
    "Sample",
    "Scene",
    "Split",
    "Thing",
    "ask",
    "compare",
    "describe",
    "draw",
    "in_picture",
    "make_companion",
    "make_scene",
    "suite",
    "write",
]
