import json
from pathlib import Path
from shutil import copytree

import pytest

from tokprune.loading import open_tokenizer
from tokprune.manifest import Tokens
from tokprune_export.chat_template import Template, compile_chat, special_ids, verify_chat
from tokprune_export.errors import ExportRefused

pytestmark = pytest.mark.torch

QWEN2_VL = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture "
    "{{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + QWEN2_VL
)
TRIMS = QWEN2_VL.replace("content['text']", "content['text'] | trim")
COUNTS = QWEN2_VL.replace("{% if add_vision_id %}", "{% if true %}")


@pytest.fixture
def folder(demo_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(copytree(demo_checkpoint, tmp_path / "model"))


def with_template(folder: Path, template: str) -> tuple[Path, Template, Tokens]:
    (folder / "chat_template.jinja").write_text(template)
    special = special_ids(open_tokenizer(folder))
    image, video, end = (special[f"<|{x}|>"] for x in ("image_pad", "video_pad", "im_end"))
    tokens = Tokens(image, video, [end], sorted(special.values()))
    return folder, Template(folder), tokens


def test_the_demo_template_compiles_and_agrees_on_over_30_conversations(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    folder, opened, tokens = with_template(folder, template)
    chat = compile_chat(folder, opened)
    assert chat.picture.count(tokens.image) == 1
    assert verify_chat(folder, opened, chat, tokens, "qwen2_vl") >= 30


def test_a_default_system_message_is_part_of_the_head(folder: Path) -> None:
    folder, opened, tokens = with_template(folder, QWEN2_VL)
    chat = compile_chat(folder, opened)
    start, end = (special_ids(open_tokenizer(folder))[f"<|im_{x}|>"] for x in ("start", "end"))
    greeting = "system\nYou are a helpful assistant."
    assert chat.head == [start, greeting, end, "\n", start, "user\n"]
    assert chat.head_system == [[start, "system\n"], [end, "\n", start, "user\n"]]
    assert chat.reply == [end, "\n", start, "assistant\n"] == chat.generation
    assert chat.next_user == [end, "\n", start, "user\n"]
    verify_chat(folder, opened, chat, tokens, "qwen2_vl")


def test_a_template_without_system_messages_is_known(folder: Path) -> None:
    folder, opened, tokens = with_template(folder, NO_SYSTEM)
    chat = compile_chat(folder, opened)
    assert chat.head_system is None
    verify_chat(folder, opened, chat, tokens, "qwen2_vl")


@pytest.mark.parametrize("template", [TRIMS, COUNTS], ids=["trims", "counts pictures"])
def test_a_template_that_does_more_than_wrap_is_refused(folder: Path, template: str) -> None:
    folder, opened, tokens = with_template(folder, template)
    with pytest.raises(ExportRefused, match=r"chat template cannot be compiled: for \[\{.* gives"):
        verify_chat(folder, opened, compile_chat(folder, opened), tokens, "qwen2_vl")


def test_the_template_of_older_checkpoints_is_read(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": QWEN2_VL}))
    assert "helpful assistant" in str(compile_chat(folder, Template(folder)).head)


def test_no_template_is_an_error(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ExportRefused, match=r"has no chat template .*: add the one"):
        Template(folder)


def test_a_broken_tokenizer_is_an_error(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ExportRefused, match="has no readable tokenizer"):
        Template(folder)
