"""A bundle of a few kilobytes that passes every check, for tests that break one."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from tokprune import manifest as manifests
from tokprune.bundle import open_bundle, verify_bundle
from tokprune.errors import BundleInvalid
from tokprune.files import sha256_file
from tokprune.manifest import Manifest

HEADS, KV_HEADS, HEAD_DIM, LAYERS, HIDDEN, VOCABULARY = 4, 2, 8, 2, 32, 40
IMAGE, END, START = 39, 38, 37
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "int32": TensorProto.INT32}


def write(folder: Path) -> Manifest:
    """Write the bundle and return its manifest."""
    (folder / "onnx").mkdir(parents=True)
    (folder / "reports").mkdir()
    specs = {name: _write_graph(folder, name, *tensors) for name, tensors in _interfaces().items()}
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        (folder / name).write_text(json.dumps({"file": name}))
    notes = {"not_quantised": [], "encoder_not_quantised": [], "calibrated_on": "", "unchecked": []}
    (folder / "reports/parity.json").write_text(json.dumps(notes))
    table = np.random.default_rng(0).normal(size=(VOCABULARY, HIDDEN)).astype(np.float32)
    np.save(folder / "embed_tokens.npy", table)
    forms = [
        {"form": "portable", "cache": "grows", "graph": specs["llm.portable"]},
        {"form": "ort", "cache": "in_place", "graph": specs["llm.ort"]},
    ]
    small = {name: specs[name] for name in ("vision_encoder", "first_layer", "scorer")}
    llm = [{**form, "serves": ["onnxruntime-cpu"]} for form in forms]
    raw = {**_constants(), "graphs": {**small, "llm": llm}, "files": {}}
    manifest = msgspec.convert(raw, Manifest)
    seal(folder, manifest)
    return manifest


def seal(folder: Path, manifest: Manifest | None = None) -> None:
    """Write a manifest that lists every file as it is now, as an attacker would."""
    if manifest is None:
        manifest = manifests.decode((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").unlink(missing_ok=True)
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.parent.name != "device"
    }
    listed = msgspec.structs.replace(
        manifest, files=msgspec.convert(files, dict[str, manifests.File])
    )
    (folder / "manifest.json").write_bytes(manifests.encode(listed))


def refused(bundle: Path, code: str, *, match: str | None = None) -> str:
    """Assert that the bundle is refused with this code, everywhere, and return the message."""
    with pytest.raises(BundleInvalid, match=match) as caught:
        open_bundle(bundle)
    assert caught.value.code == f"bundle_invalid.{code}"
    report = verify_bundle(bundle)
    assert not report.ok
    assert report.code == caught.value.code
    return str(caught.value)


@contextmanager
def edited(folder: Path) -> Iterator[dict[str, Any]]:
    """Let a test change the manifest's JSON; it is sealed again, as an attacker would."""
    path = folder / "manifest.json"
    raw = json.loads(path.read_bytes())
    yield raw
    path.write_bytes(sealed(raw))


def sealed(raw: dict[str, Any]) -> bytes:
    """Return JSON with a fitting seal, whatever else it holds."""
    zeros = "0" * 64
    data = json.dumps({**raw, "seal": zeros}, ensure_ascii=True).encode()
    return data.replace(zeros.encode(), hashlib.sha256(data).hexdigest().encode())


def _constants() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "tokprune_version": "0.1.0",
        "family": "qwen2_vl",
        "precision": "fp32",
        "llm": {
            "layers": LAYERS,
            "heads": HEADS,
            "kv_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "hidden_size": HIDDEN,
            "vocab_size": VOCABULARY,
        },
        "chat": {
            "head": [START, "user\n"],
            "head_system": [[START, "system\n"], [END, "\n", START, "user\n"]],
            "reply": [END, "\n", START, "assistant\n"],
            "next_user": [END, "\n", START, "user\n"],
            "generation": [END, "\n", START, "assistant\n"],
            "picture": [IMAGE],
            "video": None,
            "media_first": False,
            "words": [],
        },
        "tokens": {"image": IMAGE, "video": None, "eos": [END], "control": [START, END, IMAGE]},
        "limits": {"max_input_len": 64, "max_kv_len": 128},
        "scorer": {
            "kind": "attention",
            "trained": False,
            "modalities": [],
            "metrics": {},
            "metrics_by_modality": {},
        },
        "default_selector": "uniform",
        "source": {"model": "small", "revision": None, "tools": {}, "created": "2026-11-21T00:00Z"},
    }


def _interfaces() -> dict[str, tuple[dict[str, Any], dict[str, Any], str | None]]:
    """Inputs, outputs and external-data file of every graph. The first input and output match."""
    rows = {
        "inputs_embeds": ("float32", [1, "T", HIDDEN]),
        "position_ids": ("int64", [3, 1, "T"]),
    }
    unpruned = {
        name: (kind, ["s" if axis == "T" else axis for axis in axes])
        for name, (kind, axes) in rows.items()
    }
    attention = {"attention": ("float32", [HEADS, "u", "n"])}
    halves = [f"{layer}.{half}" for layer in range(LAYERS) for half in ("key", "value")]
    bias = {"attention_bias": ("float32", [1, "P+T"])}
    past = {f"past_key_values.{half}": ("float32", [1, KV_HEADS, "P", HEAD_DIM]) for half in halves}
    present = {f"present.{half}": ("float32", [1, KV_HEADS, "P+T", HEAD_DIM]) for half in halves}
    outputs = {"logits": ("float32", [1, 1, VOCABULARY]), **present}
    lengths = {"seqlens_k": ("int32", [1]), "total_sequence_length": ("int32", [])}
    return {
        "vision_encoder": (
            {"pixel_values": ("float32", ["F", "4*q", 1176]), "positions": ("int64", ["4*q", 2])},
            {"vision_tokens": ("float32", ["F", "q", HIDDEN])},
            "vision_encoder.onnx.data",
        ),
        "first_layer": (
            {**unpruned, "rows": ("int64", ["u"]), "columns": ("int64", ["n"])},
            attention,
            "first_layer.onnx.data",
        ),
        "scorer": (attention, {"relevance": ("float32", ["n"])}, None),
        "llm.portable": ({**rows, **bias, **past}, outputs, "llm.onnx.data"),
        "llm.ort": ({**rows, **bias, **lengths, **past}, outputs, "llm.onnx.data"),
    }


def _write_graph(
    folder: Path, name: str, inputs: dict[str, Any], outputs: dict[str, Any], data: str | None
) -> dict[str, Any]:
    """Write an ONNX file whose outputs all come from one weight, and return its spec."""
    weight = numpy_helper.from_array(np.arange(64, dtype=np.float32), "weight")
    if data is not None:
        (folder / "onnx" / data).write_bytes(weight.raw_data)
        set_external_data(weight, data, offset=0, length=256)
        weight.ClearField("raw_data")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["weight"], [output]) for output in outputs],
        name,
        [
            helper.make_tensor_value_info(key, _TYPES[kind], axes)
            for key, (kind, axes) in inputs.items()
        ],
        [
            helper.make_tensor_value_info(key, _TYPES[kind], None)
            for key, (kind, _) in outputs.items()
        ],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (folder / "onnx" / f"{name}.onnx").write_bytes(model.SerializeToString())
    return {
        "file": f"onnx/{name}.onnx",
        "opset": 18,
        "inputs": _tensors(inputs),
        "outputs": _tensors(outputs),
    }


def _tensors(tensors: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": key, "dtype": kind, "shape": axes} for key, (kind, axes) in tensors.items()]
