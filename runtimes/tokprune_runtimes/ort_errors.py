"""What ONNX Runtime and NumPy raise when memory ends."""

_SIGNS = ("bad allocation", "bad_alloc", "failed to allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that the host or the GPU has no memory left.

    ONNX Runtime has no class for it: its arena and C++ say so in the message alone.
    """
    if isinstance(error, MemoryError):
        return True
    message = str(error).lower()
    return any(sign in message for sign in _SIGNS)
