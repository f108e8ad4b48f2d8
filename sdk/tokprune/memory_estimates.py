"""How much memory ONNX Runtime takes for a graph on the CPU, as it was measured.

The constants fit tests/benchmarks/memory_use.py; docs/results/memory.md has what was measured
beside what is estimated. What each stands for:

* Weights are read from a mapping of the file and packed anew for the matrix products, one tensor
  after the other. When a graph is open its packed weights are there and the mapping is not; while
  it opens, the mapping of the largest tensor stands beside its copy.
* Activations are those of the widest place: the MLP, or where scores of attention are written out,
  heads x rows x rows of them. The arena keeps what it had, so the largest request counts, not the
  latest one. Not counted: smaller requests before it leave pieces that it cannot use (28 % more
  were seen where four pictures came in growing sizes; warm up with the largest first).
"""

import mmap
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from math import ceil, isqrt, prod
from pathlib import Path
from typing import NamedTuple

import msgspec

from tokprune.bundle import Bundle
from tokprune.containment import opened_file, opened_folder, read_small
from tokprune.manifest import CACHE_DTYPES, GraphSpec, LlmForm, Precision
from tokprune.onnx_paths import external_data

FLOAT = 4  # bytes; ONNX Runtime's CPU computes in float32 whatever the weights are
ENGINE = 25 << 20  # the library, once a process; two thirds are pages of its file
SESSION = 15  # times the size of the ONNX file: nodes and kernels
TOKENIZER, TOKENIZER_LIBRARY = 7, 3 << 20  # times the size of tokenizer.json; and once a process
ONE_HEAD = 1.4  # copies of one head's scores for saliency (measured: 1.4 of 4 heads, 0.9 of 16)
HOST = 3  # times the pixels that are fed: pictures before and after they are resized
# What weights become, once open, by bare matrix products (tests/benchmarks/products.py), no bundle
# of size being at hand: float32 from float16, by constant folding; int4 is packed beside its own
# bytes, and the allocator keeps some of what that freed: 86 to 135 MiB were seen for 50. Older ones
# (1.23.2) keep float32 packed and unpacked, and unpack int4 in every run.
# int8 by an LLM of 0.5B: 482 MiB for 473.
_PACKED: Mapping[Precision, float] = {
    "fp32": 1.0,
    "fp16": 2.0,
    "bf16": 2.0,
    "int8": 1.02,
    "int4": 2.5,
}
_PACKED_OLDER: Mapping[Precision, float] = {
    "fp32": 1.0,
    "fp16": 4.0,
    "bf16": 4.0,
    "int8": 1.02,
    "int4": 10.5,
}
_CONFIG_BYTES = 16 << 20


class Weights(NamedTuple):
    """Of one graph."""

    bytes: int  # tensors and the ONNX file itself
    largest: int  # the largest tensor
    session: int  # what else an open graph takes


class Widths(NamedTuple):
    """Of a stack of transformer layers."""

    hidden: int
    mlp: int
    heads: int


class Models(NamedTuple):
    """What `config.json` tells of both halves of the model; None where it does not."""

    llm: Widths | None
    vision: Widths | None
    patch_px: int = 14  # as every encoder has it that is known here


class _Stack(msgspec.Struct):
    """Keys of HF's configs; what one family calls `hidden_size` is `embed_dim` in another."""

    hidden_size: int | None = None
    embed_dim: int | None = None
    intermediate_size: int | None = None
    mlp_ratio: float | None = None
    num_attention_heads: int | None = None
    num_heads: int | None = None
    patch_size: int | None = None


class _Config(_Stack):
    text_config: _Stack | None = None
    vision_config: _Stack | None = None


def weights(bundle: Bundle, name: str, spec: GraphSpec, *, on_cpu: bool = True) -> Weights:
    """Return what a graph's weights take, from its file. No engine opens it.

    Args:
        bundle: the bundle.
        name: of the graph.
        spec: of the graph.
        on_cpu: whether they are packed for it; else they are taken as they are.

    Raises:
        BundleInvalid: the file is not there, or no ONNX file.
    """
    precision = bundle.manifest.precision
    if precision == "int4" and name != "llm":
        precision = "fp16"  # only the LLM's linear weights are int4
    if precision == "int8" and name != "llm":
        precision = "fp32"  # and int8
    if name == "vision_encoder" and bundle.manifest.encoder_precision is not None:
        precision = "int8"  # int8-static's stays in 8 bits too, whatever is between the products
    return weights_of(bundle.path, spec.file, packed(precision) if on_cpu else 1.0)


def packed(precision: Precision) -> float:
    """Return how many times its size in the file a weight takes with this ONNX Runtime's CPU."""
    return (_PACKED_OLDER if _is_older() else _PACKED)[precision]


