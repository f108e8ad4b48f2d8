"""Loops of engines: what is carried, what is captured, and what happens without memory."""

import numpy as np
import pytest
from fake_cuda import CudaError
from fake_machine import CACHE, GROWS, Machine, cache_feeds, rows

from tokprune_runtimes import Carry
from tokprune_runtimes.errors import DeviceMemoryExhausted, EngineFailed, FeedsInvalid
from tokprune_runtimes.trt import TrtGraph


def test_a_growing_loop_feeds_its_outputs_back_and_can_be_rewound(machine: Machine) -> None:
    with machine.load(b"growing") as graph:
        loop = graph.loop(GROWS)
        copies = machine.cuda.calls.count("cudaMemcpyAsync")
        steps = ((3, 1.0), (1, 2.0), (1, 4.0))
        totals = [float(loop.step({"new": rows(n, value)})["total"]) for n, value in steps]
        assert totals == [18, 30, 54]
        # One array in and one out at each step: what is carried never comes to the host.
        assert machine.cuda.calls.count("cudaMemcpyAsync") - copies == 6
        loop.rewind(4)
        assert loop.step({"new": rows(1, 5)})["total"] == 60
        loop.rewind(0)
        assert loop.step({"new": rows(2, 1)})["total"] == 12
        with pytest.raises(FeedsInvalid, match="Cannot rewind past to 9: it holds 2"):
            loop.rewind(9)


def test_a_growing_loop_is_right_at_every_length(machine: Machine) -> None:
    rng = np.random.default_rng(0)
    with machine.load(b"growing") as graph:
        loop, expected = graph.loop(GROWS), 0.0
        for step in range(60):
            new = rng.integers(0, 3, (2, 4 if step == 0 else 1, 3)).astype(np.float16)
            expected += float(new.sum())
            assert loop.step({"new": new})["total"] == expected
        assert machine.cuda.calls.count("cudaMalloc") < 30  # it does not move at every step
        for _ in range(2):
            loop.step({"new": rows(1, 0)})
        with pytest.raises(FeedsInvalid, match=r"past \(2, 65, 3\) is not within"):
            loop.step({"new": rows(1, 0)})


def test_two_loops_of_one_graph_do_not_mix(machine: Machine) -> None:
    with machine.load(b"growing") as graph:
        one, two = graph.loop(GROWS), graph.loop(GROWS)
        one.step({"new": rows(1, 1)})
        one.step({"new": rows(1, 1)})
        assert two.step({"new": rows(1, 1)})["total"] == 6
        assert one.step({"new": rows(1, 1)})["total"] == 18


def test_an_in_place_loop_updates_one_buffer_and_is_captured(machine: Machine) -> None:
    plan = machine.plans[b"in place"]
    with machine.load(b"in place") as graph:
        loop = graph.loop(CACHE)
        totals = [float(loop.step(cache_feeds(0, [1, 2, 3]))["total"])]
        for at, value in ((3, 4), (4, 5), (5, 6), (6, 7)):
            totals.append(float(loop.step(cache_feeds(at, [value]))["total"]))
        assert totals == [12, 20, 30, 42, 56]
        # Prefill, the first step, the captured second one; then nothing but replays.
        assert plan.runs == ["plain", "plain", "captured"]
        assert machine.cuda.calls.count("cudaGraphLaunch") == 3
        loop.rewind(4)  # the graph is told by `at` and the mask
        assert loop.step(cache_feeds(4, [9]))["total"] == 38


def test_the_next_answer_takes_over_memory_and_captured_step(machine: Machine) -> None:
    plan = machine.plans[b"in place"]
    with machine.load(b"in place") as graph:
        mallocs: list[int] = []
        for _ in range(3):
            loop = graph.loop(CACHE)
            totals = [float(loop.step(cache_feeds(0, [1, 2]))["total"])]
            totals += [float(loop.step(cache_feeds(at, [1]))["total"]) for at in (2, 3, 4)]
            assert totals == [6, 8, 10, 12]
            mallocs.append(machine.cuda.calls.count("cudaMalloc"))
            del loop
        assert mallocs == [mallocs[0]] * 3
        # The first answer: prefill, plain, captured. The others: prefill only.
        assert plan.runs == ["plain", "plain", "captured", "plain", "plain"]


