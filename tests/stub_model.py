"""A VLM of a few numbers whose four graphs are functions, for tests of what runs them.

Its answers depend, through checksums, on every row that the LLM has seen: on its embeddings, its
position and all rows before it. So whoever gets another's rows, or rows that are no longer true,
gets another answer. `Stub.at` lets a test do something within a run of a graph.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tokprune.bundle import Bundle
from tokprune.families import Processor
from tokprune.families.qwen2_vl import positions
from tokprune.graphs import FirstLayerGraph, ScorerGraph, VisionEncoder
from tokprune.llm import LanguageModel
from tokprune.manifest import Cache, GraphSpec, LlmForm, Manifest, Tensor
from tokprune.model import Model
from tokprune.types import Clip, Media, Prepared, Region
from tokprune.vlm import VLM
from tokprune_runtimes import Array, Carry, Feeds, Interrupt
from tokprune_runtimes.errors import EngineInterrupted

HIDDEN, HEADS, LETTERS = 4, 2, 256
END, START, IMAGE, VIDEO = LETTERS, LETTERS + 1, LETTERS + 2, LETTERS + 3
VOCABULARY = LETTERS + 4
CELL_PX = 8  # side of a vision token
LIMITS = {"max_input_len": 400, "max_kv_len": 600}
MANIFEST = {
    "schema_version": 1,
    "tokprune_version": "0.1.0",
    "family": "qwen2_vl",
    "precision": "fp32",
    "graphs": {
        **{
            name: {"file": f"onnx/{name}.onnx", "opset": 18, "inputs": [], "outputs": []}
            for name in ("vision_encoder", "first_layer", "scorer")
        },
        "llm": [],
    },
    "llm": {
        "layers": 1,
        "heads": HEADS,
        "kv_heads": 1,
        "head_dim": HIDDEN,
        "hidden_size": HIDDEN,
        "vocab_size": VOCABULARY,
    },
    "chat": {
        "head": [START, "user\n"],
        "head_system": [[START, "system\n"], [END, "\n", START, "user\n"]],
        "reply": [END, "\n", START, "bot\n"],
        "next_user": [END, "\n", START, "user\n"],
        "generation": [END, "\n", START, "bot\n"],
        "picture": [IMAGE],
        "video": [VIDEO],
        "media_first": False,
        "words": [],
    },
    "tokens": {"image": IMAGE, "video": VIDEO, "eos": [END], "control": [END, START, IMAGE, VIDEO]},
    "limits": LIMITS,
    "scorer": {
        "kind": "attention",
        "trained": True,
        "modalities": ["picture"],
        "metrics": {},
        "metrics_by_modality": {},
    },
    "default_selector": "relevance",
    "source": {"model": "stub", "revision": None, "tools": {}, "created": "2026-11-21T00:00Z"},
    "files": {},
}


def a_picture(seed: int = 0, height: int = 32, width: int = 48) -> Array:
    """Noise of a size that is a multiple of a vision token's."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@dataclass
class Stub:
    """What a test sees of the stub's graphs, and may do within them."""

    runs: Counter[str] = field(default_factory=Counter[str])  # started runs, by graph
    rows: deque[int] = field(default_factory=partial(deque[int], maxlen=1000))  # of the LLM's runs
    at: Callable[[str, Interrupt | None], None] | None = None  # called at the start of every run
    end_after: int = 6  # tokens of an answer at most, 3 at least; 0: no answer ever ends

    def entered(self, graph: str, interrupt: Interrupt | None) -> None:
        if interrupt is not None and interrupt.is_set:
            raise EngineInterrupted(graph)
        self.runs[graph] += 1
        if self.at is not None:
            self.at(graph, interrupt)
            if interrupt is not None and interrupt.is_set:
                raise EngineInterrupted(graph)


class Held:
    """Holds whatever reaches a graph until the test lets it go or it is interrupted.

    `reached` is set when the run is there; `go` lets it go on.
    """

    def __init__(self, graph: str, *, run: int = 1) -> None:
        self.reached, self.go = Event(), Event()
        self._graph, self._left = graph, run

    def __call__(self, graph: str, interrupt: Interrupt | None) -> None:
        if graph != self._graph or self.go.is_set():
            return
        self._left -= 1
        if self._left:
            return
        self.reached.set()
        if interrupt is None:
            assert self.go.wait(60)
            return
        with interrupt.stopping(self.go.set):
            assert self.go.wait(60)


class StubGraph:
    """One graph that is a function."""

    def __init__(self, name: str, stub: Stub, compute: Callable[[Feeds], dict[str, Array]]) -> None:
        self.name, self.stub, self.compute = name, stub, compute

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        self.stub.entered(self.name, interrupt)
        return self.compute(feeds)

    def loop(self, carries: Sequence[Carry]) -> "StubLoop":
        return StubLoop(self.stub, carries)


