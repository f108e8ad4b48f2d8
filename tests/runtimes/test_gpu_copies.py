"""What `make gpu` finds out of copies between host and GPU, on fakes of both."""

from types import SimpleNamespace
from typing import Any

import copies
import numpy as np
import pytest
import setting
from copies import (
    Metered,
    Placed,
    Step,
    Traffic,
    counted,
    host_copies,
    judged,
    placed,
    row_bytes,
)
from fake_cuda import CopyKind
from fake_machine import CACHE, GROWS, Machine, cache_feeds, rows
from setting import Skipped
from stub_model import Stub, StubLoop, a_model, a_picture

ROW = 12  # bytes of a row of the growing cache


def grown(machine: Machine, count: int) -> tuple[list[Step], Traffic]:
    """Decode with a growing cache, each step measured."""
    with machine.load(b"growing") as graph, counted(machine.cuda) as traffic:
        loop = Metered(graph.loop(GROWS), traffic)
        loop.step({"new": rows(3, 1)})
        for _ in range(count):
            loop.step({"new": rows(1, 2)})
        return loop.steps[1:], traffic


def test_a_growing_cache_that_stays_on_the_gpu_crosses_in_no_step(machine: Machine) -> None:
    steps, traffic = grown(machine, 20)
    assert set(steps) == {Step(fed=12, returned=4, to_device=12, to_host=4)}
    found = judged(steps, ROW, traffic.unknown)
    assert found["ok"]
    assert found["growth_bytes_a_step"] == 0
    assert found["to_device_bytes"] == [12, 12]


def test_steps_that_are_replayed_are_counted_too(machine: Machine) -> None:
    with machine.load(b"in place") as graph, counted(machine.cuda) as traffic:
        loop = Metered(graph.loop(CACHE), traffic)
        for at in range(6):
            loop.step(cache_feeds(at, [1.0]))
        assert machine.plans[b"in place"].runs.count("captured") == 1
    (step,) = set(loop.steps)
    assert step == Step(fed=8 + 16 + 8, returned=4, to_device=32, to_host=4)
    assert judged(loop.steps, 16, traffic.unknown)["ok"]


def test_a_cache_that_goes_over_the_host_is_found(machine: Machine) -> None:
    """A loop as it must not be: what it carries comes out and goes in again."""
    with machine.load(b"growing") as graph, counted(machine.cuda) as traffic:

        class OverTheHost:
            past = rows(0, 0)

            def step(self, feeds: dict[str, np.ndarray], interrupt: object = None) -> Any:
                outputs = graph.run({"past": self.past, **feeds})
                self.past = outputs.pop("present")
                return outputs

        loop = Metered(OverTheHost(), traffic)  # type: ignore[arg-type]
        for _ in range(10):
            loop.step({"new": rows(1, 2)})
        found = judged(loop.steps, ROW, traffic.unknown)
    assert not found["ok"]
    assert found["steps_with_other_copies"] == 10
    assert found["growth_bytes_a_step"] == 2 * ROW  # out and in


def test_a_mask_may_grow_and_the_cache_may_not() -> None:
    def steps(growth: int) -> list[Step]:
        sizes = [100 + growth * number for number in range(5)]
        return [Step(size, 4, size, 4) for size in sizes]

    assert judged(steps(4), ROW, [])["ok"]
    assert not judged(steps(ROW), ROW, [])["ok"]
    assert not judged(steps(0), ROW, ["cudaMemcpyPeerAsync"])["ok"]


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("cudaMemcpyAsync", (1, 2, 50, CopyKind.cudaMemcpyHostToDevice, 9), (50, 0)),
        ("cudaMemcpy", (1, 2, 50, CopyKind.cudaMemcpyDeviceToHost), (0, 50)),
        ("cudaMemcpy2DAsync", (1, 8, 2, 8, 6, 7, CopyKind.cudaMemcpyDeviceToHost, 9), (0, 42)),
        ("cudaMemcpy2D", (1, 8, 2, 8, 6, 7, CopyKind.cudaMemcpyDeviceToDevice), (0, 0)),
    ],
)
def test_copying_functions_are_read_as_cuda_declares_them(
    name: str, args: tuple[Any, ...], expected: tuple[int, int]
) -> None:
    traffic = Traffic()
    traffic.copied(name, CopyKind, args)
    assert (traffic.to_device, traffic.to_host) == expected
    assert traffic.unknown == []


