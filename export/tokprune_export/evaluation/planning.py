"""What is asked of which question, checked before anything is asked."""

import ast
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

import tokprune
from tokprune.errors import NotCalibrated, RequestInvalid
from tokprune.files import sha256_file
from tokprune.timing.latency import open_latency
from tokprune.vlm import VLM
from tokprune_export.errors import placed
from tokprune_export.evaluation.cells import DOWNSAMPLE, ORACLE, Cell, Plan, ScorerFile
from tokprune_export.evaluation.encoding import ways_of
from tokprune_export.evaluation.methods import chosen
from tokprune_export.evaluation.opening import THREADS, Setup
from tokprune_export.evaluation.options import (
    ALL,
    EvaluateOptions,
    More,
    budgets_of,
    check,
    is_timed,
    more_of,
    names_of,
)
from tokprune_export.evaluation.running import Ask
from tokprune_export.evaluation.suites import Suite, Task, open_suite, tasks
from tokprune_export.media import load

# What decides an answer, beside the bundle and the questions: the code that selects and lays out.
SOURCES = (
    *("budgets.py", "canvas.py", "selection.py", "allocation.py", "prompting.py"),
    *("timing/plans.py", "selectors/*.py", "scenes/*.py", "families/*.py", "looking/*.py"),
)
OWN_SOURCES = ("asking.py", "downsampling.py", "encoding.py", "opening.py", "suites.py")


@dataclass(frozen=True)
class Inquiry:
    """A checked evaluation."""

    options: EvaluateOptions
    suite: Suite
    plan: Plan
    budgets: tuple[str, ...]
    more: tuple[More, ...]
    setup: Setup
    skipped: dict[str, str]  # selectors that this bundle cannot run, and why

    @property
    def count(self) -> int:
        """Questions in all."""
        most = max([self.options.samples, *(more.samples for more in self.more)])
        return min(most, len(self.suite.examples)) if self.suite.examples else most

    @property
    def samples(self) -> int:
        """Questions that every cell is asked."""
        return min(self.options.samples, self.count)

    @property
    def cells(self) -> list[Cell]:
        """Return what is asked of each of these."""
        return self.plan.cells(self.plan.names, self.budgets)

    def more_cells(self, number: int) -> list[Cell]:
        """Return what is asked beside that of question `number`."""
        asked = [more for more in self.more if number < more.samples]
        cells = (self.plan.cells(more.names, more.budgets) for more in asked)
        return list(dict.fromkeys(cell for each in cells for cell in each))

    def asks(self, extra: Sequence[Cell] = ()) -> Iterator[Ask]:
        """Yield every question with its cells.

        Args:
            extra: cells beside those of the options.
        """
        base = [*self.cells, *extra]
        for number, task in enumerate(tasks(self.suite, self.count)):
            cells = base if number < self.samples else []
            yield Ask(task, list(dict.fromkeys([*cells, *self.more_cells(number)])))


def plan_inquiry(options: EvaluateOptions, vlm: VLM) -> Inquiry:
    """Check options, bundle and questions against each other.

    Raises:
        RequestInvalid: an option makes no sense, or the bundle cannot do what is asked for.
        NotCalibrated: a budget in time, on a device that was not measured.
    """
    check(options)
    budgets = budgets_of(options.budgets)
    more = tuple(more_of(text) for text in options.more)
    most = max([options.samples, *(each.samples for each in more)])
    suite = open_suite(options.suite, options.split, options.tokens, options.frames, most)
    device = _device(vlm, [*budgets, *(b for each in more for b in each.budgets)])
    files = _scorer_files(options.scorer, vlm)
    plan, skipped = _plan(options, vlm, suite, files)
    plan = replace(plan, device=device)
    for each in more:
        unknown = [name for name in each.names if name not in plan.names]
        if unknown:
            raise RequestInvalid(
                f"--more has {unknown[0]!r}, which is not asked: it takes names of "
                f"{', '.join(plan.names)}"
            )
    setup = Setup(options.bundle, options.oracle, files, options.max_new_tokens)
    _check_first(vlm, next(iter(tasks(suite, 1))))
    return Inquiry(options, suite, plan, budgets, more, setup, skipped)


