"""200 addresses with secrets: none of them reaches the page, its log, the event log or an error."""

import asyncio
import json
import logging
import time
import traceback
from pathlib import Path

import camera_pages
import pytest
from camera_listeners import Socket, a_client, a_hello
from camera_page.event_log import EventLog
from camera_page.hub import Hub
from camera_page.messages import Ask
from camera_page.station import Beginning
from secret_urls import leaks, shapes
from stub_model import Stub, a_vlm
from watchdog import watchdog

import tokprune

TOGETHER = 24  # cameras at once
SHAPES = shapes()
SECRETS = sorted({secret for _, secrets in SHAPES for secret in secrets})


def test_there_are_200_shapes_and_a_planted_leak_is_found() -> None:
    assert len(SHAPES) >= 200
    assert all(leaks(f"lost: {url}", secrets) for url, secrets in SHAPES)


def test_no_address_is_printed_by_the_program(
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    program = camera_pages.program()
    for url, secrets in SHAPES:
        bundle = str(tmp_path / "no-bundle")
        arguments = ["app.py", "--bundle", bundle, "--port", "0", f"--source={url}"]
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as ended:
            program.main()
        told = "".join(capfd.readouterr())
        assert "error: " in told
        shown = [told, caplog.text, *traceback.format_exception(ended.value)]
        assert leaks("".join(shown), secrets) == []
        caplog.clear()


def test_no_address_reaches_a_browser_or_the_event_log(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    program = camera_pages.program()
    shown: list[str] = []
    lost = 0
    with watchdog(120), a_vlm(Stub()) as vlm:
        for first in range(0, len(SHAPES), TOGETHER):
            cameras: list[tokprune.Camera] = []
            for url, _ in SHAPES[first : first + TOGETHER]:
                command = program.CameraPage(bundle=tmp_path, source=(url,))
                try:
                    cameras += program.opened(command)
                except tokprune.TokpruneError as error:
                    shown += [repr(error), *traceback.format_exception(error)]
            shown += asyncio.run(told_of(vlm, cameras, tmp_path))
            lost += len(cameras)
    assert lost > 100
    whole = "".join([*shown, caplog.text, (tmp_path / "events.jsonl").read_text()])
    assert '"camera_lost"' in whole
    assert leaks(whole, SECRETS) == []


async def told_of(vlm: tokprune.VLM, cameras: list[tokprune.Camera], folder: Path) -> list[str]:
    """Return all that a browser is told of these cameras, questions about them included."""
    hub = Hub(vlm, a_hello(), Beginning("what?", mode="on_demand"), EventLog(folder))
    socket = Socket()
    client = a_client(socket, hub.station)
    tasks = [asyncio.create_task(client.send()), asyncio.create_task(hub.look_after())]
    hub.join(client)
    for camera in cameras:
        station = hub.add(camera)
        await hub.obey(client, Ask(station.id, "what?"))
    until = time.monotonic() + 5
    while time.monotonic() < until and any(c.state == "CONNECTING" for c in cameras):
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    shown = [repr(station.camera) + repr(station.settings) for station in hub.stations]
    await hub.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return [*shown, *(json.dumps(text, ensure_ascii=False) for text in socket.texts)]
