"""Scorer files: a network, what it was trained on and how good it was."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tokprune.errors import RequestInvalid
from tokprune.files import atomic_write
from tokprune.manifest import Metrics, Modality, ScorerKind
from tokprune_export.scorers.asked import AskedScorer
from tokprune_export.scorers.frames import FramesScorer
from tokprune_export.scorers.grid import GridScorer
from tokprune_export.scorers.paper import AttentionMean, PaperScorer

FORMAT, VERSION = "tokprune-scorer", "1"
Network: TypeAlias = PaperScorer | GridScorer | AskedScorer  # what can be trained


class Size(NamedTuple):
    """What a scorer must know of the checkpoint's LLM."""

    heads: int  # of attention
    hidden: int  # width of the vision tokens


def size_of(text_config: Mapping[str, Any]) -> Size:
    """Read the size from a checkpoint's settings."""
    return Size(int(text_config["num_attention_heads"]), int(text_config["hidden_size"]))


Arch = Literal["paper", "grid", "asked", "frames"]
NETWORKS: dict[Arch, Callable[[Size], Network]] = {
    "paper": lambda _: PaperScorer(),
    "grid": lambda size: GridScorer(size.heads),
    "asked": lambda size: AskedScorer(size.heads, size.hidden),
    "frames": lambda size: FramesScorer(size.heads, size.hidden),
}


class Scorer(NamedTuple):
    """A scorer network, and what its file says of it."""

    network: AttentionMean | Network
    kind: ScorerKind
    modalities: Sequence[Modality]  # that it was trained on
    metrics: Metrics
    metrics_by_modality: Mapping[Modality, Metrics]  # empty where there is one modality only
    by_glances: Metrics | None = None  # of first looks; None: it was trained on none

    @property
    def trained(self) -> bool:
        """Whether the scores were learned."""
        return self.kind != "attention"


def save_scorer(path: Path, scorer: Scorer, size: Size, notes: Mapping[str, str]) -> None:
    """Write a trained scorer under `path`, or change nothing.

    Args:
        path: where the safetensors file goes.
        scorer: network, kind, modalities and held-out metrics.
        size: of the checkpoint's LLM.
        notes: more metadata, such as `model` and the other networks' metrics.
    """
    metadata = {
        **notes,
        "format": FORMAT,
        "version": VERSION,
        "kind": scorer.kind,
        "heads": str(size.heads),
        "hidden": str(size.hidden),
        "modalities": json.dumps(scorer.modalities),
        "metrics": json.dumps(scorer.metrics, sort_keys=True),
        "metrics_by_modality": json.dumps(scorer.metrics_by_modality, sort_keys=True),
    }
    if scorer.by_glances:
        metadata["by_glances"] = json.dumps(scorer.by_glances, sort_keys=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in scorer.network.state_dict().items()}
    atomic_write(path, _in_order(save(tensors, metadata=metadata)))


def _in_order(data: bytes) -> bytes:
    """Sort the header of a safetensors file, which `save` writes in an order of chance."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def load_scorer(path: Path | None, size: Size) -> Scorer:
    """Read a scorer file, or return the parameter-free scorer where `path` is None.

    Args:
        path: a file that `tokprune-train` wrote.
        size: of the checkpoint's LLM; the file must say the same.

    Raises:
        RequestInvalid: there is no such file, it is no scorer, or it belongs to another model.
    """
    if path is None:
        return Scorer(AttentionMean().eval(), "attention", (), {}, {})
    metadata, tensors = _read(path)
    if metadata.get("format") != FORMAT:
        raise RequestInvalid(
            f"{path} is not a scorer file (its metadata lacks format = {FORMAT!r}): "
            "give a file that tokprune-train wrote"
        )
    if metadata.get("version") != VERSION:
        raise RequestInvalid(
            f"{path} has scorer version {metadata.get('version')!r}, this tokprune reads "
            f"{VERSION!r}: train it again, or install the tokprune that wrote it"
        )
    _check_size(metadata, size, path)
    known: dict[str, Arch] = {name: name for name in NETWORKS}
    kind = known.get(metadata.get("kind", ""))
    if kind is None:
        raise RequestInvalid(
            f"{path} holds a scorer of unknown kind {metadata.get('kind')!r}. "
            f"Known: {', '.join(sorted(known))}."
        )
    network = NETWORKS[kind](size)
    _fill(network, tensors, path)
    facts = _facts(metadata, path)
    apart = facts.metrics_by_modality
    return Scorer(network.eval(), kind, facts.modalities, facts.metrics, apart, facts.by_glances)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise RequestInvalid(f"There is no scorer file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RequestInvalid(f"{path} is not a safetensors file, or is damaged: {error}") from None


def _check_size(metadata: Mapping[str, str], size: Size, path: Path) -> None:
    # files of networks that do not read embeddings need not say how wide these are
    hidden = metadata.get("hidden", str(size.hidden))
    for given, expected, what in (
        (metadata.get("heads"), size.heads, "attention heads"),
        (hidden, size.hidden, "numbers a vision token"),
    ):
        if given != str(expected):
            raise RequestInvalid(
                f"{path} was trained for {given} {what}, the checkpoint's LLM has {expected}: "
                "train a scorer for this checkpoint with tokprune-train"
            )


def _fill(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = sorted(
        name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name)
    )
    wrong += sorted(name for name, value in tensors.items() if not torch.isfinite(value).all())
    if wrong:
        raise RequestInvalid(
            f"{path} does not hold the weights of its kind: {', '.join(wrong)} missing, "
            "unexpected, of the wrong shape or not finite. Train it again with tokprune-train"
        )
    network.load_state_dict(tensors)


class _Facts(msgspec.Struct, frozen=True):
    """What the metadata hold as JSON."""

    metrics: Metrics
    # files from before there were videos say nothing of modalities
    modalities: Annotated[tuple[Modality, ...], msgspec.Meta(min_length=1)] = ("picture",)
    metrics_by_modality: dict[Modality, Metrics] = {}
    by_glances: Metrics | None = None


def _facts(metadata: Mapping[str, str], path: Path) -> _Facts:
    names = [name for name in _Facts.__struct_fields__ if name in metadata]
    try:
        return msgspec.convert({name: json.loads(metadata[name]) for name in names}, _Facts)
    except ValueError as error:  # of JSON, or of what it holds
        raise RequestInvalid(f"{path} has no readable metrics in its metadata: {error}") from None
