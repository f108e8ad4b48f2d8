import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tokprune_export.checkpoint import Checkpoint, open_checkpoint, open_processor
from tokprune_export.errors import ExportRefused
from tokprune_export.teacher import fingerprint

CONFIG: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "text_config": {
        "hidden_size": 8,
        "max_position_embeddings": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "vocab_size": 16,
    },
}
SHAPES = {
    "model.embed_tokens.weight": [16, 8],
    "model.layers.0.mlp.weight": [8, 8],
    "model.layers.2.mlp.weight": [8, 4],
    "visual.blocks.2.weight": [5],
}


def safetensors(shapes: dict[str, list[int]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, size = end, 4
        for axis in shape:
            size *= axis
        end = start + size
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(end)


def checkpoint(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors(SHAPES))
    return folder


def test_a_folder_is_known_from_its_headers_alone(tmp_path: Path) -> None:
    found = open_checkpoint(str(checkpoint(tmp_path / "model")))
    assert (found.name, found.revision, found.family) == ("model", None, "qwen2_vl")
    assert found.parameters() == 16 * 8 + 64 + 32 + 5
    assert found.parameters(layers=1) == 16 * 8 + 64 + 5


def test_shards_are_found_through_their_index(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(SHAPES, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = open_checkpoint(str(folder))
    assert found.parameters() == 16 * 8 + 64 + 32 + 5
    assert "model.safetensors.index.json" not in {path.name for path in found.text_files}


def test_a_scorer_beside_the_weights_makes_no_other_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    before = fingerprint(open_checkpoint(str(folder)))
    (folder / "scorer.safetensors").write_bytes(safetensors({"a": [3]}))
    again = open_checkpoint(str(folder))
    assert [path.name for path in again.weight_files] == ["model.safetensors"]
    assert fingerprint(again) == before
    (folder / "model.safetensors").write_bytes(safetensors({**SHAPES, "a": [3]}))
    assert fingerprint(open_checkpoint(str(folder))) != before


def test_only_text_goes_into_the_bundle(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    for name in ("chat_template.jinja", "merges.txt", "modeling.py", "README.md", "weights.bin"):
        (folder / name).write_text("")
    assert [path.name for path in open_checkpoint(str(folder)).text_files] == [
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_settings_of_all_processors_may_be_in_one_file(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "preprocessor_config.json").rename(folder / "processor_config.json")
    names = [path.name for path in open_checkpoint(str(folder)).text_files]
    assert "processor_config.json" in names
    with pytest.raises(ExportRefused, match=r"nor image_processor in processor_config\.json"):
        open_processor("qwen2_vl", folder)
    settings = {"image_processor": {}, "video_processor": {}}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    open_processor("qwen2_vl", folder)


PARTS = {
    "llm": {"architectures": ["LlamaForCausalLM"], **CONFIG["text_config"]},
    "vision_tower": {"architectures": ["SiglipVisionModel"], "image_size": 28},
    "mm_projector": {"mm_projector_type": "linear"},
}


def in_parts(folder: Path) -> Path:
    """Write a checkpoint of VILA's format, without a tokenizer."""
    folder.mkdir()
    top = {"model_type": "llava_llama", "architectures": ["LlavaLlamaModel"]}
    (folder / "config.json").write_text(json.dumps(top))
    for part, config in PARTS.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
        (folder / part / "model.safetensors").write_bytes(safetensors(SHAPES))
    (folder / "llm" / "tokenizer_config.json").write_text("{}")
    settings = {"size": {"height": 28, "width": 28}}
    (folder / "vision_tower" / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("part", list(PARTS))
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", None, r"There is no .*{part}/config\.json: get the whole checkpoint"),
        ("config.json", "[]", r"{part}/config\.json holds no JSON object"),
        ("model.safetensors", None, r"{part} has no model\.safetensors: get the weights in"),
        (
            "model.safetensors",
            safetensors(SHAPES)[:-1],
            r"{part}/model\.safetensors has 1\d+ bytes",
        ),
        ("model.safetensors", b"\xff" * 64, r"{part}/model\.safetensors is no safetensors file"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "../llm/a.safetensors"}}',
            r"{part}/.* names '\.\./llm/a\.safetensors', which is outside of the folder",
        ),
    ],
)
def test_what_a_part_lacks_is_said(
    tmp_path: Path, part: str, name: str, change: str | bytes | None, message: str
) -> None:
    folder = in_parts(tmp_path / "model")
    rewrite(folder / part, name, change)
    with pytest.raises(ExportRefused, match=message.replace("{part}", part)):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("part", list(PARTS))
def test_a_pickle_in_a_part_is_named_and_never_opened(tmp_path: Path, part: str) -> None:
    folder = in_parts(tmp_path / "model")
    (folder / part / "model.safetensors").rename(folder / part / "pytorch_model.bin")
    with pytest.raises(ExportRefused, match=rf"{part} has no .*pytorch_model\.bin is a pickle"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    "file", ["llm/tokenizer_config.json", "vision_tower/preprocessor_config.json"]
)
def test_a_file_that_a_part_lacks_is_named(tmp_path: Path, file: str) -> None:
    folder = in_parts(tmp_path / "model")
    (folder / file).unlink()
    with pytest.raises(ExportRefused, match=f"has no {file}: get the whole checkpoint"):
        open_checkpoint(str(folder))


def test_a_part_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match=r"neither tokenizer\.model nor"):
        open_checkpoint(str(in_parts(tmp_path / "model")))


def test_a_model_type_that_others_use_needs_its_architecture(tmp_path: Path) -> None:
    folder = in_parts(tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "llava_llama", "architectures": ["Other"]}')
    with pytest.raises(ExportRefused, match=r"\['Other'\]; of that type only LlavaLlamaModel can"):
        open_checkpoint(str(folder))


def test_a_quantised_part_is_refused(tmp_path: Path) -> None:
    folder = in_parts(tmp_path / "model")
    config = {**PARTS["llm"], "quantization_config": {"quant_method": "awq"}}
    (folder / "llm" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportRefused, match="is quantised already"):
        open_checkpoint(str(folder))


def rewrite(folder: Path, name: str, change: str | bytes | None) -> None:
    if change is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(change if isinstance(change, bytes) else change.encode())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", None, r"There is no .*config\.json: MODEL is a folder"),
        ("config.json", "{", r"config\.json is not JSON"),
        ("config.json", "[]", r"config\.json holds no JSON object"),
        (
            "config.json",
            '{"model_type": "qwen2_vlm"}',
            r"has model_type 'qwen2_vlm', which cannot be .* exported: llava_llama, llava_",
        ),
        ("config.json", '{"model_type": "qwen2_vl"}', r"lacks hidden_size, max_position"),
        ("config.json", "{}", r"has model_type 'None', which cannot be"),
        ("tokenizer.json", None, r"has no tokenizer\.json: get the whole checkpoint"),
        (
            "preprocessor_config.json",
            None,
            r"has no preprocessor_config\.json or processor_config\.json: get the whole",
        ),
        ("model.safetensors", None, r"has no model\.safetensors: get the weights in safetensors"),
        ("model.safetensors", safetensors(SHAPES)[:-1], r"has 1\d+ bytes and should have 1\d+"),
        ("model.safetensors", b"", r"is no safetensors file, or is damaged"),
        ("model.safetensors", b"\xff" * 64, r"damaged: a header of \d+ bytes"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]", r"is no safetensors file"),
        ("model.safetensors.index.json", "{}", r"names no weights"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "../a.safetensors"}}',
            r"names '\.\./a\.safetensors', which is outside of the folder",
        ),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "a.safetensors"}}',
            r"There is no .*a\.safetensors: get the whole checkpoint",
        ),
    ],
)
def test_what_is_missing_or_damaged_is_said(
    tmp_path: Path, name: str, change: str | bytes | None, message: str
) -> None:
    folder = checkpoint(tmp_path / "model")
    rewrite(folder, name, change)
    with pytest.raises(ExportRefused, match=message):
        open_checkpoint(str(folder))


