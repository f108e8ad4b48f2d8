"""Will it fit? Bytes of disk and memory that an export needs, asked before it starts."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokprune.manifest import EMBEDDING_DTYPES, Precision
from tokprune.memory import available_memory, gib
from tokprune_export.checkpoint import DECODER_LAYER, Checkpoint
from tokprune_export.errors import ExportRefused
from tokprune_export.narrow import DTYPES
from tokprune_export.quantize import BLOCK

FLOAT_BYTES = 4
_HEAD = "lm_head.weight"
GRAPH_BYTES = 32 << 20  # graph files without weights, reports, manifest
BASE_MEMORY_BYTES = 1 << 30  # interpreter, torch, transformers, ONNX Runtime and activations


@dataclass(frozen=True)
class Needs:
    """Bytes at the peak."""

    disk: int
    memory: int


def needs(checkpoint: Checkpoint, layers: int | None, precision: Precision = "fp32") -> Needs:
    """Count what the export will need.

    Disk: all weights in their precision, the embedding table apart from the head, the first layer's
    part of layer 0, and the text files; nothing is written twice, but int4's head, which is there
    in float16 and in 8 bits. Memory: the weights in float32 once, plus the largest one (it is
    transposed while it is written); and for narrow ones the file's, since ONNX Runtime's CPU makes
    float32 of them when the gate opens it.
    """
    config = checkpoint.text_config
    width, number = config["hidden_size"], DTYPES[precision].itemsize
    tied = not any(name.endswith(_HEAD) for name in checkpoint.shapes)
    head = config["vocab_size"] * width if tied else 0
    written = sum(_bytes(name, shape, precision) for name, shape in checkpoint.weights(layers))
    written += 2 * width * width * number
    written += _bytes(_HEAD, (config["vocab_size"], width), precision) if tied else 0
    texts = sum(path.stat().st_size for path in checkpoint.text_files)
    largest = max(int(np.prod(shape, dtype=np.int64)) for shape in checkpoint.shapes.values())
    held = (checkpoint.parameters(layers) + head + largest) * FLOAT_BYTES
    widened = written * 2 if precision == "bf16" else 0  # for a while, as the gate runs float32
    return Needs(
        disk=written + widened + texts + GRAPH_BYTES,
        memory=held + (0 if number == FLOAT_BYTES else written) + BASE_MEMORY_BYTES,
    )


def _bytes(name: str, shape: tuple[int, ...], precision: Precision) -> int:
    """Return what one weight of the checkpoint takes in the bundle."""
    count = int(np.prod(shape, dtype=np.int64))
    if len(shape) < 2:  # norms stay float32
        return count * FLOAT_BYTES
    if name.endswith("embed_tokens.weight"):
        return count * np.dtype(EMBEDDING_DTYPES[precision]).itemsize
    head = name.endswith(_HEAD)
    if precision == "int8" and (head or DECODER_LAYER.search(name)):
        return count + shape[0] * FLOAT_BYTES  # and the scales
    if precision == "int4" and not shape[1] % BLOCK:
        scales = count // BLOCK * 2  # in float16
        if DECODER_LAYER.search(name):
            return count // 2 + scales
        if head:
            return count * 2 + count + scales
    return count * DTYPES[precision].itemsize


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
