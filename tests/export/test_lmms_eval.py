"""The demo Qwen2-VL under lmms-eval's own command line, on tasks written in its own YAML.

`make lmms-eval` installs the harness in an environment of its own and runs this.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from math import log
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow
from video_files import encoded

import tokprune
from tokprune import VLM
from tokprune.scenes import film_suite, suite

pytestmark = [
    pytest.mark.demo,
    pytest.mark.skipif(
        find_spec("lmms_eval") is None, reason="lmms_eval is not installed: make lmms-eval"
    ),
]
FRAMES = 6
CHOICES = ("yes", "no")
COMMON = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_visual: !function drawn.visuals
metadata:
  - version: 0.0
"""
GENERATED = """
output_type: generate_until
doc_to_target: "answer"
generation_kwargs:
  max_new_tokens: 16
  do_sample: false
  until: ["\\n"]
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
TASKS = {
    "tokprune_scenes": GENERATED + 'doc_to_text: "{{{{question}}}}"',
    "tokprune_films": GENERATED + 'doc_to_text: "{{{{question}}}}"',
    "tokprune_cut": GENERATED.replace('["\\n"]', '["e", "a"]') + 'doc_to_text: "{{{{question}}}}"',
    "tokprune_unread": GENERATED + 'doc_to_text: "{{{{question}}}}"',
    "tokprune_interleaved": GENERATED
    + 'doc_to_text: "{{{{question}}}}"\ndoc_to_messages: !function drawn.messages',
    "tokprune_rounds": """
output_type: generate_until_multi_round
doc_to_text: !function drawn.rounds
doc_to_target: "answer"
process_results: !function drawn.last_is_right
generation_kwargs:
  max_new_tokens: 16
metric_list:
  - metric: last_is_right
    aggregation: mean
    higher_is_better: true
""",
    "tokprune_choices": """
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{['yes', 'no'].index(answer)}}}}"
doc_to_choice: ["yes", "no"]
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""",
}
DRAWN = """
from PIL import Image


def visuals(doc):
    if doc["video"]:
        return [doc["video"]]
    return [Image.open(path) for path in doc["pictures"]]


