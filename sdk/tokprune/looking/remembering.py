"""The parts that a stream's picture can be shown in, and what the encoder said of each."""

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64

from tokprune.looking.look import Asked
from tokprune.looking.parts import units_among
from tokprune.looking.showing import Cut
from tokprune.types import Array, Prepared, Region

BLOCK = 2  # side of the smallest part of a picture, in vision tokens
AROUND = 1  # vision tokens around what is encoded that are encoded with it
SQUARE = 16  # px, side of the smallest place of a tile in which a change is noticed


@dataclass
class Outputs:
    """What the encoder made of every part when it was last shown.

    By the number of channels: vision tokens have the LLM's, saliency has one.
    """

    held: dict[int, list[Array]] = field(default_factory=dict[int, list[Array]])


@runtime_checkable
class Parts(Protocol):
    """The parts of one picture of a stream."""

    count: int
    pixels: Float32[Array, "m ..."]  # of every patch or tile
    always: Bool[Array, " parts"]  # shown in every look
    padding: Bool[Array, " parts"]  # never worth a look
    nearby: Int64[Array, " parts"]  # parts beside each other have equal numbers

    def changes(self, before: Float32[Array, "m ..."]) -> Float32[Array, " parts"]:
        """Return by how much each part's pixels differ: the mean of the place that differs most."""
        ...

    def rows(self, parts: Bool[Array, " parts"]) -> Bool[Array, " m"]:
        """Mark the rows of `pixels` of some parts."""
        ...

    def sums(self, values: Float32[Array, " n"]) -> Float32[Array, " parts"]:
        """Add up the values of each part's tokens."""
        ...

    def whole(self, new: Outputs) -> Prepared:
        """Return the whole picture; what the encoder makes of it is put into `new`."""
        ...

    def shown(
        self, parts: Bool[Array, " parts"], old: Outputs, new: Outputs
    ) -> tuple[Prepared, int]:
        """Return the whole picture of which some parts are encoded, the others taken from `old`.

        And the number of tokens that are encoded. What there is then is put into `new`.
        """
        ...


def parts_of(asked: Asked, cut: Cut | None) -> Parts:
    """Return the parts of the one picture that was asked about."""
    return _Tiles(asked.split[0]) if cut is None else _Blocks(asked.media[0], cut)


