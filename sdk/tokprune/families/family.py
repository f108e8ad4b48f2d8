"""What the robot must know of a model family, beyond its graphs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from jaxtyping import Int64

from tokprune.looking.ways import NO_WAYS, Ways
from tokprune.types import Array, Media, Prepared, Region

Positions: TypeAlias = Int64[Array, "p s"]


class Span(NamedTuple):
    """A run of prompt rows: text (`regions` empty) or the vision tokens of a picture or video."""

    length: int
    regions: tuple[Region, ...] = ()
    step_s: float = 0.0  # of a video: seconds from one frame of `regions` to the next


@dataclass(frozen=True)
class Processor:
    """The numpy half of one checkpoint, its settings read from the bundle's HF files."""

    # all pictures and videos of a prompt; a family may make several of one video
    prepare: Callable[[Media], tuple[Prepared, ...]]
    positions: Callable[[Sequence[Span]], tuple[Positions, int]]  # and the next position
    ways: Ways = NO_WAYS  # what else than whole tiles and frames the vision encoder can be shown
    together: int = 1  # frames of a video that the vision encoder takes as one


@dataclass(frozen=True)
class Family:
    """The torch-free half of a family. `tokprune_export.families` has the other half."""

    open: Callable[[Path], Processor]  # the folder with config.json and HF's settings
