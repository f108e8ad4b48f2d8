"""Glances: what the first of two looks shows, and a scorer has to tell from it where to look.

`encode="coarse"` shows a picture at half its size before, `encode="lazy"` shows it without its
crops (tokprune.looking). A scorer that never saw that must guess. So labels hold a glance too: the
first layer's attention of that smaller prompt, and which of its tokens stands for each token of the
whole one, whose answer says what would have been lost.
"""

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tokprune.budgets import KeepRatio
from tokprune.canvas import canvas, follows
from tokprune.looking import Asked as Request
from tokprune.looking import Lazy, below, crops_left, showing
from tokprune.types import Array, Prepared, Prompt, VisionTokens
from tokprune_export.decoder import FirstLayer
from tokprune_export.examples import Example
from tokprune_export.label_cache import Glance
from tokprune_export.media import Source, load
from tokprune_export.teacher import MEDIA_IN_MEMORY, Asked, Teacher, encode, lay_out


class Shown(NamedTuple):
    """What is shown of some media at first."""

    vision: VisionTokens
    under: Int64[Array, " n"]  # for each token of the whole media the one shown at its place, or -1
    places: Int64[Array, " m"] | None  # of the tokens among the whole ones; None: they are others
    prepared: tuple[Prepared, ...]  # without pixels; read where `places` is None


class Glances:
    """Looks at pictures and videos as the first of two looks does, each once while in memory."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._first_layer = FirstLayer(teacher.text)
        self._shown = lru_cache(maxsize=MEDIA_IN_MEMORY)(self._show)

    @torch.no_grad()
    def of(self, example: Example, asked: Asked) -> Glance | None:
        """Return a question's glance, None where its media are looked at once, whatever is asked.

        Args:
            example: what was asked.
            asked: the whole prompt.
        """
        shown = self._shown(example.media)
        return None if shown is None else self._seen(shown, example, asked)

    def _show(self, media: tuple[Source, ...]) -> Shown | None:
        teacher = self._teacher
        loaded = [load(source) for source in media]
        whole = teacher.processor.prepare(loaded)
        if teacher.processor.ways.halved is not None:
            small = teacher.processor.ways.halved(loaded)
            vision = encode(teacher, small)
            if len(vision.where) >= sum(len(each.where) for each in whole):
                return None  # of pictures that have one token or two a side
            without = tuple(replace(each, calls=()) for each in small)
            return Shown(vision, below(whole, vision), None, without)
        if not crops_left(whole):
            return None
        # Any question has these places.
        request = Request(lay_out(teacher, whole, ""), whole, KeepRatio(0.5))
        look = Lazy().first(request)
        vision = encode(teacher, look.media)
        return Shown(vision, below(whole, vision), look.places, ())

    def _seen(self, shown: Shown, example: Example, asked: Asked) -> Glance:
        teacher = self._teacher
        if shown.places is None:
            prompt = lay_out(teacher, shown.prepared, example.question)
        else:
            prompt = showing(asked.prompt, shown.places)
        index, cells = canvas(shown.vision.where, shown.vision.regions)
        return Glance(
            attention=self._attention(prompt, shown.vision).to("cpu", torch.float16),
            index=torch.from_numpy(index.astype(np.int32)),
            cells=torch.from_numpy(cells.astype(np.int32)),
            embeds=torch.from_numpy(shown.vision.embeds).half(),
            follows=torch.from_numpy(follows(shown.vision.regions)),
            under=torch.from_numpy(shown.under.astype(np.int32)),
        )

    def _attention(self, prompt: Prompt, vision: VisionTokens) -> Float[Tensor, "a u n"]:
        """Return what the text after the last picture attends to, in the first layer."""
        table = self._teacher.text.embeddings
        embeds = table[torch.from_numpy(prompt.ids).to(table.device)]
        embeds[prompt.slots] = torch.from_numpy(vision.embeds).to(embeds)
        positions = torch.from_numpy(prompt.positions).to(table.device)
        rows = torch.arange(int(prompt.slots[-1]) + 1, len(prompt.ids), device=table.device)
        columns = torch.from_numpy(prompt.slots).to(table.device)
        return self._first_layer(embeds[None], positions[:, None], rows, columns)
