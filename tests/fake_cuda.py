"""Stands in for `cuda.bindings.runtime`: host memory plays the device's.

Work that is queued on a stream is done when somebody waits for it, and not before. Fresh memory is
full of ones (NaN), every access must lie in one living allocation, and all that is made is counted.
"""
# ruff: noqa: N802, N815 (the names are CUDA's)

import ctypes
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

Work = Callable[[], None]
POISON = 0xFF


class CudaError(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureInvalidated = 901


class CopyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class DeviceAttr(IntEnum):
    cudaDevAttrIntegrated = 18
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class FakeCuda:
    cudaError_t = CudaError
    cudaMemcpyKind = CopyKind
    cudaStreamCaptureMode = CaptureMode
    cudaDeviceAttr = DeviceAttr
    cudaStreamNonBlocking = 1

    def __init__(self) -> None:
        self.room = 1 << 30  # bytes that can be allocated
        self.sm = (8, 7)
        self.multiprocessors = 8
        self.integrated = False  # its memory is the host's
        self.driver = True
        self.libcuda = True
        self.blocks: dict[int, Any] = {}
        self.streams: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.capturing: tuple[int, list[Work]] | None = None
        self.calls: list[str] = []
        self._failing: dict[str, tuple[int, int, CudaError]] = {}
        self._handles = 1000

    def fail(self, function: str, after: int, error: CudaError, *, times: int = 1) -> None:
        """Make calls of a function fail, after so many that do not."""
        self._failing[function] = after, times, error

    def recover(self) -> None:
        """Make nothing fail any more."""
        self._failing.clear()

    @property
    def leaks(self) -> list[str]:
        kinds = ("blocks", "streams", "graphs", "executables")
        return [f"{len(getattr(self, kind))} {kind}" for kind in kinds if getattr(self, kind)]

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        """Return device memory as an array; it must lie in one allocation."""
        for start, block in self.blocks.items():
            if start <= address and address + size <= start + len(block):
                return np.frombuffer(block, np.uint8)[address - start :][:size]
        raise AssertionError(f"no allocation holds {size} bytes at {address:#x}")

    def queue(self, stream: int, work: Work) -> None:
        target = self.streams[stream]
        if self.capturing is not None and self.capturing[0] == stream:
            target = self.capturing[1]
        target.append(work)

    def _status(self, function: str) -> CudaError:
        self.calls.append(function)
        after, times, error = self._failing.get(function, (0, 0, CudaError.cudaSuccess))
        if times and after:
            self._failing[function] = after - 1, times, error
        elif times:
            self._failing[function] = 0, times - 1, error
            return error
        return CudaError.cudaSuccess

    def _handle(self) -> int:
        self._handles += 1
        return self._handles

    def cudaGetDevice(self) -> tuple[Any, ...]:
        if not self.libcuda:
            raise RuntimeError("Failed to dlopen libcuda.so.1")  # as cuda-bindings 12.8 does
        if not self.driver:
            return CudaError.cudaErrorInsufficientDriver, None
        return self._status("cudaGetDevice"), 0

    def cudaDeviceGetAttribute(self, attribute: DeviceAttr, device: int) -> tuple[Any, ...]:
        if attribute == DeviceAttr.cudaDevAttrIntegrated:
            return CudaError.cudaSuccess, int(self.integrated)
        major = attribute == DeviceAttr.cudaDevAttrComputeCapabilityMajor
        return CudaError.cudaSuccess, self.sm[0 if major else 1]

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        found = SimpleNamespace(name=b"Orin", multiProcessorCount=self.multiprocessors)
        return CudaError.cudaSuccess, found

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return CudaError.cudaSuccess, 12060

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return CudaError.cudaSuccess, 12080

    def cudaGetErrorName(self, error: CudaError) -> tuple[Any, ...]:
        return CudaError.cudaSuccess, error.name.encode()

    def cudaGetErrorString(self, error: CudaError) -> tuple[Any, ...]:
        return CudaError.cudaSuccess, f"number {int(error)}".encode()

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (self._status("cudaGetLastError"),)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return CudaError.cudaSuccess, self.room - self.allocated, self.room

    @property
    def allocated(self) -> int:
        return sum(len(block) for block in self.blocks.values())

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        assert self.capturing is None, "cudaMalloc while capturing"
        status = self._status("cudaMalloc")
        if not status and self.allocated + size > self.room:
            status = CudaError.cudaErrorMemoryAllocation
        if status:
            return status, None
        block = (ctypes.c_uint8 * size).from_buffer(bytearray([POISON]) * size)
        address = ctypes.addressof(block)
        self.blocks[address] = block
        return status, address

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        assert not any(self.streams.values()), "memory freed while work is queued"
        del self.blocks[address]  # a KeyError is a double free
        return (self._status("cudaFree"),)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[Any, ...]:
        self.queue(stream, lambda: self.bytes_at(address, size).fill(value))
        return (self._status("cudaMemsetAsync"),)

    def cudaMemcpyAsync(
        self, target: int, source: int, size: int, kind: CopyKind, stream: int
    ) -> tuple[Any, ...]:
        status = self._status("cudaMemcpyAsync")
        if status:
            return (status,)
        if kind == CopyKind.cudaMemcpyHostToDevice:  # pageable memory: read before it returns
            data = np.frombuffer(ctypes.string_at(source, size), np.uint8)

            def work() -> None:
                self.bytes_at(target, size)[:] = data
        else:
            assert kind == CopyKind.cudaMemcpyDeviceToHost

            def work() -> None:
                ctypes.memmove(target, self.bytes_at(source, size).tobytes(), size)

        self.queue(stream, work)
        return (status,)

    def cudaMemcpy2DAsync(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: CopyKind,
        stream: int,
    ) -> tuple[Any, ...]:
        assert kind == CopyKind.cudaMemcpyDeviceToDevice
        assert width <= min(target_pitch, source_pitch)

        def work() -> None:
            for row in range(height):
                data = self.bytes_at(source + row * source_pitch, width)
                self.bytes_at(target + row * target_pitch, width)[:] = data

        self.queue(stream, work)
        return (self._status("cudaMemcpy2DAsync"),)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        stream = self._handle()
        self.streams[stream] = []
        return self._status("cudaStreamCreateWithFlags"), stream

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        del self.streams[stream]
        return (self._status("cudaStreamDestroy"),)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert self.capturing is None, "waiting while capturing"
        queued, self.streams[stream] = self.streams[stream], []
        for work in queued:
            work()
        return (self._status("cudaStreamSynchronize"),)

    def cudaStreamBeginCapture(self, stream: int, mode: CaptureMode) -> tuple[Any, ...]:
        assert self.capturing is None
        assert mode == CaptureMode.cudaStreamCaptureModeThreadLocal
        status = self._status("cudaStreamBeginCapture")
        if not status:
            self.capturing = stream, []
        return (status,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        assert self.capturing is not None
        assert self.capturing[0] == stream
        work, self.capturing = self.capturing[1], None
        status = self._status("cudaStreamEndCapture")
        if status:
            return status, None
        graph = self._handle()
        self.graphs[graph] = work
        return status, graph

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        status = self._status("cudaGraphInstantiate")
        if status:
            return status, None
        executable = self._handle()
        self.executables[executable] = list(self.graphs[graph])
        return status, executable

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        del self.graphs[graph]
        return (self._status("cudaGraphDestroy"),)

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[Any, ...]:
        status = self._status("cudaGraphLaunch")
        if not status:
            self.streams[stream].extend(self.executables[executable])
        return (status,)

    def cudaGraphExecDestroy(self, executable: int) -> tuple[Any, ...]:
        del self.executables[executable]
        return (self._status("cudaGraphExecDestroy"),)
