"""Cameras in Prometheus' format, and what must never be there."""

import pytest
from scripted_camera import Script, camera_of
from secret_urls import leaks, shapes

import tokprune
from tokprune import RequestInvalid
from tokprune.metrics import exposition, metrics_registry
from tokprune.stats import StatsRecorder

parser = pytest.importorskip("prometheus_client.parser", reason="extra metrics")


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_state_age_and_counts_of_every_camera_are_told() -> None:
    script = Script()
    with camera_of(script) as eye, tokprune.open_camera("fake://scenes", name="fake") as fake:
        script.give(1, 2, 3)
        fake.wait(timeout_s=5.0)
        while eye.status().frames < 3:
            pass
        registry = metrics_registry(StatsRecorder().snapshot, [eye.status, fake.status])
        found = samples(exposition(registry)[0].decode())
    assert found["tokprune_camera_state", "eye", "live"] == 1
    assert found["tokprune_camera_state", "eye", "lost"] == 0
    assert found["tokprune_camera_frames_total", "eye"] == 3
    assert found["tokprune_camera_frames_total", "fake"] >= 1
    assert found["tokprune_camera_reconnects_total", "eye"] == 0
    assert 0 <= found["tokprune_camera_frame_age_seconds", "eye"] < 5
    assert found["tokprune_uptime_seconds",] >= 0


def attempt(url: str) -> tuple[tokprune.Camera | None, list[str]]:
    try:
        return tokprune.open_camera(url, open_timeout_s=0.2), []
    except RequestInvalid as refused:
        return None, [str(refused)]


def test_no_secret_of_an_address_is_told_by_metrics_states_or_the_camera(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The network is not used: opening takes longer than the test, or fails at once."""
    pytest.importorskip("av", reason="av (PyAV) is not installed")
    opened = 0
    for url, secrets in shapes():
        camera, texts = attempt(url)
        if camera is not None:
            opened += 1
            with camera:
                registry = metrics_registry(StatsRecorder().snapshot, [camera.status])
                texts += [exposition(registry)[0].decode(), repr(camera), repr(camera.status())]
                with pytest.raises(tokprune.CameraUnusable) as caught:
                    camera.wait(timeout_s=0.02)
            texts += [str(caught.value), repr(caught.value), camera.name]
        for text in (*texts, caplog.text):
            assert not leaks(text, secrets)
    assert opened > 80
