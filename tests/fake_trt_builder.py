"""Stands in for the building half of `tensorrt`, which needs a GPU: one network, any engine.

What a test is about is set on `FakeTrtBuilder`; what the builder was told is read from there.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fake_tensorrt import ILogger, Severity

GOOD_CACHE = b"timings"


class IProgressMonitor:
    pass


class FakeTrtBuilder:
    """The module."""

    __version__ = "10.3.0"
    ILogger = ILogger
    IProgressMonitor = IProgressMonitor
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    BuilderFlag = SimpleNamespace(WEIGHT_STREAMING="streaming", TF32="tf32")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")

    def __init__(self) -> None:
        self.has_gpu = True
        self.engine: bytes | None = b"an engine"
        self.messages: list[tuple[Severity, str]] = []
        self.phases: list[tuple[str, int]] = [("Building", 3)]
        self.configs: list[Config] = []
        self.during: Callable[[], None] = lambda: None

    def Builder(self, logger: ILogger) -> "Builder":  # noqa: N802
        return Builder(self, logger)

    def OnnxParser(self, network: Any, logger: ILogger) -> Any:  # noqa: N802
        return SimpleNamespace(parse_from_file=lambda path: True)


class Config:
    def __init__(self) -> None:
        self.progress_monitor: Any = None
        self.flags: list[str] = ["tf32"]  # on by default
        self.timings: bytes | None = None
        self.profiles: list[Any] = []
        self.limits: dict[str, int] = {}

    def set_memory_pool_limit(self, pool: str, limit: int) -> None:
        self.limits[pool] = limit

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.remove(flag)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> bytes | None:
        if data == b"raise":
            raise RuntimeError("an assertion of TensorRT's")
        return data if data in (b"", GOOD_CACHE, b"another GPU") else None

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:  # noqa: FBT001
        assert not ignore_mismatch
        if cache == b"another GPU":
            return False
        self.timings = cache
        return True

    def get_timing_cache(self) -> Any:
        if self.timings is None:
            return None
        return SimpleNamespace(serialize=lambda: bytearray(GOOD_CACHE))


class Builder:
    def __init__(self, trt: FakeTrtBuilder, logger: ILogger) -> None:
        self._trt = trt
        self._logger = logger
        if not trt.has_gpu:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int) -> Any:
        assert flags == 1 << 1, "only strongly typed networks work everywhere"
        tensor = SimpleNamespace(name="x", shape=(1, -1), is_shape_tensor=False)
        return SimpleNamespace(num_inputs=1, get_input=lambda index: tensor)

    def create_builder_config(self) -> Config:
        self._trt.configs.append(Config())
        return self._trt.configs[-1]

    def create_optimization_profile(self) -> Any:
        profile: dict[str, Any] = {}

        def set_shape(name: str, least: Any, opt: Any, most: Any) -> None:
            profile[name] = least, opt, most

        return SimpleNamespace(set_shape=set_shape, ranges=profile)

    def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
        for severity, text in self._trt.messages:
            self._logger.log(severity, text)
        self._trt.during()
        for phase, steps in self._trt.phases:
            config.progress_monitor.phase_start(phase, None, steps)
            for step in range(steps):
                if not config.progress_monitor.step_complete(phase, step):
                    return None
            config.progress_monitor.phase_finish(phase)
        return self._trt.engine
