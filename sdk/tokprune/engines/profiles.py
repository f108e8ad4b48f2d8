"""Optimisation profiles: the shapes that TensorRT engines of a bundle are built for.

Every dynamic axis has a name in the manifest (`T`, `4*q`, `P+T`), so a profile is a range for each
name. Kernels are chosen for the middle value and run from the least to the most. Ranges that depend
on each other (frames and their size) are split into a few boxes, or one engine would reserve
memory for the largest number of the largest frames.

TensorRT-RTX 1.7 stores the weights once for every profile (measured: an engine of the demo's LLM
has 8, 16 and 23 MB with one, two and four), and compiles kernels for the shapes that it meets, so
there every graph has as few as it can.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isqrt
from typing import TypeAlias

from tokprune.errors import BundleInvalid, RequestInvalid
from tokprune.llm_calls import SEEN_STEP, seen_rows
from tokprune.manifest import GraphSpec, Limits, LlmForm, Manifest, Tensor

Shape: TypeAlias = tuple[int, ...]
Profile: TypeAlias = Mapping[str, tuple[Shape, Shape, Shape]]  # input -> min, opt, max
Range: TypeAlias = tuple[int, int, int]  # min, opt, max
Axes: TypeAlias = Mapping[str, Range]

FRAMES_A_CALL, TILES_A_CALL = 8, 4  # most that engines of the vision encoder take; a host splits
QUESTION_TOKENS = 512  # text after the last picture, where nothing else is said
SMALL_REGION = 32  # rows and columns of vision tokens where there are many regions
_TERM = re.compile(r"(?:(\d+)\*)?([A-Za-z_]\w*)|(\d+)")


@dataclass(frozen=True)
class Sizes:
    """The largest request that engines are built for."""

    vision_tokens: int  # of all pictures of a prompt, before pruning
    question_tokens: int  # text after the last picture, template included
    limits: Limits


def sizes(
    limits: Limits, *, vision_tokens: int | None = None, question_tokens: int | None = None
) -> Sizes:
    """Return what engines take: by default, every prompt that the LLM takes unpruned.

    Raises:
        RequestInvalid: a number is below 1.
    """
    vision = limits.max_input_len if vision_tokens is None else vision_tokens
    question = min(QUESTION_TOKENS, limits.max_input_len)
    question = question if question_tokens is None else question_tokens
    for name, count in (("max_vision_tokens", vision), ("max_question_tokens", question)):
        if count < 1:
            raise RequestInvalid(f"{name} must be 1 or more, got {count}")
    return Sizes(vision, question, limits)


def axis_size(axis: int | str, named: Mapping[str, int]) -> int:
    """Evaluate an axis of `Tensor.shape`: a number, or a sum of names and multiples of names.

    Raises:
        BundleInvalid: it is no such sum, or a name has no size.
    """
    if isinstance(axis, int):
        return axis
    total = 0
    for text in axis.replace(" ", "").split("+"):
        term = _TERM.fullmatch(text)
        if term is None or (term[2] is not None and term[2] not in named):
            raise BundleInvalid(
                "graph",
                f"manifest.json declares an axis {axis!r:.60}, known are {', '.join(named)}. This "
                "bundle may need a newer tokprune.",
            )
        total += int(term[3]) if term[2] is None else int(term[1] or 1) * named[term[2]]
    return total


def axis_of(axis: int | str) -> tuple[int, str] | None:
    """Return factor and name of an axis such as `q` or `4*q`, None of any other."""
    term = None if isinstance(axis, int) else _TERM.fullmatch(axis.replace(" ", ""))
    return None if term is None or term[2] is None else (int(term[1] or 1), term[2])


def named_sizes(inputs: Sequence[Tensor], shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Return the size of each named axis, from shapes of the inputs. The reverse of `axis_size`."""
    found: dict[str, int] = {}
    for tensor in [tensor for tensor in inputs if tensor.name in shapes]:
        for axis, size in zip(tensor.shape, shapes[tensor.name], strict=True):
            if known := axis_of(axis):
                found[known[1]] = size // known[0]
    return found


def profile(inputs: Sequence[Tensor], axes: Axes) -> Profile:
    """Return the profile of all inputs that have a named axis."""
    points = [{name: ranged[place] for name, ranged in axes.items()} for place in range(3)]

    def shape(tensor: Tensor, named: Mapping[str, int]) -> Shape:
        return tuple(axis_size(axis, named) for axis in tensor.shape)

    return {
        tensor.name: (shape(tensor, points[0]), shape(tensor, points[1]), shape(tensor, points[2]))
        for tensor in inputs
        if any(isinstance(axis, str) for axis in tensor.shape)
    }


def profiles(
    manifest: Manifest, form: LlmForm, largest: Sizes, *, few: bool
) -> dict[str, tuple[Profile, ...]]:
    """Return the profiles of the four graphs, the LLM's of one form.

    Args:
        manifest: of the bundle.
        form: of the LLM: `portable` or `trt`.
        largest: what requests may be.
        few: as few profiles as possible (TensorRT-RTX, or little memory).
    """
    graphs = manifest.graphs
    boxes = {
        "vision_encoder": vision_axes(graphs.vision_encoder, largest, few=few),
        "first_layer": [first_layer_axes(largest)],
        "scorer": scorer_axes(largest),
        "llm": llm_axes(form, largest.limits, few=few),
    }
    specs = engine_specs(manifest, form)
    return {
        name: tuple(profile(specs[name].inputs, axes) for axes in listed)
        for name, listed in boxes.items()
    }


