"""Videos: scores of what is new in them, and selectors that are for nothing else."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from tokprune.canvas import canvas, members
from tokprune.errors import RequestInvalid
from tokprune.selectors.coverage import coverage_order, even, lattice, shares
from tokprune.selectors.quotas import best_of_each, proportional, softmax
from tokprune.selectors.selector import patches_first, prefix_of
from tokprune.selectors.similarity import unit
from tokprune.types import (
    FRAME,
    KIND,
    NEWLINE,
    PICTURE,
    Array,
    First,
    Prompt,
    Ranking,
    Region,
    Scores,
    VisionTokens,
)

FRAME_TEMPERATURE = 0.01
SCALES = tuple(2.0**power for power in range(-3, 2))  # of the Gaussian kernels
THUMBNAILS = 6  # frames whose small pictures are kept
THUMBNAIL_SHARE = 1 / 6  # of all kept tokens: 576 beside 2880 in the paper


def evs(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Keep what is new since the frame before, and the first frame whole (arXiv:2510.14624).

    The method never keeps less than a frame. Where a budget does, the first frame is covered
    evenly.
    """
    del prompt, first
    films = _films("evs", vision)
    new = temporal_dissimilarity(vision)
    begins = np.zeros(len(vision.where), np.bool_)
    for film in films:
        begins[members(vision.where, film[0])] = True
    covering = coverage_order(vision.where, vision.regions)
    rest = np.flatnonzero(~begins & (vision.where[:, KIND] != NEWLINE))
    order = [covering[begins[covering]], rest[np.argsort(-new[rest], kind="stable")]]
    ends = np.flatnonzero(vision.where[:, KIND] == NEWLINE)
    return Ranking(prefix_of(np.concatenate([*order, ends])))


def temporal_dissimilarity(vision: VisionTokens) -> Scores:
    """Return 1 - cosine similarity to the same cell of the frame before; inf in first frames."""
    grids = canvas(vision.where, vision.regions).tokens
    score = np.full(len(vision.where), np.inf, np.float32)
    place = {region[:3]: number for number, region in enumerate(vision.regions)}
    for (picture, frame, tile), number in place.items():
        before = place.get((picture, frame - 1, tile))
        if before is None or vision.regions[before][3:] != vision.regions[number][3:]:
            continue
        cells = grids[number] >= 0
        now, then = grids[number][cells], grids[before][cells]
        similar = np.einsum("md,md->m", unit(vision.embeds[now]), unit(vision.embeds[then]))
        score[now] = 1 - similar
    return score


class Uniqueness(NamedTuple):
    """How a video's tokens differ from its means; higher is more unlike."""

    tokens: Float32[Array, " m"]  # from the mean of the video and of its frame, added
    frames: Float32[Array, " f"]  # from the mean of the video, averaged over a frame


def uniqueness(rows: Float32[Array, "m d"], frames: Sequence[Int64[Array, " _"]]) -> Uniqueness:
    """Compare tokens with the means of their video and frames (arXiv:2505.14454).

    By Gaussian kernels of five widths, in the half of the channels that vary least.

    Args:
        rows: embeddings of a video's tokens.
        frames: which of them each frame has.
    """
    calm = np.argsort(rows.var(axis=0), kind="stable")[: max(rows.shape[1] // 2, 1)]
    calm_rows = unit(rows[:, np.sort(calm)])
    tokens = -_similar(calm_rows, calm_rows.mean(axis=0))
    by_frame = np.asarray([tokens[frame].mean() for frame in frames], np.float32)
    for frame in frames:
        own = calm_rows[frame]
        tokens[frame] -= _similar(own, own.mean(axis=0))
    return Uniqueness(tokens, by_frame)


def _similar(rows: Float32[Array, "m f"], mean: Float32[Array, " f"]) -> Float32[Array, " m"]:
    squares = ((rows - mean) ** 2).sum(axis=1)
    similar = np.zeros_like(squares)
    for scale in SCALES:
        similar += np.exp(squares / np.float32(-2 * scale))
    return similar


def vidcom2(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Keep what is least like its video and frame, more of unusual frames (arXiv:2505.14454)."""
    del prompt, first
    groups: list[Int64[Array, " _"]] = []
    weights: list[Float32[Array, " f"]] = []
    scores = np.zeros(len(vision.where), np.float32)
    for film in _films("vidcom2", vision):
        inside = [members(vision.where, region) for region in film]
        all_inside = np.concatenate(inside)
        ends = np.cumsum([len(tokens) for tokens in inside])
        frames = np.split(np.arange(len(all_inside)), ends[:-1])
        found = uniqueness(np.asarray(vision.embeds[all_inside], np.float32), frames)
        scores[all_inside] = found.tokens
        share = softmax(found.frames, FRAME_TEMPERATURE)
        weights.append(1 + share - share.mean())
        groups += inside
    sizes = [len(group) for group in groups]
    wanted = np.concatenate(weights) * np.asarray(sizes)
    newlines = np.flatnonzero(vision.where[:, KIND] == NEWLINE)

    def take(k: int) -> Int64[Array, " k"]:
        patches = min(k, sum(sizes))
        counts = proportional(patches, wanted, sizes).tolist()
        return np.concatenate([best_of_each(scores, groups, counts), newlines[: k - patches]])

    return Ranking(take)


def ts_llava(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Keep small pictures of six frames, and tokens of all at even steps (arXiv:2411.11066).

    The method puts the six frames into one picture, which it encodes. Here, where frames are
    encoded already, a small picture is an even lattice of its frame's tokens.
    """
    del prompt, first
    films = _films("ts-llava", vision)
    small = [region for film in films for region in _thumbnails(film)]
    sizes = [region.rows * region.columns for region in small]
    own = np.flatnonzero(vision.where[:, KIND] != NEWLINE)
    grids = dict(zip(vision.regions, canvas(vision.where, vision.regions).tokens, strict=True))

    def take(k: int) -> Int64[Array, " k"]:
        first_ones: list[Array] = [np.empty(0, np.int64)]
        count = min(round(k * THUMBNAIL_SHARE), sum(sizes))
        for region, number in zip(small, shares(sizes, count), strict=True):
            if number:
                cells = lattice(region.rows, region.columns, number)
                first_ones.append(grids[region][np.divmod(cells, region.columns)])
        chosen = np.searchsorted(own, np.concatenate(first_ones))
        rest = np.delete(np.arange(len(own)), chosen)
        return np.concatenate([chosen, rest[even(len(rest), k - len(chosen))]])

    return Ranking(patches_first(vision, take))


def _thumbnails(film: Sequence[Region]) -> list[Region]:
    numbers: list[int] = even(len(film), min(THUMBNAILS, len(film))).tolist()
    return [film[number] for number in numbers]


def _films(name: str, vision: VisionTokens) -> list[list[Region]]:
    """Return the frames of each video.

    Raises:
        RequestInvalid: something else was given.
    """
    films: list[list[Region]] = []
    for picture in sorted({region.picture for region in vision.regions}):
        film = sorted(region for region in vision.regions if region.picture == picture)
        if len({region.frame for region in film}) < 2:
            tokens = int((vision.where[:, PICTURE] == picture).sum())
            frames = int(vision.where[vision.where[:, PICTURE] == picture, FRAME].max()) + 1
            raise RequestInvalid(
                f"The selector {name!r} compares the frames of a video, and number {picture + 1} "
                f"of what was given has {frames} for the model ({tokens} vision tokens): give "
                "videos of two frames or more (four for a model that takes them in pairs), or "
                "choose a selector for pictures, such as 'divprune'"
            )
        films.append(film)
    return films
