"""A checkpoint folder: found or downloaded, checked without loading it."""

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokprune.families import FAMILIES, Processor
from tokprune_export import vila_checkpoint
from tokprune_export.errors import ExportRefused
from tokprune_export.layouts import Config, Layout, read_json
from tokprune_export.weights import shapes, weight_files

REVISION = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TEXT_FILES = ("*.json", "*.txt", "*.jinja")
TOKENIZERS = ("*.model",)  # sentencepiece's, which layouts convert
TEXT_SETTINGS = (
    "hidden_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
WEIGHTS = "*.safetensors"
DECODER_LAYER = re.compile(r"(?:^|\.)(?:model|language_model)\.layers\.(\d+)\.")

# What can be exported, by the model_type in config.json. A family whose checkpoints have a format
# of their own has its row; all others are in HF's format, and their model_type is their name.
LAYOUTS: dict[str, Layout] = {
    **{name: Layout(name) for name in FAMILIES if name != vila_checkpoint.LAYOUT.family},
    "llava_llama": vila_checkpoint.LAYOUT,
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder on this disk whose files are all there."""

    folder: Path  # weights are in its `layout.parts`
    name: str  # folder name or hub id
    revision: str | None
    config: Config  # in HF's form
    shapes: Mapping[str, tuple[int, ...]]  # of all weights, from the files' headers
    layout: Layout
    texts: Path  # the folder with the text files of HF's format; `folder` itself where it is HF's

    @property
    def family(self) -> str:
        """Name of the family, a key of both tables."""
        return self.layout.family

    @property
    def text_config(self) -> Mapping[str, Any]:
        """Settings of the language half: nested in newer checkpoints, flat in older ones."""
        return self.config.get("text_config", self.config)

    @property
    def text_files(self) -> list[Path]:
        """What goes into the bundle as it is: JSON, text and templates, but no index of weights."""
        found = [path for pattern in TEXT_FILES for path in self.texts.glob(pattern)]
        return sorted(p for p in found if p.is_file() and not p.name.endswith(".index.json"))

    @property
    def weight_files(self) -> list[Path]:
        """The weights of all parts: scorers that lie beside them are none."""
        return [path for part in self.layout.parts for path in weight_files(self.folder / part)]

    def weights(self, layers: int | None = None) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield names and shapes, of the first `layers` decoder layers only, if given."""
        for name, shape in self.shapes.items():
            layer = DECODER_LAYER.search(name)
            if layers is None or layer is None or int(layer[1]) < layers:
                yield name, shape

    def parameters(self, layers: int | None = None) -> int:
        """Count the weights, of the first `layers` decoder layers only, if given."""
        return sum(int(np.prod(shape, dtype=np.int64)) for _, shape in self.weights(layers))


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


@contextmanager
def quiet_transformers() -> Generator[None]:
    """Silence what transformers says of loading: what matters is an error here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _checked(folder: Path, name: str, revision: str | None) -> Checkpoint:
    layout = _layout(folder)
    check_config(layout.config(folder), folder)
    for file in layout.files:
        names = (file,) if isinstance(file, str) else file
        if not any((folder / each).is_file() for each in names):
            raise ExportRefused(f"{folder} has no {' or '.join(names)}: get the whole checkpoint")
    found = {
        f"{part}.{weight}" if part else weight: shape
        for part in layout.parts
        for weight, shape in shapes(folder / part).items()
    }
    texts = _texts(layout, folder, name)
    config = read_json(texts / "config.json")
    return Checkpoint(folder, name, revision, config, found, layout, texts)


def _layout(folder: Path) -> Layout:
    """Tell the format of a checkpoint from its config.json."""
    path = folder / "config.json"
    config = read_json(path, "MODEL is a folder with a checkpoint")
    model_type, names = str(config.get("model_type")), config.get("architectures") or []
    if model_type not in LAYOUTS:
        raise ExportRefused(
            f"{path} has model_type {model_type!r}, which cannot be exported. Can be exported: "
            f"{', '.join(sorted(LAYOUTS))}"
        )
    layout = LAYOUTS[model_type]
    if layout.architecture is not None and layout.architecture not in names:
        raise ExportRefused(
            f"{path} has model_type {model_type!r} and architectures {names}; of that type only "
            f"{layout.architecture} can be exported"
        )
    return layout


def _texts(layout: Layout, folder: Path, name: str) -> Path:
    """Return the folder with the text files of HF's format, made if the format is another."""
    if layout.write_texts is None:
        return folder
    made = Path(tempfile.mkdtemp(prefix="tokprune-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    layout.write_texts(folder, name, made)
    return made


def open_processor(family: str, folder: Path) -> Processor:
    """Open the numpy half of a family.

    Raises:
        ExportRefused: the processors' settings are missing, or none that it follows.
    """
    try:
        return FAMILIES[family].open(folder)
    except ValueError as error:  # msgspec's errors are such
        raise ExportRefused(f"{folder}: {error}") from None


def check_config(config: Config, where: Path | str) -> None:
    """Refuse a configuration, in HF's form, that no family can export."""
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    if any("quantization_config" in part for part in parts):
        raise ExportRefused(
            f"{where} is quantised already: export the checkpoint that it was made from"
        )
    text = config.get("text_config", config)
    missing = [name for name in TEXT_SETTINGS if not isinstance(text.get(name), int)]
    if missing:
        raise ExportRefused(f"{where}: config.json lacks {', '.join(missing)} of the language half")


def _download(model: str, revision: str) -> Path:
    """Fetch real files (no symlinks) of one commit, to where a second try finds them again."""
    from huggingface_hub import HfApi, snapshot_download

    # the HTTP library's root error: httpx, or httpx2 in newer releases
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "tokprune" / "checkpoints" / model.replace("/", "--") / revision
    fetch = {"repo_id": model, "revision": revision, "local_dir": folder}
    try:
        snapshot_download(**fetch, allow_patterns=[*TEXT_FILES, *TOKENIZERS])
        layout = _layout(folder)
        check_config(layout.config(folder), model)
        files = HfApi().model_info(model, revision=revision, files_metadata=True).siblings or []
        _check_space(folder, {file.rfilename: file.size or 0 for file in files})
        patterns = [f"{part}/{WEIGHTS}" if part else WEIGHTS for part in layout.parts]
        snapshot_download(**fetch, allow_patterns=patterns)
    except (HTTPError, OSError) as error:
        raise ExportRefused(f"Cannot download {model} at {revision}: {error}") from None
    return folder


def _check_space(folder: Path, sizes: Mapping[str, int]) -> None:
    """Refuse a download that would not fit beside what is there already."""
    needed = sum(
        size
        for name, size in sizes.items()
        if Path(name).match(WEIGHTS) and not (folder / name).is_file()
    )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ExportRefused(
            f"Not enough disk at {folder}: the weights take {needed} bytes, {free} bytes are free"
        )
