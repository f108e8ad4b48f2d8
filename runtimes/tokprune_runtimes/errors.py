"""What goes wrong below the SDK, as one tree.

EngineError
├── EngineUnavailable          the Python package, the driver or the GPU is missing
├── EngineStale                this engine must not be loaded here: build it again
├── BuildFailed                the builder refused the graph, the profiles or the target
├── BuildCancelled             the caller's progress callback said so
├── EngineInterrupted          the caller's Interrupt was set; the engine stays usable
└── EngineFailed               a loaded engine did not do what was asked
    ├── FeedsInvalid           names, dtypes or shapes that it does not take (also a ValueError)
    └── MemoryExhausted        there is no memory left for this; what was loaded stays usable
        └── DeviceMemoryExhausted  on the GPU
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


class EngineInterrupted(EngineError):
    """The caller's Interrupt was set. The engine stays usable."""


class EngineFailed(EngineError):
    """A loaded engine did not do what was asked; the message has what the engine said."""


class FeedsInvalid(EngineFailed, ValueError):
    """Names, dtypes or shapes of the arrays are not what the engine takes."""


class MemoryExhausted(EngineFailed):
    """There is not enough memory left. What was loaded stays usable."""


class DeviceMemoryExhausted(MemoryExhausted):
    """The GPU has not enough memory left. What was loaded stays usable."""
