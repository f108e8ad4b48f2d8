"""Chats and pinned pictures on the demo bundles: what is used again is what would be computed."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokprune import Cancelled, CancelToken, clip_of, load
from tokprune.llm import Continuation
from tokprune.running.answering import answer
from tokprune.running.task import Task
from tokprune.scenes import suite
from tokprune.types import Array
from tokprune.vlm import VLM

pytestmark = pytest.mark.demo
FAMILIES = ("qwen2_vl", "llava_onevision", "vila")
FORMS = ("ort", "portable")
# Not 0 in either form: with other rows beside it, a kernel adds up a row in another order.
LARGEST_DIFFERENCE = 1e-4


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def vlm(demo_bundles: Callable[..., Path], form: str) -> Iterator[VLM]:
    with load(demo_bundles("qwen2_vl"), backend="cpu", threads=1, llm_form=form) as made:
        yield made


class Logits:
    """Every row of logits that the LLM gives out, while it is watched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[Array] = []
        run = Continuation._run

        def spy(written: Continuation, new: Any) -> None:
            run(written, new)
            self.rows.append(written.logits.copy())

        monkeypatch.setattr(Continuation, "_run", spy)

    def taken(self) -> Sequence[Array]:
        rows, self.rows = self.rows, []
        return rows


def shows(number: int) -> Any:
    """Pictures come at the first turn, at one in the middle, and two at once."""
    samples = list(suite("dev", 4, tokens=64))
    return {0: samples[0].pictures, 2: samples[1].pictures, 5: samples[2].pictures * 2}.get(
        number, ()
    )


@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize("budget", [0.5, 1.0])
def test_a_chat_that_reuses_equals_one_that_computes_everything(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch, *, pin: bool, budget: float
) -> None:
    chat, anew = (vlm.chat(pin=pin, budget=budget) for _ in range(2))
    anew._owner = None  # type: ignore[assignment]
    logits, reused = Logits(monkeypatch), 0
    questions = [sample.question for sample in suite("dev", 7, tokens=64)]
    for number, question in enumerate(questions):
        ours = chat.ask(question, list(shows(number)), max_new_tokens=12)
        mine = logits.taken()
        theirs = anew.ask(question, list(shows(number)), max_new_tokens=12)
        assert (ours.text, ours.token_ids) == (theirs.text, theirs.token_ids)
        assert ours.selection.keep.tolist() == theirs.selection.keep.tolist()
        assert theirs.reused == 0
        reused += ours.reused
        difference = [np.abs(a - b).max() for a, b in zip(mine, logits.taken(), strict=True)]
        assert max(difference) <= LARGEST_DIFFERENCE
    assert reused > (300 if pin or budget == 1.0 else 20)


def test_pinned_pictures_answer_as_if_each_question_were_the_first(vlm: VLM) -> None:
    samples = list(suite("dev", 6, tokens=64))
    pinned = vlm.pin(list(samples[0].pictures), budget=0.5)
    for sample in samples:
        ours = pinned.ask(sample.question, max_new_tokens=12)
        fresh = vlm.pin(list(samples[0].pictures), budget=0.5)
        theirs = fresh.ask(sample.question, max_new_tokens=12)
        assert (ours.text, ours.token_ids) == (theirs.text, theirs.token_ids)
        choice, other = (
            each.ask(sample.question, choices=["yes", "no", "red", "bottom right", "bottom"])
            for each in (pinned, fresh)
        )
        assert choice.probabilities is not None
        assert other.probabilities is not None
        np.testing.assert_allclose(
            list(choice.probabilities.values()), list(other.probabilities.values()), atol=1e-4
        )


def test_a_request_without_an_owner_never_depends_on_what_was_asked_before(vlm: VLM) -> None:
    """To the bit, in both forms: it reuses nothing."""
    samples = list(suite("dev", 3, tokens=64))
    before: list[Any] = []
    for turn in range(2):
        vlm.chat().ask("hello", list(samples[turn].pictures))
        answers = [
            vlm.ask(list(s.pictures), s.question, 0.5, choices=["yes", "no"]) for s in samples
        ]
        probabilities = [each.probabilities for each in answers]
        assert not any(each.reused for each in answers)
        assert before in ([], probabilities)
        before = probabilities


