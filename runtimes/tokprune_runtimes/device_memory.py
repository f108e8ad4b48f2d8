"""Device memory that graphs keep between runs, and the stream and scratch that they share."""

import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import cache

from tokprune_runtimes.cuda import Cuda
from tokprune_runtimes.errors import DeviceMemoryExhausted, EngineFailed

_LEAST_BYTES = 256  # TensorRT wants an address for empty tensors too


class Buffer:
    """Device memory that only grows. Growing loses what is in it."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.address = 0
        self.size = 0  # bytes

    def reserve(self, size: int, *, spare: float = 0.0) -> None:
        """Hold at least `size` bytes, and that share of them more where there is room.

        Raises:
            DeviceMemoryExhausted: the buffer is then empty, and can be reserved again.
        """
        size = max(size, _LEAST_BYTES)
        if size <= self.size:
            return
        self.free()
        wanted = size + int(size * spare)
        try:
            self.address = self._cuda.malloc(wanted)
        except DeviceMemoryExhausted:
            if wanted == size:
                raise
            wanted = size
            self.address = self._cuda.malloc(wanted)
        self.size = wanted

    def free(self) -> None:
        """Give the memory back."""
        if self.address:
            self._cuda.free(self.address)
        self.address = self.size = 0


class Workspace:
    """One stream and one scratch buffer for graphs that run one after another.

    The scratch is as large as the largest graph needs, not as all of them together. Both are there
    from the first `acquire` to the last `release`.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._users = 0
        self._opened: tuple[Cuda, int, Buffer] | None = None

    def acquire(self) -> None:
        """Count one graph more.

        Raises:
            EngineUnavailable: there is no GPU or no cuda-bindings.
        """
        with self._lock:
            if self._opened is None:
                cuda = Cuda()
                self._opened = cuda, cuda.stream(), Buffer(cuda)
            self._users += 1

    def release(self) -> None:
        """Count one less; the last frees everything."""
        with self._lock, ExitStack() as stack:
            self._users -= 1
            if self._users == 0:
                cuda, stream, scratch = self._get()
                self._opened = None
                stack.callback(cuda.destroy_stream, stream)
                stack.callback(scratch.free)

    @property
    def cuda(self) -> Cuda:
        """CUDA on this workspace's device."""
        return self._get()[0]

    @property
    def stream(self) -> int:
        """The one stream."""
        return self._get()[1]

    @property
    def scratch(self) -> Buffer:
        """What a running graph may use, and the next one overwrites."""
        return self._get()[2]

    @contextmanager
    def alone(self) -> Generator[None, None, None]:
        """Keep other threads out."""
        with self._lock:
            yield

    @contextmanager
    def turn(self) -> Generator[None, None, None]:
        """Run alone, on this workspace's device; what was queued is done at the end."""
        with self._lock:
            cuda, stream, _ = self._get()
            before = cuda.current_device()
            cuda.use_device(cuda.device)
            try:
                yield
            except BaseException:
                _drain(cuda, stream)
                raise
            else:
                cuda.synchronize(stream)
            finally:
                cuda.use_device(before)

    def _get(self) -> tuple[Cuda, int, Buffer]:
        if self._opened is None:
            raise EngineFailed("The graph is closed")
        return self._opened


@cache
def process_workspace() -> Workspace:
    """Return the workspace that all graphs of this process share unless they are given another."""
    return Workspace()


def _drain(cuda: Cuda, stream: int) -> None:
    """Wait for queued copies, whose arrays go away; the error that is being raised says more."""
    try:
        cuda.synchronize(stream)
    except EngineFailed:
        return
