"""Relevance labels on disk, a shard at a time: a run that broke goes on where it was."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from jaxtyping import Bool, Float16, Float32, Int32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tokprune.errors import RequestInvalid
from tokprune.files import atomic_write

FORMAT, VERSION = "tokprune-labels", "4"
SHARD_LABELS = 256


@dataclass(frozen=True)
class Glance:
    """The same question where less is shown: the first of two looks (glances.py)."""

    attention: Float16[Tensor, "a u m"]  # of the first layer; u is the whole prompt's
    index: Int32[Tensor, "r rows columns"]
    cells: Int32[Tensor, " m"]
    embeds: Float16[Tensor, "m d"]
    follows: Float32[Tensor, " r"]
    under: Int32[Tensor, " n"]  # the token that shows each one of the whole; -1: none


@dataclass(frozen=True)
class Label:
    """What a scorer sees of one question, and what it should say."""

    attention: Float16[Tensor, "a u n"]  # of the first layer
    question: Bool[Tensor, " u"]
    index: Int32[Tensor, "r rows columns"]  # tokprune.canvas
    cells: Int32[Tensor, " n"]
    relevance: Float32[Tensor, " n"]  # not normalised
    embeds: Float16[Tensor, "n d"]  # shared by questions about one picture
    ids: Int64[Tensor, " s"]  # of the prompt
    slots: Int64[Tensor, " n"]  # rows of the prompt that hold vision tokens
    answer: Int64[Tensor, " m"]  # that was explained; its end not included
    positions: Int64[Tensor, "p t"]  # rotary ids of prompt and answer
    follows: Float32[Tensor, " r"]  # tokprune.canvas
    glance: Glance | None = None  # None: all is looked at once, or no smaller look is known


_SHARED, _NESTED = "embeds", "glance"
_PARTS = tuple(field.name for field in fields(Label) if field.name not in (_SHARED, _NESTED))
_GLANCE = tuple(field.name for field in fields(Glance))


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
                    names = [name.split(".") for name in file.keys()]  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise RequestInvalid(
                    f"{path} is damaged ({error}): delete it, and its labels are computed again"
                ) from None
            if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
                raise RequestInvalid(
                    f"{path} holds no labels that this version reads: delete it, or give another "
                    "--cache folder"
                )
            samples = {sample for sample, part, *_ in names if part in _PARTS}
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
        tensors |= {
            f"{sample}.{_NESTED}.{name}": getattr(label.glance, name).contiguous()
            for sample, label in self._pending.items()
            if label is not None and label.glance is not None
            for name in _GLANCE
        }
        wrong = [sample for sample, label in self._pending.items() if label is None]
        shown = {
            sample: _digest(label.embeds)
            for sample, label in self._pending.items()
            if label is not None
        }
        for sample, digest in shown.items():  # once for all questions about a picture
            label = self._pending[sample]
            assert label is not None
            tensors.setdefault(f"{digest}.{_SHARED}", label.embeds.contiguous())
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "wrong": " ".join(wrong),
            "shown": json.dumps(shown),
        }
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
                shown = json.loads(file.metadata()["shown"])
                digests = {shown[sample] for sample in members}
                shared = {digest: file.get_tensor(f"{digest}.{_SHARED}") for digest in digests}
                names = set(file.keys())
                for sample in members:
                    parts = {name: file.get_tensor(f"{sample}.{name}") for name in _PARTS}
                    glance = None
                    if f"{sample}.{_NESTED}.{_GLANCE[0]}" in names:
                        seen = {n: file.get_tensor(f"{sample}.{_NESTED}.{n}") for n in _GLANCE}
                        glance = Glance(**seen)
                    labels[sample] = Label(**parts, embeds=shared[shown[sample]], glance=glance)
        return labels


def _digest(tensor: Tensor) -> str:
    """Name a tensor by its content."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:32]
