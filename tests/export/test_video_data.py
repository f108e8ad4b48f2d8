"""Videos in data files: read, told apart, and labelled as the device sees them."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from llava_checkpoint import write_llava_checkpoint
from PIL import Image
from video_files import encoded, numbered, numbers
from vila_checkpoint import write_vila_checkpoint

from tokprune.canvas import canvas
from tokprune.errors import PictureInvalid, RequestInvalid
from tokprune.scenes import film_suite, suite, write
from tokprune.types import KIND, PATCH, Clip, Prompt
from tokprune_export import media
from tokprune_export.checkpoint import open_checkpoint
from tokprune_export.decoder import FirstLayer
from tokprune_export.examples import Example, read_examples
from tokprune_export.explain import logits_at
from tokprune_export.families import FAMILIES
from tokprune_export.labels import _forward, explain_answer, label_all, sample_name
from tokprune_export.media import FrameFiles, VideoFile, identity
from tokprune_export.scorer_training import split
from tokprune_export.scorers import TEXT_ROWS, GridScorer
from tokprune_export.teacher import (
    Asked,
    Teacher,
    ask_all,
    check_video,
    encode,
    greedy,
    open_teacher,
)

pytestmark = pytest.mark.torch
REST = {"question": "which way?", "answer": "left"}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(0, 256, (*shape, 3), np.uint8)


def data_file(folder: Path, *lines: dict[str, Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({**REST, **line}) + "\n" for line in lines))
    return path


def saved(folder: Path, frames: Iterable[np.ndarray], prefix: str = "") -> list[str]:
    names: list[str] = []
    for number, frame in enumerate(frames):
        names.append(f"{prefix}{number}.png")
        Image.fromarray(frame).save(folder / names[-1])
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three seconds of video, five frames of one size, and one of another."""
    (tmp_path / "film.mp4").write_bytes(numbered(30))
    saved(tmp_path, noise(5, 48, 64))
    Image.fromarray(noise(48, 65)).save(tmp_path / "wide.png")
    return tmp_path


def frames_of(example: Example) -> Clip:
    (source,) = example.media
    clip = media.load(source)
    assert isinstance(clip, Clip)
    return clip


def test_a_video_gives_the_frames_that_load_video_gives(folder: Path) -> None:
    lines = ({}, {"num_frames": 3}, {"fps": 5.0})
    examples = read_examples(data_file(folder, *({"video": "film.mp4", **line} for line in lines)))
    clips = [frames_of(example) for example in examples]
    assert [numbers(clip) for clip in clips] == [
        [0, 5, 10, 15, 20, 25],
        [0, 10, 20],
        list(range(0, 30, 2)),
    ]
    assert [clip.fps for clip in clips] == [2, 1, 5]
    assert {example.modality for example in examples} == {"video"}


def test_frames_are_a_video(folder: Path) -> None:
    names = ["0.png", "2.png", "1.png"]
    (example,) = read_examples(data_file(folder, {"frames": names, "fps": 4}))
    clip = frames_of(example)
    assert (clip.frames == noise(5, 48, 64)[[0, 2, 1]]).all()
    assert (clip.fps, example.modality) == (4, "video")