def test_another_capacity_frees_what_the_last_answer_left(machine: Machine) -> None:
    with machine.load(b"in place") as graph:
        small = graph.loop(CACHE)
        small.step(cache_feeds(0, [1]))
        del small
        blocks = len(machine.cuda.blocks)
        big = graph.loop([Carry("updated", "cache", (1, 32, 2), 1, in_place=True)])
        assert big.step(cache_feeds(0, [1], 32))["total"] == 2
        assert len(machine.cuda.blocks) == blocks


def test_what_was_captured_is_not_replayed_after_other_shapes(machine: Machine) -> None:
    plan = machine.plans[b"in place"]
    plan.profiles = plan.profiles[:1]  # prefill and decode share a context
    with machine.load(b"in place") as graph:
        loop = graph.loop(CACHE)
        for at in range(3):
            loop.step(cache_feeds(at, [1]))
        assert loop.step(cache_feeds(0, [1, 1, 1]))["total"] == 6
        assert loop.step(cache_feeds(3, [5]))["total"] == 16
        assert plan.runs == ["plain", "captured", "plain", "plain"]


def test_what_was_captured_is_not_replayed_when_memory_moved(machine: Machine) -> None:
    plan = machine.plans[b"in place"]
    machine.plans[b"growing"].scratch = 1 << 20
    with machine.load(b"in place") as graph:
        loop = graph.loop(CACHE)
        for at in range(3):
            loop.step(cache_feeds(at, [1]))
        with machine.load(b"growing") as other:  # needs more scratch
            assert other.run({"past": rows(0, 0), "new": rows(1, 1)})["total"] == 6
            assert loop.step(cache_feeds(3, [5]))["total"] == 16
        assert plan.runs == ["plain", "captured", "plain"]


def test_what_was_captured_is_not_replayed_when_an_input_moved(machine: Machine) -> None:
    plan = machine.plans[b"in place"]
    with machine.load(b"in place") as graph:
        one = graph.loop(CACHE)
        big = graph.loop([Carry("updated", "cache", (1, 64, 2), 1, in_place=True)])
        for at in range(3):
            one.step(cache_feeds(at, [1]))
        before = graph._buffers["new"].address
        assert big.step(cache_feeds(0, [1.0] * 48, 64))["total"] == 96  # a longer prompt
        assert graph._buffers["new"].address != before
        assert one.step(cache_feeds(3, [5]))["total"] == 16
    assert plan.runs == ["plain", "captured", "plain", "plain"]


