"""How VILA1.5 talks, as chat templates. Follows Conversation.get_prompt and tokenizer_image_token.

A prompt is cut at `<image>`, which is no token, and every part is tokenised as if it stood alone:
Llama's tokenizer puts a space before each. The template spells that space out. `<image>` becomes a
token that no prompt can hold, such as `<unk>`: it only marks rows that vision tokens fill.
"""

import json
from typing import NamedTuple

from tokenizers import Tokenizer


class Conversation(NamedTuple):
    """How what is said is framed."""

    system: str  # what the system says where nobody says otherwise
    head: tuple[str, str]  # around it
    user: str  # before what the user says
    reply: str  # after it
    answer: tuple[str, str]  # around an earlier answer
    stops: tuple[str, ...]  # tokens that end an answer


VICUNA = Conversation(
    system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    head=("", " "),
    user="USER: ",
    reply=" ASSISTANT:",
    answer=(" ", "</s>"),
    stops=("</s>",),
)
LLAMA_3 = Conversation(
    system="You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language.",
    head=("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
    user="<|start_header_id|>user<|end_header_id|>\n\n",
    reply="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    answer=("", "<|eot_id|>"),
    stops=("<|eot_id|>", "<|end_of_text|>"),
)
HERMES_2 = Conversation(
    system="Answer the questions.",
    head=("<|im_start|>system\n", "<|im_end|>"),
    user="<|im_start|>user\n",
    reply="<|im_end|><|im_start|>assistant\n",
    answer=("", "<|im_end|>"),
    stops=("<|im_end|>",),
)
# What a checkpoint was trained with stands in none of its files: VILA goes by the name.
NAMES = {
    "vila1.5-3b": VICUNA,
    "vila1.5-8b": LLAMA_3,
    "vila1.5-13b": VICUNA,
    "vila1.5-40b": HERMES_2,
    "llama-3": LLAMA_3,
    "llama3": LLAMA_3,
}
OTHERWISE = (LLAMA_3, HERMES_2, VICUNA)  # of other names: the first whose tokens are all there


class Words(NamedTuple):
    """The tokenizer, and what it does to a text that stands alone."""

    tokenizer: Tokenizer
    special: dict[str, int]
    bos: str  # put before the whole prompt, or nothing
    space: str  # put before every part


def chat_template(conversation: Conversation, words: Words, placeholder: str) -> str:
    """Return the conversation as a chat template.

    A newline follows each picture. VILA loses it, with the first token of each part, where the
    tokenizer adds no bos and the prompt starts with one: the first part's then counts as added.
    """
    before, after = conversation.head
    starts_special = any(before.startswith(token) for token in words.special)
    lost = not words.bos and before.startswith("<|begin_of_text|>")
    start = words.bos + ("" if starts_special else words.space) + before
    picture = placeholder + ("" if lost else f"{words.space}\n")
    said = (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{_say(picture)}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}"
        "{% else %}{{ raise_exception('give the frames of a video as pictures') }}"
        "{% endif %}{% endfor %}{% endif %}"
    )
    return (
        f"{_say(start)}{{% if messages[0]['role'] == 'system' %}}{{{{ messages[0]['content'] }}}}"
        f"{{% else %}}{_say(conversation.system)}{{% endif %}}{_say(after)}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f"{_say(conversation.user)}{said}"
        f"{{% if add_generation_prompt or not loop.last %}}{_say(conversation.reply)}{{% endif %}}"
        "{% elif message['role'] == 'assistant' %}"
        f"{_say(conversation.answer[0])}{said}{_say(conversation.answer[1])}"
        "{% endif %}{% endfor %}"
    )


def _say(text: str) -> str:
    """Return text as a Jinja expression, so that no line break of it is trimmed."""
    return f"{{{{ {json.dumps(text)} }}}}" if text else ""
