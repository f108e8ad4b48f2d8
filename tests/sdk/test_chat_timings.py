"""What answers of a chat say about caches and stages, against counts taken at the graphs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import pytest

import tokprune
from tokprune.kv import KvOwner, KvPool
from tokprune.running.answering import STAGES
from tokprune.scenes import suite
from tokprune.types import Answer, Array, First, Prompt, Ranking, VisionTokens
from tokprune.vlm import VLM
from tokprune_runtimes import Carry, Feeds, Graph, Interrupt, Loop

pytestmark = pytest.mark.demo
FAMILIES = ("qwen2_vl", "llava_onevision", "vila")
QUESTIONS = ("how many shapes are there?", "is there a red star?", "describe the image.")


@dataclass
class Counting:
    """Passes everything on, and counts runs and the rows of the LLM's prompts."""

    graph: Graph
    runs: int = 0
    rows: list[int] = field(default_factory=list[int])  # of every step

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        outputs = self.graph.run(feeds, interrupt)
        self.runs += 1
        return outputs

    def loop(self, carries: Sequence[Carry]) -> Loop:
        return CountingLoop(self.graph.loop(carries), self)


@dataclass
class CountingLoop:
    loop: Loop
    counting: Counting

    def step(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        outputs = self.loop.step(feeds, interrupt)
        self.counting.rows.append(int(feeds["inputs_embeds"].shape[1]))
        return outputs

    def rewind(self, length: int) -> None:
        self.loop.rewind(length)


@dataclass(frozen=True)
class Counted:
    """A VLM, and what its graphs were asked."""

    vlm: VLM
    vision: Counting
    first_layer: Counting
    scorer: Counting
    llm: Counting

    def prefilled(self, answer: Answer) -> int:
        """Return the rows of the prompt that ran for the latest answer; forget its steps."""
        decoded = len(self.llm.rows) - 1
        assert decoded <= len(answer.token_ids)
        assert self.llm.rows[1:] == [1] * decoded
        rows = self.llm.rows[0]
        self.llm.rows.clear()
        return rows


@contextmanager
def counted(
    bundle: Path, *, vision_cache_bytes: int = 2**28, kv_slots: int = 2
) -> Iterator[Counted]:
    with tokprune.load(bundle, backend="cpu", threads=1) as plain:
        model = plain.model
        parts = (model.vision, model.first_layer, model.scorer, model.llm)
        vision, first_layer, scorer, llm = (Counting(part.graph) for part in parts)
        model = replace(
            model,
            vision=replace(model.vision, graph=vision),
            first_layer=replace(model.first_layer, graph=first_layer),
            scorer=replace(model.scorer, graph=scorer),
            llm=replace(model.llm, graph=llm),
        )
        with VLM(model, vision_cache_bytes=vision_cache_bytes, kv_slots=kv_slots) as vlm:
            yield Counted(vlm, vision, first_layer, scorer, llm)


@pytest.fixture(scope="module")
def pictures() -> list[Array]:
    samples = suite("dev", 2, tokens=64, groups=["color"])
    return [sample.pictures[0] for sample in samples]


def halves(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Rank from the front for the first question, else a quarter from the front, then the end."""
    del first
    total, asked = len(vision.where), int(prompt.words[prompt.slots[-1] :].nonzero()[0][0])
    order = np.arange(total)
    if asked > 6:  # the user's words stand further behind the picture: there was a turn before
        order = np.concatenate([order[: total // 4], order[::-1][: total - total // 4]])
    return Ranking(lambda k: order[:k])


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_turn_that_shows_a_picture_encodes_it(
    family: str, demo_bundles: Callable[[str], Path], pictures: list[Array]
) -> None:
    with counted(demo_bundles(family)) as made:
        chat = made.vlm.chat()
        answers = [chat.ask(QUESTIONS[0], pictures[0])]
        calls = made.vision.runs
        assert calls > 0
        answers += [chat.ask(question) for question in QUESTIONS[1:]]
        assert [answer.encoder_runs for answer in answers] == [calls, 0, 0]
        assert [answer.encoder_hits for answer in answers] == [0, 0, 0]  # they are not looked up
        assert made.vision.runs == calls
        assert len({answer.total for answer in answers}) == 1


def test_a_second_picture_is_encoded_and_the_first_comes_from_the_vision_cache(
    demo_bundle: Path, pictures: list[Array]
) -> None:
    with counted(demo_bundle) as made:
        chat = made.vlm.chat()
        chat.ask(QUESTIONS[0], pictures[0])
        both = chat.ask(QUESTIONS[1], pictures[1])
        assert (both.encoder_runs, both.encoder_hits, made.vision.runs) == (1, 1, 2)
        assert (chat.ask(QUESTIONS[2]).encoder_runs, made.vision.runs) == (0, 2)


def test_another_chat_about_the_same_pixels_hits_the_vision_cache(
    demo_bundle: Path, pictures: list[Array]
) -> None:
    with counted(demo_bundle) as made:
        made.vlm.chat().ask(QUESTIONS[0], pictures[0])
        again = made.vlm.chat().ask(QUESTIONS[0], pictures[0].copy())
        assert (again.encoder_runs, again.encoder_hits, made.vision.runs) == (0, 1, 1)
        stats = made.vlm.stats()
        assert (stats.encoder_runs, stats.encoder_hits) == (1, 1)


def test_without_a_vision_cache_later_turns_still_do_not_encode(
    demo_bundle: Path, pictures: list[Array]
) -> None:
    with counted(demo_bundle, vision_cache_bytes=0) as made:
        chat = made.vlm.chat()
        runs = [
            chat.ask(QUESTIONS[0], pictures[0]).encoder_runs,
            chat.ask(QUESTIONS[1]).encoder_runs,
        ]
        assert runs == [1, 0]
        assert made.vlm.chat().ask(QUESTIONS[0], pictures[0]).encoder_runs == 1
        assert made.vision.runs == 2


@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize("budget", [0.5, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_ran_and_reused_rows_make_the_prompt(
    family: str,
    demo_bundles: Callable[[str], Path],
    pictures: list[Array],
    budget: float,
    *,
    pin: bool,
) -> None:
    with counted(demo_bundles(family)) as made:
        chat = made.vlm.chat(budget=budget, pin=pin)
        for turn, question in enumerate(QUESTIONS):
            answer = chat.ask(question, () if turn else pictures[0])
            assert made.prefilled(answer) == answer.prompt_tokens - answer.reused
            assert (answer.reused > 0) == (turn > 0)


@pytest.mark.parametrize("way", ["unpruned", "pinned"])
@pytest.mark.parametrize("family", FAMILIES)
def test_where_vision_tokens_stay_the_same_a_turn_reuses_all_that_was_said(
    family: str, demo_bundles: Callable[[str], Path], pictures: list[Array], way: str
) -> None:
    with counted(demo_bundles(family)) as made:
        pinned = way == "pinned"
        chat = made.vlm.chat(budget=0.5 if pinned else 1.0, pin=pinned)
        answers = [
            chat.ask(question, () if turn else pictures[0])
            for turn, question in enumerate(QUESTIONS)
        ]
        for before, after in pairwise(answers):
            assert before.finish_reason == "stop"
            assert after.reused == before.prompt_tokens + len(before.token_ids)
        assert (made.first_layer.runs, made.scorer.runs) == (0, 0)


def test_where_they_change_a_turn_reuses_what_stands_before_the_first_change(
    demo_bundle: Path, pictures: list[Array]
) -> None:
    with counted(demo_bundle) as made:
        chat = made.vlm.chat(selector=halves)
        first = chat.ask(QUESTIONS[0], pictures[0])
        second = chat.ask(QUESTIONS[1])
        assert first.selection.keep.tolist() == [*range(32)]
        assert second.selection.keep.tolist() == [*range(16), *range(48, 64)]
        prompt, _ = made.vlm.model.prepare(pictures[0], QUESTIONS[0])
        assert second.reused == prompt.slots[0] + 16


def test_a_selector_that_reads_the_question_runs_once_a_turn(
    demo_bundle: Path, pictures: list[Array]
) -> None:
    with counted(demo_bundle) as made:
        chat = made.vlm.chat(selector="relevance-spread")
        for turn, question in enumerate(QUESTIONS):
            chat.ask(question, () if turn else pictures[0])
            assert (made.first_layer.runs, made.scorer.runs) == (turn + 1, turn + 1)


def test_a_pinned_picture_runs_the_words_of_later_questions_alone(
    demo_bundle: Path, pictures: list[Array]
) -> None:
    with counted(demo_bundle) as made:
        pinned = made.vlm.pin(pictures[0])
        answers = [pinned.ask(question) for question in QUESTIONS]
        assert [answer.encoder_runs for answer in answers] == [1, 0, 0]
        prompt, _ = made.vlm.model.prepare(pictures[0], QUESTIONS[0])
        fixed = prompt.slots[0] + answers[0].kept
        assert answers[0].reused == 0
        assert all(answer.reused >= fixed for answer in answers[1:])


def test_chats_that_displace_each_other_reuse_nothing_and_answer_the_same(
    demo_bundle: Path, pictures: list[Array]
) -> None:
    def talk(slots: int) -> list[list[Answer]]:
        with counted(demo_bundle, kv_slots=slots) as made:
            chats = [made.vlm.chat(budget=1.0) for _ in pictures]
            shown = [
                [
                    chat.ask(QUESTIONS[0], picture)
                    for chat, picture in zip(chats, pictures, strict=True)
                ]
            ]
            return shown + [[chat.ask(question) for chat in chats] for question in QUESTIONS[1:]]

    alone, together = talk(1), talk(2)
    assert {answer.reused for turn in alone for answer in turn} == {0}
    assert all(answer.reused for turn in together[1:] for answer in turn)
    assert [[a.text for a in turn] for turn in alone] == [
        [a.text for a in turn] for turn in together
    ]


def test_a_chat_that_outgrows_its_cache_gets_one_of_twice_its_rows() -> None:
    pool = KvPool(lambda _: cast(Loop, None), slots=2, longest=4096, grows=False)  # never steps
    chat = KvOwner()
    capacities = [pool.take(chat, rows).capacity for rows in range(100, 4001, 10)]
    assert capacities[0] == 256
    assert len(set(capacities)) <= 6  # each new one loses all that was computed
    assert pool.capacities() == (4096,)


def test_a_turn_that_was_taken_back_is_answered_again_from_what_is_there(
    demo_bundle: Path, pictures: list[Array]
) -> None:
    with counted(demo_bundle) as made:
        chat = made.vlm.chat()
        before = chat.ask(QUESTIONS[0], pictures[0])
        chat.undo()
        again = chat.ask(QUESTIONS[0], pictures[0])
        assert again.text == before.text
        assert (again.encoder_runs, again.encoder_hits) == (0, 1)
        assert again.reused == again.prompt_tokens - 1  # its logits are wanted


@pytest.mark.parametrize("pin", [False, True])
def test_stages_are_parts_of_the_time_to_the_first_token(
    demo_bundle: Path, pictures: list[Array], *, pin: bool
) -> None:
    with counted(demo_bundle) as made:
        chat = made.vlm.chat(pin=pin)
        for turn, question in enumerate(QUESTIONS):
            answer = chat.ask(question, () if turn else pictures[0])
            assert tuple(answer.timings_ms) == STAGES
            assert min(answer.timings_ms.values()) >= 0
            before = sum(ms for stage, ms in answer.timings_ms.items() if stage != "decode")
            assert before <= answer.ttft_ms + 0.001
            ran = {span.name for span in answer.spans}
            assert {"wait", "preprocess", "vision", "select", "prefill", "decode"} <= ran
            assert ({"first_layer", "scorer"} <= ran) is not pin
            assert answer.timings_ms["scorer"] == 0 or not pin
            assert max(span.end_ms for span in answer.spans) >= answer.ttft_ms