class _Blocks:
    """Blocks of vision tokens, where the encoder takes any of them."""

    def __init__(self, picture: Prepared, cut: Cut) -> None:
        self._picture, self._cut = picture, cut
        self._of, self.nearby = _blocks(picture.regions[0])
        calls = [call["pixel_values"] for call in picture.calls]
        rows = np.concatenate([np.reshape(call, (-1, call.shape[-1])) for call in calls])
        self.pixels: Array = rows.astype(np.float32)  # a patch a row, some to a token
        self._of_rows = np.repeat(self._of, len(rows) // len(self._of))
        self.count = len(self.nearby)
        self.always: Array = np.zeros(self.count, np.bool_)
        self.padding: Array = self.always

    def changes(self, before: Float32[Array, "m ..."]) -> Float32[Array, " parts"]:
        """Return the mean difference of the patch of each block that differs most."""
        found = np.zeros(self.count, np.float32)
        np.maximum.at(found, self._of_rows, np.abs(self.pixels - before).mean(axis=1))
        return found

    def rows(self, parts: Bool[Array, " parts"]) -> Bool[Array, " m"]:
        """Mark the patches of some blocks."""
        return parts[self._of_rows]

    def sums(self, values: Float32[Array, " n"]) -> Float32[Array, " parts"]:
        """Add up the values of each block's tokens."""
        return np.bincount(self._of, values, self.count).astype(np.float32)

    def whole(self, new: Outputs) -> Prepared:
        """Return the whole picture."""

        def pack(outputs: list[Array]) -> Array:
            tokens = self._picture.pack(outputs)
            new.held[tokens.shape[-1]] = [tokens]
            return tokens

        return replace(self._picture, pack=pack)

    def shown(
        self, parts: Bool[Array, " parts"], old: Outputs, new: Outputs
    ) -> tuple[Prepared, int]:
        """Return the picture with the tokens of some blocks encoded.

        Those around them are encoded with them, to be attended to, and are not kept: their own
        surroundings are not there.
        """
        new_tokens = parts[self._of]
        places = np.flatnonzero(self._with_surroundings(new_tokens))
        stay = new_tokens[places]
        made = self._cut(self._picture, places)

        def pack(outputs: list[Array]) -> Array:
            encoded = made.pack(outputs)
            tokens: Array = np.array(old.held[encoded.shape[-1]][0])
            tokens[places[stay]] = encoded[stay]
            new.held[tokens.shape[-1]] = [tokens]
            return tokens

        return replace(self._picture, calls=made.calls, pack=pack, part=True), len(places)

    def _with_surroundings(self, tokens: Bool[Array, " n"]) -> Bool[Array, " n"]:
        """Mark the tokens around some too, diagonally as well."""
        region = self._picture.regions[0]
        grid: Array = np.reshape(tokens, (region.rows, region.columns))
        around = 2 * AROUND + 1
        padded: Array = np.pad(grid, AROUND)
        windows: Array = np.lib.stride_tricks.sliding_window_view(padded, (around, around))
        marked = np.asarray(windows.any(axis=(2, 3)))
        return np.ravel(marked)


class _Tiles:
    """Tiles, where the encoder takes nothing smaller. Tokens between two are made of both."""

    def __init__(self, picture: Prepared) -> None:
        self._picture = picture
        self._of, base = units_among(picture)
        self.always: Array = base
        tiles = np.concatenate([call["pixel_values"] for call in picture.calls])
        self.pixels: Array = tiles.astype(np.float32)
        self.count = len(self.always)
        self.padding: Array = np.logical_not(picture.units.any(axis=0))  # no token is made of it
        self.nearby = np.arange(self.count)

    def changes(self, before: Float32[Array, "m ..."]) -> Float32[Array, " parts"]:
        """Return the mean difference of the square of each tile that differs most."""
        differences: Array = np.abs(self.pixels - before).mean(axis=1)  # of the colours
        tiles, height, width = differences.shape
        down, across = -(-height // SQUARE), -(-width // SQUARE)
        row = np.asarray([y // SQUARE for y in range(height)], np.int64)
        column = np.asarray([x // SQUARE for x in range(width)], np.int64)
        square: Array = np.ravel(row[:, None] * across + column)
        sizes = np.bincount(square, minlength=down * across)
        flat = np.reshape(differences, (tiles, height * width))
        sums = [np.bincount(square, tile, down * across) for tile in flat]
        return (np.stack(sums) / sizes).max(axis=1).astype(np.float32)

    def rows(self, parts: Bool[Array, " parts"]) -> Bool[Array, " m"]:
        """Return the tiles themselves."""
        return parts

    def sums(self, values: Float32[Array, " n"]) -> Float32[Array, " parts"]:
        """Add up the values of the tokens that are made of one tile alone."""
        real = self._of >= 0
        return np.bincount(self._of[real], values[real], self.count).astype(np.float32)

    def whole(self, new: Outputs) -> Prepared:
        """Return the whole picture, a call for each tile."""

        def pack(outputs: list[Array]) -> Array:
            new.held[outputs[0].shape[-1]] = list(outputs)
            return self._picture.pack(outputs)

        return replace(self._picture, pack=pack)

    def shown(
        self, parts: Bool[Array, " parts"], old: Outputs, new: Outputs
    ) -> tuple[Prepared, int]:
        """Return the picture with some tiles encoded."""
        chosen: list[int] = np.flatnonzero(parts).tolist()

        def pack(outputs: list[Array]) -> Array:
            every = list(old.held[outputs[0].shape[-1]])
            for tile, output in zip(chosen, outputs, strict=True):
                every[tile] = output
            new.held[outputs[0].shape[-1]] = every
            return self._picture.pack(every)

        calls = tuple(self._picture.calls[tile] for tile in chosen)
        encoded = int((self._picture.units & parts).any(axis=1).sum())
        return replace(self._picture, calls=calls, pack=pack), encoded


def _blocks(region: Region) -> tuple[Int64[Array, " n"], Int64[Array, " parts"]]:
    """Return the block that each token lies in, and for each block which are beside each other.

    An encoder makes nothing of a single token without its surroundings.
    """
    row, column = np.divmod(np.arange(region.rows * region.columns), region.columns)
    wide = -(-region.columns // BLOCK)
    of = row // BLOCK * wide + column // BLOCK
    down, across = np.divmod(np.arange(int(of.max()) + 1), wide)
    return of, down // 2 * wide + across // 2
