"""One ONNX graph -> one TensorRT or TensorRT-RTX engine, with its side-car.

Verified with TensorRT-RTX 1.7.1 on a machine without a GPU, where it builds but does not run
engines; for TensorRT 10.3 to 11.4 the names that are used are checked, the builds are not.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tokprune_runtimes.cuda import cuda_versions, device_gpu, device_sm
from tokprune_runtimes.engine_files import StagedEngine, staged_engine
from tokprune_runtimes.errors import BuildFailed, EngineUnavailable
from tokprune_runtimes.side_car import SideCar, check_side_car, encode_side_car, side_car_path
from tokprune_runtimes.trt_module import (
    Kind,
    Logger,
    Message,
    TrtModule,
    engine_version,
    errors_in,
    load_module,
    logger_of,
)
from tokprune_runtimes.trt_monitor import Progress, Watch, monitor_of
from tokprune_runtimes.trt_profiles import (
    NetworkInput,
    Profile,
    Shape,
    add_profiles,
    check_profiles,
)
from tokprune_runtimes.trt_target import choose_targets, set_targets
from tokprune_runtimes.trt_timing_cache import keep_timing_cache, use_timing_cache

__all__ = [
    "Build",
    "Kind",
    "Profile",
    "Progress",
    "Shape",
    "SideCar",
    "build_engine",
    "check_side_car",
    "device_sm",
    "engine_version",
    "side_car_path",
]
_UNUSED = "Unused Input: "  # how the builder warns of an input that no layer reads
_MOST_WARNINGS = 50  # in a side-car


@dataclass(frozen=True)
class Build:
    """What to build, and where to put it."""

    onnx: Path  # its data files beside it
    source_sha256: str  # of the ONNX file and its data files
    engine: Path  # written with its side-car, both or none
    profiles: tuple[Profile, ...]
    sm: tuple[str, ...] = ()  # ("sm87",); empty: this GPU, or all from Ampere on (rtx)
    weight_streaming: bool = False
    timing_cache: Path | None = None  # tensorrt only
    cuda_graphs: bool = True  # whether the runtime may capture steps of one shape
    workspace_bytes: int | None = None  # most that a kernel may use beside its tensors; None: any


def build_engine(
    kind: Kind, build: Build, progress: Callable[[Progress], bool] | None = None
) -> SideCar:
    """Build one engine and write it with its side-car, both or none.

    Args:
        kind: which engine.
        build: what and where.
        progress: called for every step of every phase; returning False cancels.

    Raises:
        EngineUnavailable: `kind` is not installed, or needs a GPU and finds none.
        BuildFailed: the graph, a profile or the target does not do; says all that TensorRT said.
        BuildCancelled: `progress` returned False.
        OSError: the folder cannot be written, or the disk is full.
    """
    trt = load_module(kind)
    targets = choose_targets(trt, kind, build.sm, device_sm())
    if not build.onnx.is_file():
        raise BuildFailed(f"There is no ONNX file {build.onnx}")
    logger = logger_of(trt)
    notes = side_car_path(build.engine)
    start = time.monotonic()
    with logger.listeners.listening() as heard, staged_engine(build.engine, notes) as staged:
        file, contents = staged
        serialized = _serialize(_Request(kind, trt, logger, build, targets, heard), progress)
        # build_serialized_network_to_stream hands Python one `bytes` of it all (measured with
        # TensorRT-RTX 1.7.1): a second copy. The builder's own memory, viewed, needs none.
        with memoryview(serialized) as data:
            file.write(data.cast("B"))
        side_car = _describe(kind, build, targets, file, heard, time.monotonic() - start)
        contents.append(encode_side_car(side_car))
    return side_car


@dataclass(frozen=True)
class _Request:
    """One build with what it needs of the process."""

    kind: Kind
    trt: TrtModule
    logger: Logger
    build: Build
    targets: Sequence[str]
    heard: list[Message]

    def warn(self, text: str | None) -> None:
        """Have it in the side-car."""
        if text:
            self.heard.append(Message("warning", text))


def _serialize(request: _Request, progress: Callable[[Progress], bool] | None) -> Any:
    """Return the engine in the builder's memory."""
    trt, build = request.trt, request.build
    builder = _builder(request)
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)  # the graph says the precision
    parser = trt.OnnxParser(network, request.logger.trt)  # owns the weights: alive until the end
    _parse(request, parser)
    inputs = _inputs(network)
    check_profiles(inputs, build.profiles)
    config = builder.create_builder_config()
    # Or float32 products are rounded to 10 bits: worse than what the export's parity gate allows.
    config.clear_flag(trt.BuilderFlag.TF32)
    set_targets(trt, request.kind, config, request.targets)
    add_profiles(builder, config, inputs, build.profiles)
    if build.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if build.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, build.workspace_bytes)
    timings = _timing_cache(request, config)
    # Whether an input is ignored is said early in the build: no need to wait for its end.
    watch = Watch(lambda step: not _unused(request) and (progress is None or progress(step)))
    monitor = monitor_of(trt, watch)  # alive until the end, whatever the bindings keep
    config.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, config)
    _refuse_unused(request)
    watch.raise_stop()
    if serialized is None:
        said = errors_in(request.heard)
        raise BuildFailed(f"{request.kind} built no engine of {build.onnx}:\n{said}")
    if timings:
        request.warn(keep_timing_cache(config, timings))
    return serialized


