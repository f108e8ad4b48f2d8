"""Drawn pictures and videos with questions: demo data, and suites that need no download."""

from tokprune.scenes.data_file import write
from tokprune.scenes.drawing import draw
from tokprune.scenes.film_suite import FILM_GROUPS, FilmSample, film_suite
from tokprune.scenes.page_questions import ask_page, describe_page
from tokprune.scenes.pages import Chart, Form, Page, make_page
from tokprune.scenes.questions import Question, ask, compare, describe, in_picture
from tokprune.scenes.scene import Scene, Thing, make_scene
from tokprune.scenes.streams import (
    STREAM_GROUPS,
    StreamSample,
    noisy,
    slowly,
    stream_suite,
)
from tokprune.scenes.suite import GROUPS, Sample, Split, make_companion, suite

__all__ = [
    "FILM_GROUPS",
    "GROUPS",
    "STREAM_GROUPS",
    "Chart",
    "FilmSample",
    "Form",
    "Page",
    "Question",
    "Sample",
    "Scene",
    "Split",
    "StreamSample",
    "Thing",
    "ask",
    "ask_page",
    "compare",
    "describe",
    "describe_page",
    "draw",
    "film_suite",
    "in_picture",
    "make_companion",
    "make_page",
    "make_scene",
    "noisy",
    "slowly",
    "stream_suite",
    "suite",
    "write",
]
