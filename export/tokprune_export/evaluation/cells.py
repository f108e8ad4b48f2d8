"""The cells of the tables: names, budgets, and what each answer depends on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokprune.selectors import LEARNED, SELECTORS
from tokprune_export.evaluation.encoding import row_of, rows_of
from tokprune_export.evaluation.options import is_fixed, is_timed

FULL, RANDOM, DOWNSAMPLE, ORACLE = "full", "random", "downsample", "oracle"
SEEDS = (0, 1, 2)
SHUFFLED = ", question shuffled"
UNPRUNED = "1.0"
AGREEMENT = "agreement"  # stands for a budget: how far scores agree with the oracle


class Cell(NamedTuple):
    """One answer to each question."""

    name: str
    budget: str
    digest: str = ""  # of what the answer depends on beside the bundle

    @property
    def key(self) -> str:
        """Where it is kept."""
        return f"{self.name}@{self.budget}" + (f"#{self.digest}" if self.digest else "")


WITHOUT_PRUNING = Cell(FULL, UNPRUNED)


@dataclass(frozen=True)
class ScorerFile:
    """A scorer that is not in the bundle."""

    path: str
    label: str  # how tables call it
    digest: str


@dataclass(frozen=True)
class Plan:
    """What is asked of every question."""

    selectors: tuple[str, ...]  # of the table, in its order
    default: str  # the bundle's own
    scorers: tuple[ScorerFile, ...] = ()
    oracle: str = ""  # digest of the checkpoint; "": none
    downsample: bool = True
    twins: bool = True
    ways: tuple[str, ...] = ()  # to look at the pictures, beside the whole ones
    device: str = ""  # digest of how fast it was measured to be, where a budget looks at the clock

    @property
    def looked(self) -> tuple[str, ...]:
        """Return the rows that look at the pictures in another way."""
        return rows_of(self.selectors, self.default, self.ways)

    @property
    def others(self) -> tuple[tuple[str, str], ...]:
        """Return cells with scorers that are not in the bundle: name, and its file's digest."""
        names = ("relevance", self.default if self.default in LEARNED else "relevance")
        return tuple(
            (f"{name} ({scorer.label})", scorer.digest)
            for scorer in self.scorers
            for name in dict.fromkeys(names)
        )

    @property
    def ours(self) -> tuple[str, ...]:
        """Return the selectors whose differences from all others are shown.

        Those that a scorer was trained for; without any, the bundle's default.
        """
        trained = [name for name in self.selectors if name in LEARNED]
        trained += [name for name, _ in self.others]
        return tuple(trained) or tuple(name for name in self.selectors if name == self.default)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the rows of the tables, twins last."""
        given = (*self.selectors, *(name for name, _ in self.others))
        given += (*self.looked, *(DOWNSAMPLE,) * self.downsample, *(ORACLE,) * bool(self.oracle))
        return (*given, *(f"{name}{SHUFFLED}" for name in self.twinned))

    @property
    def twinned(self) -> tuple[str, ...]:
        """Return the selectors with a twin that reads another question."""
        return tuple(
            name for name in self.selectors if self.twins and SELECTORS[name].reads_question
        )

    @property
    def training_free(self) -> tuple[str, ...]:
        """Return what ours is compared with."""
        ours = {*self.ours, *self.looked, ORACLE}
        return tuple(name for name in self.names if name not in ours and SHUFFLED not in name)

    def cells(self, names: Sequence[str], budgets: Sequence[str]) -> list[Cell]:
        """Return the cells of some rows of the tables; the unpruned answer is always there."""
        digests = dict(self.others) | {ORACLE: self.oracle}
        found = [WITHOUT_PRUNING]
        for name in names:
            digest = digests.get(name, "")
            fixed = name == DOWNSAMPLE or row_of(name) is not None
            possible = [b for b in budgets if not fixed or is_fixed(b)]
            own = {b: digest + self.device * is_timed(b) for b in possible}
            found += [Cell(each, b, own[b]) for each in seeded(name) for b in possible]
            if self.oracle and _scores(name):
                found.append(Cell(name, AGREEMENT, self.oracle + digest))
        return list(dict.fromkeys(found))


def seeded(name: str) -> Iterator[str]:
    """Return the names under which a row of the tables is asked."""
    yield from (f"{RANDOM}/{seed}" for seed in SEEDS) if name == RANDOM else (name,)


def row_name(name: str) -> str:
    """Return the row of the tables under which what was asked by this name stands."""
    return RANDOM if name in seeded(RANDOM) else name


def _scores(name: str) -> bool:
    apart = (FULL, RANDOM, DOWNSAMPLE, ORACLE)
    return name not in apart and SHUFFLED not in name and row_of(name) is None
