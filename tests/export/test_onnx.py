from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch
from torch import nn

from tokprune_export.onnx import Input, Output, Source, describe, save, share_weights, trace
from tokprune_runtimes import load_graph

pytestmark = pytest.mark.torch


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(width).float(), requires_grad=False)

    def forward(self, x: torch.Tensor, unread: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def source(width: int = 3, rows: int = 4, unread: int = 5) -> Source:
    inputs = (
        Input("x", torch.zeros(rows, width), ("n", width)),
        Input("unread", torch.zeros(unread), ("m",)),
    )
    return Source(Scale(width), inputs, (Output("y", ("n", width)),))


@pytest.mark.parametrize(("rows", "unread"), [(1, 5), (4, 4)])
def test_sizes_that_would_freeze_or_join_axes_are_refused(rows: int, unread: int) -> None:
    with pytest.raises(ValueError, match="distinct sizes of at least 2"):
        source(rows=rows, unread=unread)


def test_one_axis_has_one_size() -> None:
    with pytest.raises(ValueError, match="b: axis 'n' is 3 and 2"):
        Source(
            nn.Identity(),
            (Input("a", torch.zeros(2), ("n",)), Input("b", torch.zeros(3), ("n",))),
            (),
        )


def test_a_fixed_axis_has_the_size_that_is_said() -> None:
    with pytest.raises(ValueError, match="a: example has 2 where 3 is fixed"):
        Source(nn.Identity(), (Input("a", torch.zeros(2), (3,)),), ())


def test_inputs_that_nothing_reads_are_not_declared(tmp_path: Path) -> None:
    model = trace(source(), 18)
    save(model, tmp_path / "scale.onnx")
    spec = describe(model, "scale.onnx", 18)
    assert [(t.name, t.dtype, t.shape) for t in spec.inputs] == [("x", "float32", ["n", 3])]
    assert [path.name for path in tmp_path.iterdir()] == ["scale.onnx"]  # weights are inline
    graph = load_graph(tmp_path / "scale.onnx", "cpu")
    ones = np.ones((1, 3), np.float32)
    assert graph.run({"x": ones})["y"].tolist() == [[0, 1, 2]]


def test_a_graph_tells_nothing_of_the_machine_that_wrote_it(tmp_path: Path) -> None:
    save(trace(source(), 18), tmp_path / "scale.onnx")
    data = (tmp_path / "scale.onnx").read_bytes()
    assert str(Path.cwd()).encode() not in data
    assert b".py" not in data
    assert onnx_ir.load(tmp_path / "scale.onnx").ir_version == 10


def test_two_graphs_share_one_file_of_weights(tmp_path: Path) -> None:
    width = 300
    first, second = trace(source(width), 18), trace(source(width), 18)
    save(first, tmp_path / "first.onnx", data="both.data")
    share_weights(second, tmp_path / "first.onnx", {"weight"})
    save(second, tmp_path / "second.onnx")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["both.data", "first.onnx", "second.onnx"]
    assert (tmp_path / "both.data").stat().st_size == 4 * width
    ones = np.ones((2, width), np.float32)
    for name in ("first.onnx", "second.onnx"):
        ours = load_graph(tmp_path / name, "cpu").run({"x": ones})["y"]
        assert (ours == np.arange(width)).all()


def test_weights_of_another_shape_are_not_shared(tmp_path: Path) -> None:
    save(trace(source(300), 18), tmp_path / "first.onnx", data="both.data")
    with pytest.raises(ValueError, match=r"first\.onnx holds no weight 'weight' of shape"):
        share_weights(trace(source(301), 18), tmp_path / "first.onnx", {"weight"})