def engine_specs(manifest: Manifest, form: LlmForm) -> dict[str, GraphSpec]:
    """Return the four graphs under the names of their engines."""
    graphs = manifest.graphs
    return {
        "vision_encoder": graphs.vision_encoder,
        "first_layer": graphs.first_layer,
        "scorer": graphs.scorer,
        "llm": form.graph,
    }


def vision_axes(spec: GraphSpec, largest: Sizes, *, few: bool) -> list[Axes]:
    """Return ranges of the vision encoder: one frame or tile a call, and several.

    A frame of Qwen2.5-VL comes with a table of windows (axis W). It has most of them where it is a
    strip: one for each `side` vision tokens. Where a part of it is shown (`encode`), each token may
    have a window of its own, but no part has more than the whole, which is refused before it is cut
    (`check_all`) where these ranges do not hold it.
    """
    batch = axis_of(spec.inputs[0].shape[0])
    if batch is not None and batch[1] == "tiles":
        most = TILES_A_CALL
        return (
            [{"tiles": (1, most, most)}]
            if few
            else [{"tiles": (1, 1, 1)}, {"tiles": (2, most, most)}]
        )
    side = _window_side(spec)

    def frames(count: Range, tokens: int) -> Axes:
        best = max(1, tokens // 4)
        axes: dict[str, Range] = {"F": count, "q": (1, best, tokens)}
        if side:
            axes["W"] = (1, ceil(best / side**2), ceil(tokens / side))
        return axes

    one = frames((1, 1, 1), largest.vision_tokens)
    share = largest.vision_tokens // FRAMES_A_CALL
    if few or not share:
        return [one]
    return [one, frames((2, FRAMES_A_CALL, FRAMES_A_CALL), share)]


def _window_side(spec: GraphSpec) -> int:
    """Return the side of Qwen2.5-VL's windows in vision tokens, 0 of other encoders."""
    shapes = {tensor.name: tensor.shape for tensor in spec.inputs}
    if "windows" not in shapes:
        return 0
    patches, merged = shapes["windows"][1], axis_of(shapes["pixel_values"][1])
    if not isinstance(patches, int) or merged is None:
        raise BundleInvalid("graph", "manifest.json: vision_encoder has windows of unknown size")
    return isqrt(patches // merged[0])


def first_layer_axes(largest: Sizes) -> Axes:
    """Return ranges of the first layer, which sees the whole prompt, before pruning."""
    vision, question = largest.vision_tokens, largest.question_tokens
    rows = vision + largest.limits.max_input_len
    best = max(1, vision // 4)
    asked = min(32, question)
    return {
        "s": (1, min(best + 2 * asked, rows), rows),
        "u": (1, asked, question),
        "n": (1, best, vision),
    }


def scorer_axes(largest: Sizes) -> list[Axes]:
    """Return ranges of the scorer, whose canvas has the size of the largest region.

    Few regions may be large and oblong, many are frames of a video and small: each box has at most
    16 cells for each vision token.
    """
    vision, asked = largest.vision_tokens, min(32, largest.question_tokens)
    side, best = isqrt(vision), max(1, vision // 4)
    small = min(side, SMALL_REGION)

    def regions(fewest: int, most: int, longest: int) -> Axes:
        edge = (1, min(max(1, isqrt(best // fewest)), longest), longest)
        tokens: dict[str, Range] = {
            "u": (1, asked, largest.question_tokens),
            "n": (1, best, vision),
        }
        return {**tokens, "r": (fewest, fewest, most), "H": edge, "W": edge}

    boxes = [regions(1, 2, 2 * side), regions(3, 8, side)]
    if vision // 64 > 8:
        boxes.append(regions(9, vision // 64, small))
    return boxes


def llm_axes(form: LlmForm, limits: Limits, *, few: bool) -> list[Axes]:
    """Return ranges of the LLM: buckets of prompts, decoding a token a step, and going on.

    The first prompt of `portable` has an empty past. A later turn of a chat, a pinned picture's
    next question and choices of several tokens run many tokens after a past: these have one range
    of their own. `trt` looks at a part of its cache (`seen_rows`), whatever stands there.
    """
    rows, cache = limits.max_input_len, limits.max_kv_len
    if form.form == "trt":

        def prompts(low: int, high: int) -> Axes:
            best = (low + high) // 2
            lengths = (low, best, cache)
            least, usual, most = (seen_rows(length, cache) for length in lengths)
            return {"T": (low, best, high), "S": (least, usual, most)}

        steps = seen_rows(1, cache), seen_rows(cache // 2, cache), cache
        if few:
            return [prompts(1, rows)]
        return [*(prompts(*ends) for ends in _buckets(rows)), {"T": (1, 1, 1), "S": steps}]
    past = max(1, cache - 1)
    if few:
        return [{"T": (1, (1 + rows) // 2, rows), "P": (0, 0, past)}]
    buckets = [
        {"T": (low, (low + high) // 2, high), "P": (0, 0, 0)} for low, high in _buckets(rows)
    ]
    usual = max(1, cache // 2)
    decode: Axes = {"T": (1, 1, 1), "P": (1, usual, past)}
    if min(rows, past) < 2:  # no room for more than one token after a past
        return [*buckets, decode]
    return [*buckets, decode, {"T": (2, min(64, rows), rows), "P": (1, usual, past)}]


def _buckets(rows: int) -> list[tuple[int, int]]:
    """Cut 1..rows into ranges that end at 256, 1024, 4096, ... and at `rows`."""
    found: list[tuple[int, int]] = []
    low, high = 1, SEEN_STEP
    while high < rows:
        found.append((low, high))
        low, high = high + 1, high * 4
    return [*found, (low, rows)]
