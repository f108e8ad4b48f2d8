"""Frames of other libraries: DLPack and `__cuda_array_interface__`, the GPU played by memory."""

import ctypes
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tokprune import BackendUnavailable, PictureInvalid, clip_of
from tokprune.pictures import load_picture

PICTURE = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)


class HostTensor:
    """An array of another library, on the host."""

    def __init__(self, array: np.ndarray, device: int = 1) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)


class GpuTensor:
    """As CuPy and PyTorch give it out: on CUDA's device, ready for the stream that is named."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.streams: list[int | None] = []

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.streams.append(stream)
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


class CudaArray:
    """As Numba gives it out."""

    def __init__(self, array: np.ndarray, **more: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, True),
            "version": 3,
            **more,
        }


class Runtime(ModuleType):
    """cuda.bindings.runtime, whose device memory is the host's."""

    class cudaMemcpyKind:  # noqa: N801
        cudaMemcpyDeviceToHost = 2  # noqa: N815

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.waited: list[int] = []
        self.status = 0

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        self.waited.append(stream)
        return (self.status,)

    def cudaMemcpy2D(  # noqa: N802
        self, to: int, to_pitch: int, source: int, pitch: int, width: int, rows: int, kind: int
    ) -> tuple[int]:
        assert kind == 2
        for row in range(rows):
            ctypes.memmove(to + row * to_pitch, source + row * pitch, width)
        return (self.status,)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    module = Runtime()
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", module)
    return module


@pytest.mark.parametrize("device", [1, 3])
def test_a_tensor_on_the_host_is_taken_without_a_copy(device: int) -> None:
    picture = load_picture(HostTensor(PICTURE, device))
    np.testing.assert_array_equal(picture, PICTURE)
    assert np.shares_memory(picture, PICTURE)


def test_a_torch_tensor_on_the_host_is_taken_without_a_copy() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(PICTURE.copy())
    picture = load_picture(tensor)
    np.testing.assert_array_equal(picture, PICTURE)
    assert picture.ctypes.data == tensor.data_ptr()


def test_a_dlpack_tensor_on_the_gpu_is_copied_once_its_stream_is_done(runtime: Runtime) -> None:
    tensor = GpuTensor(PICTURE)
    picture = load_picture(tensor)
    np.testing.assert_array_equal(picture, PICTURE)
    assert not np.shares_memory(picture, PICTURE)
    assert tensor.streams == [1]  # CUDA's legacy default stream, which the copy waits for


def test_rows_may_be_padded_on_the_gpu(runtime: Runtime) -> None:
    wide = np.zeros((5, 16, 3), np.uint8)
    wide[:, :7] = PICTURE
    np.testing.assert_array_equal(load_picture(GpuTensor(wide[:, :7])), PICTURE)
    strides = wide[:, :7].strides
    np.testing.assert_array_equal(load_picture(CudaArray(wide[:, :7], strides=strides)), PICTURE)


def test_an_array_with_the_cuda_interface_is_copied_after_its_stream(runtime: Runtime) -> None:
    np.testing.assert_array_equal(load_picture(CudaArray(PICTURE)), PICTURE)
    assert runtime.waited == []
    np.testing.assert_array_equal(load_picture(CudaArray(PICTURE, stream=77)), PICTURE)
    assert runtime.waited == [77]


def test_frames_of_a_video_may_be_such_arrays(runtime: Runtime) -> None:
    clip = clip_of([GpuTensor(PICTURE), HostTensor(PICTURE), PICTURE], fps=2.0)
    np.testing.assert_array_equal(clip.frames, np.stack([PICTURE] * 3))


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (PICTURE.astype(np.float32), r"of 32 bits.*expected a uint8 array \[h, w, 3\]"),
        (PICTURE.astype(np.int8), "convert it there"),
        (PICTURE[0], r"\(7, 3\), expected a uint8 array"),
        (PICTURE.transpose(2, 0, 1), r"\(3, 5, 7\), expected"),
        (PICTURE[:, ::2], "expected rows of whole pixels.*make it contiguous"),
        (PICTURE[::-1], "make it contiguous"),
        (PICTURE[:, :, ::-1], "make it contiguous"),
        (PICTURE[:0], r"\(0, 7, 3\)"),
    ],
)
def test_what_is_no_picture_on_the_gpu_is_refused(
    runtime: Runtime, array: np.ndarray, told: str
) -> None:
    with pytest.raises(PictureInvalid, match=told):
        load_picture(GpuTensor(array))
    with pytest.raises(PictureInvalid):
        load_picture(CudaArray(array, strides=array.strides))


def test_what_is_no_picture_on_the_host_is_refused_as_numpy_arrays_are() -> None:
    with pytest.raises(PictureInvalid, match="The array is float32, expected a uint8 array"):
        load_picture(HostTensor(PICTURE.astype(np.float32)))
    with pytest.raises(PictureInvalid, match="kind 8, expected the CPU"):
        load_picture(HostTensor(PICTURE, device=8))


def test_without_cuda_bindings_the_line_that_installs_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    for frame in (GpuTensor(PICTURE), CudaArray(PICTURE)):
        with pytest.raises(BackendUnavailable, match="pip install cuda-bindings"):
            load_picture(frame)


def test_a_copy_that_cuda_refuses_is_an_error(runtime: Runtime) -> None:
    runtime.status = 35
    with pytest.raises(BackendUnavailable, match="cannot be copied from the GPU: 35"):
        load_picture(CudaArray(PICTURE))


def test_the_real_cuda_bindings_have_the_names_that_are_used() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    assert int(runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost) == 2
    assert callable(runtime.cudaMemcpy2D)
    assert callable(runtime.cudaStreamSynchronize)