def test_a_pickle_is_named_and_never_opened(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ExportRefused, match=r"pytorch_model\.bin is a pickle, which can run code"):
        open_checkpoint(str(folder))


def test_a_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", quantization_config={"quant_method": "awq"})
    with pytest.raises(ExportRefused, match="is quantised already"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        ("no-such-folder", None, r"There is no folder no-such-folder, and it is no hub id"),
        ("/no/such/folder", None, r"it is no hub id \(owner/name\)"),
        ("owner/name", None, r"git ls-remote https://huggingface\.co/owner/name HEAD"),
        ("owner/name", "main", r"needs the commit hash that you trust, got --revision main"),
        ("owner/name", "A" * 40, r"needs the commit hash"),
    ],
)
def test_a_model_that_is_not_here_needs_an_id_and_a_commit(
    model: str, revision: str | None, message: str
) -> None:
    with pytest.raises(ExportRefused, match=message):
        open_checkpoint(model, revision)


def test_a_folder_takes_no_revision(tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match="--revision is for hub ids"):
        open_checkpoint(str(checkpoint(tmp_path / "model")), "0" * 40)


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ExportRefused, match="is a file; MODEL is a folder"):
        open_checkpoint(str(tmp_path / "model.gguf"))


TEXTS = ["*.json", "*.txt", "*.jinja", "*.model"]


class Hub:
    """Stands for huggingface_hub: what was asked for, and files of a made-up repository."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path, *, weight_bytes: int) -> None:
        hub = pytest.importorskip("huggingface_hub")
        self.patterns: list[list[str]] = []
        self.weight_bytes = weight_bytes
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        monkeypatch.setattr(hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(hub, "HfApi", lambda: self)

    def snapshot_download(
        self, repo_id: str, revision: str, local_dir: Path, allow_patterns: list[str]
    ) -> None:
        assert (repo_id, revision) == ("owner/name", "0" * 40)
        self.patterns.append(allow_patterns)
        local_dir.mkdir(parents=True, exist_ok=True)
        if "*.json" in allow_patterns:
            checkpoint(local_dir)
            (local_dir / "model.safetensors").unlink()
        else:
            (local_dir / "model.safetensors").write_bytes(safetensors(SHAPES))

    def model_info(self, *_: object, **__: object) -> SimpleNamespace:
        file = SimpleNamespace(rfilename="model.safetensors", size=self.weight_bytes)
        return SimpleNamespace(siblings=[file])


def test_a_hub_id_is_downloaded_at_its_commit_as_text_and_safetensors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = Hub(monkeypatch, tmp_path, weight_bytes=900)
    found: Checkpoint = open_checkpoint("owner/name", "0" * 40)
    assert (found.name, found.revision) == ("owner/name", "0" * 40)
    assert found.folder == tmp_path / "tokprune/checkpoints/owner--name" / ("0" * 40)
    assert hub.patterns == [TEXTS, ["*.safetensors"]]


def test_weights_that_do_not_fit_are_not_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = Hub(monkeypatch, tmp_path, weight_bytes=10**15)
    with pytest.raises(ExportRefused, match=f"the weights take {10**15} bytes, .* are free"):
        open_checkpoint("owner/name", "0" * 40)
    assert hub.patterns == [TEXTS]


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Hub(monkeypatch, tmp_path, weight_bytes=0)

    def fail(**_: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ExportRefused, match=r"Cannot download owner/name at 0+: Name or service"):
        open_checkpoint("owner/name", "0" * 40)
