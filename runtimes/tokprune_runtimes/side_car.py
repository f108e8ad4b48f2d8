"""What an engine was made from and for: a JSON file beside it, checked before it is loaded.

Engines are native code. Nothing of one reaches TensorRT before its side-car says that it was built
from this graph, for this version and this GPU, and its bytes are the ones that were built. Nothing
is signed: whoever can write the folder can write a side-car that fits.
"""

import hashlib
import mmap
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tokprune_runtimes.cuda import device_gpu
from tokprune_runtimes.errors import EngineStale
from tokprune_runtimes.trt_module import Kind, engine_version

_PIECE_BYTES = 1 << 24


class SideCar(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`NAME.json` beside `NAME.engine`."""

    engine: Kind
    version: str  # of TensorRT
    sm: list[str]  # GPUs that it runs on: "sm87"
    cuda: str | None  # None: built without a GPU
    driver: str | None  # newest CUDA that the driver runs
    source_sha256: str  # of the ONNX file and its data
    bytes: int
    sha256: str
    profiles: list[dict[str, list[list[int]]]]  # input -> min, opt, max
    weight_streaming: bool
    created: str  # ISO 8601, UTC
    seconds: float  # that the build took
    warnings: list[str]  # of the builder
    cuda_graphs: bool = True  # whether steps of one shape may be captured
    gpu: str | None = None  # that it was built on, and how large that is


def side_car_path(engine: Path) -> Path:
    """Return where an engine's side-car lies."""
    return engine.with_suffix(".json")


def encode_side_car(side_car: SideCar) -> bytes:
    """Return it as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(side_car), indent=2) + b"\n"


def check_side_car(
    engine: Path, kind: Kind, source_sha256: str, sm: str | None, *, content: bool = True
) -> SideCar:
    """Check that an engine may be loaded here, from its side-car and the hash of its bytes.

    Args:
        engine: the engine file.
        kind: what is to run it.
        source_sha256: of the graph that it must have been built from.
        sm: this GPU, "sm87"; None does not check that.
        content: hash its bytes. Who is about to load it need not: that hashes what it loads, and
            an engine may have gigabytes.

    Raises:
        EngineStale: says what differs.
        EngineUnavailable: `kind` is not installed.
    """
    with _mapped_engine(engine, kind, source_sha256, sm) as (side_car, data):
        if content:
            _check_content(engine, side_car, data)
        return side_car


@contextmanager
def checked_engine(
    engine: Path, kind: Kind, source_sha256: str, sm: str | None
) -> Generator[tuple[SideCar, memoryview], None, None]:
    """Check as `check_side_car` does, and yield the very bytes that were checked, mapped.

    A rebuild replaces the file, and so does not change what is mapped here.
    """
    with _mapped_engine(engine, kind, source_sha256, sm) as (side_car, data):
        _check_content(engine, side_car, data)
        yield side_car, data


def _check_content(engine: Path, side_car: SideCar, data: memoryview) -> None:
    if _sha256(data) != side_car.sha256:
        raise _stale(engine, "is damaged: its bytes are not the ones that were built")


@contextmanager
def _mapped_engine(
    engine: Path, kind: Kind, source_sha256: str, sm: str | None
) -> Generator[tuple[SideCar, memoryview], None, None]:
    """Check all but the bytes, and map them."""
    side_car = _read(engine)
    wanted = engine_version(kind)
    if side_car.engine != kind:
        raise _stale(engine, f"was built for {side_car.engine}, not for {kind}")
    if side_car.version != wanted:
        raise _stale(engine, f"was built by {kind} {side_car.version}, {wanted} is installed")
    if sm is not None and sm not in side_car.sm:
        raise _stale(engine, f"was built for {', '.join(side_car.sm)}, this GPU is {sm}")
    if sm is not None and kind == "tensorrt" and (here := device_gpu()) != side_car.gpu:
        # Its kernels were chosen by their times there: an AGX Orin's may not even fit a Nano.
        built = side_car.gpu or "a GPU that it does not name"
        raise _stale(engine, f"was built on {built}, this is {here}")
    if side_car.source_sha256 != source_sha256:
        raise _stale(engine, "was built from another graph than the bundle's")
    try:
        with engine.open("rb") as file:
            size = file.seek(0, 2)
            if size != side_car.bytes:
                raise _stale(engine, f"has {size} bytes, its side-car says {side_car.bytes}")
            if size == 0:
                raise _stale(engine, "is empty")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise _stale(engine, "is missing") from None
    with mapped, memoryview(mapped) as data:
        yield side_car, data


def _read(engine: Path) -> SideCar:
    path = side_car_path(engine)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        what = "has no side-car" if engine.exists() else "was not built yet"
        raise _stale(engine, f"{what} ({path.name} is missing)") from None
    try:
        return msgspec.json.decode(data, type=SideCar)
    except msgspec.DecodeError as error:  # ValidationError is one
        raise _stale(engine, f"has a side-car that cannot be read ({path.name}: {error})") from None


def _sha256(data: Any) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(data), _PIECE_BYTES):
        digest.update(data[start : start + _PIECE_BYTES])
    return digest.hexdigest()


def _stale(engine: Path, reason: str) -> EngineStale:
    return EngineStale(f"The engine {engine} {reason}. Build it on this device: tokprune build")
