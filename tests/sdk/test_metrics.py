import re
import sys

import pytest
from counted_answer import answer

from tokprune.errors import BackendUnavailable
from tokprune.metrics import exposition, metrics_registry
from tokprune.stats import TTFT_BUCKETS_S, StatsRecorder


@pytest.fixture
def samples() -> dict[tuple[str, str], float]:
    """Names and labels of what a server reads, by prometheus-client's own parser."""
    parser = pytest.importorskip("prometheus_client.parser", reason="extra metrics")
    recorder = StatsRecorder(iter([5.0, 12.0]).__next__)
    for ttft_ms in (20.0, 120.0, 90_000.0):
        recorder.record(answer(ttft_ms=ttft_ms))
    recorder.record_error("busy")
    text, kind = exposition(metrics_registry(recorder.snapshot))
    assert kind.startswith("text/plain")
    families = parser.text_string_to_metric_families(text.decode())
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_requests_are_counted_by_outcome(samples: dict[tuple[str, str], float]) -> None:
    assert samples["tokprune_requests_total", "stop"] == 3
    assert samples["tokprune_requests_total", "busy"] == 1


def test_counters_gauges_and_seconds_are_those_of_the_snapshot(
    samples: dict[tuple[str, str], float],
) -> None:
    expected = {
        "tokprune_generated_tokens_total": 15,
        "tokprune_vision_tokens_total": 192,
        "tokprune_kept_vision_tokens_total": 48,
        "tokprune_encoded_vision_tokens_total": 96,
        "tokprune_encoder_hits_total": 3,
        "tokprune_encoder_runs_total": 6,
        "tokprune_decode_seconds_total": pytest.approx(0.6),
        "tokprune_uptime_seconds": 7.0,
    }
    assert {name: samples[name, ""] for name in expected} == expected


def test_time_to_first_token_is_a_histogram(samples: dict[tuple[str, str], float]) -> None:
    buckets = {
        float(bound): count
        for (name, bound), count in samples.items()
        if name == "tokprune_ttft_seconds_bucket"
    }
    assert tuple(buckets) == (*TTFT_BUCKETS_S, float("inf"))
    assert (buckets[0.025], buckets[0.2], buckets[60.0], buckets[float("inf")]) == (1, 2, 2, 3)
    assert samples["tokprune_ttft_seconds_count", ""] == 3
    assert samples["tokprune_ttft_seconds_sum", ""] == pytest.approx(90.14)


def test_names_follow_the_conventions(samples: dict[tuple[str, str], float]) -> None:
    suffixes = ("_total", "_seconds", "_seconds_bucket", "_seconds_count", "_seconds_sum")
    for name, _ in samples:
        assert re.fullmatch(r"tokprune_[a-z_]+", name)
        assert name.endswith(suffixes)


def test_two_vlms_have_registries_of_their_own() -> None:
    pytest.importorskip("prometheus_client", reason="extra metrics")
    one, other = StatsRecorder(), StatsRecorder()
    one.record(answer())
    texts = [exposition(metrics_registry(each.snapshot))[0] for each in (one, other)]
    assert b'outcome="stop"' in texts[0]
    assert b'outcome="stop"' not in texts[1]


def test_a_registry_reads_the_snapshot_when_it_is_scraped_and_not_before() -> None:
    pytest.importorskip("prometheus_client", reason="extra metrics")
    recorder = StatsRecorder()
    registry = metrics_registry(recorder.snapshot)
    recorder.record(answer())
    assert b'tokprune_requests_total{outcome="stop"} 1.0' in exposition(registry)[0]


def test_without_the_library_the_error_has_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'tokprune\[metrics\]'"):
        metrics_registry(StatsRecorder().snapshot)