def _plan(
    options: EvaluateOptions, vlm: VLM, suite: Suite, files: tuple[ScorerFile, ...]
) -> tuple[Plan, dict[str, str]]:
    asked = None if options.selectors == ALL else names_of(options.selectors)
    oracle = ""
    if asked is not None and ORACLE in asked and options.oracle is None:
        raise RequestInvalid(f"--selectors has {ORACLE!r}: give --oracle CHECKPOINT too")
    if options.oracle is not None:
        from tokprune_export.evaluation.truth import digest_of

        oracle = digest_of(options.oracle)[:12]
    table = asked and [name for name in asked if name not in (DOWNSAMPLE, ORACLE, "full")]
    selectors, skipped = chosen(table, vlm.model, suite.modalities)
    plan = Plan(
        selectors,
        vlm.bundle.manifest.default_selector,
        files,
        oracle,
        asked is None or DOWNSAMPLE in asked,
        options.twins,
        ways_of(options.encode, streams=suite.streams),
    )
    return plan, skipped


def _scorer_files(paths: Sequence[Path], vlm: VLM) -> tuple[ScorerFile, ...]:
    """Name scorer files for tables, and see that they fit."""
    if not paths:
        return ()
    from tokprune_export.evaluation.truth import open_truth
    from tokprune_export.scorers import Size

    labels = [path.stem for path in paths]
    if len(set(labels)) < len(labels):  # runs of one program differ in their folder
        labels = [f"{path.parent.name}/{path.stem}" for path in paths]
    if len(set(labels)) < len(labels):
        raise RequestInvalid("--scorer has files of one name in folders of one name: rename one")
    given = zip(paths, labels, strict=True)
    files = tuple(ScorerFile(str(path), label, "") for path, label in given)
    llm = vlm.bundle.manifest.llm
    open_truth(None, files, Size(llm.heads, llm.hidden_size))
    return tuple(
        ScorerFile(file.path, file.label, sha256_file(Path(file.path))[:12]) for file in files
    )


def _device(vlm: VLM, budgets: Sequence[str]) -> str:
    """Hash how fast this device was measured to be; "" where no budget looks at the clock."""
    timed = [each for each in budgets if is_timed(each)]
    if not timed:
        return ""
    calibration = open_latency(vlm.bundle, "cpu", THREADS).calibration
    if calibration is None:
        raise NotCalibrated(
            f"The budget {timed[0]} needs to know how fast this device is: run `tokprune calibrate "
            f"{vlm.bundle.path} --backend cpu --threads {THREADS}`"
        )
    return hashlib.sha256(msgspec.json.encode(calibration)).hexdigest()[:12]


def _check_first(vlm: VLM, task: Task) -> None:
    """Let a bundle that takes no video say so now, and not after hours."""
    with placed(task.place):
        vlm.model.prepare([load(medium) for medium in task.media], task.question)


def fingerprint(inquiry: Inquiry, *modules: str) -> str:
    """Hash what decides the answers that are kept: where it is another, all is asked again.

    Args:
        inquiry: what is asked.
        modules: files of this package that decide too.
    """
    suite = inquiry.suite
    digest = hashlib.sha256(sha256_file(inquiry.options.bundle / "manifest.json").encode())
    drawn = (
        "file" if suite.examples else f"{suite.name} {suite.split} {suite.tokens} {suite.frames}"
    )
    digest.update(f"{drawn} {inquiry.setup.max_new_tokens}".encode())
    folder = Path(tokprune.__file__).parent
    paths = [path for pattern in SOURCES for path in sorted(folder.glob(pattern))]
    paths += [Path(__file__).with_name(name) for name in (*OWN_SOURCES, *modules)]
    for path in paths:  # comments and layout decide nothing
        digest.update(ast.dump(ast.parse(path.read_bytes())).encode())
    return digest.hexdigest()[:12]
