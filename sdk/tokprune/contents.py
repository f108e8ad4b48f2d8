"""What hashes cannot tell: that a bundle's files point nowhere else and fit its manifest."""

import mmap
import os
import re

import numpy as np

from tokprune.containment import opened_file
from tokprune.errors import BundleInvalid
from tokprune.interfaces import graph_specs
from tokprune.manifest import EMBEDDING_DTYPES, Manifest
from tokprune.onnx_paths import ExternalData, external_data

EMBEDDINGS = "embed_tokens.npy"
_NPY_HEADER_BYTES = 256  # numpy writes 128
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': '([^']{1,9})', 'fortran_order': (True|False), "
    rb"'shape': \((\d{1,12}), (\d{1,12})\), \} *\n",
    re.DOTALL,
)
_AGAIN = "Export the bundle again."


def check_contents(root: int, manifest: Manifest) -> None:
    """Check the ONNX files and the embedding table of a bundle whose sizes were checked.

    Raises:
        BundleInvalid: `bundle_invalid.graph`, `.external_data`, `.unlisted` or `.embed`.
    """
    for name in dict.fromkeys(spec.file for spec in graph_specs(manifest).values()):
        for reference in _references(root, name):
            _check_reference(name, reference, manifest)
    with opened_file(root, EMBEDDINGS) as descriptor:
        expected = (manifest.llm.vocab_size, manifest.llm.hidden_size)
        dtype = EMBEDDING_DTYPES[manifest.precision]
        problem = _npy_problem(descriptor, expected, dtype)
    if problem:
        raise BundleInvalid(
            "embed",
            f"{EMBEDDINGS} is not the embedding table: {problem}; expected {dtype} {expected} in "
            f"C order, as numpy.save writes it. {_AGAIN}",
        )


def unlisted(name: str) -> BundleInvalid:
    """Return the error for a file that is needed and has no hash."""
    message = f"The manifest does not list {name!r:.300}, so its bytes cannot be checked. {_AGAIN}"
    return BundleInvalid("unlisted", message)


def _references(root: int, name: str) -> list[ExternalData]:
    """Return what an ONNX file refers to."""
    with opened_file(root, name) as descriptor:
        try:
            if not name.endswith(".onnx"):
                raise ValueError("its name must end in .onnx")
            return external_data(memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)))
        except (ValueError, OSError) as error:
            message = f"{name!r} is no ONNX file that can be run: {error}. {_AGAIN}"
            raise BundleInvalid("graph", message) from None


def _check_reference(graph: str, reference: ExternalData, manifest: Manifest) -> None:
    """Refuse external data that is not a listed file in the folder of its graph."""
    location = reference.location
    folder, _, _ = graph.rpartition("/")
    name = f"{folder}/{location}" if folder else location
    if "/" in location or location in ("", ".", ".."):
        problem = "expected the bare name of a file beside it"
    elif name not in manifest.files:
        problem = "the manifest does not list that file"
    else:
        end = reference.offset + (reference.length or 0)
        size = manifest.files[name].bytes
        if end <= size:
            return
        problem = f"it ends at byte {end}, the file has {size}"
    message = f"{graph!r} keeps a tensor in {location!r:.300}: {problem}. Refused. {_AGAIN}"
    raise BundleInvalid("external_data", message)


def _npy_problem(descriptor: int, expected: tuple[int, int], dtype: str) -> str | None:
    """Return what is wrong with an .npy file. Its header is matched, never evaluated."""
    header = _NPY_HEADER.match(os.pread(descriptor, _NPY_HEADER_BYTES, 0))
    if header is None or header.end() != 10 + int.from_bytes(header[1], "little"):
        return "its header is not one of numpy.save for a table of numbers"
    kind, order, rows, columns = (text.decode("latin-1") for text in header.groups()[1:])
    number = np.dtype(dtype).itemsize
    if (kind, order) != (f"<f{number}", "False") or (int(rows), int(columns)) != expected:
        return f"it holds {kind} ({rows}, {columns}), Fortran order {order}"
    size = os.fstat(descriptor).st_size - header.end()
    if size != number * expected[0] * expected[1]:
        return f"it has {size} bytes of numbers"
    return None
