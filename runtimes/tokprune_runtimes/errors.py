"""What goes wrong below the SDK, as one tree.

EngineError
├── EngineUnavailable          the Python package, the driver or the GPU is missing
├── EngineStale                this engine must not be loaded here: build it again
├── BuildFailed                the builder refused the graph, the profiles or the target
├── BuildCancelled             the caller's progress callback said so
└── EngineFailed               a loaded engine did not do what was asked
    ├── FeedsInvalid           names, dtypes or shapes that it does not take (also a ValueError)
    └── DeviceMemoryExhausted  the GPU has no memory left for this
"""


class EngineError(Exception):
    """The root."""


class EngineUnavailable(EngineError):
    """The Python package, the driver or the GPU is missing. The message has the pip line."""


class EngineStale(EngineError):
    """The engine is missing, damaged, or of another graph, version or GPU. Says what differs."""


class BuildFailed(EngineError):
    """No engine was made, and nothing was written."""


class BuildCancelled(EngineError):
    """The progress callback returned False. Nothing was written."""


class EngineFailed(EngineError):
    """A loaded engine did not do what was asked; the message has what TensorRT or CUDA said."""


class FeedsInvalid(EngineFailed, ValueError):
    """Names, dtypes or shapes of the arrays are not what the engine takes."""


class DeviceMemoryExhausted(EngineFailed):
    """The GPU has not enough memory left. What was loaded stays usable."""
