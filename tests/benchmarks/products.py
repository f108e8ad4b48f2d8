"""Six matrix products in the precisions of bundles, to see what ONNX Runtime makes of weights."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tokprune.files import staged_folder
from tokprune.manifest import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int4")
WIDE = (2048, 8192)
LAYERS, BLOCK, OPSET = 6, 128, 21


def precision(name: str) -> Precision:
    """Return the precision of that name."""
    return next(known for known in PRECISIONS if known == name)


def write(folder: Path, which: Precision) -> None:
    """Write `<which>.onnx` and its weights, unless they are there."""
    if (folder / f"{which}.onnx").exists():
        return
    import onnx
    from onnx import TensorProto, helper

    nodes, weights, name = [], [], "x"
    for layer in range(LAYERS):
        rows, columns = WIDE if layer % 2 == 0 else WIDE[::-1]
        made, new = _weight(which, f"w{layer}", (rows, columns))
        nodes += made
        weights += new
        if which != "fp32":
            nodes.append(helper.make_node("Cast", [name], [f"c{layer}"], to=TensorProto.FLOAT16))
            name = f"c{layer}"
        nodes.append(helper.make_node("MatMul", [name, f"w{layer}"], [f"y{layer}"]))
        name = f"y{layer}"
    nodes.append(helper.make_node("Cast", [name], ["out"], to=TensorProto.FLOAT))
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, ["T", WIDE[0]])
        for end in ("x", "out")
    ]
    graph = helper.make_graph(nodes, which, ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    with staged_folder(folder / f"{which}-written") as staged:
        place = staged / f"{which}.onnx"
        onnx.save(model, str(place), save_as_external_data=True, location=f"{which}.data")
    for path in sorted(
        (folder / f"{which}-written").iterdir()
    ):  # the ONNX file last: it is looked for
        path.rename(folder / path.name)
    (folder / f"{which}-written").rmdir()


def _weight(which: Precision, name: str, shape: tuple[int, int]) -> tuple[Sequence, Sequence]:
    """Return nodes and tensors that make a weight."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(sum(name.encode()))  # equal weights would be kept once
    if which != "int4":
        kind = np.float16 if which == "fp16" else np.float32
        values = random.standard_normal(shape, dtype=np.float32).astype(kind)
        return [], [numpy_helper.from_array(values, name)]
    packed = random.integers(0, 256, shape[0] * shape[1] // 2, dtype=np.uint8).tobytes()
    scales = random.random((shape[0] // BLOCK, shape[1])).astype(np.float16)
    inputs = [f"{name}.q", f"{name}.s"]
    return [helper.make_node("DequantizeLinear", inputs, [name], axis=0, block_size=BLOCK)], [
        helper.make_tensor(inputs[0], TensorProto.INT4, shape, packed, raw=True),
        numpy_helper.from_array(scales, inputs[1]),
    ]
