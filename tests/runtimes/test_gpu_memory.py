"""What `make gpu` does with a full GPU and with requests that are cancelled, on a stub's VLM."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import memory
import pytest
from fake_cuda import CudaError, FakeCuda
from memory import filled, full_gpu, refused_when_full, shares_memory
from setting import Skipped
from stopping import AFTER, CancellingLoop, cancelled
from stub_model import Stub, a_picture, a_vlm

from tokprune import EngineFailed, OutOfMemory
from tokprune_runtimes import Interrupt
from tokprune_runtimes.cuda import Cuda

SMALL: Any = SimpleNamespace(pictures=(a_picture(),), question="what is this?")
LARGE: Any = SimpleNamespace(pictures=(a_picture(1, 64, 64),), question="what is that?")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    made = FakeCuda()
    made.room = 3 << 20
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", made)
    monkeypatch.setattr(memory, "LARGEST_BLOCK", 1 << 20)
    return made


@contextmanager
def stub_on(cuda: FakeCuda, *, needs: int = 1 << 20) -> Generator[Any, None, None]:
    """A VLM whose second picture needs so many bytes of the GPU's memory."""
    device = Cuda()

    def at(graph: str, interrupt: Interrupt | None) -> None:
        if graph == "vision" and stub.runs["vision"] == 2 and needs:
            device.free(device.malloc(needs))

    stub = Stub(at=at)
    with a_vlm(stub) as vlm:
        yield vlm


def test_the_gpu_is_filled_to_the_last_block_and_given_back(cuda: FakeCuda) -> None:
    cuda.room += 100 << 10
    with filled(cuda) as taken:
        assert taken == cuda.allocated
        assert cuda.room - taken < memory.LEAST_BLOCK
    assert cuda.leaks == []


def test_a_gpu_that_is_full_must_say_so_and_answer_afterwards(cuda: FakeCuda) -> None:
    with stub_on(cuda) as vlm:
        (row,) = refused_when_full(vlm, cuda, SMALL, LARGE)
    assert row["ok"]
    assert row["when_full"].startswith("OutOfMemory: ")
    assert cuda.leaks == []


def test_a_gpu_that_had_room_after_all_has_shown_nothing(cuda: FakeCuda) -> None:
    with stub_on(cuda, needs=0) as vlm:
        (row,) = refused_when_full(vlm, cuda, SMALL, LARGE)
    assert "nothing was shown" in row["skipped"]
    assert "ok" not in row


def test_another_error_than_out_of_memory_is_a_failure(cuda: FakeCuda) -> None:
    with stub_on(cuda) as vlm:
        cuda.fail("cudaMalloc", 7, CudaError.cudaErrorIllegalAddress, times=99)
        with pytest.raises(EngineFailed, match="cudaErrorIllegalAddress"):
            list(refused_when_full(vlm, cuda, SMALL, LARGE))


def test_a_gpu_that_shares_the_hosts_memory_is_not_filled(cuda: FakeCuda) -> None:
    assert not shares_memory(cuda)
    cuda.integrated = True
    setting: Any = SimpleNamespace(engine="tensorrt", precisions=("fp32",))
    with pytest.raises(Skipped, match="memory is the host's"):
        next(full_gpu(setting))


def test_both_halves_are_told_and_a_failing_one_does_not_stop_the_other(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = {100: SMALL, 400: LARGE}
    monkeypatch.setattr(memory, "suite", lambda split, count, tokens: [samples[tokens]])
    with stub_on(cuda) as vlm:
        setting: Any = SimpleNamespace(
            engine="tensorrt",
            precisions=("fp16",),
            bundle=lambda family, precision: None,
            open=lambda bundle: vlm,
        )
        cuda.fail("cudaMalloc", 7, CudaError.cudaErrorIllegalAddress, times=99)
        first, second = full_gpu(setting)
    assert (first["ok"], second["ok"]) == (False, True)
    assert "EngineFailed" in first["failed"]
    assert second["finish_reason"] == "cancelled"


def test_a_request_that_is_cancelled_between_steps_keeps_what_was_written() -> None:
    with a_vlm() as vlm:
        (row,) = cancelled(vlm, SMALL)
    assert row["ok"]
    assert row["finish_reason"] == "cancelled"
    assert 1 <= row["tokens_written"] <= AFTER
    assert row["before_the_first_token"] == "Cancelled"


def test_a_vlm_that_is_spoilt_by_cancelling_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt: list[bool] = []
    step = CancellingLoop.step

    def broken(self: Any, feeds: Any, interrupt: Any = None) -> Any:
        outputs = step(self, feeds, interrupt)
        if self._plan.token.cancelled:
            spoilt.append(True)
        return {name: -value if spoilt else value for name, value in outputs.items()}

    monkeypatch.setattr(CancellingLoop, "step", broken)
    with a_vlm() as vlm:
        (row,) = cancelled(vlm, SMALL)
    assert not row["same_answer_afterwards"]
    assert not row["ok"]


def test_a_cancel_that_is_not_heard_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stopping.Plan.ran", lambda self: None)
    with a_vlm() as vlm:
        (row,) = cancelled(vlm, SMALL)
    assert row["finish_reason"] == "length"
    assert not row["ok"]


class Afterwards:
    """A VLM that answers otherwise once its memory was exhausted."""

    def __init__(self, vlm: Any) -> None:
        self._vlm, self._spoilt = vlm, ""

    def ask(self, *given: Any, **options: Any) -> Any:
        try:
            answer = self._vlm.ask(*given, **options)
        except OutOfMemory:
            self._spoilt = "and more"
            raise
        return SimpleNamespace(text=answer.text + self._spoilt)


def test_another_answer_after_out_of_memory_is_a_failure(cuda: FakeCuda) -> None:
    with stub_on(cuda) as vlm:
        (row,) = refused_when_full(Afterwards(vlm), cuda, SMALL, LARGE)  # type: ignore[arg-type]
    assert row["when_full"].startswith("OutOfMemory: ")
    assert (row["same_answer_afterwards"], row["ok"]) == (False, False)


def test_an_answer_to_what_was_cancelled_beforehand_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stopping._refusal", lambda vlm, sample, token: "an answer")
    with a_vlm() as vlm:
        (row,) = cancelled(vlm, SMALL)
    assert (row["before_the_first_token"], row["ok"]) == ("an answer", False)
