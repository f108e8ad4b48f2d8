"""Relevance labels on disk, a shard at a time: a run that broke goes on where it was."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Bool, Float16, Float32, Int32
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tokprune.errors import RequestInvalid
from tokprune.files import atomic_write

FORMAT, VERSION = "tokprune-labels", "1"
SHARD_LABELS = 256


@dataclass(frozen=True)
class Label:
    """What a scorer sees of one question, and what it should say."""

    attention: Float16[Tensor, "a u n"]  # of the first layer
    question: Bool[Tensor, " u"]
    index: Int32[Tensor, "r rows columns"]  # tokprune.canvas
    cells: Int32[Tensor, " n"]
    relevance: Float32[Tensor, " n"]  # not normalised


_PARTS = tuple(field.name for field in fields(Label))


class LabelCache:
    """A folder of shards. Several processes may write to one, each its own samples."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: dict[str, Label | None] = {}
        self._shards: dict[str, Path] = {}  # sample -> where its label is
        self._wrong: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self.scan()

    def scan(self) -> None:
        """Take up what stands in the folder now.

        Raises:
            RequestInvalid: a shard is damaged.
        """
        for path in sorted(self._folder.glob("[!.]*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    metadata = file.metadata() or {}
                    samples = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise RequestInvalid(
                    f"{path} is damaged ({error}): delete it, and its labels are computed again"
                ) from None
            if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
                raise RequestInvalid(
                    f"{path} holds no labels that this version reads: delete it, or give another "
                    "--cache folder"
                )
            self._shards |= dict.fromkeys(samples, path)
            self._wrong |= set(metadata["wrong"].split())

    def __contains__(self, sample: str) -> bool:
        return sample in self._shards or sample in self._wrong or sample in self._pending

    def add(self, sample: str, label: Label | None) -> None:
        """Remember a label, or None where the answer was wrong. A full shard is written."""
        self._pending[sample] = label
        if len(self._pending) >= SHARD_LABELS:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        if not self._pending:
            return
        tensors = {
            f"{sample}.{name}": getattr(label, name).contiguous()
            for sample, label in self._pending.items()
            if label is not None
            for name in _PARTS
        }
        wrong = [sample for sample, label in self._pending.items() if label is None]
        metadata = {"format": FORMAT, "version": VERSION, "wrong": " ".join(wrong)}
        path = self._folder / f"{min(self._pending)}.safetensors"
        atomic_write(path, save(tensors, metadata=metadata))
        self._shards |= {sample: path for sample in self._pending if sample not in wrong}
        self._wrong |= set(wrong)
        self._pending.clear()

    def is_wrong(self, sample: str) -> bool:
        """Whether the checkpoint answered this sample wrongly: it has no label."""
        return sample in self._wrong or (sample in self._pending and self._pending[sample] is None)

    def read(self, samples: Iterable[str]) -> dict[str, Label]:
        """Return the written labels of those samples, each shard opened once."""
        by_shard: dict[Path, list[str]] = {}
        for sample in samples:
            by_shard.setdefault(self._shards[sample], []).append(sample)
        labels: dict[str, Label] = {}
        for path, members in by_shard.items():
            with safe_open(path, framework="pt") as file:
                for sample in members:
                    parts = {name: file.get_tensor(f"{sample}.{name}") for name in _PARTS}
                    labels[sample] = Label(**parts)
        return labels


def tensors_of(label: Label, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a scorer's four inputs."""
    return (
        label.attention.to(device, torch.float32),
        label.question.to(device),
        label.index.to(device, torch.int64),
        label.cells.to(device, torch.int64),
    )
