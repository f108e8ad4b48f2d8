"""`tokprune-eval`: ask, time, and write what came of it."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tokprune.errors import BackendUnavailable
from tokprune.files import atomic_write
from tokprune.types import Array
from tokprune.vlm import VLM
from tokprune_export.evaluation.adaptive import matched
from tokprune_export.evaluation.asking import answer_cells
from tokprune_export.evaluation.cells import AGREEMENT, SHUFFLED, Cell
from tokprune_export.evaluation.figures import Answered, Figures, Question, figures
from tokprune_export.evaluation.latency import measure, timed_cells
from tokprune_export.evaluation.opening import open_bundle
from tokprune_export.evaluation.options import EvaluateOptions, processes_of
from tokprune_export.evaluation.planning import Inquiry, fingerprint, plan_inquiry
from tokprune_export.evaluation.record import Record, Store
from tokprune_export.evaluation.rows import RUN, rows_of, write_rows
from tokprune_export.evaluation.running import Ask, Crew
from tokprune_export.evaluation.suites import Task, pairs, tasks
from tokprune_export.evaluation.tables import markdown
from tokprune_export.evaluation.turn_figures import turn_figures
from tokprune_export.evaluation.turns import answer_turns, turn_cells
from tokprune_export.progress import Counting

Results = dict[str, Any]


def evaluate(options: EvaluateOptions) -> Results:
    """Ask, and write results.

    Raises:
        RequestInvalid: an option makes no sense.
        BundleInvalid: the bundle is not as it was exported.
        BackendUnavailable: matplotlib is not installed.
        EvaluationBroken: a process died.
    """
    if find_spec("matplotlib") is None:
        raise BackendUnavailable("The plots need matplotlib: pip install matplotlib")
    vlm = open_bundle(options.bundle)
    inquiry = plan_inquiry(options, vlm)
    mark = fingerprint(inquiry)
    options.out.mkdir(parents=True, exist_ok=True)
    crew = Crew(inquiry.setup, processes_of(options))
    store = Store(options.out / f"samples-{mark}.jsonl")
    questions = _ask(inquiry, crew, store, ())
    first = questions[: inquiry.samples]
    chosen = [cell for cell in inquiry.cells if SHUFFLED not in cell.name]
    adaptive = matched([question.key for question in first], store.records, chosen)
    fixed = [
        cell
        for each in adaptive.values()
        for cell in inquiry.plan.cells([each["name"]], [each["equal_mean"], each["equal_p95"]])
    ]
    if fixed:
        _ask(inquiry, crew, store, fixed)
    results: Results = {
        **_facts(inquiry),
        "fingerprint": mark,
        "figures": _figures(inquiry, store, first, [*inquiry.cells, *fixed]),
        "more": _more(inquiry, store, questions),
        "adaptive": adaptive,
        "turns": _turns(inquiry, crew),
        "latency": _latency(inquiry, vlm, options.out / f"latency-{mark}.json"),
    }
    _write(options.out, results)
    return results


def _ask(inquiry: Inquiry, crew: Crew, store: Store, extra: Sequence[Cell]) -> list[Question]:
    """Ask what is missing; return all questions."""
    questions: list[Question] = []

    def noted(ask: Ask) -> Ask:
        questions.append(_question(ask.task))
        return ask

    with Counting("questions", inquiry.count) as counting:
        crew.answer(answer_cells, map(noted, inquiry.asks(extra)), store, counting)
    return questions


def _question(task: Task) -> Question:
    return Question(task.key, task.group, task.answer, task.dense, task.modality)


def _figures(
    inquiry: Inquiry, store: Store, questions: Sequence[Question], cells: Sequence[Cell]
) -> Figures:
    cells = list(dict.fromkeys(cells))
    answered = Answered(
        questions, store.records, [cell for cell in cells if cell.budget != AGREEMENT]
    )
    quality = {
        cell.name: _quality(cell, questions, store.records)
        for cell in cells
        if cell.budget == AGREEMENT
    }
    plan = inquiry.plan
    return figures(
        answered, quality, plan.ours, plan.training_free, labelled=inquiry.suite.labelled
    )


def _quality(
    cell: Cell, questions: Sequence[Question], records: Mapping[str, Record]
) -> Float[Array, "m 3"]:
    rows = [records[question.key].agreement[cell.key] for question in questions]
    return np.asarray([row or [np.nan] * 3 for row in rows])


def _more(inquiry: Inquiry, store: Store, questions: Sequence[Question]) -> Figures | None:
    """Return figures of the cells that were asked on most questions; None: all on the same."""
    if inquiry.count <= inquiry.samples:
        return None
    return _figures(inquiry, store, questions, inquiry.more_cells(inquiry.count - 1))


def _turns(inquiry: Inquiry, crew: Crew) -> Figures | None:
    """Run the two-turn test with ours and the default; None where it is not wanted."""
    if not inquiry.options.turns:
        return None
    plan = inquiry.plan
    names = [n for n in plan.selectors if n in plan.ours or n == plan.default]
    cells = turn_cells(names, inquiry.budgets)
    asked = list(pairs(inquiry.suite, inquiry.options.turns)) if names else []
    if not asked:
        why = "No two questions are about the same picture." if names else "None of ours was asked."
        return {"selectors": names, "figures": None, "losses": {}, "why": why}
    store = Store(inquiry.options.out / f"turns-{fingerprint(inquiry, 'turns.py')}.jsonl")
    with Counting("second turns", len(asked)) as counting:
        crew.answer(answer_turns, (Ask(task, cells) for task in asked), store, counting)
    questions = [_question(task) for task in asked]
    labelled = inquiry.suite.labelled
    return turn_figures(questions, store.records, cells, names, labelled=labelled)


def _latency(inquiry: Inquiry, vlm: VLM, path: Path) -> Results | None:
    """Time what was not timed before by the same command; None where it is not wanted."""
    count = min(inquiry.options.timed, inquiry.samples)
    if not count:
        return None
    plan = inquiry.plan
    cells = timed_cells(plan.selectors, plan.looked, inquiry.budgets, downsample=plan.downsample)
    chosen = list(islice(tasks(inquiry.suite, count), count))
    wanted = {
        "machine": machine(),
        "questions": count,
        "keys": [task.key for task in chosen],
        "asked": [cell.key for cell in cells],
    }
    known: Results = json.loads(path.read_bytes()) if path.exists() else {}
    if {name: known.get(name) for name in wanted} == wanted:
        return known
    with Counting("timed questions", count + 1) as counting:
        made = {**wanted, "cells": measure(vlm, chosen, cells, counting.advance)}
    atomic_write(path, json.dumps(made).encode())
    return made


def _facts(inquiry: Inquiry) -> Results:
    options, suite, plan = inquiry.options, inquiry.suite, inquiry.plan
    return {
        "bundle": options.bundle.resolve().name,
        "suite": suite.name,
        "split": suite.split,
        "tokens": suite.tokens,
        "frames": suite.frames,
        "samples": inquiry.samples,
        "labelled": suite.labelled,
        "budgets": list(inquiry.budgets),
        "selectors": list(plan.selectors),
        "default": plan.default,
        "ours": list(plan.ours),
        "skipped": inquiry.skipped,
        "max_new_tokens": options.max_new_tokens,
        "machine": machine(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "tokprune": _version(),
        "note": options.note,
    }


def _version() -> str:
    try:
        return version("tokprune")
    except PackageNotFoundError:
        return "not installed"


def machine() -> str:
    """Name the processor and its number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]}, {os.cpu_count()} cores, {platform.system()}"


def _write(out: Path, results: Results) -> None:
    from tokprune_export.evaluation.plots import by_group, over_kept, over_ttft

    atomic_write(out / "results.json", _json(results))
    write_rows(out / "rows.json", {name: results[name] for name in RUN}, rows_of(results))
    atomic_write(out / "results.md", markdown(results).encode())
    plots: dict[str, Callable[[Results], bytes | None]] = {
        "accuracy-kept.png": over_kept,
        "accuracy-ttft.png": over_ttft,
        "groups.png": by_group,
    }
    for name, plot in plots.items():
        data = plot(results)
        if data is not None:
            atomic_write(out / name, data)


def _json(results: Results) -> bytes:
    return (json.dumps(results, allow_nan=False) + "\n").encode()
