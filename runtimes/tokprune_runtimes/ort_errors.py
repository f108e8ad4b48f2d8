"""Whether an error says that memory has ended. ONNX Runtime has no class of its own for that.

Seen with onnxruntime 1.23.2 and 1.31.1 under RLIMIT_AS (tests/capped_ask.py): MemoryError,
`RuntimeException: ... std::bad_alloc`, `... Failed to allocate memory for requested buffer of size
N`. The CUDA lines are from its sources and those of CUDA, and were not seen.
"""

import errno

from tokprune_runtimes.errors import MemoryExhausted

_MESSAGES = (
    "bad_alloc",  # std::bad_alloc, of C++ on Linux
    "bad allocation",  # the same of Microsoft's library
    "failed to allocate memory",  # ONNX Runtime's arena, and its CUDA allocator
    "is smaller than requested bytes of",  # its arena, of what its limit leaves
    "cannot allocate memory",  # ENOMEM as text: mapping a file of weights
    "out of memory",  # CUDA failure 2
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "can't start new thread",  # no room for its stack
)
_CAUSES = 8  # errors behind errors that are looked at


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or the one that it was raised from, is the end of memory.

    Args:
        error: what ONNX Runtime, numpy, Python or an engine of ours raised.
    """
    seen: BaseException | None = error
    for _ in range(_CAUSES):
        if seen is None:
            return False
        if _says_so(seen):
            return True
        seen = seen.__cause__
    return False


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError | MemoryExhausted):  # numpy's is a MemoryError
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError) and not _of_onnxruntime(error):
        return False  # a user's words may stand in the message of any other error
    text = str(error).lower()
    return any(message in text for message in _MESSAGES)


def _of_onnxruntime(error: BaseException) -> bool:
    """Tell whether a class comes from ONNX Runtime: RuntimeException, Fail, EPFail."""
    return type(error).__module__.partition(".")[0] == "onnxruntime"
