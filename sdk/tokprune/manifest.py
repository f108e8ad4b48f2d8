"""`manifest.json`: what the exporter wrote, as typed and strict structs.

Unknown keys are refused, never dropped: a bundle from a newer tokprune says so instead of half
working.
"""

import hashlib
from typing import Any, Literal

import msgspec

SCHEMA_VERSION = 1
Piece = list[int | str]  # special token ids and plain text, in order
Engine = Literal["onnxruntime-cpu", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]
Cache = Literal["grows", "in_place"]
ScorerKind = Literal["attention", "paper", "grid", "asked", "frames"]
Modality = Literal["picture", "video"]
Metrics = dict[str, float]  # held-out: those of tokprune_export.agreement.Quality
Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
# int8: inputs are rounded as they come, for ONNX Runtime on the CPU. int8-static: QuantizeLinear
# and DequantizeLinear with scales from the export, for every engine; in fp32 or fp16 between them.
EncoderPrecision = Literal["int8", "int8-static"]
CACHE_DTYPES: dict[Precision, str] = {  # all else that the host touches is float32
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "int8": "float32",
    "int4": "float16",
}
EMBEDDING_DTYPES: dict[Precision, str] = {  # numpy, and so the table on the disk, has no bfloat16
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "float32",
    "int8": "float16",
    "int4": "float16",
}
_UNSEALED = "0" * 64


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all structs here: immutable, and strict about keys."""


class Tensor(_Strict, frozen=True):
    """One input or output of a graph. An axis is a number, or a name where it is dynamic."""

    name: str
    dtype: str  # numpy's name: "float32", "int64", "bool"; or "bfloat16", which numpy has not
    shape: list[int | str]


class GraphSpec(_Strict, frozen=True):
    """One ONNX file and its interface."""

    file: str  # relative to the bundle
    opset: int
    inputs: list[Tensor]
    outputs: list[Tensor]


class LlmForm(_Strict, frozen=True):
    """One form of the pruned LLM (engines.md): the same weights, other operators."""

    form: Literal["portable", "ort", "trt"]
    cache: Cache  # "grows": present = concat(past, new); "in_place": past buffer = present buffer
    serves: list[Engine]
    graph: GraphSpec


class Graphs(_Strict, frozen=True):
    """The four graphs."""

    vision_encoder: GraphSpec
    first_layer: GraphSpec
    scorer: GraphSpec
    llm: list[LlmForm]


class LlmShape(_Strict, frozen=True):
    """Sizes of the LLM that the host needs."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int


class Scorer(_Strict, frozen=True):
    """Where the scores come from, and how good they were on held-out samples."""

    kind: ScorerKind
    trained: bool
    modalities: list[Modality]  # that it was trained on; empty if untrained
    metrics: Metrics  # empty if untrained
    metrics_by_modality: dict[Modality, Metrics]  # empty where there is one modality only
    glance_metrics: Metrics = {}  # of first looks (encode="coarse", "lazy"); empty: never seen any


class Chat(_Strict, frozen=True):
    """The chat template, compiled to pieces that are joined on the device.

    A conversation is `head` (or `head_system[0] system head_system[1]`), the first user turn,
    then for every further turn `reply` answer `next_user` question, and at the end `generation`.
    Text of adjacent pieces and of the user is joined before it is tokenised, as the template's
    own output would be.
    """

    head: Piece
    head_system: list[Piece] | None  # None: the template takes no system message
    reply: Piece  # between a user's words and an earlier answer
    next_user: Piece  # between an earlier answer and the user's next words
    generation: Piece  # after the last user's words
    picture: Piece  # stands for one picture; its image_token_id is repeated once a vision token
    video: Piece | None  # the same for a video; None: the template takes none
    media_first: bool  # the template moves pictures and videos before the words of a turn
    words: Piece  # before each part of a user's words


class Tokens(_Strict, frozen=True):
    """Ids that the host must know."""

    image: int  # placeholder of a picture's vision tokens
    video: int | None  # of a video's; None where this checkpoint has no such placeholder
    eos: list[int]
    control: list[int]  # ids that user text must never make


class Limits(_Strict, frozen=True):
    """What the bundle takes; longer requests are refused."""

    max_input_len: int  # prompt rows that enter the LLM, kept vision tokens included
    max_kv_len: int  # prompt and answer


class Source(_Strict, frozen=True):
    """Where the weights came from and what exported them."""

    model: str  # folder name or hub id
    revision: str | None
    tools: dict[str, str]  # "torch": "2.13.0", ...
    created: str  # ISO 8601, UTC


class File(_Strict, frozen=True):
    """One file of the bundle."""

    bytes: int
    sha256: str


class Manifest(_Strict, frozen=True):
    """The whole of it."""

    schema_version: int
    tokprune_version: str
    family: str
    precision: Precision
    graphs: Graphs
    llm: LlmShape
    chat: Chat
    tokens: Tokens
    limits: Limits
    scorer: Scorer
    default_selector: str
    source: Source
    files: dict[str, File]  # every file that the exporter wrote, manifest.json excepted
    saliency_layers: int = 0  # of the vision encoder, summed in its second output; 0: it has none
    encoder_precision: EncoderPrecision | None = None  # of the vision encoder; None: as the rest
    seal: str = _UNSEALED  # sha256 of manifest.json with 64 zeros here; `encode` sets it


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as indented UTF-8 JSON, sealed."""
    unsealed = msgspec.structs.replace(manifest, seal=_UNSEALED)
    data = msgspec.json.format(msgspec.json.encode(unsealed), indent=2) + b"\n"
    before, _, after = data.rpartition(_UNSEALED.encode())
    return before + hashlib.sha256(data).hexdigest().encode() + after


def is_sealed(data: bytes, manifest: Manifest) -> bool:
    """Tell whether `data`, read as `manifest`, is byte for byte what `encode` wrote."""
    if len(manifest.seal) != len(_UNSEALED):
        return False
    before, seal, after = data.rpartition(manifest.seal.encode())
    unsealed = before + _UNSEALED.encode() + after
    return bool(seal) and hashlib.sha256(unsealed).hexdigest() == manifest.seal


def decode(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        msgspec.ValidationError: a key is unknown, missing or of the wrong type.
        msgspec.DecodeError: this is not JSON.
    """
    return msgspec.json.decode(data, type=Manifest)


def schema_version(data: bytes) -> Any:
    """Return the version that the file claims, whatever else it holds."""
    return msgspec.json.decode(data, type=dict[str, Any]).get("schema_version")
