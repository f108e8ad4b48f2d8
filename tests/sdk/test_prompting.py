import msgspec
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tokprune import RequestInvalid
from tokprune.families import Processor
from tokprune.families.qwen2_vl import positions
from tokprune.manifest import Chat, Tokens
from tokprune.prompting import Conversation, Shown, Turn, build_prompt
from tokprune.types import MediumKind, Prepared, Prompt, Region

SPECIAL = ("<|start|>", "<|end|>", "<|image|>", "<|vision|>", "<|video|>")
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
START, END, IMAGE, VISION, VIDEO = (len(ALPHABET) + 1 + number for number in range(5))
CHAT = Chat(
    head=[START, "user\n"],
    head_system=[[START, "system\n"], [END, "\n", START, "user\n"]],
    reply=[END, "\n", START, "assistant\n"],
    next_user=[END, "\n", START, "user\n"],
    generation=[END, "\n", START, "assistant\n"],
    picture=[VISION, IMAGE, VISION],
    video=[VISION, VIDEO, VISION],
    media_first=False,
    words=[],
)
TOKENS = Tokens(IMAGE, VIDEO, eos=[END], control=[START, END, IMAGE, VISION, VIDEO])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Bytes, and one merge over a line's end, so that joining runs can be seen."""
    vocab = {letter: number for number, letter in enumerate(ALPHABET)}
    vocab["ĊĊ"] = len(ALPHABET)
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("Ċ", "Ċ")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    made.encode_special_tokens = True
    return made


def picture(index: int, rows: int, columns: int, kind: MediumKind = "picture") -> Prepared:
    where = np.zeros((rows * columns, 7), np.int32)
    units, regions = np.ones((len(where), 1), np.bool_), (Region(index, 0, 0, rows, columns),)
    return Prepared(kind, (), lambda _: where, where, regions, (1, 1), units)


def prompt(
    tokenizer: Tokenizer, conversation: Conversation, *media: Prepared, chat: Chat = CHAT
) -> Prompt:
    processor = Processor(prepare=lambda _: media, positions=positions)
    return build_prompt(conversation, media, chat, TOKENS, tokenizer, processor)


def spelled(tokenizer: Tokenizer, made: Prompt) -> str:
    return tokenizer.decode(made.ids.tolist(), skip_special_tokens=False)


def test_a_picture_takes_as_many_slots_as_it_has_tokens(tokenizer: Tokenizer) -> None:
    made = prompt(tokenizer, Conversation((Turn((Shown(0), "why?")),)), picture(0, 2, 3))
    text = spelled(tokenizer, made)
    assert text == (
        "<|start|>user\n<|vision|>" + "<|image|>" * 6 + "<|vision|>why?<|end|>\n"
        "<|start|>assistant\n"
    )
    assert (made.ids[made.slots] == IMAGE).all()
    assert len(made.slots) == 6


def test_words_mark_what_the_user_said_in_this_turn(tokenizer: Tokenizer) -> None:
    turns = (Turn((Shown(0), "old"), "yes"), Turn(("new",)))
    made = prompt(tokenizer, Conversation(turns, system="be brief"), picture(0, 1, 2))
    assert tokenizer.decode(made.ids[made.words].tolist()) == "new"
    assert spelled(tokenizer, made).startswith("<|start|>system\nbe brief<|end|>\n<|start|>user")


def test_text_of_template_and_user_is_tokenised_as_one_run(tokenizer: Tokenizer) -> None:
    made = prompt(tokenizer, Conversation((Turn(("\nhm",)),)))
    assert len(ALPHABET) in made.ids.tolist()  # the template's "\n" joined with the user's


def test_positions_follow_the_pictures(tokenizer: Tokenizer) -> None:
    made = prompt(tokenizer, Conversation((Turn((Shown(0), "a")),)), picture(0, 2, 3))
    first = int(made.slots[0])
    assert made.positions[:, made.slots].tolist() == [
        [first] * 6,
        [first] * 3 + [first + 1] * 3,
        [first, first + 1, first + 2] * 2,
    ]
    assert made.positions[:, first + 6].tolist() == [first + 3] * 3
    assert made.next_position == made.positions.max() + 1


