import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_bundle
from counts import CHUNKS, share
from programs import run_program
from small_bundle import refused

from tokprune.bundle import describe, open_bundle, verify_bundle
from tokprune.errors import BundleInvalid

LLM_DATA = "onnx/llm.onnx.data"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    small_bundle.write(folder)
    return folder


# --- what is good ---------------------------------------------------------------------------


def test_a_good_bundle_opens(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.path == bundle
    assert opened.file("onnx/scorer.onnx") == bundle / "onnx/scorer.onnx"
    table = opened.embed_tokens()
    assert table.shape == (small_bundle.VOCABULARY, small_bundle.HIDDEN)
    assert not table.flags.writeable


def test_sizes_alone_can_be_checked(bundle: Path) -> None:
    path = bundle / LLM_DATA
    path.write_bytes(bytes(path.stat().st_size))
    open_bundle(bundle, verify="sizes")
    refused(bundle, "sha256", match="llm.onnx.data")


def test_the_bundle_itself_may_be_reached_through_a_link(bundle: Path) -> None:
    link = bundle.with_name("current")
    link.symlink_to(bundle)
    assert open_bundle(str(link)).path == bundle


def test_a_file_that_is_not_listed_is_not_handed_out(bundle: Path) -> None:
    (bundle / "extra.json").write_text("{}")
    with pytest.raises(BundleInvalid, match=r"does not list 'extra.json'"):
        open_bundle(bundle).file("extra.json")


def test_verify_shows_every_file_and_what_the_device_made(bundle: Path) -> None:
    (bundle / "extra").write_bytes(b"12")
    (bundle / "device" / "sm87").mkdir(parents=True)
    (bundle / "device" / "sm87" / "llm.plan").write_bytes(b"123")
    report = verify_bundle(bundle)
    assert report.ok
    statuses = {row.name: (row.bytes, row.status) for row in report.files}
    assert statuses["extra"] == (2, "unlisted")
    assert statuses["device/sm87/llm.plan"] == (3, "made by this device")
    assert {status for _, status in statuses.values()} == {"ok", "unlisted", "made by this device"}
    assert "manifest.json" not in statuses
    assert json.loads(json.dumps(report.as_json()))["ok"] is True


def test_verify_goes_on_after_a_fault(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    (bundle / "tokenizer.json").write_text("x" * (bundle / "tokenizer.json").stat().st_size)
    (bundle / "embed_tokens.npy").write_bytes(b"")
    statuses = {row.name: row.status for row in verify_bundle(bundle).files}
    assert statuses["config.json"] == "bundle_invalid.missing"
    assert statuses["tokenizer.json"] == "bundle_invalid.sha256"
    assert statuses["embed_tokens.npy"] == "bundle_invalid.size"
    assert statuses["onnx/llm.ort.onnx"] == "ok"


def test_inspect_tells_graphs_sizes_and_scorer(bundle: Path) -> None:
    told = describe(open_bundle(bundle))
    assert json.loads(json.dumps(told)) == told
    assert told["graphs"]["llm.ort"]["serves"] == ["onnxruntime-cpu"]
    assert told["graphs"]["scorer"]["bytes"] == (bundle / "onnx/scorer.onnx").stat().st_size
    assert (told["scorer"]["kind"], told["scorer"]["modalities"]) == ("attention", [])
    listed = [path for path in bundle.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert told["bytes"] == sum(path.stat().st_size for path in listed)


# --- the manifest ---------------------------------------------------------------------------


def test_a_path_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "none", tmp_path / "file", Path("nul\0")):
        assert "Expected a bundle" in refused(path, "folder")
    refused(tmp_path, "missing", match=r"manifest.json")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "manifest"),
        (b"\xef\xbb\xbf{}", "manifest"),
        (b"\xff\xfe", "manifest"),
        (b"null", "manifest"),
        (b"[" * 1_000_000, "manifest"),
        (b'{"schema_version":1,"a":' + b'{"a":' * 1_000_000, "manifest"),
        (b'{"schema_version":' + b"9" * 1_000_000 + b"}", "manifest"),
        (b'{"schema_version":1e999}', "manifest"),
        (b'{"schema_version":1}', "manifest"),
        (b'{"schema_version":true}', "schema"),
        (b'{"schema_version":0}', "schema"),
        (b"{}", "schema"),
        (b" " * (17 << 20), "size"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else value,
)
def test_a_manifest_that_is_none_is_refused(bundle: Path, data: bytes, code: str) -> None:
    (bundle / "manifest.json").write_bytes(data)
    refused(bundle, code)


def test_a_manifest_of_a_newer_tokprune_says_to_update(bundle: Path) -> None:
    with small_bundle.edited(bundle) as raw:
        raw["schema_version"], raw["a new key"] = 2, {}
    refused(bundle, "schema", match="Update: pip install -U tokprune")


@pytest.mark.parametrize("edit", [("scorer", "trained"), ("limits", "max_kv_len"), ("source",)])
def test_a_manifest_that_was_edited_is_refused(bundle: Path, edit: tuple[str, ...]) -> None:
    path = bundle / "manifest.json"
    text = path.read_text()
    changes = {
        "trained": ('"trained": false', '"trained": true'),
        "max_kv_len": ('"max_kv_len": 128', '"max_kv_len": 129'),
        "source": ('"model": "small"', '"model": "other"'),
    }
    path.write_text(text.replace(*changes[edit[-1]]))
    assert path.read_text() != text
    refused(bundle, "manifest", match="changed after the export")


def test_a_manifest_without_a_seal_is_refused(bundle: Path) -> None:
    path = bundle / "manifest.json"
    raw = json.loads(path.read_bytes())
    for seal in (None, "", "0" * 64, raw["seal"].upper()):
        raw = {key: value for key, value in raw.items() if key != "seal"}
        if seal is not None:
            raw["seal"] = seal
        path.write_text(json.dumps(raw))
        refused(bundle, "manifest", match="seal")


def test_an_unknown_key_is_refused(bundle: Path) -> None:
    with small_bundle.edited(bundle) as raw:
        raw["llm"]["rope"] = 1
    refused(bundle, "manifest", match="unknown field `rope`")


NUMBERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no heads": lambda raw: raw["llm"].update(heads=0),
    "negative layers": lambda raw: raw["llm"].update(layers=-1),
    "too many layers": lambda raw: raw["llm"].update(layers=1025),
    "layers without end": lambda raw: raw["llm"].update(layers=2**62),
    "kv_heads": lambda raw: raw["llm"].update(kv_heads=3),
    "limits": lambda raw: raw["limits"].update(max_input_len=129),
    "an id too large": lambda raw: raw["tokens"].update(eos=[small_bundle.VOCABULARY]),
    "a negative id": lambda raw: raw["tokens"].update(control=[-1]),
    "no end": lambda raw: raw["tokens"].update(eos=[]),
    "no picture": lambda raw: raw["chat"].update(picture=[1]),
    "an id in the chat": lambda raw: raw["chat"].update(reply=["", 10**6]),
    "half a system message": lambda raw: raw["chat"].update(head_system=[[]]),
    "opset": lambda raw: raw["graphs"]["scorer"].update(opset=-18),
}


