"""`tokprune bench`: what counts and what does not, and a real run on the demo bundle."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from tokprune import ContextOverflow, Following, RequestInvalid
from tokprune.benching import Cell, Run, fastest, machine, measure, percentiles, row_of, run_of
from tokprune.budgets import Budget, KeepCount, KeepRatio
from tokprune.commands.bench import Bench, drawn, run_bench
from tokprune.errors import BudgetImpossible, NotCalibrated
from tokprune.looking.following import About, Seen
from tokprune.looking.remembering import Outputs
from tokprune.scenes import slowly
from tokprune.stream_benching import measure_stream, stream_row
from tokprune.types import Answer, FinishReason, Region, Selection

PICTURE = np.zeros((4, 6, 3), np.uint8)
BUDGETS: dict[str, Budget] = {"1.0": KeepRatio(1.0), "2": KeepCount(2), "0.25": KeepRatio(0.25)}


def answer(
    kept: int = 2, tokens: int = 3, reason: FinishReason = "stop", ms: float = 10.0
) -> Answer:
    return Answer(
        text="yes",
        finish_reason=reason,
        selection=Selection(np.arange(kept), 8, None, None, "count"),
        regions=(Region(0, 0, 0, 2, 4),),
        where=np.zeros((8, 7), np.int32),
        selector="fake",
        timings_ms={"vision": ms / 2, "prefill": ms / 4, "decode": 12.0},
        ttft_ms=ms,
        token_ids=tuple(range(tokens)),
        encoded=6,
    )


class FakeVlm:
    """Remembers what it was asked."""

    def __init__(self, *, ms: Callable[[int], float] = lambda number: 10.0) -> None:
        self.budgets, self.pictures, self.ms = list[Budget](), list[bytes](), ms

    def __call__(self, picture: Any, budget: Budget) -> Answer:
        self.budgets.append(budget)
        self.pictures.append(picture.tobytes())
        assert isinstance(budget, KeepRatio | KeepCount)
        return answer(budget.plan(8).keep, ms=self.ms(len(self.budgets)))


def test_every_budget_has_a_turn_in_every_round_and_the_first_one_changes() -> None:
    vlm = FakeVlm()
    measure(vlm, PICTURE, BUDGETS, rounds=3, warmup=1)
    a, b, c = BUDGETS.values()
    assert vlm.budgets == [a, b, c, b, c, a, c, a, b, a, b, c]


def test_the_warm_up_does_not_count() -> None:
    vlm, rounds = FakeVlm(ms=lambda number: 1000.0 if number <= 6 else 10.0), list[None]()
    cells, _ = measure(
        vlm, PICTURE, BUDGETS, rounds=4, warmup=2, after_round=lambda: rounds.append(None)
    )
    assert [len(cell.runs) for cell in cells] == [4, 4, 4]
    assert {run.ttft_ms for cell in cells for run in cell.runs} == {10.0}
    assert [cell.runs[0].kept for cell in cells] == [8, 2, 2]
    assert len(rounds) == 6


def test_no_two_pictures_are_equal_so_that_no_cache_helps() -> None:
    vlm = FakeVlm()
    measure(vlm, PICTURE, BUDGETS, rounds=100, warmup=1)
    assert len(set(vlm.pictures)) == 303
    assert not PICTURE.any(), "the given one stays as it is"
    changed = np.frombuffer(vlm.pictures[-1], np.uint8).reshape(PICTURE.shape)
    assert np.argwhere(changed)[:, :2].tolist() == [[0, 0], [0, 0]]  # 303 takes two bytes


@pytest.mark.parametrize(
    "error",
    [BudgetImpossible("below the floor"), NotCalibrated("calibrate"), ContextOverflow("long")],
)
def test_a_budget_that_cannot_be_becomes_a_row_that_says_so(error: Exception) -> None:
    vlm = FakeVlm()

    def ask(picture: Any, budget: Budget) -> Answer:
        if budget == KeepCount(2):
            raise error
        return vlm(picture, budget)

    cells, _ = measure(ask, PICTURE, BUDGETS, rounds=3, warmup=1)
    rows = {cell.budget: row_of(cell) for cell in cells}
    assert rows["2"]["error"] == {"code": getattr(error, "code", ""), "message": str(error)}
    assert (rows["2"]["rounds"], rows["2"]["refused"]) == (0, 3)
    assert (rows["1.0"]["rounds"], rows["1.0"]["error"]) == (3, None)


def test_any_other_error_ends_the_measurement() -> None:
    def ask(picture: Any, budget: Budget) -> Answer:
        raise RequestInvalid("a question that makes no sense")

    with pytest.raises(RequestInvalid, match="no sense"):
        measure(ask, PICTURE, BUDGETS, rounds=1, warmup=1)


@pytest.mark.parametrize(
    ("tokens", "reason", "steps"), [(3, "stop", 3), (3, "length", 2), (0, "stop", 0)]
)
def test_decode_steps_are_the_runs_after_the_first_token(
    tokens: int, reason: FinishReason, steps: int
) -> None:
    assert run_of(answer(tokens=tokens, reason=reason), None).decode_steps == steps


def test_a_row_sums_up_its_runs() -> None:
    runs = [run_of(answer(ms=float(ms)), 4096) for ms in range(1, 22)]
    row = row_of(Cell("2", runs))
    assert row["ttft_ms"] == {"p50": 11.0, "p95": 20.0}
    assert row["stages_ms"]["vision"] == {"p50": 5.5, "p95": 10.0}
    assert "decode" not in row["stages_ms"]
    assert row["decode_ms_per_token"] == {"p50": 4.0, "p95": 4.0}
    assert (row["decode_steps"], row["decode_tokens_per_s"]) == (63, 250.0)
    assert row["kept"] == {"mean": 2.0, "min": 2, "max": 2}
    assert row["encoded"] == {"mean": 6.0, "min": 6, "max": 6}
    assert row["rss_growth_bytes"] == 21 * 4096


def test_answers_of_one_token_have_no_decode_speed() -> None:
    row = row_of(Cell("2", [run_of(answer(tokens=1, reason="length"), None)]))
    assert row["decode_ms_per_token"] is row["decode_tokens_per_s"] is None
    assert row["rss_growth_bytes"] is None


def test_percentiles_lie_between_neighbours() -> None:
    assert percentiles([3.0, 1.0, 2.0, 4.0]) == {"p50": 2.5, "p95": 3.85}
    assert percentiles([7.0]) == {"p50": 7.0, "p95": 7.0}


def test_memory_that_is_not_given_back_shows() -> None:
    leak = list[np.ndarray]()

    def ask(picture: Any, budget: Budget) -> Answer:
        leak.append(np.ones(4 << 20))
        return answer()

    cells, memory = measure(ask, PICTURE, {"2": KeepCount(2)}, rounds=6, warmup=2)
    assert memory.growth is not None
    # 6 times 32 MiB; other tests' garbage may go meanwhile
    assert 140 << 20 <= memory.growth <= 240 << 20
    assert row_of(cells[0])["rss_growth_bytes"] >= 140 << 20


def cell(budget: str, prefill: float, decode: float | None) -> dict[str, Any]:
    steps = 0 if decode is None else 1
    run = Run(2, 8, 2, 1.0, {"prefill": float(prefill)}, float(decode or 0), steps, None)
    return row_of(Cell(budget, [run]))


def test_the_fastest_bundle_is_found_for_prefill_and_for_decode() -> None:
    refused = row_of(Cell("0.5", refused=3, error=NotCalibrated("calibrate")))
    rows = {
        "fp32": [cell("1.0", 10, 4), cell("0.5", 5, 4)],
        "int8": [cell("1.0", 8, 2), cell("0.5", 5.5, None)],
        "int4": [cell("1.0", 16, 1), refused],
    }
    assert fastest(rows) == [
        {"budget": "1.0", "stage": "prefill", "bundle": "int8", "next": "fp32", "lead": 1.25},
        {"budget": "1.0", "stage": "decode", "bundle": "int4", "next": "int8", "lead": 2.0},
        {"budget": "0.5", "stage": "prefill", "bundle": "fp32", "next": "int8", "lead": 1.1},
    ]
    assert fastest({"fp32": rows["fp32"]}) == []


def test_the_machine_is_said() -> None:
    facts = machine()
    assert {"python", "onnxruntime", "numpy"} <= set(facts["versions"])
    assert facts["processor"]
    assert facts["date"].endswith("+00:00")
    assert len(facts["load_average"]) == 3


def test_a_drawn_picture_has_the_size_that_was_asked_for_width_first() -> None:
    assert drawn("64x40").shape == (40, 64, 3)
    assert drawn("64x40").std() > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "392"}, r"Cannot read the size '392'"),
        ({"size": "0x8"}, "Cannot read the size"),
        ({"size": "9000x8"}, "up to 8192"),
        ({"size": "8x8", "image": Path("a.png")}, "not both"),
        ({"rounds": 0}, "--rounds must be 1 or more, got 0"),
        ({"warmup": 0}, "--warmup must be 1 or more.*would not tell"),
        ({"max_new_tokens": 0}, "--max-new-tokens must be 1 or more"),
        ({"budgets": ","}, "one budget or more"),
        ({"budgets": "0.5,often"}, "Cannot read the budget 'often'"),
        ({"selector": "nosuch"}, "Unknown selector"),
        ({"encode": "nosuch"}, "Unknown way to encode"),
        ({"output": Path("no/such/folder.json")}, "there is no folder"),
        ({"bundles": ()}, "needs a bundle"),
        ({"bundles": (Path("a"), Path("a"))}, "same bundle twice"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_bundle_is_opened(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestInvalid, match=message):
        run_bench(Bench(**{"bundles": (Path("none"),), **options}))


@pytest.mark.demo
def test_the_demo_is_measured(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, output = tmp_path / "a.png", tmp_path / "bench.json"
    Pillow.fromarray(drawn("224x224")).save(picture)
    command = Bench(
        (demo_bundle,), image=picture, budgets="1.0,0.25,16", rounds=3, warmup=1, threads=1,
        backend="cpu", question="how many shapes are there?", json=True, output=output,
    )  # fmt: skip
    assert run_bench(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(output.read_text())
    (result,) = report["bundles"]
    assert (result["family"], result["precision"], result["backend"]) == ("qwen2_vl", "fp32", "cpu")
    assert [row["kept"]["mean"] for row in result["budgets"]] == [64, 16, 16]
    for row in result["budgets"]:
        assert row["rounds"] == 3
        assert row["ttft_ms"]["p95"] >= row["ttft_ms"]["p50"] > row["stages_ms"]["prefill"]["p50"]
        assert row["stages_ms"]["vision"]["p50"] > 0
        assert row["decode_steps"] >= 3
        assert row["decode_tokens_per_s"] > 0
    assert result["memory"]["warm_bytes"] > 1 << 20
    assert report["fastest"] == []


@pytest.mark.demo
def test_bundles_are_compared_in_a_table(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "int8"
    other.symlink_to(demo_bundle)
    command = Bench(
        (demo_bundle, other), size="112x112", budgets="1.0,0.5", rounds=1, warmup=1, threads=1,
        backend="cpu",
    )  # fmt: skip
    assert run_bench(command) == 0
    shown = capsys.readouterr().out
    assert shown.count("16 of 16") == shown.count("8 of 16") == 2
    assert shown.count("fastest prefill") == shown.count("fastest decode") == 2
    assert "resident memory after the warm-up" in shown
    assert "1 rounds after 1" in shown


@pytest.mark.demo
def test_below_the_table_stands_what_was_encoded_where_that_is_not_all(
    demo_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Bench(
        (demo_bundle,), size="112x112", budgets="0.25,1.0", rounds=1, warmup=1, threads=1,
        backend="cpu", encode="coarse",
    )  # fmt: skip
    assert run_bench(command) == 0
    shown = capsys.readouterr().out  # four at half the size, four in full
    assert "vision tokens encoded by coarse: 8 of 16 at 0.25, 16 of 16 at 1.0" in shown


@pytest.mark.demo
def test_where_no_budget_can_be_the_exit_says_so(
    demo_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Bench((demo_bundle,), max_new_tokens=5000, rounds=1, warmup=1, backend="cpu")
    assert run_bench(command) == 1
    assert "context_overflow" in capsys.readouterr().out


class FakeStream:
    """Encodes everything of a first frame, and a quarter of the others, in half the time."""

    def __init__(self) -> None:
        self.asked = list[tuple[str, bytes]]()

    def __call__(self, picture: Any, budget: Budget, encode: str | Following) -> Answer:
        if not isinstance(encode, Following):
            self.asked.append((encode, picture.tobytes()))
            return answer(ms=20.0)
        first = encode.seen is None
        none = np.zeros(1, np.float32)
        seen = Seen(About("", b"", (4, 6), b"", ()), none, np.zeros(1, np.int64), none, Outputs())
        encode.remember(seen, encode.recall()[1])
        self.asked.append(("first" if first else "later", picture.tobytes()))
        return replace(answer(ms=30.0 if first else 10.0), encoded=8 if first else 2)


def test_a_stream_begins_again_after_the_warm_up_and_is_asked_in_full_beside() -> None:
    vlm, rounds = FakeStream(), list[None]()
    cells, _ = measure_stream(
        vlm,
        slowly(PICTURE, np.random.default_rng(0)),
        BUDGETS,
        within=8,
        rounds=4,
        warmup=2,
        after_round=lambda: rounds.append(None),
    )
    names = [name for name, _ in vlm.asked]
    assert len(rounds) == 7
    assert names.count("first") == 6, "once in the warm-up, once after it, with every budget"
    assert names.count("full") == 21
    for start in range(0, len(names), 6):  # a round: one frame, every budget twice
        frames = {frame for _, frame in vlm.asked[start : start + 6]}
        assert len(frames) == 1
        assert names[start : start + 6].count("full") == 3
    for cell in cells:
        sizes = [len(each.runs) for each in (cell.full, cell.first, cell.later)]
        assert sizes == [5, 1, 4]
        row = stream_row(cell)
        assert (row["encoded_share"], row["faster"]) == (0.25, 2.0)
        assert (row["first"]["encoded"]["mean"], row["encoded"]["mean"]) == (8, 2)


@pytest.mark.demo
def test_a_followed_stream_is_measured_beside_full_looks(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    command = Bench(
        (demo_bundle,),
        budgets="0.25",
        encode="follow:4",
        rounds=3,
        warmup=1,
        max_new_tokens=1,
        backend="cpu",
        threads=1,
        output=out,
    )
    assert run_bench(command) == 0
    (result,) = json.loads(out.read_text())["bundles"]
    assert (result["stream"]["within"], result["stream"]["frames"]) == (4, 4)
    (row,) = result["budgets"]
    assert (row["rounds"], row["first"]["rounds"], row["full"]["rounds"]) == (3, 1, 4)
    assert row["full"]["encoded"]["min"] == row["first"]["encoded"]["min"] == row["total"] == 196
    assert row["encoded"]["max"] < 196
    assert row["encoded_share"] == pytest.approx(row["encoded"]["mean"] / 196, abs=1e-3)
    shown = capsys.readouterr().out
    for line in ("0.25 full", "0.25 first", "0.25 later", "encoded a frame after the first"):
        assert line in shown


@pytest.mark.demo
def test_a_family_that_follows_nothing_says_so(demo_bundles: Callable[..., Path]) -> None:
    with pytest.raises(RequestInvalid, match="nothing can be left out"):
        run_bench(Bench((demo_bundles("vila"),), encode="follow:8", backend="cpu"))


def test_a_number_of_looks_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestInvalid, match="follow:8"):
        run_bench(Bench((tmp_path,), encode="follow:0"))
