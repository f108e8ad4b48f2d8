"""`tokprune-train`, from data lines to a scorer file."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tokprune.canvas import canvas
from tokprune.errors import RequestInvalid
from tokprune.scenes import film_suite, write
from tokprune_export import train
from tokprune_export.checkpoint import open_checkpoint
from tokprune_export.decoder import FirstLayer
from tokprune_export.examples import Example, read_examples
from tokprune_export.fitting import LOSSES
from tokprune_export.label_cache import Label, LabelCache
from tokprune_export.labels import label_all, sample_name
from tokprune_export.media import FrameFiles
from tokprune_export.scorers import NETWORKS, Size, load_scorer
from tokprune_export.teacher import (
    Teacher,
    ask_all,
    fingerprint,
    greedy,
    open_teacher,
)
from tokprune_export.train import TrainOptions

pytestmark = pytest.mark.torch
SIZE = Size(4, 128)  # of the demo VLM
WRONG = "neither"  # what it never says
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(demo_checkpoint: Path) -> Path:
    """The demo VLM: a random one rarely says anything that can be written down."""
    return demo_checkpoint


@pytest.fixture(scope="module")
def teacher(checkpoint: Path) -> Teacher:
    return open_teacher(open_checkpoint(str(checkpoint)), torch.device("cpu"))


@pytest.fixture(scope="module")
def data(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about 30 small pictures; the answer is what the model says, or is wrong."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for number in range(30):
        pixels = random.integers(0, 255, (84, 56 + 28 * (number % 3), 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    lines = []
    for number in range(90):
        names = [f"{number % 30}.png"] if number % 9 else [f"{number % 30}.png", "3.png"]
        example = Example(tuple(folder / n for n in names), f"question {number}?", "?", 1)
        (asked,) = ask_all(teacher, [example])
        ids = greedy(teacher, asked.prompt, asked.vision, 12)
        text = "" if ids is None else teacher.tokenizer.decode(ids.tolist())
        answer = text.upper() if number % 2 else text  # both count: case and spaces do not
        wrong = number % 5 == 0 or not text.strip() or "\ufffd" in text
        pictures = {"image": names[0]} if len(names) == 1 else {"images": names}
        lines.append(
            {**pictures, "question": example.question, "answer": WRONG if wrong else answer}
        )
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def labels(teacher: Teacher, data: Path) -> dict[str, Label | None]:
    return {sample_name(e): label for e, label in label_all(teacher, read_examples(data))}


def test_only_right_answers_become_labels(data: Path, labels: dict[str, Label | None]) -> None:
    for example in read_examples(data):
        assert (labels[sample_name(example)] is None) == (example.answer == WRONG)
    assert sum(label is not None for label in labels.values()) > 25


def test_a_label_holds_what_the_device_will_see(
    teacher: Teacher, data: Path, labels: dict[str, Label | None]
) -> None:
    first_layer = FirstLayer(teacher.text)
    examples = read_examples(data, 20)
    for example, asked in zip(examples, ask_all(teacher, examples), strict=True):
        label = labels[sample_name(example)]
        if label is None:
            continue
        prompt = asked.prompt
        embeds = teacher.text.embeddings[torch.from_numpy(prompt.ids)]
        embeds[prompt.slots] = torch.from_numpy(asked.vision.embeds)
        rows = np.arange(prompt.slots[-1] + 1, len(prompt.ids))
        attention = first_layer(
            embeds[None],
            torch.from_numpy(prompt.positions[:, None]),
            torch.from_numpy(rows),
            torch.from_numpy(prompt.slots),
        )
        torch.testing.assert_close(label.attention, attention.half(), rtol=2e-3, atol=1e-6)
        index, cells = canvas(asked.vision.where, asked.vision.regions)
        assert (label.index.numpy() == index).all()
        assert (label.cells.numpy() == cells).all()
        assert label.question.tolist() == prompt.words[rows].tolist()
        assert 0 < label.question.sum() < len(rows)
        assert torch.equal(label.embeds, torch.from_numpy(asked.vision.embeds).half())
        assert label.ids.tolist() == prompt.ids.tolist()
        assert label.slots.tolist() == prompt.slots.tolist()
        assert label.positions[:, : len(prompt.ids)].tolist() == prompt.positions.tolist()
        said = len(label.answer)
        following = prompt.next_position + torch.arange(said)
        assert label.positions[:, -said:].tolist() == [following.tolist()] * len(prompt.positions)
        assert label.relevance.min() >= 0
        assert label.relevance.sum() > 0


def test_labels_are_kept_and_a_second_run_goes_on_from_them(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TrainOptions(
        str(checkpoint),
        data,
        tmp_path / "a.safetensors",
        arch="best",
        epochs=2,
        cache=tmp_path / "cache",
    )
    train.run(options)
    monkeypatch.setattr(train, "open_teacher", lambda *_: pytest.fail("computed again"))
    again = TrainOptions(
        str(checkpoint),
        data,
        tmp_path / "b.safetensors",
        arch="best",
        epochs=2,
        cache=tmp_path / "cache",
        other=tmp_path / "other.safetensors",
    )
    train.run(again)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    check_files(tmp_path / "b.safetensors", tmp_path / "other.safetensors")


def test_one_scorer_is_trained_on_pictures_and_videos(
    checkpoint: Path, teacher: Teacher, data: Path, tmp_path: Path
) -> None:
    """The questions about pictures, and as many about videos, all answered as the model does."""
    films = read_examples(write(tmp_path, film_suite("train", 12, grid=(4, 4), frames=4)))
    asked = [replace(film, question=f"question {number}?") for film in films for number in range(3)]
    lines = [
        {**line, "image": str(data.parent / line["image"])}
        for line in map(json.loads, data.read_text().splitlines())
        if "image" in line and line["answer"] != WRONG
    ]
    for example, given in zip(asked, ask_all(teacher, asked), strict=True):
        ids = greedy(teacher, given.prompt, given.vision, 12)
        text = "" if ids is None else teacher.tokenizer.decode(ids.tolist())
        (source,) = example.media
        assert isinstance(source, FrameFiles)
        frames = {"frames": list(map(str, source.paths)), "fps": source.fps}
        if text.strip() and "\ufffd" not in text:
            lines.append({**frames, "question": example.question, "answer": text})
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps(line) + "\n" for line in lines))
    target = tmp_path / "scorer.safetensors"
    train.run(TrainOptions(str(checkpoint), mixed, target, epochs=1))
    scorer = load_scorer(target, SIZE)
    assert scorer.modalities == ("picture", "video")
    apart = scorer.metrics_by_modality
    assert set(apart) == {"picture", "video"}
    assert sum(part["samples"] for part in apart.values()) == scorer.metrics["samples"]
    for name in ("recall_at_50", "kl"):
        parts = [part[name] * part["samples"] for part in apart.values()]
        assert sum(parts) / scorer.metrics["samples"] == pytest.approx(scorer.metrics[name])
    with safe_open(target, framework="pt") as file:
        others = json.loads(file.metadata()["others_by_modality"])
    assert set(others["attention"]) == {"picture", "video"}
    assert apart["video"]["answers_lost"] != apart["picture"]["answers_lost"]


def test_an_interrupted_run_keeps_its_labels(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(
        teacher: Teacher, examples: Sequence[Example]
    ) -> Iterator[tuple[Example, Label | None]]:
        yield from islice(label_all(teacher, examples), 5)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "label_all", interrupted)
    options = TrainOptions(str(checkpoint), data, tmp_path / "a.safetensors", cache=tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        train.run(options)
    (folder,) = (tmp_path / "c").iterdir()
    cache = LabelCache(folder)
    assert sum(sample_name(example) in cache for example in read_examples(data)) == 5


def check_files(chosen: Path, other: Path) -> None:
    """Both files load, and each names the other's figures."""
    kinds = [load_scorer(path, SIZE).kind for path in (chosen, other)]
    assert len(set(kinds)) == 2
    figures = []
    for path in (chosen, other):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        assert metadata["model"] == "qwen2_vl"
        assert int(metadata["labels"]) > 20
        assert (metadata["kind"], metadata["loss"]) in LOSSES.items()
        assert json.loads(metadata["by_glances"])["samples"] > 0
        figures.append((json.loads(metadata["metrics"]), json.loads(metadata["others"])))
    (mine, beside), (its, _) = figures
    assert set(mine) == {
        "recall_at_50", "recall_at_25", "spearman", "kl", "answers_lost", "samples"
    }  # fmt: skip
    assert beside[kinds[1]] == its
    assert set(beside) == {"attention", *NETWORKS} - {kinds[0]}
    assert mine["answers_lost"] == min(each["answers_lost"] for each in (mine, its))


