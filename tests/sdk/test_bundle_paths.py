import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_bundle
from small_bundle import refused

from tokprune import loading
from tokprune.errors import BundleInvalid

LLM_DATA = "onnx/llm.onnx.data"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    small_bundle.write(folder)
    return folder


# --- paths that lead out --------------------------------------------------------------------

NAMES = [
    "..",
    "../outside",
    "onnx/../../outside",
    "/etc/passwd",
    "//etc/passwd",
    "./config.json",
    "onnx//scorer.onnx",
    "onnx/",
    "",
    "..\\outside",
    "nul\0",
    "new\nline",
    "\x1b[31mred",
    "right\u202eleft",
    "zero\u200bwidth",
    "x" * 256,
    "a/" * 20 + "a",
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_name_that_could_leave_the_bundle_is_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "outside").write_bytes(b"secret")
    with small_bundle.edited(bundle) as raw:
        raw["files"][name] = raw["files"]["config.json"]
    refused(bundle, "path")


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_graph_under_such_a_name_is_refused(bundle: Path, name: str) -> None:
    with small_bundle.edited(bundle) as raw:
        raw["graphs"]["scorer"]["file"] = name
        raw["files"][name] = raw["files"]["onnx/scorer.onnx"]
    refused(bundle, "path")


def replaced_by_link(path: Path) -> None:
    outside = path.with_name(f"{path.name}.moved")
    path.rename(outside)
    path.symlink_to(outside)


def replaced_by_link_out(path: Path) -> None:
    outside = shutil.move(path, path.parents[1] / "outside")
    path.symlink_to(outside)


def replaced_by_hard_link(path: Path) -> None:
    path.with_name(f"{path.name}.too").hardlink_to(path)


def replaced_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replaced_by_socket(path: Path) -> None:
    path.unlink()
    os.chdir(path.parent)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)


def replaced_by_device(path: Path) -> None:
    path.unlink()
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero never ends
    except PermissionError:
        pytest.skip("only root makes devices")


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


TRICKS = [
    replaced_by_link,
    replaced_by_link_out,
    replaced_by_hard_link,
    replaced_by_pipe,
    replaced_by_socket,
    replaced_by_device,
    replaced_by_folder,
]


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("name", ["manifest.json", "onnx/scorer.onnx", LLM_DATA])
def test_what_is_no_plain_file_is_refused_and_never_opened(
    bundle: Path, name: str, trick: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle)
    trick(bundle / name)
    refused(bundle, "path", match=name.replace(".", r"\."))


def test_a_linked_folder_is_refused(bundle: Path) -> None:
    shutil.move(bundle / "onnx", bundle.parent / "elsewhere")
    (bundle / "onnx").symlink_to("../elsewhere")
    refused(bundle, "path", match="'onnx' is a link")


def test_no_engine_opens_a_refused_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("an engine was asked to open a file")

    monkeypatch.setattr(loading, "load_graph", never)
    (bundle / LLM_DATA).write_bytes(b"")
    with pytest.raises(BundleInvalid):
        loading.load(bundle)


# --- what the files say ---------------------------------------------------------------------


def with_location(bundle: Path, graph: str, **entries: str) -> None:
    """Change where a graph keeps its first weight, and hash everything anew."""
    path = bundle / "onnx" / graph
    model = onnx.load(path, load_external_data=False)
    weight = model.graph.initializer[0]
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.ClearField("raw_data")
    del weight.external_data[:]
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    small_bundle.seal(bundle)


@pytest.mark.parametrize(
    "location",
    [
        "../outside",
        "../embed_tokens.npy",
        "/etc/passwd",
        "sub/file",
        "./llm.onnx.data",
        "",
        ".",
        "..",
        "onnx/llm.onnx.data",
        "absent",
        "*/_ORT_MEM_ADDR_/*",  # ONNX Runtime's own marker: an address in memory
    ],
)
def test_external_data_elsewhere_is_refused(bundle: Path, location: str) -> None:
    (bundle.parent / "outside").write_bytes(bytes(256))
    (bundle / "onnx/sub").mkdir()
    (bundle / "onnx/sub/file").write_bytes(bytes(256))
    with_location(bundle, "scorer.onnx", location=location)
    refused(bundle, "external_data", match="keeps a tensor in")


