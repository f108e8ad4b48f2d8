"""What a loaded bundle consists of. It keeps no state, and no request changes it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from tokenizers import Tokenizer

from tokprune.bundle import Bundle
from tokprune.errors import RequestInvalid, SelectorUnavailable, lookup
from tokprune.families import Processor
from tokprune.graphs import FirstLayerGraph, ScorerGraph, VisionEncoder
from tokprune.llm import LanguageModel
from tokprune.pictures import PictureSource, load_picture
from tokprune.prompting import Content, Conversation, Shown, Turn, build_prompt
from tokprune.selectors import LEARNED, SELECTORS, Scorer, Selector
from tokprune.types import Clip, Medium, Prepared, Prompt
from tokprune_runtimes import Backend

Shows: TypeAlias = PictureSource | Clip  # one picture or video
Pictures: TypeAlias = Shows | Sequence[Shows]
MakeSelector: TypeAlias = Callable[[Scorer], Selector]


@dataclass(frozen=True)
class Model:
    """The four graphs of a bundle, and what the host needs beside them."""

    bundle: Bundle
    processor: Processor
    tokenizer: Tokenizer
    vision: VisionEncoder
    first_layer: FirstLayerGraph
    scorer: ScorerGraph
    llm: LanguageModel
    backend: Backend = "cpu"  # what runs the graphs
    threads: int | None = None  # of each graph on the host; None: as many as the engine chooses

    def prepare(
        self, image: Pictures, question: str, *, system: str | None = None
    ) -> tuple[Prompt, tuple[Prepared, ...]]:
        """Read pictures and videos and lay out the prompt of one question; no engine runs."""
        media = media_of(image)
        if not media:
            raise RequestInvalid("A question needs one picture or more, got an empty list")
        turn = Turn((*(Shown(index) for index in range(len(media))), question))
        return self.prepare_conversation(Conversation((turn,), system), media)

    def prepare_conversation(
        self, conversation: Conversation, media: Sequence[Medium]
    ) -> tuple[Prompt, tuple[Prepared, ...]]:
        """Cut the pictures and videos of a conversation, and lay out its prompt."""
        prepared = self.processor.prepare(media) if media else ()
        return self.prompt(conversation, prepared), prepared

    def prompt(self, conversation: Conversation, prepared: Sequence[Prepared]) -> Prompt:
        """Lay out the prompt of a conversation whose pictures are cut.

        Args:
            conversation: a `Shown` in it is the number of a picture or video as it was given.
            prepared: what the family made of these: of a video, it may be several pictures.
        """
        manifest = self.bundle.manifest
        return build_prompt(
            placed(conversation, prepared),
            prepared,
            manifest.chat,
            manifest.tokens,
            self.tokenizer,
            self.processor,
        )

    def selector(self, selector: str | Selector | None) -> tuple[str, MakeSelector]:
        """Return a selector's name, and what builds it from a scorer.

        Raises:
            RequestInvalid: no selector has that name.
            SelectorUnavailable: it reads a trained scorer, and this bundle has none.
        """
        if selector is not None and not isinstance(selector, str):
            given = selector
            return getattr(given, "__name__", type(given).__name__), lambda _: given
        name = selector or self.bundle.manifest.default_selector
        make = lookup(SELECTORS, name, "selector")
        if name in LEARNED and not self.bundle.manifest.scorer.trained:
            raise SelectorUnavailable(
                f"The selector {name!r} needs a trained scorer, and this bundle was exported "
                "without one. Train it with `tokprune-train MODEL DATA.jsonl scorer.safetensors`, "
                "then `tokprune-export MODEL OUTPUT --scorer scorer.safetensors`"
            )
        return name, make


def placed(conversation: Conversation, prepared: Sequence[Prepared]) -> Conversation:
    """Put what the family made of each picture or video where that stands."""
    places: dict[int, list[Content]] = {}
    for number, shown in enumerate(prepared):
        places.setdefault(shown.regions[0].picture, []).append(Shown(number))

    def turn(before: Turn) -> Turn:
        content: list[Content] = []
        for part in before.content:
            content += places[part.number] if isinstance(part, Shown) else [part]
        return replace(before, content=tuple(content))

    return replace(conversation, turns=tuple(turn(each) for each in conversation.turns))


def media_of(image: Pictures) -> tuple[Medium, ...]:
    """Read one or several pictures and videos.

    Raises:
        PictureInvalid: one cannot be decoded.
    """
    several = isinstance(image, Sequence) and not isinstance(image, (str, bytes))
    sources = cast(Sequence[Shows], image if several else [image])
    return tuple(source if isinstance(source, Clip) else load_picture(source) for source in sources)
