"""Running engines, on fakes of TensorRT's and CUDA's Python modules: no GPU is needed."""

import sys
import threading
from typing import Any

import numpy as np
import pytest
from fake_cuda import CudaError
from fake_machine import CACHE, GROWS, SOURCE, Machine, cache_feeds, ranges, rows

from tokprune_runtimes import Graph, load_graph
from tokprune_runtimes.errors import (
    DeviceMemoryExhausted,
    EngineFailed,
    EngineStale,
    EngineUnavailable,
    FeedsInvalid,
)
from tokprune_runtimes.trt import TrtGraph


def test_run_returns_outputs_by_name_and_zero_size_inputs_are_fed(machine: Machine) -> None:
    with machine.load(b"growing") as graph:
        outputs = graph.run({"past": rows(0, 0), "new": rows(5, 2)})
    assert outputs["total"] == 60
    assert outputs["total"].dtype == np.float32
    assert outputs["present"].shape == (2, 5, 3)
    assert outputs["present"].dtype == np.float16


def test_a_graph_is_a_graph(machine: Machine) -> None:
    with machine.load(b"growing") as graph:
        assert isinstance(graph, Graph)


def test_inputs_need_not_be_contiguous(machine: Machine) -> None:
    with machine.load(b"growing") as graph:
        new = np.arange(12, dtype=np.float16).reshape(3, 2, 2).transpose(1, 2, 0)
        np.testing.assert_array_equal(graph.run({"past": rows(0, 0), "new": new})["present"], new)


def test_the_profile_with_the_smallest_maxima_is_taken(machine: Machine) -> None:
    plan = machine.plans[b"growing"]
    plan.profiles = [
        {"past": ranges((2, 0, 3), (2, 64, 3)), "new": ranges((2, 1, 3), (2, size, 3))}
        for size in (32, 8, 16)
    ]
    plan.scratch = 1000
    with machine.load(b"growing") as graph:
        for count, expected in ((9, 2), (8, 1), (17, 0)):
            graph.run({"past": rows(0, 0), "new": rows(count, 1)})
            assert sorted(graph._engine._contexts)[-1] >= expected
            assert expected in graph._engine._contexts


def test_shapes_that_no_profile_holds_are_named_with_the_ranges(machine: Machine) -> None:
    with machine.load(b"growing") as graph:
        expected = r"No profile of growing.engine.*\nprofile 0: new \(2, 40, 3\) is not within "
        expected += r"\(2, 1, 3\) to \(2, 32, 3\)\nprofile 1: past \(2, 0, 3\) is not within"
        with pytest.raises(FeedsInvalid, match=expected):
            graph.run({"past": rows(0, 0), "new": rows(40, 1)})
        assert graph.run({"past": rows(0, 0), "new": rows(1, 1)})["total"] == 6


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"new": rows(1, 1)}, r"takes \['new', 'past'\], got \['new'\]"),
        ({"new": rows(1, 1), "past": rows(0, 1), "x": rows(0, 1)}, r"got \['new', 'past', 'x'\]"),
        ({"new": rows(1, 1), "past": np.zeros((2, 0, 3))}, "past must be float16, got float64"),
        ({"new": rows(1, 1), "past": np.zeros((2, 0), np.float16)}, r"past \(2, 0\) is not within"),
    ],
)
def test_wrong_feeds_are_refused(
    machine: Machine, feeds: dict[str, np.ndarray], message: str
) -> None:
    with machine.load(b"growing") as graph, pytest.raises(FeedsInvalid, match=message):
        graph.run(feeds)


def test_graphs_share_the_larger_scratch_and_one_stream(machine: Machine) -> None:
    machine.plans[b"growing"].scratch = 5000
    machine.plans[b"in place"].scratch = 3000
    with machine.load(b"growing") as one, machine.load(b"in place") as two:
        assert machine.workspace.scratch.size == 5000
        assert machine.cuda.allocated == 5000
        assert len(machine.cuda.streams) == 1
        assert one.run({"past": rows(0, 0), "new": rows(1, 1)})["total"] == 6
        assert two.loop(CACHE).step(cache_feeds(0, [1]))["total"] == 2


def test_all_graphs_of_a_process_share_a_workspace_by_default(machine: Machine) -> None:
    paths = [machine.write(data) for data in (b"growing", b"in place")]
    graphs = [load_graph(path, "tensorrt", source_sha256=SOURCE) for path in paths]
    assert len(machine.cuda.streams) == 1
    assert len(graphs) == 2
    del graphs  # nobody has to close them


def test_weight_streaming_takes_the_budget_that_tensorrt_says(machine: Machine) -> None:
    with machine.load(b"growing", weight_streaming=True):
        assert machine.plans[b"growing"].budgets == [12345]
    with machine.load(b"growing"):
        assert machine.plans[b"growing"].budgets == [12345]


