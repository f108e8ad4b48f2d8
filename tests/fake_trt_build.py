"""A builder of engines for tests: what `tokprune_runtimes.trt_build` promises, without TensorRT."""

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

import tokprune_runtimes
from tokprune_runtimes.errors import BuildFailed, EngineStale, EngineUnavailable

NAME = "tokprune_runtimes.trt_build"


@dataclass(frozen=True)
class Build:
    onnx: Path
    source_sha256: str
    engine: Path
    profiles: tuple[Mapping[str, Any], ...]
    sm: tuple[str, ...] = ()
    weight_streaming: bool = False
    timing_cache: Path | None = None
    cuda_graphs: bool = True
    workspace_bytes: int | None = None


@dataclass(frozen=True)
class Progress:
    phase: str
    step: int
    steps: int


class SideCar(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    engine: str
    version: str
    sm: list[str]
    cuda: str | None
    driver: str | None
    source_sha256: str
    bytes: int
    sha256: str
    profiles: list[dict[str, list[list[int]]]]
    weight_streaming: bool
    created: str
    seconds: float
    warnings: list[str]


@dataclass
class FakeBuilder:
    """Stands for TensorRT, TensorRT-RTX, the driver and the GPU of a machine."""

    versions: dict[str, str] = field(default_factory=lambda: {"tensorrt": "10.3.0"})
    gpu: str | None = "sm87"
    fails: str | None = None  # the engine that cannot be built
    built: list[Build] = field(default_factory=list[Build])

    def engine_version(self, kind: str) -> str:
        if kind not in self.versions:
            raise EngineUnavailable(
                f"The {kind} engine is not installed: pip install 'tokprune[{kind}]'"
            )
        return self.versions[kind]

    def device_sm(self) -> str | None:
        return self.gpu

    def build_engine(
        self, kind: str, build: Build, progress: Callable[[Progress], bool] | None = None
    ) -> SideCar:
        assert build.onnx.is_file()
        self.built.append(build)
        for step in range(3):
            if progress is not None:
                assert progress(Progress("Building", step, 2))
        if build.engine.stem == self.fails:
            raise BuildFailed("the network has an operator that nobody knows")
        data = f"engine {build.engine.stem}".encode()
        car = SideCar(
            engine=kind,
            version=self.engine_version(kind),
            sm=list(build.sm) or ["sm80", "sm89"],
            cuda=None,
            driver=None,
            source_sha256=build.source_sha256,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            profiles=[
                {name: [list(shape) for shape in shapes] for name, shapes in profile.items()}
                for profile in build.profiles
            ],
            weight_streaming=build.weight_streaming,
            created="2026-11-21T00:00:00Z",
            seconds=1.5,
            warnings=["kernels are slow"] if build.engine.stem == "llm" else [],
        )
        build.engine.write_bytes(data)
        build.engine.with_suffix(".json").write_bytes(msgspec.json.encode(car))
        return car

    def check_side_car(
        self, engine: Path, kind: str, source_sha256: str, sm: str | None, *, content: bool = True
    ) -> SideCar:
        try:
            car = msgspec.json.decode(engine.with_suffix(".json").read_bytes(), type=SideCar)
        except (FileNotFoundError, msgspec.DecodeError) as error:
            raise EngineStale(f"{engine.name} has no side-car that can be read: {error}") from None
        wanted = self.engine_version(kind)
        if car.version != wanted:
            raise EngineStale(f"{engine.name} was built by {car.version}, {wanted} is installed")
        if sm is not None and sm not in car.sm:
            raise EngineStale(f"{engine.name} was built for {car.sm}, this GPU is {sm}")
        if car.source_sha256 != source_sha256:
            raise EngineStale(f"{engine.name} was built from another graph")
        if content and hashlib.sha256(engine.read_bytes()).hexdigest() != car.sha256:
            raise EngineStale(f"{engine.name} is damaged")
        return car


def install(monkeypatch: pytest.MonkeyPatch, builder: FakeBuilder) -> FakeBuilder:
    """Put a builder where the SDK looks for it."""
    module: Any = ModuleType(NAME)
    module.Build = Build
    for name in ("engine_version", "device_sm", "build_engine", "check_side_car"):
        setattr(module, name, getattr(builder, name))
    monkeypatch.setitem(sys.modules, NAME, module)
    monkeypatch.setattr(tokprune_runtimes, "trt_build", module, raising=False)
    return builder