def weights_of(folder: Path, file: str, times: float = 1.0) -> Weights:
    """Return the same of an ONNX file in a folder, its tensors growing so many times."""
    with (
        opened_folder(folder) as root,
        opened_file(root, file) as descriptor,
        mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        found = {(one.location, one.offset): one.length or 0 for one in external_data(view)}
        own = len(view)
    total, largest = sum(found.values()), max(found.values(), default=0)
    return Weights(own + int(times * total), int(min(times, 2.0) * largest), SESSION * own)


def models(folder: Path) -> Models:
    """Read widths and heads from a bundle's `config.json`."""
    with opened_folder(folder) as root, opened_file(root, "config.json") as descriptor:
        data = read_small(descriptor, "config.json", _CONFIG_BYTES)
    try:
        config = msgspec.json.decode(data, type=_Config)
    except msgspec.MsgspecError:
        return Models(None, None)  # the estimate says that it is unknown
    vision = config.vision_config
    patch_px = (vision and vision.patch_size) or 14
    return Models(_widths(config.text_config or config), vision and _widths(vision), patch_px)


def tokenizer_bytes(bundle: Bundle) -> int:
    """Return what the tokenizer takes."""
    return TOKENIZER_LIBRARY + TOKENIZER * bundle.manifest.files["tokenizer.json"].bytes


def cache_row_bytes(bundle: Bundle) -> int:
    """Return what the KV cache takes for one token."""
    shape, itemsize = bundle.manifest.llm, 4
    if CACHE_DTYPES[bundle.manifest.precision] != "float32":
        itemsize = 2
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * itemsize


def prefill_bytes(form: LlmForm, widths: Widths, rows: int, *, written: bool) -> int:
    """Return the activations of a prefill, its cache not counted.

    Args:
        form: of the LLM.
        widths: of its layers.
        rows: of the prompt.
        written: whether all scores of attention are.
    """
    wide = rows * (4 * widths.mlp + 8 * widths.hidden) * FLOAT
    copies = 2.1 if form.cache == "grows" else 1.6 if written else 0.0
    return int(wide + copies * widths.heads * rows * rows * FLOAT)


def encoder_bytes(
    widths: Widths, sequences: int, patches: int, input_floats: int, *, saliency: bool = False
) -> int:
    """Return the activations of one call of the vision encoder.

    Args:
        widths: of the encoder.
        sequences: frames or tiles; attention stays within each.
        patches: of each sequence.
        input_floats: of one patch, as it is fed.
        saliency: whether the graph tells it, from the scores of one head after the other.
    """
    wide = 3 * widths.mlp + 6 * widths.hidden + input_floats
    scores = (widths.heads + (ONE_HEAD if saliency else 0)) * patches
    return int(sequences * patches * (wide + scores) * FLOAT)


def tells_saliency(encoder: GraphSpec) -> bool:
    """Tell whether a vision encoder has that output."""
    return any(output.name == "saliency" for output in encoder.outputs)


def picture_bytes(models: Models, spec: GraphSpec, vision: int) -> tuple[int, int | None]:
    """Return what the vision encoder is fed, and its activations: one square picture, or tiles."""
    pixels = next(tensor for tensor in spec.inputs if tensor.name == "pixel_values")
    fixed = [axis for axis in pixels.shape if isinstance(axis, int)]
    tokens = next(out.shape[1] for out in spec.outputs if out.name == "vision_tokens")
    if isinstance(tokens, int):  # a fixed number of vision tokens a tile: [tiles, 3, S, S]
        sequences, patches = ceil(vision / tokens), (fixed[-1] // models.patch_px) ** 2
        floats = prod(fixed) // patches
    else:  # [frames, patches, floats], four patches a vision token
        sequences, patches, floats = 1, 4 * (isqrt(vision - 1) + 1) ** 2, fixed[-1]
    size = sequences * patches * floats * FLOAT
    if models.vision is None:
        return size, None
    saliency = tells_saliency(spec)
    return size, encoder_bytes(models.vision, sequences, patches, floats, saliency=saliency)


def first_layer_bytes(widths: Widths, rows: int, question: int) -> int:
    """Return the activations of the first layer over an unpruned prompt."""
    return rows * (2 * widths.hidden + 2 * widths.heads * question) * FLOAT


def scores_are_written(form: LlmForm) -> bool:
    """Tell whether this ONNX Runtime writes out all scores of attention for a form."""
    return form.cache == "grows" or _is_older()


def _is_older() -> bool:
    """Tell whether ONNX Runtime is older than 1.31.

    1.23.2 and 1.31.1 were measured; for those between, 1.23.2's figures are taken, the larger ones.
    """
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            numbers = tuple(int(part) for part in version(package).split(".")[:2])
        except (PackageNotFoundError, ValueError):
            continue
        return numbers < (1, 31)
    return True


def _widths(stack: _Stack) -> Widths | None:
    hidden = stack.embed_dim or stack.hidden_size  # Qwen2-VL's encoder: hidden_size is the LLM's
    heads = stack.num_heads or stack.num_attention_heads
    mlp = stack.intermediate_size
    if mlp is None and stack.mlp_ratio is not None and hidden is not None:
        mlp = int(hidden * stack.mlp_ratio)
    if hidden is None or heads is None or mlp is None:
        return None
    return Widths(hidden, mlp, heads)