def test_a_run_that_fails_says_what_tensorrt_said_and_the_next_one_works(machine: Machine) -> None:
    feeds = {"past": rows(0, 0), "new": rows(2, 1)}
    with machine.load(b"growing") as graph:
        machine.plans[b"growing"].failing_runs = 1
        with pytest.raises(EngineFailed, match="did not run:\nthe kernel is not to be had"):
            graph.run(feeds)
        # The copies that were queued are done: their arrays may go.
        assert not any(machine.cuda.streams.values())
        assert graph.run(feeds)["total"] == 12
        machine.cuda.fail("cudaStreamSynchronize", 0, CudaError.cudaErrorIllegalAddress)
        with pytest.raises(EngineFailed, match="cudaStreamSynchronize: cudaErrorIllegalAddress"):
            graph.run(feeds)


def test_a_step_that_fails_can_be_repeated(machine: Machine) -> None:
    with machine.load(b"growing") as graph:
        loop = graph.loop(GROWS)
        loop.step({"new": rows(2, 1)})
        machine.plans[b"growing"].failing_runs = 1
        with pytest.raises(EngineFailed, match="did not run"):
            loop.step({"new": rows(1, 1)})
        assert loop.step({"new": rows(1, 1)})["total"] == 18


def test_out_of_memory_leaves_what_fits_usable(machine: Machine) -> None:
    with machine.load(b"growing") as graph:
        machine.cuda.room = machine.cuda.allocated + 1100
        with pytest.raises(DeviceMemoryExhausted, match=r"no 0\.0 MiB left: .* are free\. Ask for"):
            graph.run({"past": rows(0, 0), "new": rows(32, 1)})
        # The error is not left for TensorRT to find.
        assert "cudaGetLastError" in machine.cuda.calls
        assert graph.run({"past": rows(0, 0), "new": rows(1, 1)})["total"] == 6


def test_outputs_whose_shape_depends_on_values_are_refused(machine: Machine) -> None:
    machine.plans[b"growing"].shapes = lambda given: {"total": (), "present": (2, -1, 3)}
    with (
        machine.load(b"growing") as graph,
        pytest.raises(EngineFailed, match=r"gives present a shape \(2, -1, 3\) that depends"),
    ):
        graph.run({"past": rows(0, 0), "new": rows(1, 1)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_host": frozenset({"past"})}, "wants past on the host"),
        ({"inputs": {"past": "FP8", "new": "HALF"}}, "has past in FP8: not supported"),
    ],
)
def test_engines_with_tensors_that_cannot_be_fed_are_refused(
    machine: Machine, changes: dict[str, Any], message: str
) -> None:
    for name, value in changes.items():
        setattr(machine.plans[b"growing"], name, value)
    with pytest.raises(EngineFailed, match=message):
        machine.load(b"growing")


def test_an_engine_that_tensorrt_does_not_load_says_why(machine: Machine) -> None:
    del machine.plans[b"growing"]
    with pytest.raises(EngineFailed, match=r"growing\.engine:\nSerialization assertion failed\."):
        machine.load(b"growing")


def test_an_engine_that_does_not_fit_is_an_error_of_memory(machine: Machine) -> None:
    del machine.plans[b"growing"]
    machine.trt.refusal = "Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)"
    with pytest.raises(DeviceMemoryExhausted, match="Requested size was 4294967296"):
        machine.load(b"growing")


def test_a_runtime_that_cannot_be_made_is_an_error(machine: Machine) -> None:
    def broken(logger: object) -> object:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    machine.trt.Runtime = broken
    with pytest.raises(EngineFailed, match=r"growing\.engine \(pybind11::init\(\)"):
        machine.load(b"growing")


def test_a_stale_engine_never_reaches_tensorrt(machine: Machine) -> None:
    machine.trt.Runtime = lambda logger: pytest.fail("TensorRT saw it")
    with pytest.raises(EngineStale, match="this GPU is sm87"):
        machine.load(b"growing", sm=["sm86"])


def test_without_a_gpu_or_cuda_bindings_the_error_says_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.cuda.driver = False
    with pytest.raises(EngineUnavailable, match=r"no CUDA GPU .*cudaErrorInsufficientDriver"):
        machine.load(b"growing")
    machine.cuda.libcuda = False
    with pytest.raises(EngineUnavailable, match=r"no CUDA GPU .*libcuda\.so\.1"):
        machine.load(b"growing")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EngineUnavailable, match=r"cuda-bindings is not installed .*pip install"):
        machine.load(b"growing")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineUnavailable, match=r"pip install 'tokprune\[tensorrt\]'.*JetPack"):
        machine.load(b"growing")


def test_an_engine_needs_the_hash_of_its_source(machine: Machine) -> None:
    with pytest.raises(ValueError, match="needs source_sha256"):
        load_graph(machine.write(b"growing"), "tensorrt")


def test_threads_take_turns(machine: Machine) -> None:
    wrong: list[float] = []

    def work(graph: TrtGraph, value: float) -> None:
        for _ in range(50):
            total = float(graph.run({"past": rows(0, 0), "new": rows(4, value)})["total"])
            if total != value * 24:
                wrong.append(total)

    with machine.load(b"growing") as graph:
        threads = [threading.Thread(target=work, args=(graph, value)) for value in (1.0, 2.0, 3.0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