def _builder(request: _Request) -> Any:
    try:
        builder = request.trt.Builder(request.logger.trt)
    except (TypeError, RuntimeError) as error:  # "factory function returned nullptr"
        said = errors_in(request.heard)
        raise EngineUnavailable(f"{request.kind} cannot build here ({error}):\n{said}") from error
    return builder


def _parse(request: _Request, parser: Any) -> None:
    """Read the ONNX file into the network, all or an error."""
    if not parser.parse_from_file(str(request.build.onnx)):
        faults: list[str] = []
        for index in range(parser.num_errors):
            fault = parser.get_error(index)
            node = fault.node_name() or f"number {fault.node()}"
            faults.append(f"{fault.node_operator() or 'the file'} ({node}): {fault.desc()}")
        said = "\n".join(faults) or errors_in(request.heard)
        raise BuildFailed(f"{request.kind} cannot read {request.build.onnx}:\n{said}")


def _unused(request: _Request) -> list[str]:
    texts = (message.text for message in request.heard if message.text.startswith(_UNUSED))
    return list(dict.fromkeys(text.removeprefix(_UNUSED) for text in texts))


def _refuse_unused(request: _Request) -> None:
    """An input that the engine ignores would give wrong answers, not slower ones."""
    unused = _unused(request)
    if unused:
        raise BuildFailed(
            f"{request.kind} ignores these inputs of {request.build.onnx}: {', '.join(unused)}. "
            "Its answers would be wrong: remove them from the graph, or use another operator"
        )


def _inputs(network: Any) -> list[NetworkInput]:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    return [
        NetworkInput(str(tensor.name), tuple(tensor.shape), bool(tensor.is_shape_tensor))
        for tensor in tensors
    ]


def _timing_cache(request: _Request, config: Any) -> Path | None:
    """Return the path to write it to afterwards."""
    path = request.build.timing_cache
    if path is None:
        return None
    if request.kind != "tensorrt":  # deprecated there, and its use demands a GPU
        request.warn(f"{request.kind} has no timing cache: {path} was neither read nor written")
        return None
    request.warn(use_timing_cache(config, path))
    return path


def _describe(
    kind: Kind,
    build: Build,
    targets: Sequence[str],
    file: StagedEngine,
    heard: Sequence[Message],
    seconds: float,
) -> SideCar:
    cuda, driver = cuda_versions() or (None, None)
    warnings = dict.fromkeys(each.text for each in heard if each.severity == "warning")
    return SideCar(
        engine=kind,
        version=engine_version(kind),
        sm=list(targets),
        cuda=cuda,
        driver=driver,
        source_sha256=build.source_sha256,
        bytes=file.size,
        sha256=file.sha256,
        profiles=[
            {name: [list(shape) for shape in ranges] for name, ranges in inputs.items()}
            for inputs in build.profiles
        ],
        weight_streaming=build.weight_streaming,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        warnings=list(warnings)[:_MOST_WARNINGS],
        cuda_graphs=build.cuda_graphs,
        gpu=device_gpu(),
    )
