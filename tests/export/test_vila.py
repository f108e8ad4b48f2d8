"""VILA1.5 against a plain composition of HF's modules, with sentencepiece's ids."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch.nn import functional
from vila_checkpoint import change, renamed, write_vila_checkpoint

import tokprune
from tokprune.families import FAMILIES as NUMPY_HALVES
from tokprune.manifest import Manifest, Tokens
from tokprune.types import Clip
from tokprune_export import export, parity
from tokprune_export.checkpoint import open_checkpoint
from tokprune_export.cli import run_export
from tokprune_export.errors import ExportRefused
from tokprune_export.examples import Example
from tokprune_export.exits import guarded
from tokprune_export.families import FAMILIES
from tokprune_export.families.vila import TRIALS, Vila, VisionEncoder
from tokprune_export.families.vila_projector import Pack
from tokprune_export.labels import label_all
from tokprune_export.options import ExportOptions
from tokprune_export.teacher import ask_all, fingerprint, greedy, open_teacher

pytestmark = pytest.mark.torch
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PARTS = ("llm", "vision_tower", "mm_projector")


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a checkpoint under a name."""

    def written(name: str = "VILA1.5-3b", **options: Any) -> Path:
        folder = tmp_path_factory.mktemp("vila") / name
        write_vila_checkpoint(folder, **options)
        return folder

    return written


@pytest.fixture(scope="module")
def folder(write: Callable[..., Path]) -> Path:
    return write()


@dataclass(frozen=True)
class Exported:
    bundle: Path
    manifest: Manifest
    rows: list[parity.Row]


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    bundle = tmp_path_factory.mktemp("exported") / "bundle"
    rows: list[parity.Row] = []
    options = ExportOptions(str(folder), bundle)
    manifest = export.export(options, lambda _: None, rows.extend)
    return Exported(bundle, manifest, rows)


