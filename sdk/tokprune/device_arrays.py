"""Frames that other libraries hold: arrays with DLPack or `__cuda_array_interface__`.

On the host they are taken without a copy, through numpy. On a GPU they are copied to the host
through cuda-bindings, since preprocessing (resizing, patches) runs there; the copy of a Full HD
frame is 6 MB. Follows the DLPack 1.0 specification (dlpack.h) and version 3 of the CUDA Array
Interface. The copy from a GPU is unverified on hardware so far.
"""

import ctypes
import importlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from tokprune.errors import BackendUnavailable, PictureInvalid
from tokprune.types import Array

EXPECTED = "expected a uint8 array [h, w, 3] in RGB"
_INSTALL = "pip install cuda-bindings (of the driver's CUDA major version; 12.x on JetPack 6)"
_HOST_DEVICES = (1, 3)  # kDLCPU, kDLCUDAHost
_CUDA_DEVICES = (2, 13)  # kDLCUDA, kDLCUDAManaged
_LEGACY_STREAM = 1  # of both protocols: what it has in order, cudaMemcpy2D waits for
_UINT = 1  # kDLUInt


@runtime_checkable
class DLPack(Protocol):
    """An array of any library that follows the Python array API."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Return a capsule."""
        ...

    def __dlpack_device__(self) -> tuple[Any, int]:
        """Return the kind of device and its number."""
        ...


@runtime_checkable
class CudaArray(Protocol):
    """An array on a GPU: CuPy, PyTorch, Numba, jetson-utils."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Address, shape, strides, dtype."""
        ...


class Frame(NamedTuple):
    """Where the bytes of a picture lie."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # bytes; None: C order
    uint8: bool
    dtype: str  # for messages


def is_foreign(source: object) -> bool:
    """Tell whether a picture is an array of another library than numpy.

    An `isinstance` of the protocols would take a CPU tensor of PyTorch for one with
    `__cuda_array_interface__`, which that class has and that object refuses.
    """
    known = hasattr(source, "__dlpack__") or hasattr(source, "__cuda_array_interface__")
    return known and not isinstance(source, np.ndarray)


def host_array(source: Any) -> Array:
    """Return a foreign array as numpy's; its values are checked by the caller.

    DLPack comes first, since with it the other library waits for what still fills the array.

    Raises:
        PictureInvalid: it is no picture, or lies where it cannot be read from.
        BackendUnavailable: it lies on a GPU, and cuda-bindings is not installed.
    """
    name = type(source).__name__
    if not hasattr(source, "__dlpack__"):
        return _from_interface(source.__cuda_array_interface__, name)
    device = int(source.__dlpack_device__()[0])
    if device in _CUDA_DEVICES:
        return _from_capsule(source.__dlpack__(stream=_LEGACY_STREAM), name)
    if device not in _HOST_DEVICES:
        raise PictureInvalid(
            f"The {name} lies on a device of DLPack's kind {device}, expected the CPU (1) or CUDA "
            "(2): copy it to the host first"
        )
    try:
        return np.from_dlpack(source)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise PictureInvalid(f"The {name} cannot be read ({error}), {EXPECTED}") from None


def _from_interface(interface: dict[str, Any], name: str) -> Array:
    strides, kind = interface.get("strides"), str(interface["typestr"])
    frame = Frame(
        address=int(interface["data"][0]),
        shape=tuple(map(int, interface["shape"])),
        strides=None if strides is None else tuple(map(int, strides)),
        uint8=kind == "|u1",
        dtype=kind,
    )
    stream = interface.get("stream")
    return _copied(frame, name, None if stream is None else int(stream))


class _DLTensor(ctypes.Structure):
    """The first member of DLManagedTensor. Versioned capsules are not asked for."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements; may be null
        ("byte_offset", ctypes.c_uint64),
    )


def _from_capsule(capsule: Any, name: str) -> Array:
    """Copy what a capsule points to. It is not taken over, so it frees itself."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DLTensor.from_address(pointer(capsule, b"dltensor"))
    uint8 = (tensor.code, tensor.bits, tensor.lanes) == (_UINT, 8, 1)
    frame = Frame(
        address=int(tensor.data or 0) + int(tensor.byte_offset),
        shape=tuple(tensor.shape[axis] for axis in range(tensor.ndim)),
        strides=tuple(tensor.strides[axis] for axis in range(tensor.ndim))
        if tensor.strides
        else None,
        uint8=uint8,  # else strides are of other elements, and it is refused
        dtype=f"of {tensor.bits} bits (DLPack's code {tensor.code})",
    )
    return _copied(frame, name, None)


def _copied(frame: Frame, name: str, stream: int | None) -> Array:
    """Copy rows of pixels from a GPU."""
    if not frame.uint8 or len(frame.shape) != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise PictureInvalid(
            f"The {name} on the GPU is {frame.dtype} {frame.shape}, {EXPECTED}: convert it there"
        )
    height, width = frame.shape[:2]
    row, *inner = frame.strides or (3 * width, 3, 1)
    if inner != [3, 1] or row < 3 * width:
        raise PictureInvalid(
            f"The {name} on the GPU has the strides {frame.strides}, expected rows of whole pixels "
            "([.., 3, 1] bytes): make it contiguous first"
        )
    picture = np.empty((height, width, 3), np.uint8)
    _copy_to_host(picture, frame.address, row, stream)
    return picture


def _copy_to_host(picture: Array, address: int, row_bytes: int, stream: int | None) -> None:
    cuda = _cuda_runtime()
    if stream is not None:  # what fills the array may still run there
        _check(cuda, cuda.cudaStreamSynchronize(stream))
    height, width = picture.shape[:2]
    down = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
    size = (3 * width, height)
    _check(cuda, cuda.cudaMemcpy2D(picture.ctypes.data, 3 * width, address, row_bytes, *size, down))


def _cuda_runtime() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise BackendUnavailable(
            f"A frame on the GPU is copied through cuda-bindings, which cannot be imported "
            f"({error}): {_INSTALL}; or pass a frame on the host"
        ) from None


def _check(cuda: Any, result: tuple[Any, ...]) -> None:
    if int(result[0]) != 0:
        raise BackendUnavailable(
            f"A frame cannot be copied from the GPU: {result[0]!s}. cuda-bindings must fit the "
            f"driver: {_INSTALL}; or pass a frame on the host"
        )
