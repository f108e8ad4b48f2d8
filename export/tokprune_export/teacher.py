"""A checkpoint as training sees it: prompts as the device lays them out, answers in torch."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tokprune.families import Processor
from tokprune.files import sha256_file
from tokprune.loading import open_tokenizer
from tokprune.manifest import Chat, Tokens
from tokprune.prompting import Conversation, Shown, Turn, build_prompt
from tokprune.types import Prepared, Prompt, VisionTokens
from tokprune_export.chat_template import Template, compile_chat
from tokprune_export.checkpoint import Checkpoint, open_processor
from tokprune_export.decoder import TextModel
from tokprune_export.errors import placed
from tokprune_export.examples import Example
from tokprune_export.families import FAMILIES
from tokprune_export.media import Source, load
from tokprune_export.records import tokens

MEDIA_IN_MEMORY = 64  # as vision tokens


@dataclass(frozen=True)
class Teacher:
    """A checkpoint that explains its own answers. Prompts are made as the device makes them."""

    text: TextModel
    encoder: nn.Module
    processor: Processor
    tokenizer: Any
    chat: Chat
    tokens: Tokens
    device: torch.device


class Asked(NamedTuple):
    """A question as the LLM gets it, and its answer."""

    prompt: Prompt
    vision: VisionTokens
    text: str  # the known answer
    answer: Int64[Tensor, " m"]  # its token ids, the end not included


def open_teacher(checkpoint: Checkpoint, device: torch.device) -> Teacher:
    """Load a checkpoint with frozen weights in float32."""
    family = FAMILIES[checkpoint.family]
    family.check(checkpoint.config)
    processor = open_processor(checkpoint.family, checkpoint.texts)
    model = family.load(checkpoint.folder, None).to(device)
    chat = compile_chat(checkpoint.texts, Template(checkpoint.texts))
    return Teacher(
        text=family.text(model),
        encoder=family.vision(model).module.to(device),
        processor=processor,
        tokenizer=open_tokenizer(checkpoint.texts),
        chat=chat,
        tokens=tokens(checkpoint, chat),
        device=device,
    )


def open_text(checkpoint: Checkpoint, device: torch.device) -> TextModel:
    """Load a checkpoint's LLM alone, with frozen weights in float32."""
    family = FAMILIES[checkpoint.family]
    family.check(checkpoint.config)
    return family.text(family.load(checkpoint.folder, None).to(device))


def fingerprint(checkpoint: Checkpoint) -> str:
    """Hash all that decides what a checkpoint answers: weights, configuration and tokenizer."""
    digest = hashlib.sha256()
    for path in [*checkpoint.text_files, *checkpoint.weight_files]:
        name = path.name if path.parent == checkpoint.texts else path.relative_to(checkpoint.folder)
        digest.update(f"{name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


@torch.no_grad()
def ask_all(teacher: Teacher, examples: Sequence[Example]) -> Iterator[Asked]:
    """Encode pictures and videos and lay out prompts.

    Each is encoded once as long as it stays in memory.

    Raises:
        PictureInvalid, RequestInvalid: this checkpoint cannot be asked an example; says which.
    """

    @lru_cache(maxsize=MEDIA_IN_MEMORY)
    def encoded(media: tuple[Source, ...]) -> tuple[tuple[Prepared, ...], VisionTokens]:
        prepared = prepare(teacher, media)
        vision = encode(teacher, prepared)
        return tuple(replace(each, calls=()) for each in prepared), vision  # pixels are large

    for example in examples:
        with placed(example.place):
            prepared, vision = encoded(example.media)
            prompt = lay_out(teacher, prepared, example.question)
        ids = teacher.tokenizer.encode(example.answer.strip(), add_special_tokens=False).ids
        yield Asked(prompt, vision, example.answer, torch.tensor(ids, dtype=torch.int64))


def check_video(teacher: Teacher, examples: Iterable[Example]) -> None:
    """See that the checkpoint takes a video, if there is one.

    Raises:
        RequestInvalid: it does not; says which example has it.
    """
    for example in examples:
        if example.modality == "video":
            with placed(example.place):
                lay_out(teacher, prepare(teacher, example.media), example.question)
            return


def prepare(teacher: Teacher, media: Iterable[Source]) -> tuple[Prepared, ...]:
    """Decode pictures and videos, and cut them as the device does."""
    return teacher.processor.prepare([load(source) for source in media])


def lay_out(teacher: Teacher, prepared: Sequence[Prepared], question: str) -> Prompt:
    """Make the prompt that the device makes."""
    content = (*(Shown(index) for index in range(len(prepared))), question)
    return build_prompt(
        Conversation((Turn(content),)),
        prepared,
        teacher.chat,
        teacher.tokens,
        teacher.tokenizer,
        teacher.processor,
    )


def encode(teacher: Teacher, prepared: Sequence[Prepared]) -> VisionTokens:
    """Run the vision encoder on all pictures and videos of a prompt."""
    embeds = []
    for shown in prepared:
        outputs = [
            teacher.encoder(**{k: torch.from_numpy(v).to(teacher.device) for k, v in call.items()})
            for call in shown.calls
        ]
        embeds.append(shown.pack([output.cpu().numpy() for output in outputs]))
    return VisionTokens(
        embeds=np.concatenate(embeds),
        where=np.concatenate([shown.where for shown in prepared]),
        regions=tuple(region for shown in prepared for region in shown.regions),
    )


@torch.no_grad()
def greedy(
    teacher: Teacher, prompt: Prompt, vision: VisionTokens, most: int
) -> Int64[Tensor, " m"] | None:
    """Return the greedy answer's ids, its end not included, or None if it has more than `most`."""
    from transformers import DynamicCache

    table = teacher.text.embeddings
    embeds: Float[Tensor, "s d"] = table[torch.from_numpy(prompt.ids).to(table.device)]
    embeds[prompt.slots] = torch.from_numpy(vision.embeds).to(embeds)
    positions = torch.from_numpy(prompt.positions).to(table.device)
    cache = DynamicCache(config=teacher.text.model.config)
    ids: list[int] = []
    while len(ids) <= most:
        hidden = teacher.text.model(
            inputs_embeds=embeds[None],
            position_ids=teacher.text.position_ids(positions[:, None]),
            past_key_values=cache,
        ).last_hidden_state
        token = int(teacher.text.head(hidden[:, -1]).argmax())
        if token in teacher.tokens.eos:
            return torch.tensor(ids, dtype=torch.int64)
        embeds = table[[token]]
        positions = torch.full((len(positions), 1), prompt.next_position + len(ids)).to(positions)
        ids.append(token)
    return None
