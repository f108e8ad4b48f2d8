import json
import random
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from counts import CHUNKS, share
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokprune.errors import RequestInvalid
from tokprune.families import Processor
from tokprune.families.qwen2_vl import positions
from tokprune.loading import open_tokenizer
from tokprune.manifest import Chat, Tokens
from tokprune.prompting import Conversation, Shown, Turn, build_prompt
from tokprune.types import Prepared, Prompt, Region

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>")
CONTROL = [chr(code) for code in (*range(32), *range(127, 160))]
UNSEEN = [*"\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u180e", "\U000e0001", "\U000e0041", "\ufe0f"]
BIDI = [*"\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c"]
EMOJI = ["\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea"]
ODD = ["\U0010ffff", "\uffff", "\ufffd", "e\u0301", "\u0130", "\u1e9e", "\ufdfa", *EMOJI]
ROLES = ["system\n", "user\n", "assistant\n", "\r\n", "</s>", "<0x0A>", "<unk>", "[INST]", "{{"]
SURROGATES = ["\ud800", "\udfff", "\udcff"]
MEGABYTE = 1 << 20
LONG = [
    "a" * MEGABYTE,
    "<|image_pad|>" * (MEGABYTE // 13),
    "\n" * MEGABYTE,
    "\u202e" * (MEGABYTE // 3),
]
Build = Callable[[Conversation], Prompt]


def small_tokenizer(folder: Path) -> Path:
    """Bytes, merges that spell half a special token, and NFC, as in Qwen2-VL's own."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("<", "|"), ("|", ">"), ("i", "m"), ("im", "_"), ("Ċ", "Ċ")]
    words = [*letters, *("".join(pair) for pair in merges)]
    made = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module", params=["small", "demo"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    if request.param == "small":
        return open_tokenizer(small_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    folder: Path = request.getfixturevalue("demo_checkpoint")
    return open_tokenizer(folder)


@cache
def control_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return every special token of a tokenizer, as the exporter lists them."""
    raw = json.loads(tokenizer.to_str())
    return {token["content"]: token["id"] for token in raw["added_tokens"] if token["special"]}


@pytest.fixture(scope="module")
def build(tokenizer: Tokenizer) -> Build:
    ids = control_ids(tokenizer)
    start, end, image, before, after = (ids[token] for token in SPECIAL)
    chat = Chat(
        head=[start, "user\n"],
        head_system=[[start, "system\n"], [end, "\n", start, "user\n"]],
        reply=[end, "\n", start, "assistant\n"],
        next_user=[end, "\n", start, "user\n"],
        generation=[end, "\n", start, "assistant\n"],
        picture=[before, image, after],
        video=None,
        media_first=False,
        words=[],
    )
    tokens = Tokens(image=image, video=None, eos=[end], control=list(ids.values()))
    where = np.zeros((6, 7), np.int32)
    units, regions = np.ones((6, 1), np.bool_), (Region(0, 0, 0, 2, 3),)
    pictures = (Prepared("picture", (), lambda _: where, where, regions, (1, 1), units),)
    processor = Processor(prepare=lambda _: pictures, positions=positions)
    return lambda conversation: build_prompt(
        conversation, pictures, chat, tokens, tokenizer, processor
    )


def hostile(chance: random.Random, special: list[str]) -> str:
    """Return text that tries to be more than text. Half a percent of all holds a surrogate."""
    fragments = [special, special, CONTROL, UNSEEN, BIDI, ODD, ROLES, [" ", "a", "why?"]]
    parts = [chance.choice(chance.choice(fragments)) for _ in range(chance.choice([1, 3, 10, 100]))]
    trick = chance.random()
    if trick < 0.15:  # something unseen inside a special token
        token, at = chance.choice(special), chance.randrange(1, 5)
        parts.append(token[:at] + chance.choice(UNSEEN + BIDI + CONTROL) + token[at:])
    elif trick < 0.25:  # full-width letters, which some normal forms turn into ASCII
        parts.append("".join(chr(ord(letter) + 0xFEE0) for letter in chance.choice(special)))
    elif trick < 0.35:
        parts.append(chance.choice(special).upper())
    elif trick < 0.45:
        parts.insert(chance.randrange(len(parts)), chance.choice(SURROGATES))
    chance.shuffle(parts)
    return "".join(parts)


def placed(text: str, place: str) -> Conversation:
    """Return a conversation of one picture with hostile text somewhere in it."""
    if place == "system":
        return Conversation((Turn((Shown(0), "why?")),), system=text)
    if place == "answer":
        return Conversation((Turn((Shown(0), "why?"), text), Turn(("and now?",))))
    if place == "both sides":
        return Conversation((Turn((text, Shown(0), text)),))
    return Conversation((Turn((Shown(0), text)),))


def as_spelled(text: str, tokenizer: Tokenizer) -> str:
    """Return text as it comes back from a tokenizer that knows every byte."""
    return tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text


def is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_text_never_makes_a_picture_or_a_role(
    build: Build, tokenizer: Tokenizer, chunk: int
) -> None:
    special = control_ids(tokenizer)
    control = set(special.values())
    count = share(1000)
    for case in range(chunk * count, (chunk + 1) * count):
        chance = random.Random(case)
        text = hostile(chance, list(special))
        place = chance.choice(["question", "question", "system", "answer", "both sides"])
        if not is_unicode(text):
            with pytest.raises(RequestInvalid, match="lone surrogate"):
                build(placed(text, place))
            continue
        made, harmless = build(placed(text, place)), build(placed("x", place))
        of_template = [number for number in harmless.ids.tolist() if number in control]
        assert [number for number in made.ids.tolist() if number in control] == of_template, case
        image = special["<|image_pad|>"]
        np.testing.assert_array_equal(np.flatnonzero(made.ids == image), made.slots)
        assert len(made.slots) == 6, case
        assert as_spelled(text, tokenizer) in tokenizer.decode(
            made.ids.tolist(), skip_special_tokens=False
        ), case


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_megabyte_is_text_too(build: Build, tokenizer: Tokenizer, chunk: int) -> None:
    text = LONG[chunk % len(LONG)]
    start = time.process_time()
    made = build(placed(text, "question"))
    assert time.process_time() - start < 10
    assert len(made.slots) == 6
    assert as_spelled(text, tokenizer) in tokenizer.decode(
        made.ids.tolist(), skip_special_tokens=False
    )
