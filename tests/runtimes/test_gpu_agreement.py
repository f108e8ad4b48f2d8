"""How `make gpu` compares an engine with the CPU: answers and graphs, on a stub's VLMs."""

from types import SimpleNamespace
from typing import Any

import agreement
import numpy as np
import parity
import pytest
import setting
from parity import RULES, Rule, compare
from setting import Row, Skipped
from stub_model import Stub, StubGraph, a_model, a_picture

from tokprune.vlm import VLM

SAMPLE: Any = SimpleNamespace(pictures=(a_picture(height=64, width=64),), question="what is it?")
TOKENS = 64  # of that picture


class Fake:
    """A setting whose engine is a stub; what it does wrong is `spoil`ed in its LLM's logits."""

    engine = "tensorrt"
    questions = 4

    def __init__(self, *precisions: str, wrong_at: tuple[int, ...] = ()) -> None:
        self.precisions = precisions
        self.wrong_at = wrong_at  # numbers of kept tokens after which another answer comes
        self.asked: list[tuple[str, str]] = []

    def bundle(self, family: str, precision: str) -> Any:
        return precision

    def open(self, bundle: str) -> Any:
        if bundle == "int4":
            raise Skipped("tensorrt offers no int4")
        return _Asked(VLM(a_model(Stub())), self.wrong_at)

    def on_cpu(self, family: str, precision: str) -> Any:
        self.asked.append((family, precision))
        if precision == "bf16":
            raise Skipped("cpu offers no bf16")
        return _Asked(VLM(a_model(Stub())), ())

    def reference(self, family: str, precision: str) -> tuple[Any, str]:
        exact = "fp32" if precision == "bf16" else precision
        return self.on_cpu(family, exact), exact


class _Asked:
    """A VLM that gives another text for some numbers of kept tokens."""

    def __init__(self, vlm: VLM, wrong_at: tuple[int, ...]) -> None:
        self.model, self._vlm, self._wrong_at = vlm.model, vlm, wrong_at

    def ask(self, *args: Any, **options: Any) -> Any:
        answer = self._vlm.ask(*args, **options)
        text = "wrong" if answer.kept in self._wrong_at else answer.text
        names = ("kept", "total", "selection")
        return SimpleNamespace(text=text, **{name: getattr(answer, name) for name in names})


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def suite(split: str, count: int, tokens: int) -> Any:
        return iter([SAMPLE] * count)

    for module in (agreement, parity):
        monkeypatch.setattr(module, "suite", suite)
    for module in (agreement, setting):
        monkeypatch.setattr(module, "FAMILIES", ("qwen2_vl",))


def by_count(rows: list[Row]) -> dict[int, bool]:
    return {row["count"]: row["ok"] for row in rows if "count" in row}


def test_in_float32_every_text_of_the_sweep_must_be_the_cpus() -> None:
    rows: Any = list(agreement.sweep(Fake("fp32")))  # type: ignore[arg-type]
    assert len(by_count(rows)) == agreement.SWEPT
    assert {1, TOKENS} <= set(by_count(rows))
    assert all(row["ok"] for row in rows)
    wrong = list(agreement.sweep(Fake("fp32", wrong_at=(TOKENS,))))  # type: ignore[arg-type]
    assert [count for count, ok in by_count(wrong).items() if not ok] == [TOKENS]
    assert (wrong[-1]["ok"], wrong[-1]["least"]) == (False, 1.0)


def test_a_narrower_sweep_is_held_to_a_share_that_is_told() -> None:
    counts = sorted(by_count(list(agreement.sweep(Fake("fp16")))))  # type: ignore[arg-type]
    for wrong, ok in ((counts[:1], True), (counts[:2], False)):
        rows = list(agreement.sweep(Fake("fp16", wrong_at=tuple(wrong))))  # type: ignore[arg-type]
        assert all(by_count(rows).values())  # each kept as many as was asked for
        assert rows[-1]["share_of_texts_equal"] == round(1 - len(wrong) / len(counts), 4)
        assert (rows[-1]["ok"], rows[-1]["least"]) == (ok, 0.9)