FRAMES = {"frames": ["0.png", "1.png"], "fps": 4.0}
VIDEO = {"video": "film.mp4"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**VIDEO, "image": "0.png"}, 'give one of "image"'),
        ({**VIDEO, **FRAMES}, 'give one of "image"'),
        ({**VIDEO, "fps": 2, "num_frames": 4}, "give one of the two"),
        ({**VIDEO, "fps": -2}, "fps must be above 0"),
        ({**VIDEO, "num_frames": 0}, "num_frames must be 1 to"),
        ({**VIDEO, "num_frames": 31}, "has 30 frames .* at most 30"),
        ({**VIDEO, "fps": 30}, "at most fps=10"),
        ({"video": "none.mp4"}, r"none.mp4' cannot be read \(No such file"),
        ({"video": "0.png"}, "0.png"),
        ({"frames": ["0.png"]}, '"frames" needs "fps"'),
        ({"frames": [], "fps": 2}, '"frames" is empty'),
        ({**FRAMES, "fps": 0}, "rate above 0"),
        ({**FRAMES, "num_frames": 2}, '"num_frames" is for "video"'),
        ({"frames": ["0.png", "wide.png"], "fps": 2}, r"Frame 1 .* 65 x 48 .*wide.png"),
        ({"frames": ["0.png", "none.png"], "fps": 2}, "none.png' cannot be read"),
        ({"image": "0.png", "fps": 2}, '"fps" is for "video" and "frames"'),
        ({"image": "film.mp4"}, "cannot identify image file"),
        ({"stream": []}, '"stream" is empty'),
        ({"stream": ["0.png"], "fps": 2}, '"fps" is for "video" and "frames"'),
        ({"stream": ["0.png"], "image": "0.png"}, 'give one of "image"'),
        ({"stream": ["none.png", "0.png"]}, "none.png"),
    ],
)
def test_a_bad_video_is_an_error_with_file_and_line(
    folder: Path, line: dict[str, Any], message: str
) -> None:
    path = data_file(folder, VIDEO, FRAMES, line)
    with pytest.raises(
        (PictureInvalid, RequestInvalid), match=rf"data\.jsonl, line 3: .*{message}"
    ):
        read_examples(path)
    assert len(read_examples(path, 2)) == 2