def test_a_stop_string_and_a_stopped_answer_are_prefixes_of_the_whole(vlm: VLM) -> None:
    samples = [s for s in suite("dev", 40, tokens=64) if " " in s.answer]
    (sample, *_) = samples
    pictures = list(sample.pictures)
    whole = vlm.ask(pictures, sample.question, 1.0)
    first, space, rest = whole.text.partition(" ")
    assert rest
    cut = vlm.ask(pictures, sample.question, 1.0, stop=[space + rest])
    assert (cut.text, cut.finish_reason) == (first, "stop")
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        vlm.ask(pictures, sample.question, 1.0, cancel=token)
    stream, token = vlm.stream(pictures, sample.question, 1.0), CancelToken()
    assert "".join(stream) == whole.text
    assert vlm.ask(pictures, sample.question, 1.0).token_ids == whole.token_ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pin", [False, True])
def test_a_chat_of_every_family_may_begin_with_words_alone(
    family: str, demo_bundles: Callable[..., Path], *, pin: bool
) -> None:
    (sample, other) = list(suite("dev", 2, tokens=64))
    with load(demo_bundles(family), backend="cpu", threads=1) as vlm:
        chat = vlm.chat(pin=pin)
        first = chat.ask("hello", max_new_tokens=4)
        assert (first.total, first.kept, first.encoder_runs) == (0, 0, 0)
        second = chat.ask(sample.question, list(sample.pictures), max_new_tokens=8)
        assert 0 < second.kept < second.total
        third = chat.ask(["before", *other.pictures, other.question], max_new_tokens=8)
        assert third.total != second.total
        assert third.encoder_runs > 0
        assert [len(turn.content) for turn in chat.turns] == [1, 2, 3]
        assert all(turn.answer is not None for turn in chat.turns)
        chat.undo()
        again = chat.ask(["before", *other.pictures, other.question], max_new_tokens=8)
        assert again.text == third.text


def test_answering_without_a_worker_is_the_same(vlm: VLM) -> None:
    """The worker adds nothing: `answering.answer` on this thread gives the same tokens."""
    from tokprune.budgets import KeepRatio
    from tokprune.control import Control
    from tokprune.running.request import Options
    from tokprune.stopwatch import Stopwatch

    (sample,) = list(suite("dev", 1, tokens=64))
    prompt, media = vlm.model.prepare(list(sample.pictures), sample.question)
    name, make = vlm.model.selector(None)
    task = Task(prompt, media, KeepRatio(0.5), name, make, Options())
    pieces: list[str] = []
    made, _ = answer(vlm.model, task, vlm._runtime.state, Control(), Stopwatch(), pieces.append)
    asked = vlm.ask(list(sample.pictures), sample.question, 0.5)
    assert (made.text, made.token_ids) == (asked.text, asked.token_ids)
    assert "".join(pieces) == made.text


def test_a_video_that_becomes_several_pictures_stands_where_it_was_shown(
    demo_bundles: Callable[[str], Path],
) -> None:
    """VILA takes each frame for a picture."""
    rng = np.random.default_rng(3)
    picture, *frames = (rng.integers(0, 256, (112, 112, 3), np.uint8) for _ in range(4))
    film = clip_of(frames, fps=2.0)
    with load(demo_bundles("vila"), backend="cpu", threads=1, verify="sizes") as vlm:
        chat = vlm.chat(budget=1.0)
        first = chat.ask("what is there?", [picture, film])
        second = chat.ask("and now?", picture)
        assert first.total == 4 * (second.total - first.total)
        assert vlm.pin(film, budget=1.0).ask("what is there?").total * 4 == 3 * first.total