def messages(doc):
    content = [{"type": "text", "text": "look at this:"}]
    content += [{"type": "image", "url": each} for each in visuals(doc)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": doc["question"]}]}]


def rounds(doc, lmms_eval_specific_kwargs=None, round_idx=None, previous_output=None,
           previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    text = f"{doc['question']} {len(previous_output)}"
    return visuals(doc), text, round_idx == 2, previous_output, {"rounds": round_idx}


def last_is_right(doc, results):
    (answers,) = results
    return {"last_is_right": float(len(answers) == 2 and answers[-1] == doc["answer"])}
"""


@dataclass(frozen=True)
class Asked:
    """A sample as the tasks' files hold it."""

    question: str
    answer: str
    pictures: tuple[str, ...] = ()
    video: str | None = None


@dataclass(frozen=True)
class Evaluated:
    """What one run of the command line left behind."""

    results: dict[str, Any]
    samples: dict[str, list[dict[str, Any]]]  # by task, in the order of the data
    answers: list[dict[str, Any]]


@dataclass(frozen=True)
class Bench:
    """The tasks on disk."""

    folder: Path
    data: dict[str, list[Asked]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("tasks")
    scenes = list(_drawn(folder, 12))
    data = {
        "tokprune_scenes": scenes,
        "tokprune_films": list(_filmed(folder, 4)),
        "tokprune_cut": scenes[:4],
        "tokprune_interleaved": scenes[:4],
        "tokprune_rounds": scenes[:2],
        "tokprune_choices": list(_drawn(folder, 6, groups=("exist",))),
        "tokprune_unread": list(_drawn(folder, 2, groups=("shape",))),
    }
    (unread,) = data["tokprune_unread"][0].pictures
    Pillow.new("F", (56, 56)).save(unread, "TIFF")  # truncated ones the harness has Pillow pass on
    (folder / "drawn.py").write_text(DRAWN)
    for task, samples in data.items():
        rows = folder / f"{task}.jsonl"
        lines = [
            {"question": s.question, "answer": s.answer, "pictures": s.pictures, "video": s.video}
            for s in samples
        ]
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / f"{task}.yaml").write_text(
            f"task: {task}\n" + (COMMON + TASKS[task]).format(data=rows)
        )
    return Bench(folder, data)


def _drawn(folder: Path, count: int, **options: Any) -> Iterator[Asked]:
    for sample in suite("test", count, **options):
        files = []
        for index, picture in enumerate(sample.pictures):
            files.append(str(folder / f"{sample.key.replace('/', '-')}-{index}-{count}.png"))
            Pillow.fromarray(picture).save(files[-1])
        yield Asked(sample.question, sample.answer, tuple(files))


def _filmed(folder: Path, count: int) -> Iterator[Asked]:
    for number, sample in enumerate(film_suite("test", count)):
        file = folder / f"{number}.mp4"
        file.write_bytes(encoded(list(sample.clip.frames), rate=round(sample.clip.fps)))
        yield Asked(sample.question, sample.answer, video=str(file))


@pytest.fixture(scope="module")
def evaluate(
    bench: Bench, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Evaluated]:
    """Runs `lmms-eval --model tokprune`, once for the same arguments."""
    made: dict[tuple[str, ...], Evaluated] = {}

    def run(budget: str, *options: str, tasks: tuple[str, ...]) -> Evaluated:
        key = (budget, *options, *tasks)
        if key not in made:
            out = tmp_path_factory.mktemp("out")
            made[key] = _read(out, tasks, _run(bench, demo_bundle, out, budget, options, tasks))
        return made[key]

    return run


def _run(
    bench: Bench, bundle: Path, out: Path, budget: str, options: tuple[str, ...],
    tasks: tuple[str, ...],
) -> str:  # fmt: skip
    arguments = (
        f"bundle={bundle},budget={budget},backend=cpu,threads=1,num_frames={FRAMES},"
        f"answers={out}/answers.jsonl"
    )
    command = [
        sys.executable, "-m", "lmms_eval", "--model", "tokprune", "--model_args", arguments,
        "--tasks", ",".join(tasks), "--include_path", str(bench.folder), "--output_path", str(out),
        "--log_samples", *options,
    ]  # fmt: skip
    offline = {"HF_HOME": str(out / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=900, env=os.environ | offline
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def _read(out: Path, tasks: tuple[str, ...], shown: str) -> Evaluated:
    try:
        (results,) = out.rglob("*_results.json")
        samples = {}
        for task in tasks:
            (file,) = out.rglob(f"*_samples_{task}.jsonl")
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            samples[task] = sorted(rows, key=lambda row: row["doc_id"])
        answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        pytest.fail(f"The harness wrote no results:\n{shown[-4000:]}", pytrace=False)
    return Evaluated(json.loads(results.read_text()), samples, answers)


@pytest.fixture(scope="module")
def vlm(demo_bundle: Path) -> Iterator[VLM]:
    with tokprune.load(demo_bundle, backend="cpu", threads=1) as opened:
        yield opened


GENERATING = ("tokprune_scenes", "tokprune_films", "tokprune_cut", "tokprune_interleaved",
              "tokprune_rounds")  # fmt: skip
SIMPLE, LISTED = ("0.25,on_error=empty", "--force_simple"), ("tokprune_choices", "tokprune_unread")
BUDGETS = pytest.mark.parametrize("budget", ["1.0", "0.25"])


def check_equal(evaluated: Evaluated, task: str, answers: list[tokprune.Answer]) -> None:
    rows = evaluated.samples[task]
    own = [line for line in evaluated.answers if line["task"] == task]
    assert [row["filtered_resps"] for row in rows] == [answer.text.strip() for answer in answers]
    for row, line, answer in zip(rows, own, answers, strict=True):
        counts = row["token_counts"][0]
        assert (counts["kept"], counts["total"]) == (answer.kept, answer.total)
        assert (line["doc_id"], line["kept"], line["total"]) == (
            row["doc_id"],
            answer.kept,
            answer.total,
        )
        assert counts["input_tokens"] == line["prompt_tokens"] == answer.prompt_tokens
        assert counts["output_tokens"] == len(answer.token_ids)
        assert counts["ttft_ms"] > 0
        assert (counts["selector"], counts["reason"]) == (answer.selector, answer.selection.reason)


@BUDGETS
def test_pictures_are_answered_and_scored_as_vlm_ask_does(
    evaluate: Callable[..., Evaluated], bench: Bench, vlm: VLM, budget: str
) -> None:
    evaluated = evaluate(budget, tasks=GENERATING)
    samples = bench.data["tokprune_scenes"]
    answers = [
        vlm.ask([Path(p) for p in s.pictures], s.question, budget, max_new_tokens=16, stop=["\n"])
        for s in samples
    ]
    check_equal(evaluated, "tokprune_scenes", answers)
    right = [answer.text == sample.answer for answer, sample in zip(answers, samples, strict=True)]
    score = evaluated.results["results"]["tokprune_scenes"]["exact_match,none"]
    assert score == pytest.approx(sum(right) / len(right))
    assert sum(right) > 3
    kept = sum(answer.kept / answer.total for answer in answers) / len(answers)
    throughput = evaluated.results["throughput"]
    assert throughput["avg_kept_share/tokprune_scenes"] == pytest.approx(kept)
    assert throughput["avg_ttft_ms"] > 0
    assert throughput["avg_not_asked"] == 0


@BUDGETS
def test_videos_are_answered_as_vlm_ask_does(
    evaluate: Callable[..., Evaluated], bench: Bench, vlm: VLM, budget: str
) -> None:
    evaluated = evaluate(budget, tasks=GENERATING)
    answers = []
    for sample in bench.data["tokprune_films"]:
        clip = tokprune.load_video(str(sample.video), num_frames=FRAMES)
        answers.append(vlm.ask(clip, sample.question, budget, max_new_tokens=16, stop=["\n"]))
    check_equal(evaluated, "tokprune_films", answers)


@BUDGETS
def test_words_before_a_picture_stay_there(
    evaluate: Callable[..., Evaluated], bench: Bench, vlm: VLM, budget: str
) -> None:
    evaluated = evaluate(budget, tasks=GENERATING)
    answers = []
    for sample in bench.data["tokprune_interleaved"]:
        parts = ["look at this:", *map(Path, sample.pictures), sample.question]
        answers.append(vlm.chat(budget=budget).ask(parts, max_new_tokens=16, stop=["\n"]))
    check_equal(evaluated, "tokprune_interleaved", answers)


def test_answers_end_before_the_task_s_stop_strings(
    evaluate: Callable[..., Evaluated], bench: Bench, vlm: VLM
) -> None:
    evaluated = evaluate("1.0", tasks=GENERATING)
    whole = [
        vlm.ask([Path(p) for p in s.pictures], s.question, 1.0).text
        for s in bench.data["tokprune_cut"]
    ]
    expected = [text[: min(map((text + "ea").index, "ea"))].strip() for text in whole]
    assert expected != whole
    assert [row["filtered_resps"] for row in evaluated.samples["tokprune_cut"]] == expected


def test_every_round_is_asked_with_its_own_messages(
    evaluate: Callable[..., Evaluated], bench: Bench, vlm: VLM
) -> None:
    evaluated = evaluate("0.25", tasks=GENERATING)
    lines = [line for line in evaluated.answers if line["task"] == "tokprune_rounds"]
    expected = []
    for number, sample in enumerate(bench.data["tokprune_rounds"]):
        for turn, question in enumerate((sample.question, f"{sample.question} 1")):
            shown = [Path(path) for path in sample.pictures]
            answer = vlm.ask(shown, question, "0.25", max_new_tokens=16, stop=["\n\n"])
            expected.append((number, turn, answer.text, answer.kept, answer.total))
    keys = ("doc_id", "round", "text", "kept", "total")
    assert [tuple(line[key] for key in keys) for line in lines] == expected
    assert "last_is_right,none" in evaluated.results["results"]["tokprune_rounds"]


def test_choices_are_scored_by_the_model_s_own_likelihoods(
    evaluate: Callable[..., Evaluated], bench: Bench, vlm: VLM
) -> None:
    evaluated = evaluate(*SIMPLE, tasks=LISTED)
    right, greedy = [], []
    samples = bench.data["tokprune_choices"]
    for sample, row in zip(samples, evaluated.samples["tokprune_choices"], strict=True):
        shown = [Path(path) for path in sample.pictures]
        answer = vlm.ask(shown, sample.question, "0.25", choices=CHOICES)
        assert answer.probabilities is not None
        assert answer.choice_mass is not None
        losses = [-log(answer.probabilities[each] * answer.choice_mass) for each in CHOICES]
        free = vlm.ask(shown, sample.question, "0.25").text
        found = row["filtered_resps"]
        assert [float(loss) for loss, _ in found] == pytest.approx(losses, abs=1e-6)
        assert [sure for _, sure in found] == [str(free == each) for each in CHOICES]
        assert {counts["kept"] for counts in row["token_counts"]} == {answer.kept}
        right.append(answer.choice == sample.answer)
        greedy.append(free == sample.answer)
    results = evaluated.results["results"]["tokprune_choices"]
    assert results["acc,none"] == pytest.approx(sum(right) / len(right))
    assert results["exact_match,none"] == pytest.approx(sum(greedy) / len(greedy))
    lines = [line for line in evaluated.answers if line["task"] == "tokprune_choices"]
    assert [line["request"] for line in lines] == ["loglikelihood"] * len(samples)


def test_a_picture_that_is_not_read_counts_as_not_answered_where_that_is_asked_for(
    evaluate: Callable[..., Evaluated], bench: Bench, vlm: VLM
) -> None:
    evaluated = evaluate(*SIMPLE, tasks=LISTED)
    first, second = evaluated.samples["tokprune_unread"]
    whole = bench.data["tokprune_unread"][1]
    shown = [Path(path) for path in whole.pictures]
    assert first["filtered_resps"] == ""
    assert "32-bit pixels" in first["token_counts"][0]["error"]
    assert second["filtered_resps"] == vlm.ask(shown, whole.question, "0.25").text
    assert second["token_counts"][0]["error"] is None
    assert evaluated.results["throughput"]["avg_not_asked"] == 1


def test_a_misspelt_model_argument_is_refused_before_anything_is_asked(
    bench: Bench, demo_bundle: Path, tmp_path: Path
) -> None:
    shown = _run(
        bench, demo_bundle, tmp_path, "0.25,selektor=random", ("--force_simple",),
        ("tokprune_choices",),
    )  # fmt: skip
    assert "Unknown model argument 'selektor'. Did you mean 'selector'?" in shown
    assert not list(tmp_path.rglob("*_results.json"))
