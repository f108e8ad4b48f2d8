"""The ONNX Runtime engine on small graphs made here."""

from pathlib import Path

import numpy as np
import pytest

from tokprune_runtimes import Carry, load_graph

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.torch


def growing(path: Path) -> Path:
    """present = concat(past, new); total = sum of present."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Concat", ["past", "new"], ["present"], axis=1),
        helper.make_node("ReduceSum", ["present"], ["total"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "growing",
        [helper.make_tensor_value_info(n, kind, [1, f"{n}_len", 2]) for n in ("past", "new")],
        [
            helper.make_tensor_value_info("total", kind, []),
            helper.make_tensor_value_info("present", kind, [1, "length", 2]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def test_run_returns_outputs_by_name(tmp_path: Path) -> None:
    graph = load_graph(growing(tmp_path / "g.onnx"), "cpu", threads=1)
    outputs = graph.run(
        {"past": np.ones((1, 2, 2), np.float32), "new": np.full((1, 1, 2), 3, np.float32)}
    )
    assert outputs["total"] == 10
    assert outputs["present"].shape == (1, 3, 2)


def test_a_growing_loop_feeds_its_outputs_back_and_can_be_rewound(tmp_path: Path) -> None:
    graph = load_graph(growing(tmp_path / "g.onnx"), "cpu", threads=1)
    loop = graph.loop([Carry("present", "past", (1, 0, 2), 1, in_place=False)])
    totals = [
        float(loop.step({"new": np.full((1, count, 2), value, np.float32)})["total"])
        for count, value in ((3, 1.0), (1, 2.0), (1, 4.0))
    ]
    assert totals == [6, 10, 18]
    loop.rewind(4)
    assert loop.step({"new": np.full((1, 1, 2), 5, np.float32)})["total"] == 20


def test_two_loops_of_one_graph_do_not_mix(tmp_path: Path) -> None:
    graph = load_graph(growing(tmp_path / "g.onnx"), "cpu", threads=1)
    carries = [Carry("present", "past", (1, 0, 2), 1, in_place=False)]
    one, two = graph.loop(carries), graph.loop(carries)
    ones = {"new": np.ones((1, 1, 2), np.float32)}
    one.step(ones)
    one.step(ones)
    assert two.step(ones)["total"] == 2
    assert one.step(ones)["total"] == 6


def attention(path: Path) -> Path:
    """One GroupQueryAttention that keeps its cache in place, as the LLM's `ort` form does."""
    helper, kind, int32 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    node = helper.make_node(
        "GroupQueryAttention",
        ["q", "k", "v", "past_k", "past_v", "seqlens_k", "total"],
        ["out", "present_k", "present_v"],
        domain="com.microsoft",
        num_heads=4,
        kv_num_heads=2,
    )
    cache = [1, 2, "capacity", 8]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "attention",
        [
            value("q", kind, [1, "t", 32]),
            value("k", kind, [1, "t", 16]),
            value("v", kind, [1, "t", 16]),
            value("past_k", kind, cache),
            value("past_v", kind, cache),
            value("seqlens_k", int32, [1]),
            value("total", int32, []),
        ],
        [
            value("out", kind, [1, "t", 32]),
            value("present_k", kind, cache),
            value("present_v", kind, cache),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def causal(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Reference attention of all rows over all columns up to their own."""
    rows = len(q)
    heads_q = q.reshape(rows, 4, 8).transpose(1, 0, 2)
    heads_k, heads_v = (
        np.repeat(x.reshape(rows, 2, 8).transpose(1, 0, 2), 2, axis=0) for x in (k, v)
    )
    logits = heads_q @ heads_k.transpose(0, 2, 1) / np.sqrt(8)
    logits[:, np.triu(np.ones((rows, rows), bool), 1)] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ heads_v).transpose(1, 0, 2).reshape(rows, 32)


def test_an_in_place_cache_is_right_in_prefill_append_and_decode(tmp_path: Path) -> None:
    graph = load_graph(attention(tmp_path / "a.onnx"), "cpu", threads=1)
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(12, size)).astype(np.float32) for size in (32, 16, 16))
    expected = causal(q, k, v)
    carries = [
        Carry(f"present_{part}", f"past_{part}", (1, 2, 20, 8), 2, in_place=True) for part in "kv"
    ]
    loop = graph.loop(carries)

    def step(start: int, end: int) -> np.ndarray:
        feeds = {"q": q[None, start:end], "k": k[None, start:end], "v": v[None, start:end]}
        lengths = {"seqlens_k": np.asarray([end - 1], np.int32), "total": np.asarray(end, np.int32)}
        return loop.step({**feeds, **lengths})["out"][0]

    for start, end in ((0, 6), (6, 7), (7, 10), (10, 11), (11, 12)):
        np.testing.assert_allclose(step(start, end), expected[start:end], atol=1e-5)
    loop.rewind(7)  # the graph is told by the lengths
    np.testing.assert_allclose(step(7, 12), expected[7:12], atol=1e-5)


def test_an_unknown_output_of_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="missing"):
        load_graph(tmp_path / "missing.onnx", "cpu")