def test_bf16_is_swept_against_float32_and_what_is_not_offered_is_skipped() -> None:
    rows = list(agreement.sweep(Fake("bf16", "int4")))  # type: ignore[arg-type]
    assert rows[-2]["texts_equal_to"] == "fp32 on the CPU"
    assert rows[-1] == {
        "family": "qwen2_vl",
        "precision": "int4",
        "skipped": "tensorrt offers no int4",
    }


def test_answers_in_bf16_are_held_against_float32_alone() -> None:
    fake = Fake("fp32", "bf16", "int4")
    exact, narrow, skipped = agreement.agreement(fake)  # type: ignore[arg-type]
    assert (exact["ok"], exact["equal_to_this_precision_on_cpu"]) == (True, 1.0)
    assert (narrow["ok"], narrow["equal_to_fp32_on_cpu"]) == (True, 1.0)
    assert narrow["this_precision_on_cpu"] == "skipped: cpu offers no bf16"
    assert skipped["skipped"] == "tensorrt offers no int4"


def test_one_wrong_answer_of_twelve_is_too_many_in_float32() -> None:
    (row,) = agreement.agreement(Fake("fp32", wrong_at=(TOKENS,)))  # type: ignore[arg-type]
    assert (row["answers"], row["ok"]) == (12, False)
    assert row["equal_to_fp32_on_cpu"] == round(8 / 12, 4)


OUTPUTS = [
    "vision_encoder.vision_tokens",
    "first_layer.attention",
    "scorer.relevance",
    "llm.logits, prefill",
    "llm.logits, decode",
]


def test_every_output_of_every_graph_is_compared() -> None:
    rows = list(parity.graph_parity(Fake("fp16", "bf16")))  # type: ignore[arg-type]
    assert [row["output"] for row in rows] == 2 * OUTPUTS
    assert all(row["ok"] and row["max_abs_diff"] == 0 and row["cosine"] == 1 for row in rows)
    assert {row["against"] for row in rows} == {"fp16 on the CPU", "fp32 on the CPU"}


@pytest.mark.parametrize(
    ("graph", "wrong"),
    [("vision", OUTPUTS[:1]), ("first_layer", OUTPUTS[1:2]), ("scorer", OUTPUTS[2:3])],
)
def test_a_graph_that_is_wrong_is_named_and_no_other(
    monkeypatch: pytest.MonkeyPatch, graph: str, wrong: list[str]
) -> None:
    run = StubGraph.run

    def broken(self: StubGraph, feeds: Any, interrupt: Any = None) -> Any:
        outputs = run(self, feeds, interrupt)
        spoilt = self.name == graph and getattr(self.stub, "engine", False)
        return {name: value * (1.02 if spoilt else 1) for name, value in outputs.items()}

    monkeypatch.setattr(StubGraph, "run", broken)
    fake = Fake("fp32")
    stub = Stub()
    stub.engine = True  # type: ignore[attr-defined]
    fake.open = lambda bundle: SimpleNamespace(model=a_model(stub))  # type: ignore[method-assign]
    rows = list(parity.graph_parity(fake))  # type: ignore[arg-type]
    assert [row["output"] for row in rows if not row["ok"]] == wrong


@pytest.mark.parametrize(
    ("ours", "rule", "ok"),
    [
        ([1.0, 2.0, 3.00009], Rule(1e-4, -1), True),
        ([1.0, 2.0, 3.0005], Rule(1e-4, -1), False),
        ([1.02, 1.98, 3.02], RULES["fp16"], True),
        ([0.1, -0.2, 0.3], Rule(1.0, 0.999), False),  # within the bound, and in another direction
        ([1.0, 2.0, float("nan")], RULES["int4"], False),
        ([1.0, 2.0], RULES["int4"], False),
    ],
)
def test_a_rule_bounds_the_difference_and_the_cosine(
    ours: list[float], rule: Rule, *, ok: bool
) -> None:
    found = compare(np.asarray(ours, np.float32), np.asarray([1, 2, 3], np.float32), rule)
    assert found["ok"] is ok
