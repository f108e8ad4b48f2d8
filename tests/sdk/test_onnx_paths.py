import random
from collections.abc import Callable

import onnx
import pytest
from mutations import damaged
from onnx import TensorProto, helper
from onnx.external_data_helper import _get_all_tensors

from tokprune import onnx_paths
from tokprune.onnx_paths import ExternalData, external_data

FLOATS = TensorProto.FLOAT


def elsewhere(location: str, **entries: object) -> TensorProto:
    """A tensor in another file."""
    tensor = TensorProto(name="weight", dims=[2], data_type=FLOATS)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def graph_with(tensor: TensorProto, name: str = "graph") -> onnx.GraphProto:
    return helper.make_graph([], name, [], [], [tensor])


def in_initializer(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer.append(tensor)


def in_sparse_values(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)


def in_sparse_indices(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.sparse_initializer.add().indices.CopyFrom(tensor)


def in_constant(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def in_list_of_an_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.add(op_type="X").attribute.add(name="a").tensors.append(tensor)


def in_sparse_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    attribute = model.graph.node.add(op_type="X").attribute.add(name="a")
    attribute.sparse_tensor.values.CopyFrom(tensor)
    attribute.sparse_tensors.add().indices.CopyFrom(tensor)


def in_branch(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(
        helper.make_node("If", ["c"], ["o"], then_branch=graph_with(tensor, "then"))
    )


def in_list_of_graphs(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.add(op_type="X").attribute.add(name="a").graphs.append(graph_with(tensor))


def in_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    function = model.functions.add(name="f", domain="d")
    function.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def in_default_of_a_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    attribute = model.functions.add(name="f", domain="d").attribute_proto.add(name="a")
    attribute.t.CopyFrom(tensor)


def in_training_graph(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.training_info.add().initialization.initializer.append(tensor)
    model.training_info.add().algorithm.initializer.append(tensor)


def in_deep_branches(model: onnx.ModelProto, tensor: TensorProto) -> None:
    graph = graph_with(tensor)
    for _ in range(30):
        graph = helper.make_graph([helper.make_node("X", [], [], body=graph)], "g", [], [])
    model.graph.node.append(helper.make_node("X", [], [], body=graph))


PLACES = [
    in_initializer,
    in_sparse_values,
    in_sparse_indices,
    in_constant,
    in_list_of_an_attribute,
    in_sparse_attribute,
    in_branch,
    in_list_of_graphs,
    in_function,
    in_default_of_a_function,
    in_training_graph,
    in_deep_branches,
]
Place = Callable[[onnx.ModelProto, TensorProto], None]


def empty_model() -> onnx.ModelProto:
    return helper.make_model(graph_with(helper.make_tensor("inline", FLOATS, [2], [1.0, 2.0])))


def read(model: onnx.ModelProto) -> list[ExternalData]:
    return external_data(memoryview(model.SerializeToString()))


@pytest.mark.parametrize("place", PLACES)
def test_external_data_are_found_wherever_a_tensor_can_hide(place: Place) -> None:
    model = empty_model()
    place(model, elsewhere("../outside", offset=7, length=8))
    assert set(read(model)) == {ExternalData("../outside", 7, 8)}


def test_every_tensor_that_onnx_finds_is_found() -> None:
    model = empty_model()
    for number, place in enumerate(PLACES):
        place(model, elsewhere(f"file-{number}"))
    theirs = {
        entry.value
        for tensor in _get_all_tensors(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    ours = {reference.location for reference in read(model)}
    assert theirs <= ours
    assert ours == {f"file-{number}" for number in range(len(PLACES))}


def test_a_model_without_external_data_has_none() -> None:
    assert read(empty_model()) == []


def test_a_location_counts_whether_or_not_the_tensor_says_that_it_is_used() -> None:
    model, tensor = empty_model(), elsewhere("../outside")
    tensor.data_location = TensorProto.DEFAULT
    in_initializer(model, tensor)
    assert read(model) == [ExternalData("../outside", 0, None)]


def test_a_second_location_is_refused() -> None:
    model, tensor = empty_model(), elsewhere("good")
    tensor.external_data.add(key="location", value="../outside")
    in_initializer(model, tensor)
    with pytest.raises(ValueError, match="stands twice"):
        read(model)


def test_parts_of_one_tensor_are_all_seen() -> None:
    """Protobuf merges a field that stands twice, so a second half must not go unseen."""
    parts = [helper.make_attribute("value", elsewhere(name)) for name in ("good", "../outside")]
    data = empty_model().SerializeToString()
    for part in parts:
        node = onnx.NodeProto(op_type="Constant", output=["c"], attribute=[part])
        more = onnx.ModelProto(graph=onnx.GraphProto(node=[node]))
        data += more.SerializeToString()
    found = {reference.location for reference in external_data(memoryview(data))}
    assert found == {"good", "../outside"}


def test_a_compiled_engine_in_a_graph_is_refused() -> None:
    model = empty_model()
    model.graph.node.add(op_type="EPContext", domain="com.microsoft")
    with pytest.raises(ValueError, match="compiled engine"):
        read(model)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no graph"),
        (b"\x08\x08", "no graph"),
        (b"\x3a", "truncated"),
        (b"\x3a\x05\x00", "truncated"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "truncated"),
        (b"\x80" * 20, "64 bits"),
        (b"\x3b\x00", "wire type"),
        (b"\x00\x00", "no protobuf"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_what_is_no_model_is_refused(data: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        external_data(memoryview(data))


def test_endless_fields_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_paths, "_MAX_FIELDS", 1000)
    model, tensor = empty_model(), elsewhere("file")
    tensor.external_data[0].MergeFromString(b"\x1a\x00" * 1000)  # fields that ONNX does not know
    in_initializer(model, tensor)
    for data in (b"\x3a\x00" * 1001, model.SerializeToString()):
        with pytest.raises(ValueError, match="too many fields"):
            external_data(memoryview(data))


def test_endless_texts_are_refused() -> None:
    model = empty_model()
    in_initializer(model, elsewhere("x" * 5000))
    with pytest.raises(ValueError, match="too long"):
        read(model)


def test_damaged_models_are_refused_or_read() -> None:
    model = empty_model()
    for number, place in enumerate(PLACES):
        place(model, elsewhere(f"file-{number}", offset=1, length=2))
    data, chance = model.SerializeToString(), random.Random(0)
    results = [outcome(damaged(data, chance)) for _ in range(200)]
    assert {"refused", "read"} == set(results)


def outcome(data: bytes) -> str:
    try:
        external_data(memoryview(data))
    except ValueError:
        return "refused"
    return "read"
