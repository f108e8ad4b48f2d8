"""What pruning does to answers: every selector at every budget, on the same questions.

    python -m tokprune_export.evaluate BUNDLE --split dev --tokens 196 --samples 500 --out DIR
    python -m tokprune_export.evaluate BUNDLE --split dev --tokens 64 --frames 8 --out DIR
    python -m tokprune_export.evaluate BUNDLE --data PICTURES_AND_VIDEOS.jsonl --out DIR

Vision encoder and first layer run once a question; a broken run goes on where it was.
"""

import hashlib
import json
import multiprocessing
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

import msgspec
import tyro

import tokprune
from tokprune import canvas, selection, selectors
from tokprune.errors import RequestInvalid, TokpruneError
from tokprune.files import atomic_write, sha256_file
from tokprune.scenes import Split, film_suite, suite
from tokprune.scenes.suite import grid_of
from tokprune.vlm import VLM
from tokprune_export.answer_cells import (
    Record,
    Setup,
    Task,
    answer_cells,
    opened,
    own_scores,
    prepare,
)
from tokprune_export.checkpoint import open_checkpoint
from tokprune_export.errors import placed
from tokprune_export.evaluation_report import Results, summarise
from tokprune_export.evaluation_tables import markdown, plot
from tokprune_export.examples import Example, read_examples
from tokprune_export.exits import guarded
from tokprune_export.labels import sample_name
from tokprune_export.progress import Counting
from tokprune_export.records import tokprune_version
from tokprune_export.teacher import fingerprint

WAITING = 3  # tasks a process has in store


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure what each selector does to a bundle's answers, by type of question."""

    bundle: tyro.conf.Positional[Path]
    """The folder that tokprune-export wrote."""
    out: Path
    """Folder for results.json, results.md, accuracy.png and samples-*.jsonl."""
    split: Split = "dev"
    """Drawn scenes: choose settings on "dev", report on "test"."""
    tokens: int = 196
    """Vision tokens of a drawn picture, or of a frame: squares of 28 pixels, as Qwen2-VL has
    them."""
    frames: int | None = None
    """Ask about drawn videos of so many frames, and not about pictures."""
    samples: int = 500
    """Questions to ask."""
    data: Path | None = None
    """Ask these questions about pictures and videos (JSON lines, as tokprune-train reads them) and
    no drawn scenes."""
    paper_scorer: Path | None = None
    """Another scorer file for this checkpoint, compared with the bundle's own."""
    oracle: str | None = None
    """The checkpoint that the bundle was made from: adds the true relevance."""
    processes: int = 1
    """Processes of one thread each."""
    note: str = ""
    """What readers of the tables must know, such as how the checkpoint was trained."""


class EvaluationBroken(TokpruneError):
    """The evaluation stopped half way; what is done is kept."""

    code = "evaluation_broken"


def main() -> None:
    """Run the evaluation. Exit 2 with one line where the request cannot be met."""
    options = tyro.cli(EvaluateOptions, prog="tokprune-eval")
    sys.exit(guarded("tokprune-eval", lambda: run(options)))


def run(options: EvaluateOptions) -> None:
    """Ask, and write results.

    Raises:
        RequestInvalid: an option makes no sense.
        BundleInvalid: the bundle is not as it was exported.
    """
    if options.samples < 1 or options.processes < 1:
        raise RequestInvalid("--samples and --processes take 1 or more")
    if options.data is not None and options.frames is not None:
        raise RequestInvalid("--frames is about drawn videos, and --data brings its own: give one")
    setup = Setup(
        bundle=options.bundle,
        scorers=() if options.paper_scorer is None else (options.paper_scorer,),
        oracle=options.oracle,
    )
    vlm, examples = opened(setup).vlm, _examples(options)
    _check_video(vlm, options, examples)
    mark = _fingerprint(options, examples)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"samples-{mark[:12]}.jsonl"
    records = {record.key: record for record in _read(path)}
    wanted = [task.key for task in tasks(options, examples)]
    with path.open("a") as file, Counting("questions", len(wanted)) as counting:
        counting.advance(sum(key in records for key in wanted))
        todo = (task for task in tasks(options, examples) if task.key not in records)
        try:
            for record in _answered(setup, todo, options.processes):
                file.write(msgspec.json.encode(record).decode() + "\n")
                file.flush()
                records[record.key] = record
                counting.advance()
        except BrokenProcessPool:
            raise EvaluationBroken(
                "A process died, for lack of memory perhaps. Run the same command again, with "
                "fewer --processes: it goes on where it was"
            ) from None
    own = own_scores(vlm)
    facts = {**_facts(options), "fingerprint": mark, "scorer": own}
    _write(options.out, summarise([records[key] for key in wanted], setup.shares, own, facts))


