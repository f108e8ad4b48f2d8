"""What `tokprune-eval` can be told."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from tokprune.budgets import (
    Auto,
    Budget,
    Deadline,
    KeepCount,
    KeepMass,
    KeepRatio,
    parse_budget,
)
from tokprune.errors import RequestInvalid
from tokprune.scenes import Split

ALL = "all"
WITHIN = ("encode ", "question ")  # behind a comma in names of rows: cells.py, encoding.py


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure what each selector and budget does to a bundle's answers, by type of question.

    Every question is asked with all vision tokens, and with those that each selector keeps at each
    budget. OUT gets results.md, results.json, rows.json and three plots. What was answered is kept
    there: a run that was stopped goes on, and one with more selectors, budgets or samples answers
    only what is missing.
    """

    bundle: tyro.conf.Positional[Path]
    """The folder that tokprune-export wrote."""
    suite: str
    """"scenes" (drawn pictures), "scenes-video" (drawn videos), "scenes-stream" (drawn streams of a
    camera, asked about at their last frame), or a file of your own: one JSON object a line, as
    docs/evaluation.md shows. Without answers in it, loyalty is reported: how often the answer is
    the unpruned one."""
    out: Path
    """Folder for the results."""
    split: Split | None = None
    """Of drawn scenes: choose settings on "dev" (the default). "test" is for the final run alone:
    whoever looks at it and then changes something has no test any more."""
    budgets: str = "1.0,0.5,0.33,0.25,0.22,0.11,0.05"
    """Shares (0.5) or counts (64) of kept vision tokens. Adaptive ones (mass:0.9, auto:300ms) are
    compared with fixed shares of the same mean and of the same p95."""
    selectors: str = ALL
    """Names, with commas; "all": each that the bundle can run. full is always asked."""
    samples: int = 500
    """Questions to ask."""
    more: tuple[str, ...] = ()
    """Some cells on more questions, as SAMPLES:BUDGETS:NAMES, such as
    2000:0.5,0.25,0.11:relevance-spread,uniform. Names are those of the tables' rows."""
    oracle: str | None = None
    """The checkpoint that the bundle was made from: adds the true relevance of each answer, and
    recall and rank correlation of scores. Needs torch."""
    scorer: tuple[Path, ...] = ()
    """Other scorer files for this checkpoint, compared with the bundle's own. Needs torch."""
    twins: bool = True
    """Whether each selector that reads the question has a twin that reads another question."""
    encode: str = ""
    """Ways to look at the pictures beside the whole ones, with commas, such as lazy,repeats,coarse:
    each gets a row with the bundle's own selector, or the first of --selectors that scores. Of
    streams also follow:8: all frames are asked about in turn, and the last answer counts."""
    turns: int = 200
    """Pairs of questions about one picture, asked one after the other; 0: none."""
    timed: int = 20
    """Questions whose time to first token is measured, one process alone; 0: none."""
    tokens: int | None = None
    """Vision tokens of a drawn picture or of a stream's frame (196 if not given), or of a video's
    (36)."""
    frames: int | None = None
    """Frames of a drawn video (8 if not given) or stream (12)."""
    max_new_tokens: int = 24
    """Where answers are cut off."""
    processes: int | None = None
    """Processes of one thread each; as many as there are cores if not given."""
    note: str = ""
    """What readers of the tables must know, such as how the checkpoint was trained."""


@dataclass(frozen=True)
class MergeOptions:
    """Join the rows of several runs of tokprune-eval into one file for programs."""

    out: tyro.conf.Positional[Path]
    """The file to write, such as docs/results/scenes.json."""
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """The --out folders of the runs."""


class More(NamedTuple):
    """Cells that are asked on more questions."""

    samples: int
    budgets: tuple[str, ...]
    names: tuple[str, ...]


def check(options: EvaluateOptions) -> None:
    """Refuse numbers that make no sense.

    Raises:
        RequestInvalid: says which.
    """
    for name, least in (("samples", 1), ("max_new_tokens", 1), ("turns", 0), ("timed", 0)):
        if getattr(options, name) < least:
            given = f"--{name.replace('_', '-')} {getattr(options, name)}"
            raise RequestInvalid(f"Got {given}: give {least} or more")
    if options.processes is not None and options.processes < 1:
        raise RequestInvalid(f"Got --processes {options.processes}: give 1 or more")


def budgets_of(text: str) -> tuple[str, ...]:
    """Split budgets at commas, each written in one way, none twice.

    Raises:
        RequestInvalid: one cannot be read.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise RequestInvalid("There are no budgets: give shares such as 0.5,0.25")
    return tuple(dict.fromkeys(spelled(parse_budget(part)) for part in parts))


def spelled(budget: Budget) -> str:
    """Return a budget as text that stands for it in files and tables."""
    match budget:
        case KeepRatio():
            return _decimal(budget.ratio)
        case KeepCount():
            return str(budget.count)
        case KeepMass():
            return f"mass:{_decimal(budget.p)}"
        case Deadline():
            return f"ttft:{_shortest(budget.ttft_ms)}ms"
        case Auto():
            return f"auto:{_shortest(budget.ttft_ms)}ms"


def _decimal(number: float) -> str:
    """Write a number with a decimal point, without an exponent and to its last digit."""
    return np.format_float_positional(number, trim="0")


def _shortest(number: float) -> str:
    """Write a number without an exponent, a whole one without a decimal point."""
    return np.format_float_positional(number, trim="-")


def is_fixed(budget: str) -> bool:
    """Tell shares and counts from budgets that look at the question or the clock."""
    return ":" not in budget


def is_timed(budget: str) -> bool:
    """Tell budgets that look at the clock."""
    return isinstance(parse_budget(budget), (Deadline, Auto))


def names_of(text: str) -> tuple[str, ...]:
    """Split names at commas, none twice.

    Raises:
        RequestInvalid: there are none.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise RequestInvalid('There are no selectors: give names with commas, or "all"')
    return names


def more_of(text: str) -> More:
    """Read SAMPLES:BUDGETS:NAMES.

    Raises:
        RequestInvalid: it is none.
    """
    # budgets and names may have colons of their own, behind which stands a number
    found = re.fullmatch(r"0*([1-9][0-9]*):(.+?):\s*([a-zA-Z].*)", text)
    if found is None:
        raise RequestInvalid(
            f"Cannot read --more {text!r:.100}: give SAMPLES:BUDGETS:NAMES, such as "
            "2000:0.5,0.25:relevance-spread,uniform"
        )
    count, budgets, names = found.groups()
    return More(int(count), budgets_of(budgets), _rows_of(names))


def _rows_of(text: str) -> tuple[str, ...]:
    """Split names of rows at commas, but not within one, such as "uniform, encode lazy"."""
    rows = list[str]()
    for part in filter(None, map(str.strip, text.split(","))):
        if rows and part.startswith(WITHIN):
            rows[-1] += f", {part}"
        else:
            rows.append(part)
    return tuple(dict.fromkeys(rows))


def processes_of(options: EvaluateOptions) -> int:
    """Return how many processes to run: all cores that this one may use, if not told."""
    if options.processes is not None:
        return options.processes
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
