"""What the exporter must know of a model family."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from jaxtyping import Float, Int64
from torch import Tensor

from tokprune.families import Span
from tokprune.types import Prepared
from tokprune_export.decoder import TextModel
from tokprune_export.onnx import Source

Config: TypeAlias = Mapping[str, Any]  # a parsed config.json


@dataclass(frozen=True)
class Trial:
    """A prompt with pictures or videos that no graph was traced with: random pixels and text."""

    name: str
    ids: Int64[Tensor, " s"]
    slots: Int64[Tensor, " n"]
    spans: tuple[Span, ...]  # for the numpy half's positions
    positions: Int64[Tensor, "p 1 s"]  # what the HF model makes of it
    next_position: int
    media: tuple[Prepared, ...]  # for our own vision encoder
    inputs: Mapping[str, Tensor]  # what HF's forward and generate take


class MakeVision(Protocol):
    """Makes the vision encoder's graph."""

    def __call__(self, model: Any, saliency_layers: int = 0, /) -> Source:
        """Return it, with saliency summed over that many layers; without it where that is 0."""
        ...


@dataclass(frozen=True)
class Family:
    """The torch half of a family. `tokprune.families` has the other half."""

    check: Callable[[Config], None]  # raises ExportRefused for what the graphs would not do
    load: Callable[[Path, int | None], Any]  # folder, layers to keep -> HF module in float32
    text: Callable[[Any], TextModel]
    vision: MakeVision
    # layers of the vision encoder that are used and let a patch attend to its whole frame or tile
    attention_layers: Callable[[Config], int]
    trials: Callable[[Any], Iterator[Trial]]
    encode: Callable[[Any, Mapping[str, Tensor]], Float[Tensor, "n d"]]  # HF's own, from inputs
    # HF's own attention maps, from inputs, summed over so many layers
    saliency: Callable[[Any, Mapping[str, Tensor], int], Float[Tensor, " n"]]
