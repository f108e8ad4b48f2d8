"""Parse an ONNX file and build an engine of it with TensorRT-RTX, which needs no GPU for that."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tokprune.manifest import GraphSpec

Sizes = Mapping[str, tuple[int, int, int]]  # least, usual and most of a named axis


@cache
def _logger() -> Any:
    """Return the process's one logger: TensorRT goes on with the first that it is given."""
    trt: Any = pytest.importorskip("tensorrt_rtx")

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.messages = list[str]()

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.messages.append(message)

    return Logger()


class Built:
    """What TensorRT made of a graph, and what it warned of."""

    def __init__(self, path: Path) -> None:
        trt: Any = pytest.importorskip("tensorrt_rtx")
        self.messages: list[str] = _logger().messages
        self.messages.clear()
        self._builder = trt.Builder(_logger())
        flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = self._builder.create_network(flag)
        self._parser = trt.OnnxParser(self.network, _logger())
        parsed = self._parser.parse_from_file(str(path))
        errors = [self._parser.get_error(i).desc() for i in range(self._parser.num_errors)]
        assert parsed, errors

    @property
    def layers(self) -> list[str]:
        """Names of the types of all layers."""
        count = self.network.num_layers
        return [str(self.network.get_layer(i).type).rpartition(".")[2] for i in range(count)]

    def build(self, spec: GraphSpec, *profiles: Sizes) -> int:
        """Build with a profile for each mapping of axes to sizes, and return the engine's bytes."""
        config = self._builder.create_builder_config()
        for sizes in profiles:
            profile = self._builder.create_optimization_profile()
            for tensor in spec.inputs:
                shapes = [
                    tuple(_size(axis, sizes, place) for axis in tensor.shape) for place in range(3)
                ]
                profile.set_shape(tensor.name, *shapes)
            config.add_optimization_profile(profile)
        engine = self._builder.build_serialized_network(self.network, config)
        assert engine is not None, self.messages
        return engine.nbytes


def _size(axis: int | str, sizes: Sizes, place: int) -> int:
    return axis if isinstance(axis, int) else sum(sizes[name][place] for name in axis.split("+"))
