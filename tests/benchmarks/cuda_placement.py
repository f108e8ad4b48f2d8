"""Which nodes of our graphs ONNX Runtime gives to its CUDA engine, found out without a GPU.

    python tests/benchmarks/cuda_placement.py PYTHON BUNDLE [BUNDLE ...]

PYTHON is an interpreter with onnxruntime-gpu (`make placement` makes one). Its CUDA engine is
loaded over libraries that do nothing (cuda_stubs.py): a session can be made on them, not run. Ends
with 1 where a graph that serves CUDA has a node elsewhere that does more than compute a shape: such
a node's tensors would cross to the host at every step. Writes docs/results/cuda-placement.*.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from cuda_stubs import output, write_stubs
from machine import RESULTS, machine
from rich.console import Console
from rich.table import Table

from tokprune.bundle import open_bundle

ASSIGNMENT = Path(__file__).with_name("cuda_assignment.py")
ENGINE = "libonnxruntime_providers_cuda.so"
HEADER = (
    "bundle",
    "graph",
    "serves CUDA",
    "nodes",
    "on CUDA",
    "shapes on CPU",
    "other on CPU",
    "copies",
)
READING = """\
**No GPU was there, and nothing ran.** ONNX Runtime's CUDA engine was loaded over libraries that do
nothing (`tests/benchmarks/cuda_stubs.py`), as a GPU of compute capability 8.7; the session then
says which engine each node was given to, after its own fusions. Nodes that compute a shape (one
number, or a list of a few) stay on the CPU, where ONNX Runtime wants them. Copies are those that it
adds between host and device; a graph's inputs and outputs are not among them.

A form that does not serve CUDA is there to compare with: in float32 `GroupQueryAttention` has no
CUDA kernel, so the manifest does not offer it; `llm.trt` is for TensorRT."""
SHAPE_NUMBERS = 8  # a shape, or a part of one, has no more numbers than that


@dataclass(frozen=True)
class Row:
    """Where one graph's nodes went, after ONNX Runtime's own fusions."""

    bundle: str
    precision: str
    graph: str
    serves_cuda: bool
    nodes: int
    shapes_on_cpu: int  # nodes that compute a shape
    copies: int  # between host and device, that ONNX Runtime added
    elsewhere: dict[str, int]  # operators of all other nodes that are not on CUDA

    @property
    def ok(self) -> bool:
        """Whether this graph runs on the GPU as the manifest says."""
        return not (self.serves_cuda and self.elsewhere)


def main() -> None:
    """Place, print, write, judge."""
    python, bundles = sys.argv[1], [Path(name) for name in sys.argv[2:]]
    if not bundles:
        raise SystemExit((__doc__ or "").splitlines()[2].strip())
    code = "import onnxruntime, pathlib; print(pathlib.Path(onnxruntime.__file__).parent / 'capi')"
    engine = Path(output(python, "-c", code).strip()) / ENGINE
    if not engine.exists():
        raise SystemExit(f"{python} has no onnxruntime-gpu: {engine} is missing")
    with tempfile.TemporaryDirectory() as folder:
        stubs = write_stubs(engine, Path(folder))
        placed = [row for bundle in bundles for row in place(python, bundle, folder)]
    rows, versions = [row for row, _ in placed], placed[0][1]
    result = {**machine("onnx"), "engine": versions, "stub_functions": stubs}
    result["rows"] = [{**asdict(row), "ok": row.ok} for row in rows]
    (RESULTS / "cuda-placement.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "cuda-placement.md").write_text(page(rows, result))
    Console().print(table(rows))
    sys.exit(0 if all(row.ok for row in rows) else 1)


def place(python: str, bundle: Path, stubs: str) -> list[tuple[Row, dict[str, str]]]:
    """Make a session of every graph of a bundle."""
    manifest = open_bundle(bundle).manifest
    graphs = manifest.graphs
    specs = [(spec, True) for spec in (graphs.vision_encoder, graphs.first_layer, graphs.scorer)]
    specs += [(form.graph, "onnxruntime-cuda" in form.serves) for form in graphs.llm]
    rows: list[tuple[Row, dict[str, str]]] = []
    for spec, serves in specs:
        path = bundle / spec.file
        assigned, copies = assign(python, path, stubs)
        elsewhere = [node for node in assigned["nodes"] if node["engine"] != "cuda"]
        shapes = shape_nodes(path)
        other: dict[str, int] = {}
        for node in elsewhere:
            if node["name"] not in shapes:
                other[node["op"]] = other.get(node["op"], 0) + 1
        row = Row(
            bundle=manifest.family,
            precision=manifest.precision,
            graph=path.stem,
            serves_cuda=serves,
            nodes=len(assigned["nodes"]),
            shapes_on_cpu=len(elsewhere) - sum(other.values()),
            copies=copies,
            elsewhere=other,
        )
        rows.append((row, assigned["versions"]))
    return rows


def assign(python: str, graph: Path, stubs: str) -> tuple[dict[str, Any], int]:
    """Return what cuda_assignment.py prints, and how many copies ONNX Runtime warns of."""
    done = subprocess.run(
        [python, str(ASSIGNMENT), str(graph)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LD_LIBRARY_PATH": stubs},
    )
    if done.returncode:
        raise SystemExit(f"{graph}: {done.stderr[-2000:]}")
    copies = re.search(r"(\d+) Memcpy nodes", done.stderr)
    return json.loads(done.stdout), int(copies[1]) if copies else 0


def shape_nodes(path: Path) -> set[str]:
    """Return the names of nodes whose outputs are single numbers, or short lists of them."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    known = {value.name: value.type.tensor_type for value in model.graph.value_info}

    def small(name: str) -> bool:
        if name not in known or not known[name].HasField("shape"):
            return False
        sizes = [axis.dim_value for axis in known[name].shape.dim]  # 0: not fixed
        return len(sizes) < 2 and all(0 < size <= SHAPE_NUMBERS for size in sizes)

    return {node.name for node in model.graph.node if all(map(small, node.output))}


def table(rows: list[Row]) -> Table:
    """Return the rows for a terminal."""
    shown = Table(*HEADER)
    for row in rows:
        shown.add_row(*cells(row), style="" if row.ok else "red")
    return shown


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as text."""
    other = sum(row.elsewhere.values())
    names = ", ".join(f"{count} {op}" for op, count in row.elsewhere.items())
    return (
        f"{row.bundle} {row.precision}",
        row.graph,
        "yes" if row.serves_cuda else "no",
        str(row.nodes),
        str(row.nodes - row.shapes_on_cpu - other),
        str(row.shapes_on_cpu),
        names or "0",
        str(row.copies),
    )


def page(rows: list[Row], result: dict[str, Any]) -> str:
    """Return the page for readers."""
    versions = ", ".join(f"{name} {version}" for name, version in result["engine"].items())
    lines = [
        "# Where the nodes of the graphs go on CUDA",
        "",
        f"{result['date']}, {result['processor']}, {versions}. Made by "
        "`tests/benchmarks/cuda_placement.py`, which `make placement` runs on bundles in float32.",
        "",
        *READING.splitlines(),
        "",
        f"| {' | '.join(HEADER)} |",
        f"|{'---|' * len(HEADER)}",
        *(f"| {' | '.join(cells(row))} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
