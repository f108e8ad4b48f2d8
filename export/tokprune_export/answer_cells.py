"""One question asked with many selectors and budgets, the costly parts once."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec
import torch

import tokprune
from tokprune.budgets import KeepRatio
from tokprune.canvas import canvas
from tokprune.llm import Generation, takes_bias
from tokprune.manifest import Modality, ScorerKind
from tokprune.selection import keep_all, select
from tokprune.selectors import Inputs, Selector
from tokprune.selectors import Scorer as SelectorsScorer
from tokprune.selectors.baselines import random_tokens, uniform
from tokprune.selectors.relevance import (
    NEVER,
    attention_coverage,
    attention_spread,
    relevance,
    relevance_coverage,
    relevance_spread,
)
from tokprune.selectors.scores import mean_attention
from tokprune.types import (
    Array,
    FirstLayer,
    Medium,
    Prepared,
    Prompt,
    Ranking,
    Scores,
    Selection,
    VisionTokens,
)
from tokprune.vlm import VLM
from tokprune_export.agreement import recall, spearman
from tokprune_export.checkpoint import open_checkpoint
from tokprune_export.errors import placed
from tokprune_export.labels import explain_answer
from tokprune_export.media import Source, load, modality
from tokprune_export.scorers import Scorer, load_scorer
from tokprune_export.teacher import Asked, Teacher, open_teacher

FULL, DEFAULT = "full", "default"
SEEDS = (0, 1, 2)
ALWAYS = 0.0  # the kept share from which on size bias is used
MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Setup:
    """What a process opens to take part."""

    bundle: Path
    scorers: tuple[Path, ...] = ()  # beside the bundle's own
    oracle: str | None = None  # the checkpoint of the bundle
    shares: tuple[float, ...] = (0.5, 0.25, 0.125, 0.06)


@dataclass(frozen=True)
class Task:
    """One question."""

    key: str
    media: tuple[Source | Medium, ...]  # files are read by the process that asks
    question: str
    answer: str
    group: str
    other_question: str = ""  # of another sample: its twin reads this one

    @property
    def modality(self) -> Modality:
        """Whether it is about a video."""
        return modality(self.media)


class Record(msgspec.Struct, frozen=True):
    """What came of one question."""

    key: str
    group: str
    modality: Modality
    answer: str
    vision_tokens: int
    cells: dict[str, str]  # "selector@share" -> text
    agreement: dict[str, list[float]]  # scores -> recall at 50, at 25, Spearman with the oracle


class Opened(NamedTuple):
    """What a process keeps open."""

    vlm: VLM
    scorers: Mapping[str, Scorer]
    teacher: Teacher | None


class Seen(NamedTuple):
    """A prompt, encoded."""

    prompt: Prompt
    vision: VisionTokens
    first: FirstLayer


class Default(NamedTuple):
    """What the bundle answers with, and its twin that reads another question."""

    scores: str  # name of what its own scorer gives
    make: Callable[[Inputs], Selector]
    embed: Callable[[Array], Array]  # the LLM's inputs of token ids
    other: FirstLayer
    other_scores: Scores


@lru_cache(maxsize=1)
def opened(setup: Setup) -> Opened:
    """Open bundle, scorer files and checkpoint, once a process."""
    torch.set_num_threads(1)
    vlm = tokprune.load(setup.bundle, backend="cpu", threads=1)
    if not takes_bias(vlm.model.llm.form):  # which some selectors of the tables ask for
        vlm = tokprune.load(setup.bundle, backend="cpu", threads=1, llm_form="portable")
    heads = vlm.bundle.manifest.llm.heads
    files = [load_scorer(path, heads) for path in setup.scorers]
    teacher = None
    if setup.oracle is not None:
        teacher = open_teacher(open_checkpoint(setup.oracle), torch.device("cpu"))
    return Opened(vlm, {scorer_name(each.kind): each for each in files}, teacher)


def scorer_name(kind: ScorerKind) -> str:
    """Name a scorer in tables."""
    return f"relevance ({kind})"


def answer_cells(setup: Setup, task: Task) -> Record:
    """Ask one question with every selector at every budget.

    Raises:
        TokpruneError: the bundle cannot be asked this; says which question and why.
    """
    with placed(task.key):
        return _answered(setup, task)


def _answered(setup: Setup, task: Task) -> Record:
    vlm, scorers, teacher = opened(setup)
    prompt, twin, prepared = prepare(vlm, task)
    vision = vlm.model.vision(prepared)
    seen = Seen(prompt, vision, vlm.model.first_layer.run(prompt, vision))
    answers = Answers(vlm, seen)
    total = len(vision.embeds)
    text, ids = answers(select(keep_all(total), vision, KeepRatio(1.0)))
    scores = {"attention": mean_attention(seen.first)}
    own = own_scores(vlm)
    if own not in scores:
        scores[own] = vlm.model.scorer(vision, seen.first)
    scores |= {name: run_scorer(scorer, vision, seen.first) for name, scorer in scorers.items()}
    agreement: dict[str, list[float]] = {}
    if teacher is not None:
        asked = Asked(prompt, vision, text, torch.tensor(ids, dtype=torch.int64))
        oracle = explain_answer(teacher, asked)
        agreement = {name: _agreement(value, oracle) for name, value in scores.items()}
        scores["oracle"] = oracle
    other = vlm.model.first_layer.run(twin, vision)
    _, make = vlm.model.selector(None)
    other_scores = vlm.model.scorer(vision, other)
    default = Default(own, make, vlm.model.llm.embed, other, other_scores)
    cells = {f"{FULL}@1": text}
    for name, ranking in rankings(task.key, seen, scores, default):
        for share in setup.shares:
            cells[f"{name}@{share:g}"], _ = answers(select(ranking, vision, KeepRatio(share)))
    return Record(task.key, task.group, task.modality, task.answer, total, cells, agreement)


def prepare(vlm: VLM, task: Task) -> tuple[Prompt, Prompt, tuple[Prepared, ...]]:
    """Read pictures and videos, and lay out the question and its twin."""
    media = [load(medium) for medium in task.media]
    prompt, prepared = vlm.model.prepare(media, task.question)
    twin, _ = vlm.model.prepare(media, task.other_question)
    return prompt, twin, prepared


def own_scores(vlm: VLM) -> str:
    """Name what the bundle's own scorer gives."""
    scorer = vlm.bundle.manifest.scorer
    return scorer_name(scorer.kind) if scorer.trained else "attention"