@pytest.mark.parametrize("edit", NUMBERS)
def test_numbers_that_make_no_sense_are_refused(bundle: Path, edit: str) -> None:
    with small_bundle.edited(bundle) as raw:
        NUMBERS[edit](raw)
    refused(bundle, "numbers")


def test_a_scorer_may_read_the_vision_tokens(bundle: Path) -> None:
    with small_bundle.edited(bundle) as raw:
        embeds = {"name": "embeds", "dtype": "float32", "shape": ["n", small_bundle.HIDDEN]}
        raw["graphs"]["scorer"]["inputs"].append(embeds)
        raw["scorer"]["kind"] = "asked"
    assert open_bundle(bundle).manifest.scorer.kind == "asked"


EXTRA = {"name": "extra", "dtype": "float32", "shape": [1]}
GRAPHS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no form": lambda graphs: graphs["llm"].clear(),
    "a form twice": lambda graphs: graphs["llm"].append(graphs["llm"][0]),
    "a missing input": lambda graphs: graphs["first_layer"]["inputs"].pop(),
    "an extra input": lambda graphs: graphs["llm"][0]["graph"]["inputs"].append(EXTRA),
    "an input twice": lambda graphs: graphs["scorer"]["inputs"].append(
        graphs["scorer"]["inputs"][0]
    ),
    "a scorer without attention": lambda graphs: graphs["scorer"]["inputs"].clear(),
    "a scorer of wider tokens": lambda graphs: graphs["scorer"]["inputs"].append(
        {"name": "embeds", "dtype": "float32", "shape": ["n", 33]}
    ),
    "a frozen axis": lambda graphs: graphs["first_layer"]["inputs"][0].update(shape=[1, 7, 32]),
    "a wrong rank": lambda graphs: graphs["first_layer"]["inputs"][2].update(shape=["u", 1]),
    "a wrong type": lambda graphs: graphs["first_layer"]["inputs"][2].update(dtype="int32"),
    "a wrong size": lambda graphs: graphs["llm"][1]["graph"]["outputs"][0].update(shape=[1, 1, 41]),
    "tokens of another size": lambda graphs: graphs["vision_encoder"]["outputs"][0].update(
        shape=["F", "q", 31]
    ),
}


