"""What a loaded bundle consists of. It keeps no state, and no request changes it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple, TypeAlias, cast

from tokenizers import Tokenizer

from tokprune.bundle import Bundle
from tokprune.errors import RequestInvalid, SelectorUnavailable
from tokprune.families import Processor
from tokprune.graphs import FirstLayerGraph, ScorerGraph, VisionEncoder
from tokprune.llm import LanguageModel
from tokprune.looking import Following, Small, check_way, way_of
from tokprune.looking.parts import apart
from tokprune.pictures import PictureSource, load_picture
from tokprune.prompting import Content, Conversation, Shown, Turn, build_prompt
from tokprune.selectors import SCORING, SELECTORS, Inputs, Selector, method_of
from tokprune.selectors.scores import no_saliency
from tokprune.types import Clip, Frame, FrameStamp, Live, Medium, Prepared, Prompt
from tokprune_runtimes import Backend

Shows: TypeAlias = PictureSource | Clip | Frame | Live  # one picture or video
Pictures: TypeAlias = Shows | Sequence[Shows]
MakeSelector: TypeAlias = Callable[[Inputs], Selector]


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

    @property
    def has_saliency(self) -> bool:
        """Whether the vision encoder gives its own attention to each vision token."""
        outputs = self.bundle.manifest.graphs.vision_encoder.outputs
        return any(tensor.name == "saliency" for tensor in outputs)

    @property
    def selectors(self) -> tuple[str, ...]:
        """Names of the selectors that this bundle can run, on the media that they are for."""
        return tuple(name for name in SELECTORS if not self._lacks(name))

    def prepare(
        self, image: Pictures, question: str, *, system: str | None = None
    ) -> tuple[Prompt, tuple[Prepared, ...]]:
        """Read pictures and videos and lay out the prompt of one question; no engine runs."""
        return self.prepare_media(see(image).media, question, system=system)

    def prepare_media(
        self, media: Sequence[Medium], question: str, *, system: str | None = None
    ) -> tuple[Prompt, tuple[Prepared, ...]]:
        """Lay out the prompt of one question about what was read."""
        return self.prepare_conversation(one_question(media, question, system), media)

    def prepare_conversation(
        self, conversation: Conversation, media: Sequence[Medium]
    ) -> tuple[Prompt, tuple[Prepared, ...]]:
        """Cut the pictures and videos of a conversation, and lay out its prompt."""
        prepared = tuple(_apart(p, media) for p in self.processor.prepare(media)) if media else ()
        return self.prompt(conversation, prepared), prepared

    def small(
        self, conversation: Conversation, media: Sequence[Medium]
    ) -> Callable[[], Small] | None:
        """Return what cuts the same pictures at half their size; None where the family cannot."""
        halved = self.processor.ways.halved
        if halved is None or not media:
            return None

        @cache  # a budget in time asks before it is looked at
        def made() -> Small:
            prepared = halved(media)
            return Small(self.prompt(conversation, prepared), prepared)

        return made

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
        """Return a selector's name, and what builds it.

        Raises:
            RequestInvalid: no selector has that name.
            SelectorUnavailable: it reads a trained scorer or the vision encoder's attention, and
                this bundle has none.
        """
        if selector is not None and not isinstance(selector, str):
            given = selector
            return getattr(given, "__name__", type(given).__name__), lambda _: given
        name = selector or self.bundle.manifest.default_selector
        method = method_of(name)
        if lacking := self._lacks(name):
            raise SelectorUnavailable(lacking)
        return name, method.make

    def check_encode(
        self, encode: str | Following, selector: str | Selector | None = None, *, window: int = 1
    ) -> None:
        """Refuse a way to encode that this bundle, or with it this selector, can never take.

        Args:
            encode: as `AskOptions.encode`.
            selector: as of a request. Whether a function scores shows when it has run.
            window: frames of a camera that are asked about at once.

        Raises:
            RequestInvalid: names what there is.
        """
        named = self.bundle.manifest.default_selector if selector is None else selector
        scores = named in SCORING if isinstance(named, str) else None
        check_way(way_of(encode), self.processor.ways, scores=scores, window=window)

    def _lacks(self, name: str) -> str:
        """Say what a selector needs that this bundle has not; "" where that is nothing."""
        needs = SELECTORS[name].needs
        if "scorer" in needs and not self.bundle.manifest.scorer.trained:
            return (
                f"The selector {name!r} needs a trained scorer, and this bundle was exported "
                "without one. Train it with `tokprune-train MODEL DATA.jsonl scorer.safetensors`, "
                "then `tokprune-export MODEL OUTPUT --scorer scorer.safetensors`"
            )
        if "saliency" in needs and not self.has_saliency:
            return no_saliency(f"The selector {name!r}")
        return ""


def one_question(media: Sequence[Medium], question: str, system: str | None) -> Conversation:
    """Return the conversation of one question about pictures and videos."""
    if not media:
        raise RequestInvalid("A question needs one picture or more, got an empty list")
    turn = Turn((*(Shown(index) for index in range(len(media))), question))
    return Conversation((turn,), system)


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


class Seen(NamedTuple):
    """Pictures and videos that were read, and which of a camera's they are."""

    media: tuple[Medium, ...]
    stamps: tuple[FrameStamp, ...]  # of those that a camera gave


def see(image: Pictures) -> Seen:
    """Read one or several pictures and videos. What is live is looked at now.

    Raises:
        PictureInvalid: one cannot be decoded.
        CameraUnusable: a camera has none to be asked about.
    """
    media: list[Medium] = []
    stamps: list[FrameStamp] = []
    for source in _each(image):
        shown = source.look() if isinstance(source, Live) else source
        if isinstance(shown, (Frame, Clip)) and shown.stamp is not None:
            stamps.append(shown.stamp)
        if isinstance(shown, Frame):
            shown = shown.image
        media.append(shown if isinstance(shown, Clip) else load_picture(shown))
    return Seen(tuple(media), tuple(stamps))


def any_live(image: Pictures) -> bool:
    """Tell whether one of them is a camera, or a window on one."""
    return any(isinstance(source, Live) for source in _each(image))


def _each(image: Pictures) -> Sequence[Shows]:
    several = isinstance(image, Sequence) and not isinstance(image, (str, bytes))
    return cast(Sequence[Shows], image if several else [image])


def _apart(prepared: Prepared, media: Sequence[Medium]) -> Prepared:
    """Encode a camera's frames in calls of their own: the vision cache knows those of before."""
    medium = media[prepared.regions[0].picture]
    if not (isinstance(medium, Clip) and medium.stamp is not None):
        return prepared
    return apart(prepared)