def test_two_processes_make_the_labels_that_one_makes(
    checkpoint: Path, data: Path, labels: dict[str, Label | None], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, torch\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import conftest\n"
        "torch.set_num_threads(1)\n"
        "from tokprune_export.train import main\n"
        "main()\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [str(checkpoint), str(data), str(tmp_path / "out.safetensors"), "--epochs", "1"]
    done = subprocess.run(
        [*torchrun, str(program), *arguments, "--cache", str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    load_scorer(tmp_path / "out.safetensors", SIZE)
    (folder,) = (tmp_path / "cache").iterdir()
    assert len(list(folder.iterdir())) == 2
    cache = LabelCache(folder)
    assert all(name in cache for name in labels)
    right = {name: label for name, label in labels.items() if label is not None}
    assert {name for name in labels if not cache.is_wrong(name)} == set(right)
    for name, label in cache.read(right).items():
        torch.testing.assert_close(label.relevance, right[name].relevance, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(label.attention, right[name].attention, rtol=2e-3, atol=1e-6)


def test_another_checkpoint_has_another_fingerprint(
    checkpoint: Path, tiny_checkpoint: Callable[..., Path]
) -> None:
    folders = [checkpoint, tiny_checkpoint(), tiny_checkpoint(seed=1)]
    assert len({fingerprint(open_checkpoint(str(folder))) for folder in folders}) == 3


def test_questions_about_one_picture_keep_its_tokens_once(
    labels: dict[str, Label | None], tmp_path: Path
) -> None:
    cache = LabelCache(tmp_path)
    for name, label in labels.items():
        cache.add(name, label)
    cache.flush()
    right = {name: label for name, label in labels.items() if label is not None}
    (shard,) = tmp_path.iterdir()
    with safe_open(shard, framework="pt") as file:
        names = list(file.keys())
    kept = [name for name in names if name.endswith(".embeds") and ".glance." not in name]
    assert 1 < len(kept) < len(right) / 2
    for name, label in LabelCache(tmp_path).read(right).items():
        assert torch.equal(label.embeds, right[name].embeds)
        assert torch.equal(label.answer, right[name].answer)


def test_a_damaged_shard_is_an_error_that_names_it(
    labels: dict[str, Label | None], tmp_path: Path
) -> None:
    cache = LabelCache(tmp_path)
    for name, label in labels.items():
        cache.add(name, label)
    cache.flush()
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(RequestInvalid, match=rf"{shard.name} is damaged .*: delete it"):
        LabelCache(tmp_path)


GOOD = {"image": "0.png", "question": "what?", "answer": "this"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Input data was truncated"),
        ('{"image": "0.png", "question": "what?"}', "missing required field `answer`"),
        (json.dumps({**GOOD, "question": 3}), r"Expected `str`, got `int` - at `\$.question`"),
        (json.dumps({**GOOD, "question": " "}), '"question" is empty'),
        (json.dumps({**GOOD, "answer": ""}), '"answer" is empty'),
        (json.dumps({**GOOD, "images": ["0.png"]}), 'give one of "image"'),
        (json.dumps({**GOOD, "image": None}), 'give one of "image"'),
        (json.dumps({**GOOD, "image": None, "images": []}), '"images" is empty'),
        (json.dumps({**GOOD, "image": "none.png"}), "none.png: No such file"),
        (json.dumps({**GOOD, "image": "data.jsonl"}), "cannot identify image file"),
    ],
)
def test_a_bad_line_is_an_error_with_its_number(line: str, message: str, data: Path) -> None:
    path = data.with_name("bad.jsonl")
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(RequestInvalid, match=f"line 3: .*{message}"):
        read_examples(path)
    assert len(read_examples(path, 1)) == 1


def exit_of(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    monkeypatch.setattr(sys, "argv", ["tokprune-train", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    return stopped.value.code


def test_what_cannot_work_is_one_line_and_exit_status_2(
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there, new = tmp_path / "there.safetensors", tmp_path / "new.safetensors"
    there.write_text("x")
    for arguments, message in (
        ((checkpoint, data, there), "exists already"),
        ((checkpoint, data, tmp_path / "no/new.safetensors"), "There is no folder"),
        ((checkpoint, data, new, "--epochs", 0), "Got --epochs 0"),
        ((checkpoint, tmp_path / "none.jsonl", new), "Cannot read"),
        ((tmp_path, data, new), "There is no"),
        ((checkpoint, data, new, "--limit", 6), "to train on (at least 20, "),
        ((checkpoint, data, new, "--other", tmp_path / "2"), "leave out --other, or give"),
    ):
        assert exit_of(monkeypatch, *arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert message in lines[-1]
        assert len([line for line in lines if line.startswith("tokprune-train:")]) == 1
    assert not new.exists()
