"""What a process keeps open while it asks, and how it asks."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tokprune
from tokprune.kv import KvPool
from tokprune.llm import Access, Generation
from tokprune.llm_calls import takes_bias
from tokprune.types import First, Medium, Prepared, Prompt, Selection, VisionTokens
from tokprune.vlm import VLM
from tokprune_export.evaluation.cells import ScorerFile
from tokprune_export.evaluation.suites import Task
from tokprune_export.media import load

if TYPE_CHECKING:  # it needs torch, and most evaluations do not
    from tokprune_export.evaluation.truth import Truth

THREADS = 1  # of a process
MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Setup:
    """What a process opens to take part."""

    bundle: Path
    oracle: str | None = None  # the checkpoint of the bundle
    scorers: tuple[ScorerFile, ...] = ()  # beside the bundle's own
    max_new_tokens: int = MAX_NEW_TOKENS


class Opened(NamedTuple):
    """What a process keeps open."""

    vlm: VLM
    truth: "Truth | None" = None


@lru_cache(maxsize=1)
def opened(setup: Setup) -> Opened:
    """Open bundle, scorer files and checkpoint, once a process."""
    vlm = open_bundle(setup.bundle)
    if setup.oracle is None and not setup.scorers:
        return Opened(vlm)
    from tokprune_export.evaluation.truth import open_truth
    from tokprune_export.scorers import Size

    llm = vlm.bundle.manifest.llm
    return Opened(vlm, open_truth(setup.oracle, setup.scorers, Size(llm.heads, llm.hidden_size)))


def open_bundle(bundle: Path) -> VLM:
    """Load a bundle for one thread, in a form that takes the size bias of some selectors."""

    def load(form: str | None) -> VLM:
        # No cache of encoded pictures: every cell that looks for itself is timed as the first one.
        return tokprune.load(
            bundle, backend="cpu", threads=THREADS, llm_form=form, vision_cache_bytes=0
        )

    vlm = load(None)
    return vlm if takes_bias(vlm.model.llm.form) else load("portable")


class Encoded(NamedTuple):
    """A question, its pictures encoded."""

    media: list[Medium]
    prompt: Prompt
    prepared: tuple[Prepared, ...]
    vision: VisionTokens
    first: First


def encode(vlm: VLM, task: Task) -> Encoded:
    """Read the pictures and videos of a question, and encode them."""
    media = [load(medium) for medium in task.media]
    prompt, prepared = vlm.model.prepare(media, task.question)
    vision = vlm.model.vision(prepared)
    return Encoded(media, prompt, prepared, vision, vlm.model.first_layer(prompt, vision))


class Answers:
    """Greedy answers of one prompt; the same kept tokens are not asked twice."""

    def __init__(
        self,
        vlm: VLM,
        prompt: Prompt,
        vision: VisionTokens,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        self._vlm = vlm
        self._prompt = prompt
        self._vision = vision
        self._generation = Generation(max_new_tokens)
        self._known: dict[tuple[bytes | None, ...], tuple[str, list[int]]] = {}

    def __call__(self, selection: Selection) -> tuple[str, list[int]]:
        """Return text and token ids."""
        key = _contents(selection)
        if key not in self._known:
            model, access = self._vlm.model, Access(pool=_pool(self._vlm))
            tokens = model.llm.generate(
                self._prompt, self._vision, selection, self._generation, access
            )
            ids = [token.id for token in tokens if token.id is not None]
            self._known[key] = (model.tokenizer.decode(ids, skip_special_tokens=True), ids)
        return self._known[key]


def _contents(selection: Selection) -> tuple[bytes | None, ...]:
    """Return what an answer depends on; merging and its places are there where they are used."""
    parts = (getattr(selection, name, None) for name in ("keep", "bias", "embeds", "at"))
    return tuple(None if part is None else part.tobytes() for part in parts)


@lru_cache(maxsize=1)
def _pool(vlm: VLM) -> KvPool:
    return vlm.model.llm.pool(1)