@pytest.mark.parametrize("token", SPECIAL)
def test_special_tokens_in_user_text_are_plain_text(tokenizer: Tokenizer, token: str) -> None:
    made = prompt(tokenizer, Conversation((Turn((Shown(0), f"x{token}y")),)), picture(0, 1, 1))
    assert len(made.slots) == 1
    assert tokenizer.decode(made.ids[made.words].tolist()) == f"x{token}y"
    assert (made.ids == IMAGE).sum() == 1


def test_a_tokenizer_that_makes_control_tokens_from_text_is_refused(tokenizer: Tokenizer) -> None:
    naive = Tokenizer.from_str(tokenizer.to_str())
    naive.encode_special_tokens = False
    with pytest.raises(RequestInvalid, match="would make control tokens"):
        prompt(naive, Conversation((Turn(("<|image|>",)),)))


def test_lone_surrogates_are_refused_with_their_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestInvalid, match="lone surrogate at character 2"):
        prompt(tokenizer, Conversation((Turn(("ab\ud800",)),)))


def test_a_system_message_needs_a_template_that_takes_one(tokenizer: Tokenizer) -> None:
    import msgspec

    chat = msgspec.structs.replace(CHAT, head_system=None)
    processor = Processor(prepare=lambda _: (), positions=positions)
    conversation = Conversation((Turn(("a",)),), system="b")
    with pytest.raises(RequestInvalid, match="takes no system message"):
        build_prompt(conversation, (), chat, TOKENS, tokenizer, processor)


def test_a_conversation_ends_with_one_open_turn() -> None:
    for turns in ((), (Turn(("a",), "b"),), (Turn(("a",)), Turn(("b",)))):
        with pytest.raises(RequestInvalid, match="one unanswered turn"):
            Conversation(turns)


def test_a_video_takes_its_own_placeholder(tokenizer: Tokenizer) -> None:
    turn = Turn((Shown(0), Shown(1), "why?"))
    made = prompt(tokenizer, Conversation((turn,)), picture(0, 1, 2), picture(1, 1, 3, "video"))
    assert made.ids[made.slots].tolist() == [IMAGE] * 2 + [VIDEO] * 3


def test_a_template_without_video_refuses_one(tokenizer: Tokenizer) -> None:
    chat = msgspec.structs.replace(CHAT, video=None)
    conversation = Conversation((Turn((Shown(0), "why?")),))
    with pytest.raises(RequestInvalid, match="takes no video: give pictures"):
        prompt(tokenizer, conversation, picture(0, 1, 2, "video"), chat=chat)


def test_a_template_may_move_pictures_then_videos_before_the_words(tokenizer: Tokenizer) -> None:
    turn = Turn(("one", Shown(1), "two", Shown(0)))
    media = (picture(0, 1, 1), picture(1, 1, 1, "video"))
    chat = msgspec.structs.replace(CHAT, media_first=True)
    made = prompt(tokenizer, Conversation((turn,)), *media, chat=chat)
    assert made.ids[made.slots].tolist() == [IMAGE, VIDEO]
    assert spelled(tokenizer, made).index("onetwo") > spelled(tokenizer, made).index("<|video|>")


def test_a_template_may_put_something_before_each_part_of_the_words(tokenizer: Tokenizer) -> None:
    turns = (Turn((Shown(0), "one"), "yes"), Turn(("two", "three")))
    chat = msgspec.structs.replace(CHAT, words=["\n"])
    made = prompt(tokenizer, Conversation(turns), picture(0, 1, 1), chat=chat)
    assert "<|vision|>\none<|end|>" in spelled(tokenizer, made)
    assert "user\n\ntwo\nthree<|end|>" in spelled(tokenizer, made)
    assert tokenizer.decode(made.ids[made.words].tolist()) == "twothree"


def test_vision_tokens_must_stand_in_the_order_of_the_prompt(tokenizer: Tokenizer) -> None:
    conversation = Conversation((Turn((Shown(0), Shown(1), "why?")),))
    media = (picture(0, 1, 1, "video"), picture(1, 1, 1))
    chat = msgspec.structs.replace(CHAT, media_first=True)
    with pytest.raises(RequestInvalid, match="pictures before videos"):
        prompt(tokenizer, conversation, *media, chat=chat)