def test_pyav_is_missed_where_a_video_file_is_read_and_nowhere_else(folder: Path) -> None:
    path = data_file(folder, {"image": "0.png"}, FRAMES, VIDEO)
    program = (
        "import sys\n"
        "sys.modules['av'] = None\n"
        "from pathlib import Path\n"
        "from tokprune.errors import BackendUnavailable\n"
        "from tokprune_export.examples import read_examples\n"
        f"path = Path({str(path)!r})\n"
        "print(len(read_examples(path, 2)))\n"
        "try:\n    read_examples(path)\n"
        "except BackendUnavailable as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, message = done.stdout.splitlines()
    assert count == "2"
    assert "data.jsonl, line 3: " in message
    assert "pip install 'tokprune[camera]'" in message


def test_a_video_is_known_by_what_is_shown_of_it(folder: Path) -> None:
    film = VideoFile(folder / "film.mp4", num_frames=3)
    names = saved(folder, list(frames_of(Example((film,), "", "", 1)).frames), "same")
    frames = FrameFiles(tuple(folder / name for name in names), 1.0)
    assert identity(film).content == identity(frames).content
    others = (replace(film, num_frames=4), replace(frames, fps=2.0))
    assert len({identity(each).content for each in (film, *others)}) == 3
    (folder / "copy.mp4").write_bytes((folder / "film.mp4").read_bytes())
    asked = [Example((each,), "what?", "it", 1) for each in (film, frames, others[0])]
    copied = Example((VideoFile(folder / "copy.mp4", num_frames=3),), "what?", "it", 9)
    assert sample_name(asked[0]) == sample_name(asked[1]) == sample_name(copied)
    assert sample_name(asked[0]) != sample_name(asked[2])


def test_what_shares_a_video_or_a_frame_stays_on_one_side(folder: Path) -> None:
    black = np.zeros((48, 64, 3), np.uint8)
    sources: list[media.Source] = []
    groups: list[str] = []
    for number in range(20):
        film = encoded([black, *noise(number + 2, 48, 64)], "libx264", qp="0")
        (folder / f"{number}.mp4").write_bytes(film)
        sources += [VideoFile(folder / f"{number}.mp4", num_frames=n) for n in (2, 3)]
        shown = noise(4 + number, 48, 64)[-3:]
        names = saved(folder, [black, *shown], f"{number}-")
        files = [folder / name for name in names]
        parts = (FrameFiles(tuple(files[:3]), 2.0), FrameFiles(tuple(files[2:]), 2.0))
        sources += [*parts, files[2]]  # that frame is in both, and alone
        groups += [*[f"{number}.mp4"] * 2, *[f"{number}-"] * 3]
    parts_of = [identity(source).parts for source in sources]
    chosen, held = split(parts_of, [media.modality([source]) for source in sources], seed=0)
    assert sorted(chosen + held) == list(range(100))
    sides = [{groups[i] for i in side} for side in (chosen, held)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 4  # of 40, though all begin with the same black frame


def test_drawn_videos_and_pictures_are_read_back_as_they_were_drawn(tmp_path: Path) -> None:
    samples = [
        *suite("dev", 2, tokens=64, groups=("color",)),
        *film_suite("dev", 2, grid=(4, 4), frames=4, questions=2),
    ]
    examples = read_examples(write(tmp_path, samples))
    assert [e.modality for e in examples] == ["picture"] * 2 + ["video"] * (len(samples) - 2)
    for sample, example in zip(samples, examples, strict=True):
        assert (example.question, example.answer, example.group) == (
            sample.question, sample.answer, sample.group,
        )  # fmt: skip
        if example.modality == "video":
            clip = frames_of(example)
            assert (clip.frames == sample.clip.frames).all()
            assert clip.fps == sample.clip.fps
    films = [e.media for e in examples if e.modality == "video"]
    assert len(set(films)) == 2 < len(films)  # questions about one video share its frames


# --- labels ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taught:
    """The teacher of a family, and how it cuts a video of 4 frames."""

    teacher: Teacher
    folder: Path
    regions: int
    newlines: int


@pytest.fixture(scope="module")
def taught(
    demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Taught]:
    made: dict[str, Taught] = {}

    def make(family: str) -> Taught:
        if family not in made:
            folder = tmp_path_factory.mktemp(family) / "VILA1.5-3b"
            match family:
                case "qwen2_vl":
                    folder, cut = demo_checkpoint, (2, 0)  # in pairs
                case "llava_onevision":
                    write_llava_checkpoint(folder, demo_checkpoint)
                    cut = (4, 1)  # at the end
                case _:
                    write_vila_checkpoint(folder)
                    cut = (4, 0)
            checkpoint = open_checkpoint(str(folder))
            assert checkpoint.family == family
            made[family] = Taught(open_teacher(checkpoint, torch.device("cpu")), folder, *cut)
        return made[family]

    return make


WITH_VIDEO = [
    "qwen2_vl",
    pytest.param("llava_onevision", marks=pytest.mark.torchvision),
    "vila",
]


@pytest.mark.parametrize("family", WITH_VIDEO)
def test_a_video_is_explained_over_the_tokens_that_the_device_sees(
    family: str, taught: Callable[..., Taught], tmp_path: Path
) -> None:
    made = taught(family)
    teacher = made.teacher
    names = saved(tmp_path, noise(4, 60, 80))
    (example,) = read_examples(data_file(tmp_path, {"frames": names, "fps": 2}))
    (asked,) = ask_all(teacher, [example])
    shown = teacher.processor.prepare([Clip(noise(4, 60, 80), 2.0)])
    where = np.concatenate([each.where for each in shown])
    assert (asked.vision.where == where).all()
    assert len(asked.vision.regions) == made.regions
    patches = where[:, KIND] == PATCH
    assert (~patches).sum() == made.newlines
    relevance = explain_answer(teacher, asked)
    assert (relevance[~patches] == 0).all()
    assert (relevance[patches] >= 0).all()
    for region in range(made.regions):  # every frame can matter
        index, _ = canvas(where, asked.vision.regions)
        assert relevance[index[region][index[region] >= 0]].sum() > 0


@pytest.mark.parametrize("family", WITH_VIDEO)
def test_what_is_explained_is_what_the_familys_own_model_says_of_a_video(
    family: str, taught: Callable[..., Taught]
) -> None:
    """The logits after random prompts with videos, against HF's generate on HF's inputs."""
    made, half = taught(family), FAMILIES[family]
    model = half.load(made.folder, None)
    films = [t for t in half.trials(model) if any(r.frame for m in t.media for r in m.regions)]
    assert films
    for trial in films:
        prompt = Prompt(
            ids=trial.ids.numpy(),
            slots=trial.slots.numpy(),
            words=np.zeros(len(trial.ids), np.bool_),
            positions=trial.positions[:, 0].numpy(),
            next_position=trial.next_position,
        )
        vision = encode(made.teacher, trial.media)
        asked = Asked(prompt, vision, "", torch.tensor([1]))
        traced, targets = _forward(made.teacher, [asked])
        ours = logits_at(traced, made.teacher.text.head, targets >= 0).detach()[0]
        with torch.no_grad():
            said = model.generate(
                **trial.inputs, max_new_tokens=1, do_sample=False, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        theirs = said.logits[0][0]
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max().clamp(min=1), trial.name


def test_a_checkpoint_without_videos_says_so_with_the_line(
    taught: Callable[..., Taught], folder: Path
) -> None:
    teacher = taught("qwen2_vl").teacher
    without = replace(teacher, chat=msgspec.structs.replace(teacher.chat, video=None))
    examples = read_examples(data_file(folder, {"image": "0.png"}, FRAMES))
    check_video(teacher, examples)
    check_video(without, examples[:1])
    for ask in (lambda: check_video(without, examples), lambda: list(ask_all(without, examples))):
        with pytest.raises(RequestInvalid, match=r"line 2: This checkpoint's .* takes no video"):
            ask()


@pytest.mark.parametrize("family", WITH_VIDEO)
def test_the_grid_network_scores_frames_one_by_one(
    family: str, taught: Callable[..., Taught], tmp_path: Path
) -> None:
    """What one frame shows changes nothing in the scores of another."""
    made = taught(family)
    names = saved(tmp_path, noise(4, 60, 80))
    (example,) = read_examples(data_file(tmp_path, {"frames": names, "fps": 2}))
    (asked,) = ask_all(made.teacher, [example])
    laid = canvas(asked.vision.where, asked.vision.regions)
    index, cells = torch.from_numpy(laid.tokens), torch.from_numpy(laid.cells)
    network = GridScorer(2)
    features = torch.randn(2 * TEXT_ROWS, len(cells))
    with torch.no_grad():
        before = network.logits(features, index, cells)
        first = index[0][index[0] >= 0]
        features[:, first] += 1
        after = network.logits(features, index, cells)
    changed = (before != after).nonzero()[:, 0].tolist()
    assert set(changed) <= set(first.tolist())
    assert changed
    assert before.isneginf().sum() == made.newlines


def test_the_demo_labels_videos_that_it_answers(
    taught: Callable[..., Taught], tmp_path: Path
) -> None:
    teacher = taught("qwen2_vl").teacher
    examples = read_examples(write(tmp_path, film_suite("dev", 6, grid=(4, 4), frames=4)))
    said = []
    for example, asked in zip(examples, ask_all(teacher, examples), strict=True):
        ids = greedy(teacher, asked.prompt, asked.vision, 12)
        text = "" if ids is None else teacher.tokenizer.decode(ids.tolist())
        if text.strip():
            said.append(replace(example, answer=text))
    assert len(said) >= 3
    wrong = [replace(example, answer="neither") for example in said]
    first_layer = FirstLayer(teacher.text)
    labels = {sample_name(e): label for e, label in label_all(teacher, [*said, *wrong])}
    assert all(labels[sample_name(example)] is None for example in wrong)
    for example, asked in zip(said, ask_all(teacher, said), strict=True):
        label = labels[sample_name(example)]
        assert label is not None
        rows = np.arange(asked.prompt.slots[-1] + 1, len(asked.prompt.ids))
        embeds = teacher.text.embeddings[torch.from_numpy(asked.prompt.ids)]
        embeds[asked.prompt.slots] = torch.from_numpy(asked.vision.embeds)
        attention = first_layer(
            embeds[None],
            torch.from_numpy(asked.prompt.positions[:, None]),
            torch.from_numpy(rows),
            torch.from_numpy(asked.prompt.slots),
        )
        torch.testing.assert_close(label.attention, attention.half(), rtol=2e-3, atol=1e-6)
        assert tuple(label.index.shape) == (2, 4, 4)  # frames in pairs
        assert label.relevance.sum() > 0
