"""VILA1.5's text files: tokenizer and conversations against sentencepiece and VILA's own rules."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from vila_checkpoint import TEXT, change, renamed, write_tokenizer, write_vila_checkpoint

from tokprune.families import FAMILIES
from tokprune.llm import Token
from tokprune.loading import open_tokenizer
from tokprune.manifest import Chat, Tokens
from tokprune.pipeline import Flow
from tokprune.prompting import Conversation, Shown, Turn, build_prompt
from tokprune.running.request import Options
from tokprune.running.writing import write
from tokprune.stopwatch import Stopwatch
from tokprune.types import Prepared, Prompt, Region, Selection, VisionTokens
from tokprune_export.chat_template import Template, compile_chat, verify_chat
from tokprune_export.checkpoint import Checkpoint, open_checkpoint
from tokprune_export.errors import ExportRefused
from tokprune_export.records import tokens

pytestmark = pytest.mark.torch
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vila") / "VILA1.5-3b"
    write_vila_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def pieces(folder: Path) -> Any:
    """The sentencepiece model itself."""
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(folder / "llm" / "tokenizer.model"))


def chunks(pieces: Any, text: str) -> list[list[int]]:
    """One bos, and every part between pictures as if it stood alone, as VILA has it."""
    first, *others = [pieces.encode(part) for part in text.split("<image>")]
    return [[pieces.bos_id(), *first], *others]


@dataclass(frozen=True)
class Talk:
    """What lays out prompts."""

    checkpoint: Checkpoint
    chat: Chat
    tokens: Tokens
    tokenizer: Tokenizer

    def ids(self, *turns: Sequence[str | int]) -> list[int]:
        """Ids of a conversation; each picture in it (a number) is one vision token."""
        return self.prompt(*turns).ids.tolist()

    def prompt(self, *turns: Sequence[str | int]) -> Prompt:
        """Turns are what a user says, and between them the answers."""
        media: list[Prepared] = []
        said: list[Turn] = []
        for number, turn in enumerate(turns):
            if number % 2:
                said[-1] = Turn(said[-1].content, str(turn[0]))
                continue
            content: list[str | Shown] = []
            for part in turn:
                if isinstance(part, str):
                    content.append(part)
                    continue
                content.append(Shown(len(media)))
                media.append(one_token(len(media)))
            said.append(Turn(tuple(content)))
        processor = FAMILIES["vila"].open(self.checkpoint.texts)
        conversation = Conversation(tuple(said))
        return build_prompt(conversation, media, self.chat, self.tokens, self.tokenizer, processor)


def one_token(index: int) -> Prepared:
    where = np.zeros((1, 7), np.int32)
    where[:, 0] = index
    units, regions = np.ones((1, 1), np.bool_), (Region(index, 0, 0, 1, 1),)
    return Prepared("picture", (), lambda x: x[0], where, regions, (1, 1), units)


def talk(folder: Path) -> Talk:
    """Open a checkpoint and compile its template, verified against transformers."""
    checkpoint = open_checkpoint(str(folder))
    template = Template(checkpoint.texts)
    chat = compile_chat(checkpoint.texts, template)
    known = tokens(checkpoint, chat)
    assert verify_chat(checkpoint.texts, template, chat, known, "vila") >= 30
    return Talk(checkpoint, chat, known, open_tokenizer(checkpoint.texts))


@pytest.fixture(scope="module")
def vicuna(folder: Path) -> Talk:
    return talk(folder)


def sentences(count: int) -> Iterator[str]:
    """Words, digits, spaces and characters that no tokenizer has learnt, in any order."""
    rng = np.random.default_rng(0)
    words = TEXT.read_text(encoding="utf-8").split()
    odd = "\n \t  \u00a0\u2581\u3000é\u00dfЖ中ﬁ\U0001f600\u200d,.;:!?'\"()[]{}<>|/\\_-+=*&%$#@~^"
    special = ["<s>", "</s>", "<unk>", "<0x41>", "1234567", "   ", "\n\n\n", "aaaaaaa", "\r\n"]
    for _ in range(count):
        parts = []
        for _ in range(rng.integers(1, 12)):
            kind = rng.integers(6)
            if kind < 3:
                parts.append(words[rng.integers(len(words))] + " " * int(rng.integers(3)))
            elif kind == 3:
                parts.append("".join(odd[i] for i in rng.integers(0, len(odd), 4)))
            elif kind == 4:
                parts.append(special[rng.integers(len(special))])
            else:
                parts.append(chr(int(rng.integers(33, 0xD7FF))))
        yield "".join(parts)


def test_ids_equal_sentencepiece_on_1000_prompts_with_0_to_3_pictures(
    vicuna: Talk, pieces: Any
) -> None:
    rng = np.random.default_rng(1)
    texts = list(sentences(1000))
    for number, text in enumerate(texts):
        places = sorted(rng.integers(0, len(text) + 1, number % 4).tolist())
        bounds = [0, *places, len(text)]
        parts: list[str | int] = []
        said = ""
        for start, end in pairwise(bounds):
            parts += [text[start:end], 0]
            said += text[start:end] + "<image>\n"
        said = said.removesuffix("<image>\n")
        given = chunks(pieces, f"{SYSTEM} USER: {said} ASSISTANT:")
        oracle = [id_ for chunk in given for id_ in (vicuna.tokens.image, *chunk)][1:]
        assert vicuna.ids([part for part in parts[:-1] if part != ""]) == oracle, repr(said)


def test_later_turns_follow_the_end_token_without_a_space(
    folder: Path, vicuna: Talk, pieces: Any
) -> None:
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2
    data = (folder / "llm" / "tokenizer.model").read_bytes()
    model = messages.ModelProto.FromString(data)
    model.normalizer_spec.add_dummy_prefix = False
    plain = SentencePieceProcessor(model_proto=model.SerializeToString())
    first, second = chunks(pieces, f"{SYSTEM} USER: <image>\nWho? ASSISTANT: A cup.")
    oracle = [*first, 0, *second, 2, *plain.encode("USER: And now? ASSISTANT:")]
    assert vicuna.ids([0, "Who?"], ["A cup."], ["And now?"]) == oracle


def test_ids_without_pictures_equal_transformers_own_tokenizer(folder: Path, vicuna: Talk) -> None:
    from transformers import LlamaTokenizer

    theirs = LlamaTokenizer.from_pretrained(folder / "llm", legacy=False)
    for text in ("What is this?", " 3 x 4\n\n", "emoji \U0001f600, Ça va?"):
        prompt = f"{SYSTEM} USER: {text} ASSISTANT: Yes.</s>USER: {text} ASSISTANT:"
        assert vicuna.ids([text], ["Yes."], [text]) == theirs(prompt)["input_ids"]


def test_every_byte_of_a_question_counts_as_the_users_words(vicuna: Talk) -> None:
    question = "\u8fd9\u662f \U0001f469\u200d\U0001f680 this 12?"
    prompt = vicuna.prompt([0, question])
    asked = vicuna.tokenizer.decode(prompt.ids[prompt.words].tolist())
    assert asked.strip() == question


LLAMA_3_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA_3_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]


def llama_3(folder: Path, *, begins: bool) -> Any:
    """Give a checkpoint a tokenizer of Llama 3's kind and return it as transformers opens it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=LLAMA_3_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(TEXT)], trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
        )
    (folder / "llm" / "tokenizer.model").unlink()
    tokenizer.save(str(folder / "llm" / "tokenizer.json"))
    settings = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "llm" / "tokenizer_config.json").write_text(json.dumps(settings))
    change(folder / "llm" / "generation_config.json", eos_token_id=1)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin_of_text|>")


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("name", ["Llama-3-VILA1.5-8B", "my-vila"])
def test_llama_3_talks_as_vila_lets_it(
    folder: Path, tmp_path: Path, name: str, *, begins: bool
) -> None:
    copy = renamed(folder, tmp_path, name)
    tokenizer = llama_3(copy, begins=begins)
    ours = talk(copy)
    assert ours.tokens.eos == [1, 5]
    text = (
        f"<|begin_of_text|>{HEADER.format('system')}{LLAMA_3_SYSTEM}<|eot_id|>"
        f"{HEADER.format('user')}<image>\n<image>\nWho is it?<|eot_id|>"
        f"{HEADER.format('assistant')}A cup.<|eot_id|>{HEADER.format('user')}And now?<|eot_id|>"
        f"{HEADER.format('assistant')}"
    )
    chunks = [tokenizer(chunk).input_ids for chunk in text.split("<image>")]
    # VILA drops the first id of every chunk where the first chunk starts with bos
    oracle = [chunks[0][0]]
    for number, chunk in enumerate(chunks):
        oracle += [2] * (number > 0) + chunk[1:]
    assert ours.ids([0, 0, "Who is it?"], ["A cup."], ["And now?"]) == oracle
    assert oracle[:2] == [0, 0] if begins else [0, 3]