@pytest.mark.parametrize(
    "function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"]
)
def test_where_capturing_fails_steps_run_plainly(
    machine: Machine, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    plan = machine.plans[b"in place"]
    machine.cuda.fail(function, 0, CudaError.cudaErrorStreamCaptureInvalidated)
    with machine.load(b"in place") as graph:
        loop = graph.loop(CACHE)
        totals = [float(loop.step(cache_feeds(at, [1]))["total"]) for at in range(5)]
    assert totals == [2, 4, 6, 8, 10]
    assert plan.runs.count("plain") == 5
    assert machine.cuda.calls.count("cudaStreamBeginCapture") == 1  # not tried again
    assert f"{function}: cudaErrorStreamCaptureInvalidated" in caplog.text


def test_a_step_that_cannot_be_queued_while_capturing_is_run_plainly(machine: Machine) -> None:
    plan = machine.plans[b"in place"]
    with machine.load(b"in place") as graph:
        loop = graph.loop(CACHE)
        loop.step(cache_feeds(0, [1]))
        plan.failing_runs = 1
        assert loop.step(cache_feeds(1, [1]))["total"] == 4
        assert loop.step(cache_feeds(2, [1]))["total"] == 6
    assert plan.runs == ["plain", "captured", "plain", "plain"]


def test_nothing_is_captured_where_the_engine_or_the_build_says_no(machine: Machine) -> None:
    plan = machine.plans[b"in place"]
    plan.uncapturable = True
    with machine.load(b"in place") as graph:
        loop = graph.loop(CACHE)
        for at in range(3):
            loop.step(cache_feeds(at, [1]))
        plan.uncapturable = False  # TensorRT-RTX has compiled its kernels
        loop.step(cache_feeds(3, [1]))
    assert plan.runs == ["plain", "plain", "plain", "captured"]
    with machine.load(b"in place", cuda_graphs=False) as graph:
        loop = graph.loop(CACHE)
        for at in range(3):
            loop.step(cache_feeds(at, [1]))
    assert plan.runs[4:] == ["plain"] * 3


def test_a_bfloat16_cache_can_be_carried_but_not_fed_or_fetched(machine: Machine) -> None:
    plan = machine.plans[b"growing"]
    plan.inputs = {"past": "BF16", "new": "HALF"}
    plan.outputs = {"total": "FLOAT", "present": "BF16"}

    def compute(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        bits = np.concatenate([feeds["past"], feeds["new"].astype(np.uint16)], 1)
        return {"present": bits, "total": bits.sum(dtype=np.float32)}

    plan.compute = compute
    with machine.load(b"growing") as graph:
        loop = graph.loop(GROWS)
        assert loop.step({"new": rows(2, 1)})["total"] == 12
        assert loop.step({"new": rows(1, 1)})["total"] == 18
        with pytest.raises(FeedsInvalid, match="past must be bfloat16, which only a loop can"):
            graph.run({"past": rows(0, 0), "new": rows(1, 1)})


def test_carries_that_the_engine_does_not_have_are_refused(machine: Machine) -> None:
    with machine.load(b"growing") as graph:
        with pytest.raises(FeedsInvalid, match="cannot carry present to pst: it has the inputs"):
            graph.loop([Carry("present", "pst", (2, 0, 3), 1, in_place=False)])
        with pytest.raises(FeedsInvalid, match="does not update past in place"):
            graph.loop([Carry("present", "past", (2, 8, 3), 1, in_place=True)])
        with pytest.raises(FeedsInvalid, match="total and past differ in dtype"):
            graph.loop([Carry("total", "past", (2, 0, 3), 1, in_place=False)])


def test_a_tensorrt_without_aliases_refuses_the_in_place_form(machine: Machine) -> None:
    plan = machine.plans[b"in place"]
    plan.without = frozenset({"get_aliased_input_tensor", "is_stream_capturable"})
    with (
        machine.load(b"in place") as graph,
        pytest.raises(FeedsInvalid, match="use the `portable` form"),
    ):
        graph.loop(CACHE)


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("data", [b"growing", b"in place"])
def test_every_failing_allocation_is_a_clear_error_after_which_all_works(
    machine: Machine, data: bytes, times: int
) -> None:
    def answer(graph: TrtGraph) -> list[float]:
        if data == b"growing":
            loop = graph.loop(GROWS)
            return [float(loop.step({"new": rows(n, 1)})["total"]) for n in (3, 1, 1)]
        loop = graph.loop(CACHE)
        return [float(loop.step(cache_feeds(at, [1]))["total"]) for at in range(3)]

    with machine.load(data) as graph:
        expected = answer(graph)
        needed = machine.cuda.calls.count("cudaMalloc")
    assert needed > 4
    refused = 0
    for nth in range(needed):
        machine.cuda.fail("cudaMalloc", nth, CudaError.cudaErrorMemoryAllocation, times=times)
        try:
            graph = machine.load(data)
        except DeviceMemoryExhausted:
            refused += 1
            assert machine.cuda.leaks == []
            machine.cuda.recover()
            continue
        with graph:
            try:
                assert answer(graph) == expected  # it made room
            except DeviceMemoryExhausted:
                refused += 1
            machine.cuda.recover()
            assert answer(graph) == expected
        assert machine.cuda.leaks == []
    assert refused >= (1 if times == 1 else 4)


def test_a_closed_graph_and_its_loops_say_so(machine: Machine) -> None:
    graph = machine.load(b"growing")
    loop = graph.loop(GROWS)
    loop.step({"new": rows(1, 1)})
    graph.close()
    graph.close()
    assert machine.cuda.leaks == []
    with pytest.raises(EngineFailed, match=r"The graph growing\.engine is closed"):
        graph.run({"past": rows(0, 0), "new": rows(1, 1)})
    with pytest.raises(EngineFailed, match="is closed"):
        loop.step({"new": rows(1, 1)})
