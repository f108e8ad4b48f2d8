"""Tokenizer of the demo VLMs with a Qwen2 inside, and the text that tokenizers learn from."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from checkpoint import write_json
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tokprune.scenes import ask, describe, in_picture, make_companion, make_scene
from tokprune.scenes.questions import MAKERS, NUMBERS, compare

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"),
    *("<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
VOCABULARY = 660  # bytes and merges, without the special tokens

# Qwen2's pattern, but capital letters stand alone like digits: words in pictures are spelled.
PATTERN = (
    r"\p{Lu}|\p{N}|[^\r\n\p{L}\p{N}]?[\p{Ll}\p{Lo}\p{Lm}\p{Lt}]+"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The form of Qwen2-VL's template, without its default system prompt.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SYSTEM_PROMPTS = (
    "you are a helpful assistant.",
    "answer in one word.",
    "answer the question about the picture.",
    "you are a robot. look at the picture and answer.",
    "be short and exact.",
    "you see what the camera of a robot sees.",
)

# Words of later work (video, forms, charts, documents), so that the tokenizer need not change.
LATER_TEXT = """
moving moves moved left right up down before after first second third last next previous still
appeared appears disappeared changed turned rotated clockwise counterclockwise faster slower grew
shrank same different direction frame video picture pictures image start end began stopped when
did does which what who how many much is are was were the a an in on of to from between both
name price total date row column bar highest lowest value label chart form table field line word
letter text read written says number sum difference more less fewer most least larger smaller
longer shorter title page document key amount item month year day time percent axis legend sign
door button screen box arm gripper robot hand open closed near far touch touching inside outside
behind front top bottom middle center yes no none nothing not and or with without than left-most
right-most any all each other another one of them it its that this there here you are helpful
assistant user system describe compare count find point corner edge background stripes digit
"""
LATER_WORDS = tuple(LATER_TEXT.split())
SPOKEN = tuple(kind for kind in MAKERS if kind != "text")  # a change would change the tokenizer


def build_tokenizer(
    special: Sequence[str], template: str, seed: int = 0
) -> PreTrainedTokenizerFast:
    """Train the tokenizer on drawn questions and answers; always the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=3,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(Random(f"tokenizer/{seed}")), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(special),
        model_max_length=4096,
    )
    fast.chat_template = template
    return fast


def corpus(rng: Random) -> list[str]:
    """Questions, answers and words, as often as they shall count."""
    texts: list[str] = []
    for _ in range(1500):
        scene = make_scene(rng, *rng.choice(((4, 4), (8, 8), (14, 14))))
        questions = [*ask(rng, scene, SPOKEN, 9), describe(scene)]
        questions += [in_picture(q, rng.randrange(3)) for q in questions[:2]]
        pair = compare(rng, (scene, make_companion(rng, scene)))
        for question in [*questions, *([pair] if pair else [])]:
            texts += [question.text, question.answer]
    texts += [f" {word}" for word in (*LATER_WORDS, *NUMBERS)] * 20
    texts += [*LATER_WORDS, *NUMBERS, "first", "second", "third"] * 6
    texts += ["user\n", "assistant\n", "system\n", *SYSTEM_PROMPTS] * 100
    return texts


def simplify(path: Path, processor: str) -> None:
    """Drop what is not about the tokenizer, and name the class that every version knows."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only", "backend"):
        config.pop(key, None)
    special = config.pop("extra_special_tokens", None)
    if special:
        config["additional_special_tokens"] = special
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["processor_class"] = processor
    write_json(path, config)


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> dict[str, int]:
    """The ids of tokens."""
    found: dict[str, int] = {}
    for text in texts:
        ids = tokenizer.convert_tokens_to_ids(text)
        assert isinstance(ids, int)  # one token, one id
        found[text] = ids
    return found
