"""What one call of the LLM graph is fed, in each of the graph's forms."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from tokprune.errors import RequestInvalid
from tokprune.manifest import LlmForm
from tokprune.types import Array

SEEN_STEP = 256  # rows of the `trt` form's cache that are looked at: a multiple of it


class Call(NamedTuple):
    """Rows for one call of the LLM graph. `bias` is for these and all rows before them."""

    embeds: Float32[Array, "1 t d"]
    positions: Int64[Array, "p 1 t"]
    bias: Float32[Array, "1 s"]


def feeds_of(form: LlmForm, call: Call) -> dict[str, Array]:
    """Return what one call feeds a form of the LLM, besides its cache."""
    new, total = int(call.embeds.shape[1]), int(call.bias.shape[1])
    feeds = {"inputs_embeds": call.embeds, "position_ids": call.positions}
    if form.form == "trt":
        seen = seen_rows(total, cache_length(form, total))
        rows: Array = np.arange(total - new, total)
        columns: Array = np.arange(seen)
        feeds["attention_mask"] = (columns <= rows[:, None])[None, None]
        feeds["write_indices"] = np.asarray([total - new], np.int64)
        return feeds
    if takes_bias(form):
        feeds["attention_bias"] = call.bias
    if form.cache == "in_place":
        feeds["seqlens_k"] = np.asarray([total - 1], np.int32)
        feeds["total_sequence_length"] = np.asarray(total, np.int32)
    return feeds


def seen_rows(rows: int, cache: int) -> int:
    """Return how much of a cache the `trt` form looks at: in steps, as engines like few shapes."""
    return min(-(-rows // SEEN_STEP) * SEEN_STEP, cache)


def cache_length(form: LlmForm, rows: int) -> int:
    """Return the rows of a cache in place: as many as are needed, or as the graph declares."""
    for tensor in form.graph.inputs:
        if tensor.name.startswith("past_key_values."):
            return rows if isinstance(tensor.shape[2], str) else tensor.shape[2]
    return rows


def check_bias(form: LlmForm, bias: Float32[Array, " t"]) -> None:
    """Refuse a size bias where the form cannot add one to its scores.

    Raises:
        RequestInvalid: with the other forms.
    """
    if bias.any() and not takes_bias(form):
        raise RequestInvalid(
            f"This bundle's LLM takes no size bias in its form {form.form!r}: choose a selector "
            "without one, or llm_form='portable'"
        )


def takes_bias(form: LlmForm) -> bool:
    """Tell whether a bias can be added to the scores of each column."""
    return any(tensor.name == "attention_bias" for tensor in form.graph.inputs)
