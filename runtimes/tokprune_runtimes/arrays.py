"""What goes into an engine and stays in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[Any]]
Feeds: TypeAlias = Mapping[str, Array]


@dataclass(frozen=True)
class Carry:
    """An output that becomes an input of the next step, and never leaves the engine.

    `axis` is the one that grows. With `capacity`, a buffer of that length is allocated once and
    updated in place; without, the output is a new, longer tensor each step.
    """

    output: str
    input: str
    shape: tuple[int, ...]  # of the buffer, or of the empty start; 0 at `axis` without capacity
    axis: int
    in_place: bool
    dtype: str = "float32"  # numpy's name, or "bfloat16"
