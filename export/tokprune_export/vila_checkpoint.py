"""VILA1.5's checkpoints: `llm/`, `vision_tower/` and `mm_projector/` below a config.json.

What HF keeps in standard text files is code or a sentencepiece model there. Here the files are
written. Follows load_pretrained_model and auto_set_conversation_mode of NVlabs/VILA.
"""

import json
from pathlib import Path
from shutil import copyfile
from typing import Any

from tokenizers import AddedToken, Tokenizer

from tokprune_export.errors import ExportRefused
from tokprune_export.layouts import Layout, read_json
from tokprune_export.sentencepiece_model import converted
from tokprune_export.vila_conversations import NAMES, OTHERWISE, Conversation, Words, chat_template

LLM, TOWER, PROJECTOR = "llm", "vision_tower", "mm_projector"
PICTURE_STEPS = ("do_resize", "do_rescale", "do_normalize")
ARCHITECTURES = {LLM: "LlamaForCausalLM", TOWER: "SiglipVisionModel"}


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configurations of all parts as HF would nest them.

    Raises:
        ExportRefused: a part is missing, or is none of VILA1.5.
    """
    top = read_json(folder / "config.json")
    parts = {part: read_json(folder / part / "config.json") for part in (LLM, TOWER, PROJECTOR)}
    for part, wanted in ARCHITECTURES.items():
        found = parts[part].get("architectures") or []
        if wanted not in found:
            raise ExportRefused(
                f"{folder / part} is of {' or '.join(found) or 'no named architecture'}: of VILA's "
                f"checkpoints only those with {wanted} can be exported"
            )
    return {
        **{name: value for name, value in top.items() if not name.endswith("_cfg")},
        "text_config": parts[LLM],
        "vision_config": parts[TOWER],
        "mm_projector_type": parts[PROJECTOR].get("mm_projector_type"),
    }


def write_texts(folder: Path, name: str, into: Path) -> None:
    """Write the text files of HF's format.

    Args:
        folder: the checkpoint.
        name: its folder's name or hub id, which tells the conversation.
        into: an empty folder.
    """
    config = read_config(folder)
    _check_pictures(folder / TOWER, config["vision_config"])
    words = _words(folder / LLM)
    conversation = _conversation(folder, name, words)
    eos = _eos(folder / LLM, config["text_config"], conversation, words)
    placeholder = _placeholder(folder, conversation, words, eos, config["text_config"])
    files: dict[str, Any] = {
        "config.json": {**config, "image_token_id": words.special[placeholder]},
        "generation_config.json": {"eos_token_id": eos},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json as it is
            "clean_up_tokenization_spaces": False,
            "chat_template": chat_template(conversation, words, placeholder),
            **_named_tokens(folder / LLM, words),
        },
    }
    for file, content in files.items():
        (into / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    words.tokenizer.save(str(into / "tokenizer.json"))
    copyfile(folder / TOWER / "preprocessor_config.json", into / "preprocessor_config.json")


def _check_pictures(tower: Path, config: dict[str, Any]) -> None:
    """Refuse settings of SigLIP's image processor that the numpy half does not follow."""
    settings = read_json(tower / "preprocessor_config.json")
    off = [name for name in PICTURE_STEPS if not settings.get(name, True)]
    side, size = config.get("image_size"), settings.get("size")
    if off or not isinstance(side, int) or size != {"height": side, "width": side}:
        raise ExportRefused(
            f"{tower / 'preprocessor_config.json'} has size {size} and switches off "
            f"{', '.join(off) or 'nothing'}; expected height and width {side}, all steps on"
        )