def test_a_copy_that_does_not_say_where_to_is_not_passed_over() -> None:
    traffic = Traffic()
    traffic.copied("cudaMemcpy3DAsync", CopyKind, (object(),))
    traffic.copied("cudaMemcpyAsync", CopyKind, (1, 2, 50, 4, 9))  # cudaMemcpyDefault
    assert traffic.unknown == ["cudaMemcpy3DAsync", "cudaMemcpyAsync: 4"]


def test_the_real_module_is_counted_and_left_as_it_was() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    before = {name: getattr(runtime, name) for name in dir(runtime)}
    with counted(runtime):
        changed = [name for name in before if getattr(runtime, name) is not before[name]]
        assert {"cudaMemcpy", "cudaMemcpyAsync", "cudaMemcpy2DAsync"} <= set(changed)
        assert "cudaMemcpyKind" not in changed
    assert all(getattr(runtime, name) is value for name, value in before.items())


def test_onnx_runtimes_cache_must_lie_on_the_gpu_after_every_step() -> None:
    devices = {"past.0.key": "cuda", "past.0.value": "Cuda"}

    def value(name: str) -> Any:
        return SimpleNamespace(device_name=lambda: devices[name])

    loop = Placed(
        SimpleNamespace(step=lambda *given: {}, _held={name: value(name) for name in devices})
    )
    loop.step({})
    assert placed(loop.devices) == {"cache_on": ["cuda"], "ok": True}
    devices["past.0.value"] = "cpu"
    loop.step({})
    assert placed(loop.devices) == {"cache_on": ["cpu", "cuda"], "ok": False}
    assert not placed([])["ok"]  # nothing was looked at


def test_a_row_of_the_cache_has_keys_and_values_of_all_layers() -> None:
    assert row_bytes(a_model(Stub()).llm) == 2 * 1 * 1 * 4 * 4


def a_setting(engine: str, model: Any) -> Any:
    """A setting whose every bundle is one model."""
    return SimpleNamespace(
        engine=engine,
        precisions=("fp32",),
        bundle=lambda family, precision: None,
        open=lambda bundle: SimpleNamespace(model=model),
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = SimpleNamespace(pictures=(a_picture(),), question="what is it?")
    monkeypatch.setattr(copies, "suite", lambda split, count, tokens: iter([sample]))
    monkeypatch.setattr(setting, "FAMILIES", ("qwen2_vl",))


@pytest.mark.usefixtures("drawn")
def test_copies_that_nobody_could_count_are_not_taken_for_none(machine: Machine) -> None:
    """The stub crosses no bus that is watched, so its steps got their feeds from elsewhere."""
    (row,) = host_copies(a_setting("tensorrt", a_model(Stub(end_after=0))))
    assert row["steps_with_other_copies"] == row["steps"] == copies.STEPS
    assert not row["ok"]


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(("device", "ok"), [("cuda", True), ("cpu", False)])
def test_onnx_runtimes_loop_is_looked_into_while_it_decodes(
    monkeypatch: pytest.MonkeyPatch, device: str, *, ok: bool
) -> None:
    value = SimpleNamespace(device_name=lambda: device)
    monkeypatch.setattr(StubLoop, "_held", {"past": value}, raising=False)
    (row,) = host_copies(a_setting("cuda", a_model(Stub(end_after=0))))
    assert (row["cache_on"], row["ok"]) == ([device], ok)


def test_without_a_gpu_there_is_nothing_to_count() -> None:
    with pytest.raises(Skipped, match="between host and GPU"):
        next(host_copies(a_setting("cpu", None)))