def test_hermes_starts_with_its_own_token_and_no_space(folder: Path, tmp_path: Path) -> None:
    copy = renamed(folder, tmp_path, "hermes")
    path = copy / "llm" / "tokenizer_config.json"
    added = json.loads(path.read_text())["added_tokens_decoder"]
    added |= {"500": {"content": "<|im_start|>"}, "501": {"content": "<|im_end|>"}}
    change(path, added_tokens_decoder=added, add_bos_token=False)
    change(copy / "llm" / "config.json", vocab_size=502)
    ours = talk(copy)
    assert ours.tokens.eos == [2, 501]
    encode = ours.tokenizer.encode
    frame = [500, *encode("system\nAnswer the questions.").ids, 501]
    asked = [500, *encode("user\n").ids, 0, *encode(" \nWho?").ids, 501]
    assert ours.ids([0, "Who?"]) == [*frame, *asked, 500, *encode("assistant\n").ids]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Llama-3-VILA1.5-8B", r"should talk as vila1\.5-8b does, but .* no token '<\|eot_id\|>'"),
        ("vila1.5-40b", r"no token '<\|im_end\|>': rename the folder"),
    ],
)
def test_a_name_that_does_not_fit_the_tokenizer_is_refused(
    folder: Path, tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(ExportRefused, match=message):
        open_checkpoint(str(renamed(folder, tmp_path, name)))


def test_other_names_talk_as_their_tokens_allow(folder: Path, tmp_path: Path, vicuna: Talk) -> None:
    other = talk(renamed(folder, tmp_path, "my-robot"))
    assert other.chat == vicuna.chat


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "config.json",
            {"architectures": ["LlavaLlamaForCausalLM"]},
            "only LlavaLlamaModel can be",
        ),
        ("llm/config.json", {"architectures": ["Qwen2ForCausalLM"]}, "only those with LlamaFor"),
        ("vision_tower/config.json", {"architectures": ["InternVisionModel"]}, "SiglipVisionModel"),
        ("llm/config.json", {"quantization_config": {}}, "is quantised already"),
        ("llm/config.json", {"hidden_size": None}, "lacks hidden_size of the language half"),
        ("vision_tower/preprocessor_config.json", {"do_resize": False}, "switches off do_resize"),
        ("vision_tower/preprocessor_config.json", {"size": {}}, "expected height and width 70"),
        ("llm/tokenizer_config.json", {"added_tokens_decoder": {"7": {}}}, "cannot be read"),
        (
            "llm/tokenizer_config.json",
            {"added_tokens_decoder": {"7": {"content": "<s>"}}},
            "gives the token '<s>' the id 7, where the tokenizer has 1",
        ),
    ],
)
def test_a_part_that_is_not_vilas_is_refused(
    folder: Path, tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    copy = renamed(folder, tmp_path, "vila")
    change(copy / file, **changes)
    with pytest.raises(ExportRefused, match=message):
        open_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "unigram"}, "has unigrams: only sentencepiece models of Llama's kind"),
        ({"byte_fallback": False}, "has no byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "a table of normal forms"),
        ({"remove_extra_whitespaces": True}, "extra spaces removed"),
        ({"user_defined_symbols": "<im>"}, "pieces of unknown types"),
    ],
)
def test_sentencepiece_models_of_other_kinds_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    copy = renamed(folder, tmp_path, "vila")
    for path in (copy / "llm").glob("tokenizer*"):
        path.unlink()
    write_tokenizer(copy / "llm", **changes)
    with pytest.raises(ExportRefused, match=message):
        open_checkpoint(str(copy))