class Composition:
    """HF's modules put together by hand, from the published layout."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file
        from sentencepiece import SentencePieceProcessor
        from transformers import LlamaForCausalLM, SiglipVisionModel
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        self.folder = folder
        self.tower: Any = SiglipVisionModel.from_pretrained(
            folder / "vision_tower", dtype=torch.float32
        ).eval()
        self.llm: Any = LlamaForCausalLM.from_pretrained(folder / "llm", dtype=torch.float32).eval()
        state = load_file(folder / "mm_projector" / "model.safetensors")
        self.state = {name: value.float() for name, value in state.items()}
        self.pictures = SiglipImageProcessorPil.from_pretrained(folder / "vision_tower")
        self.words = SentencePieceProcessor(model_file=str(folder / "llm" / "tokenizer.model"))

    @cached_property
    def kind(self) -> str:
        config = json.loads((self.folder / "mm_projector" / "config.json").read_text())
        return config["mm_projector_type"]

    @torch.no_grad()
    def vision(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Vision tokens [pictures, n, d]."""
        given = self.pictures(images=[Pillow.fromarray(p) for p in pictures], return_tensors="pt")
        states = self.tower(given["pixel_values"], output_hidden_states=True).hidden_states
        return self.project(states[-2])

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Pack squares of patches, then run the layers one by one."""
        order = PACKINGS[self.kind]
        if order is not None:
            unit, columns_first = order
            side = int(x.shape[1] ** 0.5)
            count = -(-side // unit)
            grid = torch.zeros(len(x), count * unit, count * unit, x.shape[-1])
            for patch in range(side * side):
                grid[:, patch // side, patch % side] = x[:, patch]
            places = [(slow, fast) for slow in range(count) for fast in range(count)]
            if columns_first:
                places = [(row, column) for column, row in places]
            cut = [grid[:, r * unit : (r + 1) * unit, c * unit : (c + 1) * unit] for r, c in places]
            x = torch.stack([square.flatten(1) for square in cut], dim=1)
        for layer, name in LAYERS[self.kind]:
            weight, bias = (self.state[f"layers.{name}{part}"] for part in ("weight", "bias"))
            x = functional.gelu(x) if "gelu" in layer else x
            if "norm" in layer:
                x = functional.layer_norm(x, x.shape[-1:], weight, bias)
            else:
                x = functional.linear(x, weight, bias)
        return x

    def ids(self, text: str) -> list[list[int]]:
        """One bos, and every part between pictures as sentencepiece gives it."""
        first, *others = [self.words.encode(part) for part in text.split("<image>")]
        return [[self.words.bos_id(), *first], *others]

    @torch.no_grad()
    def answer(self, pictures: Sequence[np.ndarray], question: str, count: int) -> list[int]:
        said = "<image>\n" * len(pictures) + question
        first, *others = self.ids(f"{SYSTEM} USER: {said} ASSISTANT:")
        table = self.llm.get_input_embeddings()
        rows = [table(torch.tensor(first))]
        for shown, part in zip(self.vision(pictures), others, strict=True):
            rows += [shown, table(torch.tensor(part))]
        embeds = torch.cat(rows)[None]
        made = self.llm.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )[0].tolist()
        return made[: made.index(2)] if 2 in made else made


# Side of a square, whether columns follow one another; and (what comes before, name) of layers.
PACKINGS = {
    "linear": None,
    "mlp2x_gelu": None,
    "mlp_downsample": (2, True),
    "mlp_downsample_2x2_fix": (2, False),
    "mlp_downsample_3x3_fix": (3, False),
}
LAYERS = {
    "linear": [("", "")],
    "mlp2x_gelu": [("", "0."), ("gelu", "2.")],
    "mlp_downsample": [("norm", "1."), ("", "2."), ("gelu", "4.")],
    "mlp_downsample_2x2_fix": [("norm", "1."), ("", "2."), ("gelu", "4.")],
    "mlp_downsample_3x3_fix": [
        ("norm", "1."),
        ("", "2."),
        ("gelu norm", "4."),
        ("", "5."),
        ("gelu", "7."),
    ],
}


@pytest.fixture(scope="module")
def composition(folder: Path) -> Composition:
    return Composition(folder)


@pytest.mark.parametrize(
    ("projector", "side", "expected"),
    [
        (  # 1..16 row by row: down the left half, then down the right one
            "mlp_downsample",
            4,
            [[1, 2, 5, 6], [9, 10, 13, 14], [3, 4, 7, 8], [11, 12, 15, 16]],
        ),
        ("mlp_downsample", 3, [[1, 2, 4, 5], [7, 8, 0, 0], [3, 0, 6, 0], [9, 0, 0, 0]]),
        (
            "mlp_downsample_2x2_fix",
            4,
            [[1, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]],
        ),
        ("mlp_downsample_2x2_fix", 3, [[1, 2, 4, 5], [3, 0, 6, 0], [7, 8, 0, 0], [9, 0, 0, 0]]),
        (
            "mlp_downsample_3x3_fix",
            4,
            [
                [1, 2, 3, 5, 6, 7, 9, 10, 11],
                [4, 0, 0, 8, 0, 0, 12, 0, 0],
                [13, 14, 15, 0, 0, 0, 0, 0, 0],
                [16, 0, 0, 0, 0, 0, 0, 0, 0],
            ],
        ),
    ],
)
def test_patches_are_packed_in_the_order_of_a_numbered_grid(
    projector: str, side: int, expected: list[list[int]]
) -> None:
    numbered = torch.arange(1.0, side * side + 1).reshape(1, -1, 1)
    both = torch.cat([numbered, -numbered], dim=2)  # two channels a patch stay together
    packed = Pack(projector)(both)[0].reshape(len(expected), -1, 2)
    assert packed[..., 0].int().tolist() == expected
    assert (packed[..., 1] == -packed[..., 0]).all()


def test_vilas_27_x_27_patches_are_196_tokens_down_the_columns() -> None:
    patches = torch.arange(27 * 27.0).reshape(1, -1, 1)
    first = Pack("mlp_downsample")(patches)[0, :, 0].int().tolist()  # upper left of each square
    assert len(first) == 196
    assert first == [2 * row * 27 + 2 * column for column in range(14) for row in range(14)]


@pytest.mark.parametrize("projector", list(PACKINGS))
def test_every_projector_gives_what_its_layers_give(
    write: Callable[..., Path], projector: str
) -> None:
    folder = write(projector=projector)
    FAMILIES["vila"].check(open_checkpoint(str(folder)).config)
    model: Vila = FAMILIES["vila"].load(folder, 1)
    pictures = noise(2, (40, 90))
    oracle = Composition(folder).vision(pictures)
    media = NUMPY_HALVES["vila"].open(open_checkpoint(str(folder)).texts).prepare(pictures)
    pixels = torch.cat([torch.from_numpy(shown.calls[0]["pixel_values"]) for shown in media])
    assert [len(shown.where) for shown in media] == [oracle.shape[1]] * 2
    atol = 1e-5 * max(1, float(oracle.abs().max()))
    for encode in (model.encode, VisionEncoder(model)):
        with torch.no_grad():
            torch.testing.assert_close(encode(pixels), oracle, rtol=0, atol=atol)


def noise(count: int, size: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8))


def test_the_export_passes_every_comparison(exported: Exported) -> None:
    assert all(row.ok for row in exported.rows)
    assert {row.case for row in exported.rows if row.graph == "end to end"} == set(TRIALS)
    assert {row.graph for row in exported.rows} >= {"vision_encoder", "first_layer", "pruned"}
    assert exported.manifest.family == "vila"
    assert exported.manifest.tokens == Tokens(image=0, video=None, eos=[2], control=[0, 1, 2])


@pytest.mark.parametrize("form", ["ort", "portable"])
def test_answers_equal_the_composition_token_for_token(
    exported: Exported, composition: Composition, form: str
) -> None:
    vlm = tokprune.load(exported.bundle, llm_form=form)
    rng = np.random.default_rng(1)
    one, *three = [rng.integers(0, 256, size, np.uint8) for size in SIZES]
    frames = noise(3, (45, 61), seed=2)
    shown: list[tuple[Any, list[np.ndarray]]] = [
        (one, [one]),
        (three, three),
        (Clip(np.stack(frames), 2.0), frames),
        ([one, Clip(np.stack(frames), 2.0)], [one, *frames]),
    ]
    made = set()
    for (given, pictures), question in zip(shown, QUESTIONS, strict=True):
        answer = vlm.ask(given, question, 1.0, max_new_tokens=24)
        oracle = composition.answer(pictures, question, 24)
        assert list(answer.token_ids) == oracle
        assert answer.total == 9 * len(pictures)
        made |= set(oracle)
    assert len(made) > 30  # else equal answers would mean little


SIZES = [(90, 61, 3), (31, 200, 3), (70, 70, 3), (13, 7, 3)]
QUESTIONS = [
    "What is this?",
    "\n Which of the 3 is   the biggest one?",
    "Was passiert hier \U0001f469\u200d\U0001f680?",
    "What changed\nsince the picture?",
]


def test_vision_tokens_equal_the_composition(exported: Exported, composition: Composition) -> None:
    vlm = tokprune.load(exported.bundle)
    pictures = noise(5, (51, 83), seed=3)
    ours = vlm.model.vision(vlm.model.processor.prepare(pictures)).embeds
    oracle = composition.vision(pictures).flatten(0, 1).numpy()
    assert np.abs(ours - oracle).max() <= 1e-5 * max(1, np.abs(oracle).max())


def test_a_part_of_the_tokens_streams_an_answer(exported: Exported) -> None:
    vlm = tokprune.load(exported.bundle)
    stream = vlm.stream(noise(2, (64, 48)), "What is this?", 0.5, max_new_tokens=12)
    assert "".join(stream) == stream.answer.text
    assert (stream.answer.kept, stream.answer.total) == (9, 18)


@pytest.mark.parametrize(
    ("top", "projector", "message"),
    [
        (
            {},
            "mlp_downsample_3x3_s2",
            "type 'mlp_downsample_3x3_s2'. Can be exported: linear, mlp2",
        ),
        ({}, "identity", "mm_projector_type 'identity'"),
        ({"s2": True}, "mlp_downsample", "config.json has s2 = true: the vision encoder reads"),
        ({"dynamic_s2": True}, "mlp_downsample", "has dynamic_s2 = true"),
        ({"image_aspect_ratio": "dynamic"}, "mlp_downsample", "image_aspect_ratio 'dynamic'. Can"),
        ({"mm_use_im_start_end": True}, "mlp_downsample", "mm_use_im_start_end = true"),
        ({"mm_vision_select_feature": "patch"}, "mlp_downsample", "SigLIP has no class token"),
        ({"mm_vision_select_layer": -5}, "mlp_downsample", "-5; the vision encoder has 3 layers"),
    ],
)
def test_what_the_graphs_would_not_do_is_one_line_and_2(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    top: dict[str, Any],
    projector: str,
    message: str,
) -> None:
    copy = renamed(folder, tmp_path, "vila")
    change(copy / "config.json", **top)
    change(copy / "mm_projector" / "config.json", mm_projector_type=projector)
    options = ExportOptions(str(copy), tmp_path / "bundle")
    assert guarded("tokprune-export", lambda: run_export(options)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("part", PARTS)
def test_weights_that_a_part_lacks_are_named(folder: Path, tmp_path: Path, part: str) -> None:
    from safetensors.torch import load_file, save_file

    copy = renamed(folder, tmp_path, "vila")
    path = sorted((copy / part).glob("*.safetensors"))[-1]
    state = load_file(path)
    gone = sorted(state)[0]
    save_file({name: state[name] for name in state if name != gone}, path, {"format": "pt"})
    with pytest.raises(ExportRefused, match=rf"{part} lacks weights .*{gone.split('.')[-2]}"):
        FAMILIES["vila"].load(copy, None)


def test_fewer_layers_load_and_count_less(folder: Path) -> None:
    found = open_checkpoint(str(folder))
    assert found.parameters(1) < found.parameters(2) < found.parameters() == found.parameters(3)
    assert len(FAMILIES["vila"].text(FAMILIES["vila"].load(folder, 2)).model.layers) == 2


def test_training_labels_what_vila_answers(write: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write(ending=4.0)))
    teacher = open_teacher(checkpoint, torch.device("cpu"))
    for number, picture in enumerate(noise(8, (40, 60))):
        Pillow.fromarray(picture).save(tmp_path / f"{number}.png")
    examples = []
    for number in range(40):
        names = (tmp_path / f"{number % 8}.png", tmp_path / "3.png")[: 1 + number % 2]
        example = Example(names, f"question {number}?", "?", 1)
        (asked,) = ask_all(teacher, [example])
        ids = greedy(teacher, asked.prompt, asked.vision, 12)
        text = "" if ids is None else teacher.tokenizer.decode(ids.tolist()).strip()
        if text and "\ufffd" not in text:
            examples.append(Example(names, example.question, text, 1))
    labels = [label for _, label in label_all(teacher, examples)]
    assert len(labels) >= 5
    for label in labels:
        assert label is not None
        assert label.relevance.shape[0] in (9, 18)
        assert label.relevance.sum() > 0
        assert label.question.any()


def test_a_fingerprint_tells_every_part(folder: Path, tmp_path: Path) -> None:
    names = [fingerprint(open_checkpoint(str(folder)))] * 2
    for part in PARTS:
        copy = renamed(folder, tmp_path / part, folder.name)
        path = sorted((copy / part).glob("*.safetensors"))[-1]
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        names.append(fingerprint(open_checkpoint(str(copy))))
    assert len(set(names)) == 1 + len(PARTS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
