"""The scorer graph: from the first layer's attention to the relevance of every vision token.

    AttentionMean   no parameters: what the question attends to
    PaperScorer     the network of arXiv:2506.01097, open points as in its class
    GridScorer      rows and heads as channels of small 2-D convolutions over each region's grid

All take `attention [a, u, n]`, `question [u]`, `index [r, rows, columns]` and `cells [n]`
(tokprune.canvas) and give `relevance [n]`, which sums to 1.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import torch
from jaxtyping import Bool, Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from tokprune.errors import RequestInvalid
from tokprune.files import atomic_write
from tokprune.manifest import Metrics, Modality, ScorerKind

FORMAT, VERSION = "tokprune-scorer", "1"
TEXT_ROWS = 20  # the last rows before the answer that GridScorer reads
_TINY = 1e-12


def mean_rows(
    attention: Float[Tensor, "a u n"], question: Bool[Tensor, " u"]
) -> Float[Tensor, " n"]:
    """Average over heads and the user's words (over all rows where none is marked)."""
    marked = question.to(attention.dtype)
    weight = torch.where(marked.sum() > 0, marked, torch.ones_like(marked))
    return torch.matmul(weight / weight.sum(), attention.mean(dim=0))


class AttentionMean(nn.Module):
    """Relevance without training: the mean attention, normalised."""

    def forward(
        self,
        attention: Float[Tensor, "a u n"],
        question: Bool[Tensor, " u"],
        index: Int64[Tensor, "r rows columns"],
        cells: Int64[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """Score one prompt."""
        del index, cells
        scores = mean_rows(attention, question)
        return scores / scores.sum().clamp(min=_TINY)


class PaperScorer(nn.Module):
    """The paper's network over the raster of vision tokens.

    Stated there: mean over the instruction's rows, five depthwise-separable 1-D convolutions of 32
    to 512 channels, a pointwise one, softmax. Open there, chosen here: mean over heads, division by
    the mean, kernel 7, GELU. The raster is an image of one row: in channels-last order, CPUs train
    2-D convolutions of 1 x 7 a third faster than 1-D ones.
    """

    widths = (32, 64, 128, 256, 512)
    kernel = 7

    def __init__(self) -> None:
        super().__init__()
        inputs = (1, *self.widths[:-1])
        self.depthwise = nn.ModuleList(
            nn.Conv2d(width, width, (1, self.kernel), padding=(0, self.kernel // 2), groups=width)
            for width in inputs
        )
        self.pointwise = nn.ModuleList(
            nn.Conv2d(width, wider, 1) for width, wider in zip(inputs, self.widths, strict=True)
        )
        self.readout = nn.Conv2d(self.widths[-1], 1, 1)

    def features(
        self, attention: Float[Tensor, "a u n"], question: Bool[Tensor, " u"]
    ) -> Float[Tensor, "1 n"]:
        """Return the network's input, on a scale that does not depend on n."""
        scores = mean_rows(attention, question)
        return (scores / scores.mean().clamp(min=_TINY))[None]

    def logits(
        self, features: Float[Tensor, "b 1 m"], mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b m"]:
        """Run the convolutions. Where `mask` is False is padding, and acts as the edge does."""
        x = features[:, :, None]
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = functional.gelu(pointwise(depthwise(x)))
            if mask is not None:
                x = x * mask[:, None, None]
        return self.readout(x)[:, 0, 0]

    def forward(
        self,
        attention: Float[Tensor, "a u n"],
        question: Bool[Tensor, " u"],
        index: Int64[Tensor, "r rows columns"],
        cells: Int64[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """Score one prompt."""
        del index, cells
        return _shares(self.logits(self.features(attention, question)[None])[0])


class GridScorer(nn.Module):
    """Three 2-D convolutions over each region; the last text rows x heads are the channels.

    Empty cells of the canvas act as the zero padding of a convolution at every layer, so a picture
    scores the same alone and on a bigger canvas. Newline tokens have no cell and score 0.
    """

    width = 32

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(heads * TEXT_ROWS, self.width, 3, padding=1),
                nn.Conv2d(self.width, self.width, 3, padding=1),
            ]
        )
        self.readout = nn.Conv2d(self.width, 1, 1)

    def features(
        self, attention: Float[Tensor, "a u n"], question: Bool[Tensor, " u"]
    ) -> Float[Tensor, "c n"]:
        """Return the last rows, right-aligned, missing ones zero, on a scale that suits any n."""
        del question
        heads, _, tokens = attention.shape
        empty = attention.new_zeros(heads, TEXT_ROWS, tokens)
        rows = torch.cat([empty, attention], dim=1)[:, -TEXT_ROWS:]
        return torch.log1p(rows * (4 * tokens)).reshape(-1, tokens)

    def logits(
        self,
        features: Float[Tensor, "c n"],
        index: Int64[Tensor, "r rows columns"],
        cells: Int64[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """Run the convolutions. Regions do not touch, so several prompts may share one call."""
        filled = (index >= 0)[:, None]
        x = features[:, index.clamp(min=0)].transpose(0, 1) * filled
        for layer in self.layers:
            x = functional.gelu(layer(x)) * filled
        scores = self.readout(x).flatten()[cells]
        tokens = torch.arange(cells.shape[0], device=cells.device)
        return torch.where(index.flatten()[cells] == tokens, scores, float("-inf"))

    def forward(
        self,
        attention: Float[Tensor, "a u n"],
        question: Bool[Tensor, " u"],
        index: Int64[Tensor, "r rows columns"],
        cells: Int64[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """Score one prompt."""
        return _shares(self.logits(self.features(attention, question), index, cells))


def _shares(logits: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Normalise. TensorRT takes no softmax of a vector, so it is one of a matrix of one row."""
    return logits[None].softmax(dim=1)[0]


class Scorer(NamedTuple):
    """A scorer network, and what its file says of it."""

    network: AttentionMean | PaperScorer | GridScorer
    kind: ScorerKind
    modalities: Sequence[Modality]  # that it was trained on
    metrics: Metrics
    metrics_by_modality: Mapping[Modality, Metrics]  # empty where there is one modality only

    @property
    def trained(self) -> bool:
        """Whether the scores were learned."""
        return self.kind != "attention"


def save_scorer(path: Path, scorer: Scorer, heads: int, notes: Mapping[str, str]) -> None:
    """Write a trained scorer under `path`, or change nothing.

    Args:
        path: where the safetensors file goes.
        scorer: network, kind, modalities and held-out metrics.
        heads: attention heads of the checkpoint's LLM.
        notes: more metadata, such as `model` and the other networks' metrics.
    """
    metadata = {
        **notes,
        "format": FORMAT,
        "version": VERSION,
        "kind": scorer.kind,
        "heads": str(heads),
        "modalities": json.dumps(scorer.modalities),
        "metrics": json.dumps(scorer.metrics, sort_keys=True),
        "metrics_by_modality": json.dumps(scorer.metrics_by_modality, sort_keys=True),
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in scorer.network.state_dict().items()}
    atomic_write(path, _in_order(save(tensors, metadata=metadata)))


def _in_order(data: bytes) -> bytes:
    """Sort the header of a safetensors file, which `save` writes in an order of chance."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def load_scorer(path: Path | None, heads: int) -> Scorer:
    """Read a scorer file, or return the parameter-free scorer where `path` is None.

    Args:
        path: a file that `tokprune-train` wrote.
        heads: attention heads of the checkpoint's LLM; the file must say the same.

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
    if metadata.get("heads") != str(heads):
        raise RequestInvalid(
            f"{path} was trained for {metadata.get('heads')} attention heads, the checkpoint's LLM "
            f"has {heads}: train a scorer for this checkpoint with tokprune-train"
        )
    network, kind = _network(metadata.get("kind"), heads, path)
    _fill(network, tensors, path)
    facts = _facts(metadata, path)
    return Scorer(network.eval(), kind, facts.modalities, facts.metrics, facts.metrics_by_modality)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise RequestInvalid(f"There is no scorer file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RequestInvalid(f"{path} is not a safetensors file, or is damaged: {error}") from None


def _network(
    kind: str | None, heads: int, path: Path
) -> tuple[PaperScorer | GridScorer, ScorerKind]:
    match kind:
        case "paper":
            return PaperScorer(), "paper"
        case "grid":
            return GridScorer(heads), "grid"
        case _:
            raise RequestInvalid(
                f"{path} holds a scorer of unknown kind {kind!r}. Known: grid, paper."
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


def _facts(metadata: Mapping[str, str], path: Path) -> _Facts:
    names = [name for name in _Facts.__struct_fields__ if name in metadata]
    try:
        return msgspec.convert({name: json.loads(metadata[name]) for name in names}, _Facts)
    except ValueError as error:  # of JSON, or of what it holds
        raise RequestInvalid(f"{path} has no readable metrics in its metadata: {error}") from None