def _words(llm: Path) -> Words:
    """Open the tokenizer as VILA would: sentencepiece's if it is there."""
    settings = read_json(llm / "tokenizer_config.json")
    if (llm / "tokenizer.model").is_file():
        tokenizer = converted(llm / "tokenizer.model")
        _add_tokens(llm, settings, tokenizer)
        begins = settings.get("add_bos_token", True)
        bos = _content(settings.get("bos_token", "<s>")) if begins else ""
        return Words(tokenizer, _special(tokenizer), bos, " ")
    if not (llm / "tokenizer.json").is_file():
        raise ExportRefused(
            f"{llm} has neither tokenizer.model nor tokenizer.json: get the whole checkpoint"
        )
    try:
        tokenizer = Tokenizer.from_file(str(llm / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing more particular
        raise ExportRefused(f"{llm / 'tokenizer.json'} is no tokenizer: {error}") from None
    alone = tokenizer.encode("").tokens
    return Words(tokenizer, _special(tokenizer), "".join(alone), "")


def _add_tokens(llm: Path, settings: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Add what stands beside the sentencepiece model, under the ids that are given there."""
    for index, token in _listed_tokens(llm, settings):
        add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
        add([token])
        if tokenizer.token_to_id(token.content) != index:
            raise ExportRefused(
                f"{llm} gives the token {token.content!r} the id {index}, where the tokenizer has "
                f"{tokenizer.token_to_id(token.content)}: get the whole checkpoint"
            )


def _listed_tokens(llm: Path, settings: dict[str, Any]) -> list[tuple[int, AddedToken]]:
    """Return the tokens that are listed beside the tokenizer, by their ids."""
    try:
        listed = {int(k): v for k, v in (settings.get("added_tokens_decoder") or {}).items()}
        if (llm / "added_tokens.json").is_file():  # older files
            for content, index in read_json(llm / "added_tokens.json").items():
                listed.setdefault(int(index), {"content": content})
        return [
            (
                index,
                AddedToken(
                    token["content"],
                    special=token.get("special", True),
                    normalized=False,
                    **{flag: token.get(flag, False) for flag in ("lstrip", "rstrip")},
                ),
            )
            for index, token in sorted(listed.items())
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ExportRefused(f"{llm} lists added tokens that cannot be read: {error!r}") from None


def _special(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the special tokens by their text, in the order of their ids."""
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    return {token.content: index for index, token in added if token.special}


def _conversation(folder: Path, name: str, words: Words) -> Conversation:
    """Choose by name, as VILA does; where the name says nothing, by the tokens that are there."""
    for part, conversation in NAMES.items():
        if part in name.lower():
            missing = [token for token in conversation.stops if token not in words.special]
            if missing:
                raise ExportRefused(
                    f"{name} should talk as {part} does, but {folder / LLM} has no token "
                    f"{missing[0]!r}: rename the folder, or get the whole checkpoint"
                )
            return conversation
    for conversation in OTHERWISE:
        if all(token in words.special for token in conversation.stops):
            return conversation
    known = ", ".join(conversation.stops[0] for conversation in OTHERWISE)
    raise ExportRefused(f"{folder / LLM} has none of the tokens that end an answer: {known}")


def _eos(llm: Path, config: dict[str, Any], conversation: Conversation, words: Words) -> list[int]:
    """Return the ids that end an answer: the model's own, and the conversation's."""
    path = llm / "generation_config.json"
    given = read_json(path).get("eos_token_id") if path.is_file() else None
    given = config.get("eos_token_id") if given is None else given
    own = given if isinstance(given, list) else [given]
    stops = [words.special[token] for token in conversation.stops]
    return sorted({int(index) for index in own if index is not None} | set(stops))


def _placeholder(
    folder: Path, conversation: Conversation, words: Words, eos: list[int], config: dict[str, Any]
) -> str:
    """Return a special token that no prompt holds: the first that the template does not write."""
    written = "".join((words.bos, *conversation.head, conversation.user, conversation.reply))
    for token, index in words.special.items():
        if token not in written and index not in eos and index < config["vocab_size"]:
            return token
    raise ExportRefused(
        f"{folder / LLM} has no special token to spare, which could stand for vision tokens"
    )


def _named_tokens(llm: Path, words: Words) -> dict[str, str]:
    settings = read_json(llm / "tokenizer_config.json")
    named = {name: _content(settings.get(name)) for name in ("bos_token", "eos_token", "unk_token")}
    return {name: token for name, token in named.items() if token in words.special}


def _content(token: Any) -> str:
    """Return a token's text, which older files wrap; nothing where there is none."""
    return str((token.get("content") if isinstance(token, dict) else token) or "")


LAYOUT = Layout(
    family="vila",
    architecture="LlavaLlamaModel",
    files=(
        f"{LLM}/tokenizer_config.json",
        f"{TOWER}/preprocessor_config.json",
    ),
    parts=(LLM, TOWER, PROJECTOR),
    config=read_config,
    write_texts=write_texts,
)