def _write(out: Path, results: Results) -> None:
    atomic_write(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    atomic_write(out / "results.md", markdown(results).encode())
    atomic_write(out / "accuracy.png", plot(results))
    print(markdown(results))  # noqa: T201 # the command's output


def _check_video(vlm: VLM, options: EvaluateOptions, examples: Sequence[Example]) -> None:
    """Let a bundle that takes no video say so now, and not after hours."""
    asked = tasks(options, examples) if examples else ()  # drawn ones come first anyway
    for task in (task for task in asked if task.modality == "video"):
        with placed(task.key):
            prepare(vlm, task)
        return


def tasks(options: EvaluateOptions, examples: Sequence[Example] = ()) -> Iterator[Task]:
    """Yield the questions, each with the next one's words for its shuffled twin.

    Args:
        options: what to ask.
        examples: what stands in its `data`, if that was read already.
    """
    given = islice(_given(options, examples), options.samples)
    first = last = next(given, None)
    if first is None or last is None:
        raise RequestInvalid("There are no questions to ask")
    for task in given:
        yield replace(last, other_question=task.question)
        last = task
    yield replace(last, other_question=first.question)


def _examples(options: EvaluateOptions) -> list[Example]:
    return [] if options.data is None else read_examples(options.data, options.samples)


def _given(options: EvaluateOptions, examples: Sequence[Example]) -> Iterator[Task]:
    if options.data is not None:
        for one in examples or _examples(options):
            key = f"{options.data.name}, line {one.line}"
            yield Task(key, one.media, one.question, one.answer, one.group or "all")
    elif options.frames is None:
        for drawn in suite(options.split, options.samples, tokens=options.tokens):
            yield Task(drawn.key, drawn.pictures, drawn.question, drawn.answer, drawn.group)
    else:
        grid = grid_of(options.tokens)
        for film in film_suite(options.split, options.samples, grid=grid, frames=options.frames):
            yield Task(film.key, (film.clip,), film.question, film.answer, film.group)


def _answered(setup: Setup, todo: Iterable[Task], processes: int) -> Iterator[Record]:
    """Yield records as they come; few tasks are in memory at once."""
    if processes == 1:
        yield from (answer_cells(setup, task) for task in todo)
        return
    # Forked engines would share thread pools that are not there: start afresh.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        running: set[Future[Record]] = set()
        for task in todo:
            running.add(pool.submit(answer_cells, setup, task))
            if len(running) >= processes * WAITING:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in running)


def _read(path: Path) -> list[Record]:
    """Read what an earlier run left, and drop a last line that was cut off."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        atomic_write(path, whole)
    return [msgspec.json.decode(line, type=Record) for line in whole.splitlines()]


def _fingerprint(options: EvaluateOptions, examples: Sequence[Example]) -> str:
    """Hash what decides an answer: bundle, scorer, checkpoint, data, and the code that selects."""
    digest = hashlib.sha256(sha256_file(options.bundle / "manifest.json").encode())
    for path in (options.paper_scorer, options.data):
        digest.update(b"-" if path is None else sha256_file(path).encode())
    checkpoint = None if options.oracle is None else open_checkpoint(options.oracle)
    digest.update(b"-" if checkpoint is None else fingerprint(checkpoint).encode())
    digest.update(f"{options.split} {options.tokens} {options.frames}".encode())
    digest.update(" ".join(map(sample_name, examples)).encode())
    folder = Path(tokprune.__file__).parent
    sources = [Path(str(module.__file__)) for module in (canvas, selection)]
    sources += [Path(__file__).with_name("answer_cells.py")]
    for package in (Path(str(selectors.__file__)).parent, folder / "scenes"):
        sources += sorted(package.glob("*.py"))
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _facts(options: EvaluateOptions) -> dict[str, str | int]:
    return {
        "bundle": options.bundle.name,
        "questions": _questions(options),
        "picture_tokens": options.tokens if options.data is None else "as given",
        "machine": f"{platform.machine()}, {platform.system()}",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "tokprune": tokprune_version(),
        "note": options.note,
    }


def _questions(options: EvaluateOptions) -> str:
    if options.data is not None:
        return options.data.name
    films = "" if options.frames is None else f", videos of {options.frames} frames"
    return f"{options.split} split{films}"


if __name__ == "__main__":
    main()
