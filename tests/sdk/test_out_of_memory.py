"""Memory that ends while a bundle opens or a question is answered (tests/capped_ask.py)."""

import errno
from pathlib import Path

import numpy as np
import pytest
from counts import CHUNKS, share
from programs import run_program

from tokprune_runtimes.errors import DeviceMemoryExhausted, EngineUnavailable
from tokprune_runtimes.ort_errors import is_out_of_memory

REFUSED = "out_of_memory"


class RuntimeException(Exception):
    """As ONNX Runtime's own, which is no RuntimeError."""


RuntimeException.__module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


def caused(cause: Exception) -> Exception:
    error = EngineUnavailable("cannot be opened")
    error.__cause__ = cause
    return error


@pytest.mark.demo
@pytest.mark.parametrize("stage", ["load", "vision", "prefill", "decode"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_process_survives_the_end_of_memory_and_answers_less_afterwards(
    demo_bundle: Path, chunk: int, stage: str
) -> None:
    count = share(100)
    program = ("capped_ask.py", stage, str(demo_bundle), str(chunk), str(count))
    done = run_program(*program, OMP_NUM_THREADS="1")
    outcomes = [case["outcome"] for case in done["cases"]]
    assert [case["after"] for case in done["cases"]] == [done["before"]] * count
    if stage == "load":  # some have room enough
        assert set(outcomes) <= {REFUSED, "loaded"}
        assert REFUSED in outcomes
    else:
        assert outcomes == [REFUSED] * count


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeException("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : ... std::bad_alloc"),
        RuntimeException("Non-zero status code: bad allocation"),
        RuntimeException(
            "bfc_arena.cc:376 AllocateRawInternal Failed to allocate memory for requested buffer "
            "of size 41943040"
        ),
        RuntimeException("CUDA failure 2: out of memory ; GPU=0"),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        DeviceMemoryExhausted("the GPU has 3 MiB left"),
        caused(RuntimeException("std::bad_alloc")),
    ],
    ids=lambda error: f"{type(error).__name__} {error}"[:40],
)
def test_the_end_of_memory_is_known_by_what_is_raised(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_numpys_own_error_is_known() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 60, np.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeException("Got invalid dimensions for input: inputs_embeds"),
        RuntimeError("The answer is not finished"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("the user asked: what does std::bad_alloc mean?"),
        KeyError("out of memory"),
        caused(RuntimeException("missing library")),
        KeyboardInterrupt(),
    ],
    ids=lambda error: f"{type(error).__name__} {error}"[:40],
)
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_errors_that_cause_each_other_end() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert not is_out_of_memory(one)
