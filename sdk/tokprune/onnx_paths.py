"""Where the tensors of an ONNX file lie, read without the `onnx` package and before any engine.

A walk over the protobuf wire format that goes wherever a tensor can hide: initialisers, sparse
ones, attributes of nodes, subgraphs, functions and training graphs. It trusts nothing: lengths,
varints and the number of fields are bounded, and there is no recursion.
Field numbers follow https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

_MAX_FIELDS = 300_000  # a 7B model's graph has some 50,000; half a second
_MAX_ENTRY_BYTES = 4096
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Kind: TypeAlias = Literal[
    "Model", "Graph", "Node", "Attribute", "Function", "Training", "Sparse", "Tensor", "Entry"
]
_INSIDE: dict[Kind, dict[int, Kind]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "Sparse",
        23: "Sparse",
    },
    "Function": {7: "Node", 11: "Attribute"},
    "Training": {1: "Graph", 2: "Graph"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
}
_NODE_OP_TYPE, _TENSOR_ENTRY, _TENSOR_LOCATION, _EXTERNAL = 4, 13, 14, 1


@dataclass(frozen=True)
class ExternalData:
    """Bytes of one tensor that lie in another file."""

    location: str
    offset: int
    length: int | None  # None: as many as the tensor's shape says


Field: TypeAlias = tuple[int, int | memoryview]  # number; varint, or the bytes of the others


def external_data(model: memoryview) -> list[ExternalData]:
    """Return every reference to another file, in no particular order.

    Raises:
        ValueError: this is no ONNX file, or one that makes an engine open files on its own.
    """
    found: list[ExternalData] = []
    todo: list[tuple[Kind, memoryview]] = [("Model", model)]
    budget = iter(range(_MAX_FIELDS))
    graphs = 0
    while todo:
        kind, message = todo.pop()
        graphs += kind == "Graph"
        entries: list[memoryview] = []
        external = False
        for number, value in _fields(message, budget):
            if isinstance(value, int):
                external |= kind == "Tensor" and number == _TENSOR_LOCATION and value == _EXTERNAL
            elif kind == "Tensor" and number == _TENSOR_ENTRY:
                entries.append(value)
            elif kind == "Node" and number == _NODE_OP_TYPE and bytes(value[:16]) == b"EPContext":
                raise ValueError("it holds a compiled engine (EPContext): these are never accepted")
            elif inner := _INSIDE.get(kind, {}).get(number):
                todo.append((inner, value))
        if external or entries:
            found.append(_reference(entries, budget))
    if not graphs:
        raise ValueError("it holds no graph")
    return found


def _reference(entries: list[memoryview], budget: Iterator[int]) -> ExternalData:
    """Read the key-value pairs of one tensor. ONNX Runtime ignores unknown keys; so does this."""
    pairs: dict[str, str] = {}
    for entry in entries:
        texts = {1: "", 2: ""}
        if len(entry) > _MAX_ENTRY_BYTES:
            raise ValueError("a text of external data is too long")
        for number, value in _fields(entry, budget):
            if number in texts and not isinstance(value, int):
                texts[number] = str(value, "utf-8")
        if texts[1] in pairs:
            raise ValueError(f"the key {texts[1]!r} of external data stands twice")
        pairs[texts[1]] = texts[2]
    if "location" not in pairs:
        raise ValueError("external data has no location")
    length = pairs.get("length")
    return ExternalData(
        location=pairs["location"],
        offset=_natural(pairs.get("offset", "0")),
        length=None if length is None else _natural(length),
    )


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError(f"{text!r:.60} is no offset or length of external data")
    return int(text)


def _fields(message: memoryview, budget: Iterator[int]) -> Iterator[Field]:
    """Yield the fields of one protobuf message; bytes are views, nothing is copied."""
    at, end = 0, len(message)
    while at < end:
        if next(budget, None) is None:
            raise ValueError("it has too many fields")
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("it is no protobuf")
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} is not used by ONNX")
        if size > end - at:
            raise ValueError("it is truncated")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number at `at`, and where the next thing starts."""
    result = shift = 0
    for byte in message[at : at + 10]:  # 64 bits, seven a byte
        result |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return result, at + shift // 7
    raise ValueError("it is truncated" if shift < 70 else "a number has more than 64 bits")