def test_external_data_without_a_hash_is_refused(bundle: Path) -> None:
    with_location(bundle, "scorer.onnx", location="planted")
    (bundle / "onnx/planted").write_bytes(bytes(256))
    refused(bundle, "external_data", match="does not list")


@pytest.mark.parametrize(
    "entries",
    [{"offset": "257"}, {"length": "257"}, {"offset": "200", "length": "57"}],
    ids=str,
)
def test_external_data_past_the_end_of_its_file_are_refused(
    bundle: Path, entries: dict[str, str]
) -> None:
    with_location(bundle, "scorer.onnx", location="llm.onnx.data", **entries)
    refused(bundle, "external_data", match="the file has 256")


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "-1"},
        {"offset": "1e3"},
        {"length": "9" * 30},
        {"offset": "\u0661"},
        {"length": ""},
    ],
    ids=str,
)
def test_odd_numbers_in_external_data_are_refused(bundle: Path, entries: dict[str, str]) -> None:
    with_location(bundle, "scorer.onnx", location="llm.onnx.data", **entries)
    refused(bundle, "graph", match="is no offset or length")


def test_external_data_of_a_tensor_that_names_no_file_are_refused(bundle: Path) -> None:
    with_location(bundle, "scorer.onnx", offset="0")
    refused(bundle, "graph", match="has no location")


@pytest.mark.parametrize("data", [b"", b"\x00", b"{}", b"\x3a\xff\xff\xff\xff\x0f", b"\x80" * 100])
def test_a_graph_that_is_no_onnx_file_is_refused(bundle: Path, data: bytes) -> None:
    (bundle / "onnx/scorer.onnx").write_bytes(data)
    small_bundle.seal(bundle)
    refused(bundle, "graph", match="is no ONNX file")


def test_a_graph_of_another_format_is_refused(bundle: Path) -> None:
    (bundle / "onnx/scorer.onnx").rename(bundle / "onnx/scorer.ort")  # another parser opens these
    small_bundle.seal(bundle)
    with small_bundle.edited(bundle) as raw:
        raw["graphs"]["scorer"]["file"] = "onnx/scorer.ort"
    refused(bundle, "graph", match=r"must end in \.onnx")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((40, 32), np.float64),
        np.zeros((40, 32), ">f4"),
        np.zeros((40, 31), np.float32),
        np.zeros((32, 40), np.float32),
        np.zeros((40, 32, 1), np.float32),
        np.zeros(40 * 32, np.float32),
        np.asfortranarray(np.zeros((40, 32), np.float32)),
        np.zeros((40, 32), [("a", "<f4")]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_embedding_table_of_another_kind_is_refused(bundle: Path, array: np.ndarray) -> None:
    np.save(bundle / "embed_tokens.npy", array)
    small_bundle.seal(bundle)
    refused(bundle, "embed", match=r"expected float32 \(40, 32\)")


def test_an_embedding_table_of_objects_is_never_unpickled(bundle: Path) -> None:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (40, 32), }"
    header = header.ljust(117) + b"\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    harmless = b"N."  # a stream that would unpickle to None
    (bundle / "embed_tokens.npy").write_bytes(start + harmless)
    small_bundle.seal(bundle)
    refused(bundle, "embed")


@pytest.mark.parametrize("change", [b"", b"\x00" * 4, None])
def test_an_embedding_table_of_the_wrong_length_is_refused(
    bundle: Path, change: bytes | None
) -> None:
    path = bundle / "embed_tokens.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-4] if change is None else data + change if change else b"")
    small_bundle.seal(bundle)
    refused(bundle, "embed")
