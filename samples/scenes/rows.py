"""Training rows: a shared prefix with pictures, and branches that see the prefix and themselves.

A branch equals a conversation of its own, yet the pictures are encoded and read once for all of
them. Positions follow transformers' Qwen2VLModel.get_rope_index.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from referents import REFERENT, find_referents
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokprune.scenes import Scene

IGNORED = -100
PAD_SEGMENT = -1


@dataclass(frozen=True)
class Answered:
    """Text with the answer that the model is to give to it."""

    text: str
    answer: str
    group: int
    about: Scene | None = None  # whose things the text means, where a dense task may ask for them


Part = str | Answered | int  # an int is a picture, by its index in the row


@dataclass(frozen=True)
class Row:
    """Pictures, what all branches share, and the branches (without pictures)."""

    scenes: tuple[Scene, ...]
    prefix: tuple[Part, ...]
    branches: tuple[tuple[Part, ...], ...]


@dataclass(frozen=True)
class Batch:
    """Tensors of rows that hold equally many pictures of one size."""

    grid: tuple[int, int]
    patches: Tensor  # [b pictures, 4 n, 588] uint8
    cells: Tensor  # [b pictures, n, 4] what stands in each cell, see cells.py
    ids: Tensor  # [b, s]
    labels: Tensor  # [b, s] the next token where it is answered, else IGNORED
    segments: Tensor  # [b, s] 0 prefix, 1.. branches, PAD_SEGMENT
    groups: Tensor  # [b, s]
    questions: Tensor  # [b, s] number of the question that a label belongs to
    positions: Tensor  # [3, b, s]
    referents: Tensor  # [b, s, parts] classes of the thing that a phrase means, at its last token

    def to(self, device: str) -> "Batch":
        """The same on a device."""
        names = [f.name for f in fields(self) if f.name != "grid"]
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass
class _Line:
    """A row while it is written, one list entry a token."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    questions: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    referents: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    asked: int = 0

    def text(self, ids: Sequence[int], segment: int, start: int) -> int:
        """Append text; returns the next position."""
        count = len(ids)
        self.ids += ids
        self.labels += [IGNORED] * count
        self.segments += [segment] * count
        self.groups += [0] * count
        self.questions += [-1] * count
        self.positions += [(p, p, p) for p in range(start, start + count)]
        return start + count

    def answer(self, ids: Sequence[int], segment: int, start: int, group: int) -> int:
        """Append an answer; the token before it predicts its first token."""
        first = len(self.ids) - 1
        stop = self.text(ids, segment, start)
        last = first + len(ids)
        self.labels[first:last] = ids
        self.groups[first:last] = [group] * len(ids)
        self.questions[first:last] = [self.asked] * len(ids)
        self.asked += 1
        return stop

    def picture(self, token: int, grid: tuple[int, int], start: int) -> int:
        """Append a picture; text goes on after its longer side."""
        rows, columns = grid
        count = rows * columns
        self.text([token] * count, 0, start)
        self.positions[-count:] = [
            (start, start + row, start + column) for row in range(rows) for column in range(columns)
        ]
        return start + max(grid)


class Writer:
    """Turns rows into batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        [self._image] = tokenizer("<|image_pad|>").input_ids
        [self._pad] = tokenizer("<|endoftext|>").input_ids

    def encode(self, text: str) -> list[int]:
        """Token ids; remembered, since questions repeat."""
        ids = self._known.get(text)
        if ids is None:
            ids = self._tokenizer(text).input_ids
            if len(self._known) < 50_000:
                self._known[text] = ids
        return ids

    def batch(self, rows: Sequence[Row], patches: np.ndarray, cells: np.ndarray) -> Batch:
        """Rows, all with pictures of one size, padded to one length."""
        scene = rows[0].scenes[0]
        grid = (scene.rows, scene.columns)
        lines = [self._line(row, grid) for row in rows]
        length = -(-max(len(line.ids) for line in lines) // 8) * 8

        def table(name: str, fill: int) -> Tensor:
            values = np.full((len(lines), length), fill, np.int64)
            for index, line in enumerate(lines):
                values[index, : len(line.ids)] = getattr(line, name)
            return torch.from_numpy(values)

        positions = np.zeros((3, len(lines), length), np.int64)
        for index, line in enumerate(lines):
            positions[:, index, : len(line.ids)] = np.array(line.positions).T
        referents = np.full((len(lines), length, len(REFERENT)), IGNORED, np.int64)
        for index, line in enumerate(lines):
            for token, classes in line.referents:
                referents[index, token] = classes
        return Batch(
            grid=grid,
            patches=torch.from_numpy(patches),
            cells=torch.from_numpy(cells),
            ids=table("ids", self._pad),
            labels=table("labels", IGNORED),
            segments=table("segments", PAD_SEGMENT),
            groups=table("groups", 0),
            questions=table("questions", -1),
            positions=torch.from_numpy(positions),
            referents=torch.from_numpy(referents),
        )

    def _line(self, row: Row, grid: tuple[int, int]) -> _Line:
        line = _Line()
        stop = self._parts(line, row.prefix, grid, 0, 0)
        for number, branch in enumerate(row.branches, start=1):
            self._parts(line, branch, grid, number, stop)
        return line

    def _parts(
        self, line: _Line, parts: Sequence[Part], grid: tuple[int, int], segment: int, start: int
    ) -> int:
        for part in parts:
            if isinstance(part, str):
                start = line.text(self.encode(part), segment, start)
            elif isinstance(part, Answered):
                if part.about is not None:
                    for end, classes in find_referents(part.text, part.about):
                        last = len(line.ids) + len(self.encode(part.text[:end])) - 1
                        line.referents.append((last, classes))
                start = line.text(self.encode(part.text), segment, start)
                answer = self.encode(f"{part.answer}<|im_end|>")
                start = line.answer(answer, segment, start, part.group)
            else:
                start = line.picture(self._image, grid, start)
        return start


def attention_bias(segments: Tensor, blocked: float) -> Tensor:
    """[b, 1, s, s]: causal, and a branch sees the prefix and itself."""
    keys, queries = segments[:, None, :], segments[:, :, None]
    seen = ((keys == 0) | (keys == queries)) & (keys != PAD_SEGMENT)
    length = segments.shape[1]
    seen &= torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    seen |= torch.eye(length, dtype=torch.bool, device=segments.device)  # no empty row
    return torch.zeros(seen.shape, device=segments.device).masked_fill_(~seen, blocked)[:, None]
