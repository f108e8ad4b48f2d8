"""What needs torch: the true relevance of an answer, and scorers that are not in the bundle."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tokprune.canvas import canvas, follows
from tokprune.types import Array, FirstLayer, Prompt, Scores, VisionTokens
from tokprune_export.agreement import recall, spearman
from tokprune_export.checkpoint import open_checkpoint
from tokprune_export.evaluation.cells import ScorerFile
from tokprune_export.labels import explain_answer
from tokprune_export.scorers import Scorer, Size, extra_inputs, load_scorer
from tokprune_export.teacher import Asked, Teacher, fingerprint, open_teacher


class Truth(NamedTuple):
    """What a process keeps open."""

    teacher: Teacher | None
    scorers: dict[str, Scorer]  # by label


def open_truth(oracle: str | None, files: Sequence[ScorerFile], size: Size) -> Truth:
    """Open a checkpoint and scorer files.

    Raises:
        RequestInvalid: a file is no scorer of such a checkpoint.
    """
    torch.set_num_threads(1)
    teacher = None
    if oracle is not None:
        teacher = open_teacher(open_checkpoint(oracle), torch.device("cpu"))
    return Truth(teacher, {file.label: load_scorer(Path(file.path), size) for file in files})


def digest_of(oracle: str) -> str:
    """Hash a checkpoint."""
    return fingerprint(open_checkpoint(oracle))


def oracle_scores(
    teacher: Teacher, prompt: Prompt, vision: VisionTokens, text: str, ids: Sequence[int]
) -> Scores:
    """Return what each vision token mattered to the unpruned answer."""
    return explain_answer(
        teacher, Asked(prompt, vision, text, torch.tensor(ids, dtype=torch.int64))
    )


@torch.no_grad()
def scored(scorer: Scorer, vision: VisionTokens, first: FirstLayer) -> Scores:
    """Run a scorer that is not in the bundle."""
    index, cells = canvas(vision.where, vision.regions)
    embeds = np.asarray(vision.embeds, np.float32)
    given = (first.attention, first.question, index, cells, embeds, first.words)
    more = {"follows": follows(vision.regions)}
    known = {name: torch.from_numpy(more[name]) for name in extra_inputs(scorer.network)}
    return scorer.network(*map(torch.from_numpy, given), **known).numpy()


def agreement(scores: Scores, oracle: Array) -> list[float]:
    """Return recall of the oracle's top half, of its top quarter, and the rank correlation."""
    return [recall(scores, oracle, 0.5), recall(scores, oracle, 0.25), spearman(scores, oracle)]