class StubLoop:
    """An LLM's loop. Every row's state is a checksum of itself and the state before it."""

    def __init__(self, stub: Stub, carries: Sequence[Carry]) -> None:
        self.stub = stub
        self.in_place, self.room = carries[0].in_place, carries[0].shape[2]
        self.states: list[int] = []
        self.prompt = 0  # rows before the latest answer's first token

    def step(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        embeds, places = feeds["inputs_embeds"][0], feeds["position_ids"]
        total = int(feeds["attention_bias"].shape[1])
        start = total - len(embeds)
        self.stub.entered("prefill" if len(embeds) > 1 else "decode", interrupt)
        self.stub.rows.append(len(embeds))
        if self.in_place:
            assert total <= self.room
            assert int(feeds["total_sequence_length"]) == total
            assert start <= len(self.states), "rows that were never computed"
            del self.states[start:]
        assert start == len(self.states)
        for row in range(len(embeds)):
            data = embeds[row].tobytes() + places[:, 0, row].tobytes()
            data += feeds["attention_bias"][0, start + row].tobytes()
            before = self.states[-1] if self.states else 1
            self.states.append(crc32(data, before))
        if len(embeds) > 1:
            self.prompt = total
        return {"logits": self._logits(total - self.prompt)[None, None]}

    def _logits(self, written: int) -> Array:
        rng = np.random.default_rng(self.states[-1])
        logits = rng.normal(size=VOCABULARY).astype(np.float32)
        logits[:97], logits[123:] = -9, -9  # small letters
        most = self.stub.end_after
        if most and (written >= most or (written >= 3 and self.states[-1] % 3 == 0)):
            logits[END] = 9
        return logits

    def rewind(self, length: int) -> None:
        assert length <= len(self.states)
        del self.states[length:]


def a_model(stub: Stub, *, cache: Cache = "in_place", **changes: Any) -> Model:
    """Put the graphs together; `changes` are of the manifest."""
    bias = Tensor("attention_bias", "float32", [1, "P+T"])
    spec = GraphSpec("onnx/llm.onnx", 18, [bias], [])
    form = LlmForm("ort" if cache == "in_place" else "portable", cache, ["onnxruntime-cpu"], spec)
    manifest = msgspec.convert({**MANIFEST, **changes}, Manifest)
    table = np.random.default_rng(1).normal(size=(VOCABULARY, HIDDEN)).astype(np.float32)
    llm = LanguageModel(
        graph=StubGraph("llm", stub, _never),
        form=form,
        shape=manifest.llm,
        embed_tokens=table,
        eos=frozenset(manifest.tokens.eos),
        limits=manifest.limits,
    )
    first = StubGraph("first_layer", stub, _attention)
    return Model(
        bundle=Bundle(Path("/bundles/stub"), manifest),
        processor=Processor(prepare=partial(_prepare, stub), positions=positions),
        tokenizer=_tokenizer(),
        vision=VisionEncoder(StubGraph("vision", stub, _encode)),
        first_layer=FirstLayerGraph(first, llm),
        scorer=ScorerGraph(StubGraph("scorer", stub, _score), frozenset({"attention"})),
        llm=llm,
    )


def a_vlm(stub: Stub | None = None, **options: Any) -> VLM:
    """Start a VLM on the stub."""
    return VLM(a_model(stub or Stub()), **options)


def _never(feeds: Feeds) -> dict[str, Array]:
    raise AssertionError("the LLM steps through a loop")


def _encode(feeds: Feeds) -> dict[str, Array]:
    return {"vision_tokens": feeds["pixel_values"] @ _WEIGHTS}


def _attention(feeds: Feeds) -> dict[str, Array]:
    embeds = feeds["inputs_embeds"][0]
    scores = embeds[feeds["rows"]] @ embeds[feeds["columns"]].T
    weights = np.exp(scores - scores.max())
    return {"attention": np.stack([weights] * HEADS).astype(np.float32)}


def _score(feeds: Feeds) -> dict[str, Array]:
    mean = feeds["attention"].mean(axis=(0, 1))
    return {"relevance": (mean / mean.sum()).astype(np.float32)}


_WEIGHTS = np.random.default_rng(2).normal(size=(3, HIDDEN)).astype(np.float32)


def _prepare(stub: Stub, media: Media) -> tuple[Prepared, ...]:
    stub.entered("prepare", None)
    return tuple(_cut(number, medium) for number, medium in enumerate(media))


def _cut(number: int, medium: Any) -> Prepared:
    frames = medium.frames if isinstance(medium, Clip) else medium[None]
    height, width = frames.shape[1:3]
    rows, columns = height // CELL_PX, width // CELL_PX
    cells = frames[:, : rows * CELL_PX, : columns * CELL_PX].astype(np.float32)
    cells = cells.reshape(len(frames), rows, CELL_PX, columns, CELL_PX, 3).mean(axis=(2, 4)) / 255
    where = np.zeros((len(frames), rows, columns, 7), np.int32)
    where[..., 0] = number
    where[..., 1] = np.arange(len(frames))[:, None, None]
    where[..., 3], where[..., 4] = np.indices((rows, columns))
    return Prepared(
        kind="video" if isinstance(medium, Clip) else "picture",
        calls=({"pixel_values": np.ascontiguousarray(cells.reshape(len(frames), -1, 3))},),
        pack=_joined,
        where=where.reshape(-1, 7),
        regions=tuple(Region(number, frame, 0, rows, columns) for frame in range(len(frames))),
        size_hw=(height, width),
        units=np.repeat(np.eye(len(frames), dtype=np.bool_), rows * columns, axis=0),
    )


def _joined(outputs: list[Array]) -> Array:
    return np.concatenate([tokens.reshape(-1, tokens.shape[-1]) for tokens in outputs])


def _tokenizer() -> Tokenizer:
    """A token for every byte, and the special ones behind them."""
    spare = iter(range(256, 512))
    letters: list[str] = []
    for byte in range(LETTERS):
        printable = 33 <= byte < 127 or 161 <= byte < 173 or byte >= 174
        letters.append(chr(byte) if printable else chr(next(spare)))
    vocab = {letter: byte for byte, letter in enumerate(letters)}
    special = {"<end>": END, "<start>": START, "<image>": IMAGE, "<video>": VIDEO}
    # Without its cache of 10,000 words, which tests of memory would have to fill first.
    made = Tokenizer(models.BPE(vocab={**vocab, **special}, merges=[], cache_capacity=0))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True) for text in special])
    made.encode_special_tokens = True
    return made
