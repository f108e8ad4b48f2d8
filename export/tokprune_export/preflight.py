"""Will it fit? Bytes of disk and memory that an export needs, asked before it starts."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokprune.memory import available_memory, gib
from tokprune_export.checkpoint import Checkpoint
from tokprune_export.errors import ExportRefused

FLOAT_BYTES = 4
GRAPH_BYTES = 32 << 20  # graph files without weights, reports, manifest
BASE_MEMORY_BYTES = 1 << 30  # interpreter, torch, transformers, ONNX Runtime and activations


@dataclass(frozen=True)
class Needs:
    """Bytes at the peak."""

    disk: int
    memory: int


def needs(checkpoint: Checkpoint, layers: int | None) -> Needs:
    """Count what the export will need.

    Disk: all weights in float32, the embedding table apart from the head, the first layer's part of
    layer 0, and the text files; nothing is written twice. Memory: the weights in float32 once, plus
    the largest one (it is transposed while it is written).
    """
    config = checkpoint.text_config
    width = config["hidden_size"]
    weights = checkpoint.parameters(layers) * FLOAT_BYTES
    tied = not any(name.endswith("lm_head.weight") for name in checkpoint.shapes)
    head = config["vocab_size"] * width * FLOAT_BYTES if tied else 0
    first = 2 * width * width * FLOAT_BYTES
    texts = sum(path.stat().st_size for path in checkpoint.text_files)
    largest = max(int(np.prod(shape, dtype=np.int64)) for shape in checkpoint.shapes.values())
    return Needs(
        disk=weights + head + first + texts + GRAPH_BYTES,
        memory=weights + head + largest * FLOAT_BYTES + BASE_MEMORY_BYTES,
    )


def check(needed: Needs, output: Path) -> None:
    """Refuse an export that would die half-way.

    Raises:
        ExportRefused: with the bytes needed and the bytes there.
    """
    place = next(path for path in output.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed.disk:
        raise ExportRefused(f"Not enough disk at {place}: {_compared(needed.disk, free)}")
    available = available_memory()
    if available < needed.memory:
        raise ExportRefused(f"Not enough memory: {_compared(needed.memory, available)}")


def _compared(needed: int, available: int) -> str:
    return f"this export needs {gib(needed)}, available are {gib(available)}"
