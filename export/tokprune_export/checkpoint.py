"""A checkpoint folder: found or downloaded, checked without loading it, then loaded."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokprune.errors import unknown
from tokprune.families import FAMILIES
from tokprune_export.errors import ExportRefused

REVISION = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TEXT_FILES = ("*.json", "*.txt", "*.jinja")
INDEX = "model.safetensors.index.json"
NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
TEXT_SETTINGS = (
    "hidden_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
HEADER_BYTES = 100_000_000  # safetensors' own bound
DECODER_LAYER = re.compile(r"(?:^|\.)(?:model|language_model)\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Checkpoint:
    """An HF folder on this disk whose files are all there."""

    folder: Path
    name: str  # folder name or hub id
    revision: str | None
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]  # of all weights, from the files' headers

    @property
    def family(self) -> str:
        """Name of the family, a key of both tables."""
        return self.config["model_type"]

    @property
    def text_config(self) -> Mapping[str, Any]:
        """Settings of the language half: nested in newer checkpoints, flat in older ones."""
        return self.config.get("text_config", self.config)

    @property
    def text_files(self) -> list[Path]:
        """What goes into the bundle as it is: JSON, text and templates, but no index of weights."""
        found = [path for pattern in TEXT_FILES for path in self.folder.glob(pattern)]
        return sorted(p for p in found if p.is_file() and not p.name.endswith(".index.json"))

    def parameters(self, layers: int | None = None) -> int:
        """Count the weights, of the first `layers` decoder layers only, if given."""
        total = 0
        for name, shape in self.shapes.items():
            layer = DECODER_LAYER.search(name)
            if layers is None or layer is None or int(layer[1]) < layers:
                total += int(np.prod(shape, dtype=np.int64))
        return total


def open_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """Find or download a checkpoint and check it.

    Args:
        model: a local folder, or a hub id such as `Qwen/Qwen2-VL-2B-Instruct`.
        revision: the commit hash of a hub id.

    Raises:
        ExportRefused: something is missing, damaged or of no known family.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ExportRefused(f"--revision is for hub ids, and {model} is a folder: leave it out")
        return _checked(folder.resolve(), folder.resolve().name, None)
    if folder.exists():
        raise ExportRefused(f"{model} is a file; MODEL is a folder with config.json, or a hub id")
    if not HUB_ID.fullmatch(model):
        raise ExportRefused(f"There is no folder {model}, and it is no hub id (owner/name)")
    if revision is None or not REVISION.fullmatch(revision):
        raise ExportRefused(
            f"A hub id needs the commit hash that you trust, got --revision {revision}. No folder "
            f"{model} is here. The newest hash: `git ls-remote https://huggingface.co/{model} HEAD`"
        )
    return _checked(_download(model, revision), model, revision)


def load_module(kind: Any, folder: Path, config: Any) -> Any:
    """Load a class of transformers from safetensors in float32, all weights found or refused."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        import torch

        model, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if wrong:
        listed = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise ExportRefused(
            f"{folder} lacks weights that config.json asks for: {listed}. Get the whole checkpoint"
        )
    return model.eval().requires_grad_(requires_grad=False)


def _checked(folder: Path, name: str, revision: str | None) -> Checkpoint:
    config = _json(folder / "config.json", "MODEL is a folder with a checkpoint in HF format")
    check_config(config, folder)
    for file in NEEDED:
        if not (folder / file).is_file():
            raise ExportRefused(f"{folder} has no {file}: get the whole checkpoint")
    return Checkpoint(folder, name, revision, config, _shapes(folder))


def check_config(config: Mapping[str, Any], where: Path | str) -> None:
    """Refuse a config.json that no family can export."""
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise ExportRefused(f"{where}: {unknown('model_type', model_type, list(FAMILIES))}")
    if "quantization_config" in config:
        raise ExportRefused(
            f"{where} is quantised already: export the checkpoint that it was made from"
        )
    text = config.get("text_config", config)
    missing = [name for name in TEXT_SETTINGS if not isinstance(text.get(name), int)]
    if missing:
        raise ExportRefused(f"{where}: config.json lacks {', '.join(missing)} of the language half")


def _json(path: Path, hint: str) -> dict[str, Any]:
    if not path.is_file():
        raise ExportRefused(f"There is no {path}: {hint}")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ExportRefused(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ExportRefused(f"{path} holds no JSON object")
    return value


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read every header; a file that was cut off is found here, before any work."""
    if (folder / INDEX).is_file():
        weight_map = _json(folder / INDEX, "").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ExportRefused(f"{folder / INDEX} names no weights: get the whole checkpoint")
        files = sorted(set(map(str, weight_map.values())))
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        also = f" ({pickled[0]} is a pickle, which can run code: not opened)" if pickled else ""
        raise ExportRefused(
            f"{folder} has no model.safetensors{also}: get the weights in safetensors format"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if Path(file).name != file:
            raise ExportRefused(f"{folder / INDEX} names {file!r}, which is outside of the folder")
        shapes |= _header(folder / file)
    return shapes


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in one safetensors file, whose length must be what its header says."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
        shapes = {name: tuple(map(int, tensor["shape"])) for name, tensor in header.items()}
    except FileNotFoundError:
        raise ExportRefused(f"There is no {path}: get the whole checkpoint") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportRefused(f"{path} is no safetensors file, or is damaged: {error}") from None
    size = path.stat().st_size
    if size != 8 + length + end:
        raise ExportRefused(
            f"{path} has {size} bytes and should have {8 + length + end}: download it again"
        )
    return shapes


def _download(model: str, revision: str) -> Path:
    """Fetch real files (no symlinks) of one commit, to where a second try finds them again."""
    from huggingface_hub import HfApi, snapshot_download

    # the HTTP library's root error: httpx, or httpx2 in newer releases
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "tokprune" / "checkpoints" / model.replace("/", "--") / revision
    fetch = {"repo_id": model, "revision": revision, "local_dir": folder}
    try:
        snapshot_download(**fetch, allow_patterns=list(TEXT_FILES))
        check_config(_json(folder / "config.json", "this repository holds no checkpoint"), model)
        files = HfApi().model_info(model, revision=revision, files_metadata=True).siblings or []
        _check_space(folder, {file.rfilename: file.size or 0 for file in files})
        snapshot_download(**fetch, allow_patterns=["*.safetensors"])
    except (HTTPError, OSError) as error:
        raise ExportRefused(f"Cannot download {model} at {revision}: {error}") from None
    return folder


def _check_space(folder: Path, sizes: Mapping[str, int]) -> None:
    """Refuse a download that would not fit beside what is there already."""
    needed = sum(
        size
        for name, size in sizes.items()
        if Path(name).match("*.safetensors") and not (folder / name).is_file()
    )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ExportRefused(
            f"Not enough disk at {folder}: the weights take {needed} bytes, {free} bytes are free"
        )
