import json
import threading
from dataclasses import replace

import pytest
from counted_answer import answer

from tokprune.stats import LATEST, TTFT_BUCKETS_S, Percentiles, StatsRecorder, percentiles


def test_a_new_recorder_has_counted_nothing() -> None:
    stats = StatsRecorder(lambda: 0.0).snapshot()
    assert (stats.answered, stats.failed, stats.busy_refusals, stats.tokens_out) == (0, 0, 0, 0)
    assert stats.ttft_ms is stats.decode_tokens_per_s is stats.kept_share is None
    assert json.loads(json.dumps(stats.as_json()))["ttft_ms"] is None


def test_answers_are_counted_by_finish_reason_and_errors_by_code() -> None:
    recorder = StatsRecorder()
    for reason in ("stop", "stop", "length", "deadline"):
        recorder.record(answer(finish_reason=reason))
    for code in ("busy", "busy", "context_overflow"):
        recorder.record_error(code)
    stats = recorder.snapshot()
    assert stats.answers == {"stop": 2, "length": 1, "deadline": 1}
    assert stats.errors == {"busy": 2, "context_overflow": 1}
    assert (stats.answered, stats.failed, stats.busy_refusals) == (4, 3, 2)
    assert stats.tokens_out == 20
    assert (stats.vision_tokens, stats.vision_tokens_kept) == (256, 64)
    assert stats.vision_tokens_encoded == stats.as_json()["vision_tokens_encoded"] == 128
    assert (stats.encoder_hits, stats.encoder_runs) == (4, 8)


def test_decode_speed_leaves_the_first_token_to_prefill() -> None:
    recorder = StatsRecorder()
    recorder.record(answer(tokens=5, decode_ms=200.0))
    recorder.record(answer(tokens=1, decode_ms=0.0))  # has no speed
    recorder.record(answer(tokens=0, decode_ms=0.0))
    assert recorder.snapshot().decode_tokens_per_s == Percentiles(1, 20.0, 20.0)
    assert recorder.snapshot().kept_share == Percentiles(3, 0.25, 0.25)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([7.0], Percentiles(1, 7.0, 7.0)),
        ([2.0, 1.0], Percentiles(2, 1.0, 2.0)),
        ([float(number) for number in range(100, 0, -1)], Percentiles(100, 50.0, 95.0)),
        ([float(number) for number in range(1, 21)], Percentiles(20, 10.0, 19.0)),
    ],
)
def test_percentiles_are_of_nearest_rank(values: list[float], expected: Percentiles | None) -> None:
    assert percentiles(values) == expected


def test_percentiles_forget_what_is_long_ago_and_counters_do_not() -> None:
    recorder = StatsRecorder()
    for _ in range(LATEST):
        recorder.record(answer(ttft_ms=9000.0))
    for _ in range(LATEST):
        recorder.record(answer(ttft_ms=50.0))
    stats = recorder.snapshot()
    assert stats.ttft_ms == Percentiles(LATEST, 50.0, 50.0)
    assert stats.ttft_s.samples == stats.answered == 2 * LATEST


def test_the_histogram_is_cumulative_and_a_bound_belongs_to_its_bucket() -> None:
    recorder = StatsRecorder()
    for ttft_ms in (0.0, 25.0, 25.1, 60_000.0, 60_000.1):
        recorder.record(answer(ttft_ms=ttft_ms))
    histogram = recorder.snapshot().ttft_s
    below = dict(histogram.buckets)
    assert tuple(below) == TTFT_BUCKETS_S
    assert (below[0.025], below[0.05], below[30.0], below[60.0]) == (2, 3, 3, 4)
    assert histogram.samples == 5
    assert histogram.sum == pytest.approx(120.0502)


def test_unknown_codes_without_end_do_not_fill_the_memory() -> None:
    recorder = StatsRecorder()
    for number in range(1000):
        recorder.record_error(f"code {number}")
    recorder.record_error("code 0")
    errors = recorder.snapshot().errors
    assert len(errors) <= 65
    assert errors["code 0"] == 2
    assert sum(errors.values()) == 1001


def test_uptime_is_of_the_clock() -> None:
    now = [10.0]
    recorder = StatsRecorder(lambda: now[0])
    now[0] = 13.5
    assert recorder.snapshot().uptime_s == 3.5


def test_a_snapshot_does_not_change() -> None:
    recorder = StatsRecorder()
    recorder.record(answer())
    stats = recorder.snapshot()
    recorder.record(answer())
    recorder.record_error("busy")
    assert (stats.answered, stats.failed) == (1, 0)


def test_threads_lose_no_count_and_a_snapshot_is_of_one_moment() -> None:
    recorder = StatsRecorder()
    one = replace(answer(), token_ids=(1,))
    torn: list[tuple[int, int]] = []

    def work() -> None:
        for _ in range(500):
            recorder.record(one)
            stats = recorder.snapshot()
            if not stats.answered == stats.tokens_out == stats.ttft_s.samples:
                torn.append((stats.answered, stats.tokens_out))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not torn
    assert recorder.snapshot().answered == 2000