@pytest.mark.parametrize("edit", GRAPHS)
def test_graphs_that_the_host_cannot_feed_are_refused(bundle: Path, edit: str) -> None:
    with small_bundle.edited(bundle) as raw:
        GRAPHS[edit](raw["graphs"])
    refused(bundle, "graph")


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "embed_tokens.npy", "onnx/scorer.onnx", "onnx/llm.ort.onnx"],
)
def test_a_needed_file_without_a_hash_is_refused(bundle: Path, name: str) -> None:
    with small_bundle.edited(bundle) as raw:
        del raw["files"][name]
    refused(bundle, "unlisted", match=name)


def test_settings_may_all_be_in_processor_config(bundle: Path) -> None:
    (bundle / "preprocessor_config.json").rename(bundle / "processor_config.json")
    refused(bundle, "unlisted", match="processor_config.json")
    small_bundle.seal(bundle)
    assert "processor_config.json" in open_bundle(bundle).manifest.files
    (bundle / "processor_config.json").unlink()
    small_bundle.seal(bundle)
    refused(bundle, "unlisted", match="'preprocessor_config.json'")


@pytest.mark.parametrize("name", ["video_preprocessor_config.json", "processor_config.json"])
def test_settings_that_nobody_listed_are_refused(bundle: Path, name: str) -> None:
    (bundle / name).write_text("{}")
    refused(bundle, "unlisted", match=name)


# --- the promise ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
def test_mutants_neither_crash_nor_hang_nor_pass(tmp_path: Path, chunk: int) -> None:
    found = run_program("bundle_mutants.py", str(tmp_path), str(chunk), str(share(10_000)))
    assert found["tried"] == share(10_000)
    assert_all_refused(found)


@pytest.mark.demo
@pytest.mark.parametrize("chunk", CHUNKS)
def test_mutants_of_the_demo_bundle_neither(tmp_path: Path, demo_bundle: Path, chunk: int) -> None:
    place, count = str(tmp_path), str(share(2_000))
    found = run_program("bundle_mutants.py", place, str(chunk), count, str(demo_bundle))
    assert found["tried"] == share(2_000)
    assert_all_refused(found)


def assert_all_refused(found: dict[str, Any]) -> None:
    assert found["crashed"] == []
    assert found["hung"] == []
    assert found["passed_wrongly"] == []
    assert sum(found["codes"].values()) == found["tried"]
    refusals = {code for code in found["codes"] if code.startswith("bundle_invalid.")}
    assert set(found["codes"]) - refusals <= {"passed, a valid forgery"}
    assert len(refusals) >= 6
