"""A sentencepiece model of Llama's kind as a `tokenizers.Tokenizer`, checked against sentencepiece.

Follows transformers' LlamaConverter, but never puts a space before a text by itself: where one
belongs depends on what the text follows, which only the chat template knows.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from tokprune_export.errors import ExportRefused

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # types of pieces in sentencepiece_model.proto
BY_MERGES = 2  # trainer_spec.model_type
SPACE = "\u2581"
SAMPLES = (  # both must cut these alike
    "What is this?",
    "A chat between a curious user and an artificial intelligence assistant. USER: ",
    "   leading spaces,  two between,   trailing ones   ",
    "\nline\r\nbreaks\n\n and\ttabs\t\t",
    "100 % of 3.14159 is 3.14159; isn't it? x_1 += 22;  // 0123456789",
    "Wie heißt das? Ça va? \u8fd9\u662f\u4ec0\u4e48\uff1f \u0447\u0442\u043e? \u0645\u0627",
    "\ufb01ne \uff21\uff22 \u212b e\u0301 \u00e9 \u00a0 \u3000 \u200b",  # a normaliser would show
    "emoji \U0001f469\u200d\U0001f680 \U0001f3fd",
    "<s> </s> <unk> <image> <0x0A> \u2581 under_score",
    "aaaa aaaaa aaaaaaaaaaaaaaaaa ---------- ======= \n\n\n\n\n",
)


def converted(path: Path) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.model`, its control pieces as special tokens.

    `" " + text` gives the ids that sentencepiece gives to `text`.

    Raises:
        ExportRefused: this model is of another kind, damaged, or would be cut differently.
    """
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    data = path.read_bytes()
    messages: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    try:
        proto = messages.ModelProto.FromString(data)
        oracle = SentencePieceProcessor(model_proto=data)
    except Exception as error:  # protobuf's and sentencepiece's have no common root
        raise ExportRefused(f"{path} is no sentencepiece model: {error}") from None
    _refuse_other_kinds(path, proto)
    tokenizer = _tokenizer(proto)
    _refuse_differences(path, tokenizer, oracle)
    return tokenizer


def _tokenizer(proto: Any) -> Tokenizer:
    pieces = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    model = BPE(
        vocab={piece: index for index, (piece, _, _) in enumerate(pieces)},
        merges=_merges({piece: score for piece, score, kind in pieces if kind == NORMAL}),
        unk_token=proto.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    spaces, first = decoders.Replace(SPACE, " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), first])
    control = [piece for piece, _, kind in pieces if kind in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in control]
    )
    return tokenizer


def _refuse_other_kinds(path: Path, proto: Any) -> None:
    trainer, normaliser = proto.trainer_spec, proto.normalizer_spec
    kinds = {piece.type for piece in proto.pieces}
    odd = {
        "unigrams": trainer.model_type != BY_MERGES,
        "no byte fallback": not trainer.byte_fallback,
        "a table of normal forms": bool(normaliser.precompiled_charsmap),
        "extra spaces removed": normaliser.remove_extra_whitespaces,
        "no space before a text": not normaliser.add_dummy_prefix,
        "pieces of unknown types": not kinds <= {NORMAL, UNKNOWN, CONTROL, BYTE},
    }
    if any(odd.values()):
        found = ", ".join(name for name in odd if odd[name])
        raise ExportRefused(
            f"{path} has {found}: only sentencepiece models of Llama's kind can be converted (byte "
            "pairs with byte fallback, text as it is)"
        )


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Return every way to make a piece of two others, best pieces first."""
    ways = [
        (score, len(piece[:cut]), piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    ways.sort(key=lambda way: way[:2], reverse=True)
    return [(left, right) for _, _, left, right in ways]


def _refuse_differences(path: Path, tokenizer: Tokenizer, oracle: Any) -> None:
    tokenizer.encode_special_tokens = True  # sentencepiece takes them as text, too
    for text in SAMPLES:
        ours = tokenizer.encode(f" {text}", add_special_tokens=False).ids
        theirs = oracle.encode(text)
        if ours != theirs:
            raise ExportRefused(
                f"{path} cannot be converted: for {text!r} sentencepiece gives {theirs}, the "
                f"converted tokenizer gives {ours}"
            )
    tokenizer.encode_special_tokens = False