@pytest.mark.parametrize("data", [b"", b"\x0a\xff", b"no model at all" * 9])
def test_a_damaged_sentencepiece_model_is_refused(
    folder: Path, tmp_path: Path, data: bytes
) -> None:
    copy = renamed(folder, tmp_path, "vila")
    (copy / "llm" / "tokenizer.model").write_bytes(data)
    with pytest.raises(ExportRefused, match=r"tokenizer\.model (is no sentencepiece|has unigrams)"):
        open_checkpoint(str(copy))


def test_a_null_bos_is_none(folder: Path, tmp_path: Path) -> None:
    copy = renamed(folder, tmp_path, "vila")
    change(copy / "llm" / "tokenizer_config.json", bos_token=None)
    assert talk(copy).chat.head[0] == f" {SYSTEM} USER: "


def test_a_checkpoint_of_the_hub_comes_with_its_parts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub.utils import filter_repo_objects

    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    files += ["pytorch_model.bin", "llm/consolidated.pt", "model.safetensors"]
    fetched: list[str] = []

    def snapshot_download(local_dir: Path, allow_patterns: list[str], **_: Any) -> None:
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            fetched.append(file)
            (local_dir / file).parent.mkdir(parents=True, exist_ok=True)
            (local_dir / file).write_bytes((folder / file).read_bytes())

    class Api:
        def model_info(self, *_: Any, **__: Any) -> Any:
            return type("Info", (), {"siblings": []})

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "HfApi", Api)
    found = open_checkpoint("Efficient-Large-Model/VILA1.5-3b", "0" * 40)
    assert sorted(fetched) == files[:-3]
    assert found.shapes == open_checkpoint(str(folder)).shapes
    assert {path.name for path in found.text_files} >= {"config.json", "tokenizer.json"}


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [
        ("F0 9F 98 80 F0 9F 91 8D", "\U0001f600\U0001f44d cup"),
        ("4C F0 9F", "\ufffd\ufffd\ufffd cup"),  # what was an L is part of what is no character
    ],
)
def test_answers_of_single_bytes_end_with_what_they_say(
    vicuna: Talk, bytes_: str, text: str
) -> None:
    ids = [vicuna.tokenizer.token_to_id(f"<0x{byte}>") for byte in bytes_.split()]
    ids += vicuna.tokenizer.encode(" cup").ids
    shown = one_token(0)
    vision = VisionTokens(np.zeros((1, 4), np.float32), shown.where, shown.regions)
    kept = Selection(np.arange(1), 1, None, None, "all")
    said = iter([*(Token(each) for each in ids), Token(None, "stop")])
    pieces: list[str] = []
    flow = Flow((), vision, kept, said)
    written = write(flow, vicuna.tokenizer, Stopwatch(), Options(), pieces.append)
    assert written.text == text
    assert "\ufffd" in text or "".join(pieces) == text
