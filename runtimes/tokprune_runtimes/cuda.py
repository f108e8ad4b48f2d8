"""CUDA's runtime through cuda-bindings (12.x and 13.x): memory, one stream, errors as exceptions.

The arrays' addresses are integers. Copies are queued on the stream; `synchronize` waits for them.
"""

import importlib
import logging
from typing import Any

from tokprune_runtimes.errors import DeviceMemoryExhausted, EngineFailed, EngineUnavailable

_INSTALL = (
    "pip install 'tokprune[tensorrt]' or 'tokprune[tensorrt-rtx]' (cuda-bindings of the major "
    "version of the driver's CUDA: 12.x on JetPack 6)"
)
_log = logging.getLogger("tokprune.tensorrt")


class Cuda:
    """CUDA's runtime on the current device of the calling thread.

    Raises:
        EngineUnavailable: cuda-bindings is not installed, or there is no driver or GPU.
    """

    def __init__(self) -> None:
        self._api = _runtime()
        try:
            self.device = self.current_device()
        except (EngineFailed, RuntimeError) as error:  # cuda-bindings 12.8 without a libcuda.so.1
            raise EngineUnavailable(
                f"There is no CUDA GPU that can be used here: {error}"
            ) from error

    def current_device(self) -> int:
        """Return this thread's."""
        return int(self._value("cudaGetDevice"))

    def use_device(self, device: int) -> None:
        """Make it the current one of this thread."""
        if self.current_device() != device:
            self._value("cudaSetDevice", device)

    def sm(self) -> str:
        """Return the compute capability of the current device, such as "sm87"."""
        names = ("cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor")
        attributes = [getattr(self._api.cudaDeviceAttr, name) for name in names]
        device = self.current_device()
        major, minor = (self._value("cudaDeviceGetAttribute", each, device) for each in attributes)
        return f"sm{major}{minor}"

    def gpu(self) -> str:
        """Return name and size of the current device.

        All modules of a Jetson family have one name; what differs is how much of it they have.
        """
        found = self._value("cudaGetDeviceProperties", self.current_device())
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        return f"{name.strip(chr(0))}, {found.multiProcessorCount} multiprocessors"

    def versions(self) -> tuple[str, str]:
        """Return CUDA's version, and the newest one that the driver can run."""
        runtime, driver = (
            self._value(name) for name in ("cudaRuntimeGetVersion", "cudaDriverGetVersion")
        )
        return _version(runtime), _version(driver)

    def malloc(self, size: int) -> int:
        """Allocate bytes of device memory.

        Raises:
            DeviceMemoryExhausted: with what was asked for and what is free.
        """
        status, address = self._api.cudaMalloc(size)
        if status == self._api.cudaError_t.cudaErrorMemoryAllocation:
            self._api.cudaGetLastError()  # or TensorRT takes it for its own, later
            free, total = self._value("cudaMemGetInfo")
            raise DeviceMemoryExhausted(
                f"The GPU has no {size / 2**20:.1f} MiB left: {free / 2**20:.0f} MiB of "
                f"{total / 2**20:.0f} MiB are free. Ask for fewer tokens or smaller pictures, or "
                "build engines for smaller limits"
            )
        self._check("cudaMalloc", status)
        return int(address)

    def free(self, address: int) -> None:
        """Free what `malloc` gave. Runs while other errors are handled, so it only logs its own."""
        (status,) = self._api.cudaFree(address)
        if int(status):
            self._api.cudaGetLastError()
            _log.debug("cudaFree: %s", self._describe(status))

    def zero(self, address: int, size: int, stream: int) -> None:
        """Fill with zeros."""
        if size:
            self._value("cudaMemsetAsync", address, 0, size, stream)

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        """Copy from the host."""
        self._copy(device, host, size, "cudaMemcpyHostToDevice", stream)

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        """Copy to the host."""
        self._copy(host, device, size, "cudaMemcpyDeviceToHost", stream)

    def copy_rows(
        self, target: tuple[int, int], source: tuple[int, int], row: int, rows: int, stream: int
    ) -> None:
        """Copy rows of bytes within the device; target and source are (address, pitch)."""
        if row and rows:
            kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            self._value("cudaMemcpy2DAsync", *target, *source, row, rows, kind, stream)

    def stream(self) -> int:
        """Make a stream that does not wait for the default one."""
        return int(self._value("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        """Destroy it."""
        self._value("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """Wait until everything that is queued is done."""
        self._value("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        """Record what this thread queues from now on, instead of running it."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._value("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        """Return the recorded graph."""
        return self._value("cudaStreamEndCapture", stream)

    def instantiate(self, graph: Any) -> Any:
        """Make a recorded graph executable, and destroy the record."""
        try:
            return self._value("cudaGraphInstantiate", graph, 0)
        finally:
            self.destroy_graph(graph)

    def destroy_graph(self, graph: Any) -> None:
        """Destroy a recorded graph."""
        self._value("cudaGraphDestroy", graph)

    def launch(self, executable: Any, stream: int) -> None:
        """Queue all that was recorded."""
        self._value("cudaGraphLaunch", executable, stream)

    def destroy_executable(self, executable: Any) -> None:
        """Destroy it."""
        self._value("cudaGraphExecDestroy", executable)

    def _copy(self, target: int, source: int, size: int, kind: str, stream: int) -> None:
        if size:
            kind_value = getattr(self._api.cudaMemcpyKind, kind)
            self._value("cudaMemcpyAsync", target, source, size, kind_value, stream)

    def _value(self, function: str, *args: Any) -> Any:
        """Call, and return what it gives beside its status."""
        status, *values = getattr(self._api, function)(*args)
        self._check(function, status)
        return tuple(values) if len(values) > 1 else values[0] if values else None

    def _check(self, function: str, status: Any) -> None:
        if int(status):
            self._api.cudaGetLastError()
            raise EngineFailed(f"{function}: {self._describe(status)}")

    def _describe(self, status: Any) -> str:
        texts = (self._api.cudaGetErrorName(status)[1], self._api.cudaGetErrorString(status)[1])
        return " - ".join(text.decode() for text in texts)


def device_sm() -> str | None:
    """Return the current GPU as "sm87"; None without a driver, a GPU or cuda-bindings."""
    try:
        return Cuda().sm()
    except EngineUnavailable:
        return None


def device_gpu() -> str | None:
    """Return name and size of the current GPU; None without a driver, a GPU or cuda-bindings."""
    try:
        return Cuda().gpu()
    except EngineUnavailable:
        return None


def cuda_versions() -> tuple[str, str] | None:
    """Return the versions of CUDA and of its driver, where there is a GPU."""
    try:
        return Cuda().versions()
    except EngineUnavailable:
        return None


def _runtime() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, RuntimeError) as error:  # it loads libcudart, which may not be there
        message = f"cuda-bindings is not installed ({error}): {_INSTALL}"
        raise EngineUnavailable(message) from error


def _version(number: int) -> str:
    """13020 -> "13.2"."""
    return f"{number // 1000}.{number % 1000 // 10}"
