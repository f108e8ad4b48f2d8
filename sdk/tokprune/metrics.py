"""`Stats` for Prometheus (extra `metrics`).

Names and units follow https://prometheus.io/docs/practices/naming/: base units, `_total` on
counters. Percentiles and rates are left to the server, which takes them over any time and several
robots.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

from tokprune.camera.health import CameraState, CameraStatus
from tokprune.errors import BackendUnavailable
from tokprune.stats import Stats

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_COUNTERS = {  # name -> what it counts, and where a snapshot has it
    "tokprune_generated_tokens": ("Answer tokens.", "tokens_out"),
    "tokprune_vision_tokens": ("Vision tokens of the whole pictures.", "vision_tokens"),
    "tokprune_kept_vision_tokens": ("Vision tokens that entered the LLM.", "vision_tokens_kept"),
    "tokprune_encoded_vision_tokens": (
        "Vision tokens that were encoded or in the vision cache.",
        "vision_tokens_encoded",
    ),
    "tokprune_encoder_hits": ("Encoder calls spared by the vision cache.", "encoder_hits"),
    "tokprune_encoder_runs": ("Encoder calls that ran.", "encoder_runs"),
    "tokprune_decode_seconds": ("Time spent on answer tokens after the first.", "decode_s"),
}


_CAMERA_COUNTERS = {  # the same of a camera's status
    "tokprune_camera_frames": ("Frames that came.", "frames"),
    "tokprune_camera_skipped_frames": ("Damaged frames, which were not shown.", "skipped"),
    "tokprune_camera_reconnects": ("Times that it was lost and came back.", "reconnects"),
}


def metrics_registry(
    snapshot: Callable[[], Stats], cameras: Sequence[Callable[[], CameraStatus]] = ()
) -> "CollectorRegistry":
    """Return a registry of its own, which asks for a snapshot whenever it is scraped.

    Args:
        snapshot: `vlm.stats`, or `StatsRecorder.snapshot`.
        cameras: `camera.status` of each camera that shall be told of too, by its name.

    Raises:
        BackendUnavailable: prometheus-client is not installed.
    """
    registry = _prometheus().CollectorRegistry()
    registry.register(StatsCollector(snapshot))
    if cameras:
        registry.register(CameraCollector(cameras))
    return registry


def exposition(registry: "CollectorRegistry") -> tuple[bytes, str]:
    """Return what `GET /metrics` answers, and its content type."""
    prometheus = _prometheus()
    return prometheus.generate_latest(registry), prometheus.CONTENT_TYPE_LATEST


class StatsCollector:
    """Turns a snapshot into metric families."""

    def __init__(self, snapshot: Callable[[], Stats]) -> None:
        self._snapshot = snapshot

    def describe(self) -> list[Any]:
        """Name nothing beforehand: a registry is then not scraped when it is made."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield every family, of one snapshot."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        stats = self._snapshot()
        requests = CounterMetricFamily(
            "tokprune_requests",
            "Requests by how they ended: a finish reason, or the code of an error.",
            labels=["outcome"],
        )
        for outcome, count in {**stats.answers, **stats.errors}.items():
            requests.add_metric([outcome], count)
        yield requests
        for name, (text, field) in _COUNTERS.items():
            yield CounterMetricFamily(name, text, value=getattr(stats, field))
        bounds = [(str(bound), count) for bound, count in stats.ttft_s.buckets]
        yield HistogramMetricFamily(
            "tokprune_ttft_seconds",
            "Time from the call to the first answer token.",
            buckets=[*bounds, ("+Inf", stats.ttft_s.samples)],
            sum_value=stats.ttft_s.sum,
        )
        yield GaugeMetricFamily(
            "tokprune_uptime_seconds", "Time since the bundle was loaded.", value=stats.uptime_s
        )


class CameraCollector:
    """Turns the states of cameras into metric families. Nothing of an address is in them."""

    def __init__(self, statuses: Sequence[Callable[[], CameraStatus]]) -> None:
        self._statuses = statuses

    def describe(self) -> list[Any]:
        """Name nothing beforehand: a registry is then not scraped when it is made."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield every family, of one status each."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        statuses = [status() for status in self._statuses]
        states = GaugeMetricFamily(
            "tokprune_camera_state", "1 for the state it is in.", labels=["camera", "state"]
        )
        ages = GaugeMetricFamily(
            "tokprune_camera_frame_age_seconds", "Age of the newest frame.", labels=["camera"]
        )
        for status in statuses:
            for state in get_args(CameraState):
                states.add_metric([status.name, state.lower()], float(state == status.state))
            if status.age_s is not None:
                ages.add_metric([status.name], status.age_s)
        yield states
        yield ages
        for name, (text, field) in _CAMERA_COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=["camera"])
            for status in statuses:
                counter.add_metric([status.name], getattr(status, field))
            yield counter


def _prometheus() -> Any:
    try:
        import prometheus_client
    except ImportError as error:
        raise BackendUnavailable(
            "Metrics need prometheus-client, which is not installed: pip install "
            "'tokprune[metrics]'"
        ) from error
    return prometheus_client