@torch.no_grad()
def run_scorer(scorer: Scorer, vision: VisionTokens, first: FirstLayer) -> Scores:
    """Run a scorer that is not in the bundle."""
    index, cells = canvas(vision.where, vision.regions)
    given = (first.attention, first.question, index, cells)
    return scorer.network(*map(torch.from_numpy, given)).numpy()


class Answers:
    """Greedy answers of one prompt; the same kept tokens are not asked twice."""

    def __init__(self, vlm: VLM, seen: Seen) -> None:
        self._vlm = vlm
        self._seen = seen
        self._known: dict[tuple[bytes, ...], tuple[str, list[int]]] = {}

    def __call__(self, selection: Selection) -> tuple[str, list[int]]:
        """Return text and token ids."""
        given = (selection.keep, selection.bias, selection.embeds, selection.at)
        key = tuple(b"" if array is None else array.tobytes() for array in given)
        if key not in self._known:
            tokens = self._vlm.model.llm.generate(
                self._seen.prompt, self._seen.vision, selection, Generation(MAX_NEW_TOKENS)
            )
            ids = [token.id for token in tokens if token.id is not None]
            self._known[key] = (
                self._vlm.model.tokenizer.decode(ids, skip_special_tokens=True),
                ids,
            )
        return self._known[key]


def rankings(
    key: str, seen: Seen, scores: Mapping[str, Scores], default: Default
) -> Iterable[tuple[str, Ranking]]:
    """Yield every selector of the tables with its ranking.

    Args:
        key: of the question; each draws its own random tokens.
        seen: the prompt.
        scores: "attention", those of trained scorers, and "oracle".
        default: what the bundle answers with.
    """
    own = scores[default.scores]

    def ranked(selector: Selector, first: FirstLayer = seen.first) -> Ranking:
        return selector(seen.prompt, seen.vision, lambda: first)

    for seed in SEEDS:
        yield f"random/{seed}", ranked(random_tokens(crc32(f"{key} {seed}".encode())))
    lattice = ranked(uniform)
    yield "uniform", lattice
    yield "uniform + size bias", Ranking(lattice.take, size_bias=lambda _: True)
    for name, values in scores.items():
        yield name, ranked(relevance(_fixed(values)))
    yield "attention-spread", ranked(attention_spread)
    yield DEFAULT, ranked(default.make(Inputs(_fixed(own), default.embed)))
    yield "relevance-spread", ranked(relevance_spread(_fixed(own)))
    selector = relevance_spread(_fixed(own), attention_share=0.0)
    yield "relevance-spread, no attention", ranked(selector)
    yield "attention-coverage", ranked(attention_coverage)
    for start, suffix in ((NEVER, ""), (ALWAYS, " + size bias")):
        covered = relevance_coverage(_fixed(own), size_bias_from=start)
        yield f"relevance-coverage{suffix}", ranked(covered)
    if "oracle" in scores:
        selector = relevance_spread(_fixed(scores["oracle"]), attention_share=0.0)
        yield "oracle + spread", ranked(selector)
    other = _fixed(default.other_scores)
    yield f"{default.scores}, question shuffled", ranked(relevance(other))
    shuffled = ranked(default.make(Inputs(other, default.embed)), default.other)
    yield f"{DEFAULT}, question shuffled", shuffled


def _fixed(scores: Scores) -> SelectorsScorer:
    return lambda vision, first: scores


def _agreement(scores: Scores, oracle: Array) -> list[float]:
    return [recall(scores, oracle, 0.5), recall(scores, oracle, 0.25), spearman(scores, oracle)]
