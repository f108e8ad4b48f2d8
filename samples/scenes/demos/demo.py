"""What the training must know of a family: its network, its files, its way of reading pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from tokprune.families import Processor
from tokprune.types import Prepared, Prompt

Pixels: TypeAlias = Mapping[str, Tensor]  # what a batch's pictures are to the vision encoder


class Size(NamedTuple):
    """Sizes of a network."""

    vision_layers: int  # that are used
    vision_width: int
    layers: int
    hidden: int
    mlp: int


class Llm(NamedTuple):
    """The parts of a decoder of transformers, of Qwen2's or Llama's kind."""

    embed: nn.Embedding
    layers: Any  # a ModuleList of decoder layers
    norm: nn.Module
    rotary: Callable[..., tuple[Tensor, Tensor]]
    head: nn.Linear


class Pictures(NamedTuple):
    """A band of picture sizes, in cells of 28 pixels, and how many rows of them make a batch."""

    grids: tuple[tuple[int, int], ...]
    rows: int
    side_px: int | None = None  # to which pictures are scaled, where the family allows it


@dataclass(frozen=True)
class Plan:
    """Which pictures a training sees, and when."""

    bands: tuple[Pictures, ...]
    vision: tuple[float, ...]  # weights of the bands while the vision encoder learns alone
    # From this share of the other steps on, the bands have these weights. Tiny pictures first: a
    # schedule of Qwen2-VL that mixed all sizes from the start stood still at 57 %.
    schedule: tuple[tuple[float, tuple[float, ...]], ...]
    others: tuple[tuple[float, tuple[float, ...]], ...]  # the same for layouts but "plain"
    # The same for a training that goes on from a checkpoint, by the share of its own steps: small
    # pictures first here too, as letters are learnt on them at a third of the price.
    again: tuple[tuple[float, tuple[float, ...]], ...]
    layouts: Mapping[str, float]  # shares of the steps, after `layouts_from`; the rest is "plain"
    layouts_from: float = 0.25


class Card(NamedTuple):
    """What the model card says of a family."""

    name: str
    architecture: str  # the class, or where the layout comes from
    tokenizer: str
    pictures: str


@dataclass(frozen=True)
class Demo:
    """One family. Its network is a module of transformers, or made of such."""

    sizes: Mapping[str, Size]  # by preset
    plan: Plan
    make: Callable[[Size, int], nn.Module]  # size, seed -> initial weights
    load: Callable[[Path], nn.Module]  # what `save` wrote, in float32 and trainable
    save: Callable[[Path, Any], None]  # a checkpoint as published ones are, in bfloat16
    llm: Callable[[Any], Llm]
    pixels: Callable[[Sequence[Prepared]], dict[str, Tensor]]
    encode: Callable[[Any, Pixels], Tensor]  # -> vision tokens [n, d], in the LLM's order
    patches: Callable[[Pixels], Tensor]  # [m, 588] of a batch
    set_patches: Callable[[Any, Tensor], None]  # the patch embedding to [width, 588]
    generate: Callable[[Any, Prompt, Sequence[Prepared]], Tensor]  # transformers' own; the new ids
    card: Card
    # The same of parts of pictures: vision tokens [n] whose patches nothing attends to. What is
    # returned for these means nothing.
    encode_parts: Callable[[Any, Pixels, Tensor], Tensor] | None = None
    scaled: Callable[[Path, int], Processor] | None = None  # the processor for smaller squares


def trainable(model: nn.Module) -> nn.Module:
    """Return a loaded model as one to be trained on."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # not of the file's memory
    return model.train().requires_grad_(requires_grad=True)
