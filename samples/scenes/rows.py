"""Training rows: a shared prefix with pictures, and branches that see the prefix and themselves.

A branch equals a conversation of its own, yet the pictures are encoded and read once for all of
them. Prompts are laid out as on the device: with the pieces of the checkpoint's chat template, and
the pictures, videos and positions of `tokprune.families`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batch import PAD_SEGMENT, Batch
from cells import IGNORED, Shown, labels_of, token_at
from demos import DEMOS
from lines import Answered, Drawn, Line, Part, Row
from referents import REFERENT, find_letters, find_referents
from torch import Tensor

from tokprune.families import FAMILIES, Processor, Span
from tokprune.loading import open_tokenizer
from tokprune.manifest import Piece
from tokprune.scenes import Page, Scene, draw
from tokprune.scenes.film import Film, draw_film
from tokprune.scenes.film_suite import FPS
from tokprune.types import PICTURE, Clip, Medium, Prepared, Region
from tokprune_export.chat_template import Template, compile_chat
from tokprune_export.checkpoint import open_checkpoint
from tokprune_export.records import tokens


class Writer:
    """Turns rows into batches, as the checkpoint in a folder would read them."""

    def __init__(self, folder: Path) -> None:
        checkpoint = open_checkpoint(str(folder))
        self.family = checkpoint.family
        self.demo = DEMOS[checkpoint.family]
        self._texts = checkpoint.texts
        self._processors: dict[int | None, Processor] = {
            None: FAMILIES[checkpoint.family].open(checkpoint.texts)
        }
        self.tokenizer = open_tokenizer(checkpoint.texts)
        self.chat = compile_chat(checkpoint.texts, Template(checkpoint.texts))
        self.tokens = tokens(checkpoint, self.chat)
        # What stands between the prompt and an answer: in a chat, tokenised with the answer.
        reply, generation = self.chat.reply, self.chat.generation
        self._before_answer = str(reply[-1]).removeprefix(str(generation[-1]))
        if [*generation[:-1], f"{generation[-1]}{self._before_answer}"] != reply:
            raise ValueError(f"answers come after {generation}, and in a chat after {reply}")
        self._end, *self._again = self.chat.next_user
        self._known: dict[str, Any] = {}

    def batch(self, rows: Sequence[Row], side_px: int | None = None) -> Batch:
        """Draw the pictures of rows and pad all rows to one length."""
        lines = [self._line(row, self._processor(side_px)) for row in rows]
        length = -(-max(len(line.ids) for line in lines) // 8) * 8

        def table(name: str, fill: int) -> Tensor:
            values = np.full((len(lines), length), fill, np.int64)
            for index, line in enumerate(lines):
                values[index, : len(line.ids)] = getattr(line, name)
            return torch.from_numpy(values)

        found = [self._positions(line, self._processor(side_px)) for line in lines]
        positions = np.zeros((len(found[0]), len(lines), length), np.int64)
        referents = np.full((len(lines), length, len(REFERENT)), IGNORED, np.int64)
        letters = np.full((len(lines), length), IGNORED, np.int64)
        for index, line in enumerate(lines):
            positions[:, index, : len(line.ids)] = found[index]
            for token, classes in line.referents:
                referents[index, token] = classes
            for token, seen in line.letters:
                letters[index, token] = seen
        shown = [(line, prepared) for line in lines for prepared in line.shown]
        labels = [labels_of(_scene(line, prepared), prepared) for line, prepared in shown]
        cells, events, places = map(np.concatenate, zip(*labels, strict=True))
        return Batch(
            pixels=self.demo.pixels([prepared for _, prepared in shown]),
            cells=torch.from_numpy(cells),
            events=torch.from_numpy(events),
            places=torch.from_numpy(places),
            ids=table("ids", 0),
            slots=table("slots", 0).bool(),
            labels=table("labels", IGNORED),
            segments=table("segments", PAD_SEGMENT),
            groups=table("groups", 0),
            questions=table("questions", -1),
            positions=torch.from_numpy(positions),
            referents=torch.from_numpy(referents),
            letters=torch.from_numpy(letters),
        )

    @property
    def processor(self) -> Processor:
        """The checkpoint's own."""
        return self._processor(None)

    def _processor(self, side_px: int | None) -> Processor:
        if side_px not in self._processors:
            assert side_px is not None  # that one is there
            assert self.demo.scaled is not None  # only its plan names sides
            self._processors[side_px] = self.demo.scaled(self._texts, side_px)
        return self._processors[side_px]

    def _line(self, row: Row, processor: Processor) -> Line:
        media = [draw_medium(medium) for medium in row.media]
        grouped: list[list[Prepared]] = [[] for _ in media]
        for prepared in processor.prepare(media):
            grouped[int(prepared.where[0, PICTURE])].append(prepared)
        line = Line(grouped, row.media)
        self._open(line, row.system)
        self._parts(line, row.prefix)
        carried, marks, ended = line.pending, line.marks, line.ended
        for number, branch in enumerate(row.branches, start=1):
            line.pending, line.marks, line.ended = carried, list(marks), ended
            line.segment = number
            self._parts(line, branch)
        return line

    def _open(self, line: Line, system: str | None) -> None:
        if system is None:
            self._piece(line, self.chat.head)
            return
        assert self.chat.head_system is not None  # all demos take one
        before, after = self.chat.head_system
        self._piece(line, before)
        line.pending += system
        self._piece(line, after)

    def _parts(self, line: Line, parts: Sequence[Part]) -> None:
        for part in parts:
            if line.ended:
                self._piece(line, self._again)
                line.ended = False
            if isinstance(part, int):
                for prepared in line.media[part]:
                    self._show(line, prepared)
                continue
            text = part if isinstance(part, str) else part.text
            if text:
                self._piece(line, self.chat.words)
                self._mark(line, part)
                line.pending += text
            if isinstance(part, Answered):
                self._answer(line, part)

    def _show(self, line: Line, prepared: Prepared) -> None:
        video = prepared.kind == "video"
        token = self.tokens.video if video else self.tokens.image
        for item in (self.chat.video if video else self.chat.picture) or []:
            if item == token:
                self._flush(line)
                line.show(prepared, int(item))
            else:
                self._piece(line, [item])

    def _piece(self, line: Line, piece: Piece) -> None:
        for item in piece:
            if isinstance(item, int):
                self._flush(line)
                line.add([item])
            else:
                line.pending += item

    def _answer(self, line: Line, part: Answered) -> None:
        self._piece(line, self.chat.generation)
        self._flush(line)
        words = self._encode(self._before_answer + part.answer)
        assert isinstance(self._end, int)  # a template's turn ends with a token
        if about := _about(line, part):
            read = find_letters(part.answer, *about)
            assert part.about is not None  # else there is nothing to be asked about
            prepared = line.media[part.about][0]
            for number, (_, end) in enumerate(words.offsets, start=len(line.ids) - 1):
                if found := read.get(end - 1 - len(self._before_answer)):
                    letter, classes = found
                    line.referents.append((number, classes))
                    seen = token_at(prepared, letter.y, letter.x)
                    if seen is not None:
                        line.letters.append((number, line.starts[id(prepared)] + seen))
        line.answer([*words.ids, self._end], part.group)
        line.ended = True

    def _mark(self, line: Line, part: Part) -> None:
        """Note where phrases end that a dense task asks about."""
        if isinstance(part, Answered) and (about := _about(line, part)):
            found = find_referents(part.text, *about)
            line.marks += [(len(line.pending) + end, classes) for end, classes in found]

    def _flush(self, line: Line) -> None:
        encoded = self._encode(line.pending)
        start = len(line.ids)
        for end, classes in line.marks:
            token = next(i for i, (_, stop) in enumerate(encoded.offsets) if stop >= end)
            line.referents.append((start + token, classes))
        if encoded.ids:
            line.add(encoded.ids)
        line.pending, line.marks = "", []

    def _encode(self, text: str) -> Any:
        """Token ids and offsets; remembered, since questions repeat."""
        found = self._known.get(text)
        if found is None:
            found = self.tokenizer.encode(text, add_special_tokens=False)
            if len(self._known) < 50_000:
                self._known[text] = found
        return found

    def _positions(self, line: Line, processor: Processor) -> np.ndarray:
        """Positions [p, s]: branches go on where the prefix ends."""
        shared = line.segments.count(0)
        spans: list[Span] = []
        count = 0
        for span in line.spans:
            if count < shared:
                spans.append(span)
            count += span.length
        found = processor.positions([*spans, Span(1)])[0]
        lengths = [line.segments.count(number) for number in range(1, line.segment + 1)]
        branches = [found[:, -1:] + np.arange(length) for length in lengths]
        return np.concatenate([found[:, :shared], *branches], axis=1)


def draw_medium(medium: Drawn) -> Medium:
    """Draw what is not drawn yet."""
    if isinstance(medium, Scene | Page):
        return draw(medium)
    return Clip(draw_film(medium), FPS) if isinstance(medium, Film) else medium


def _about(line: Line, part: Answered) -> tuple[Shown, Region] | None:
    """What a dense task may ask about, and the grid that covers all of it."""
    shown = None if part.about is None else line.drawn[part.about]
    if part.about is None or not isinstance(shown, Scene | Film | Page):
        return None
    return shown, line.media[part.about][0].regions[0]


def _scene(line: Line, prepared: Prepared) -> Shown | None:
    drawn = line.drawn[int(prepared.where[0, PICTURE])]
    return drawn if isinstance(drawn, Scene | Film | Page) else None
