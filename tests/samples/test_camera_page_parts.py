"""The camera page without a browser: messages, overlay data, pictures, event log, figures."""

import json
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from camera_page.answers import stages_of, tokens_per_s
from camera_page.event_log import EventLog
from camera_page.layers import layers_of
from camera_page.machine import MachineFigures
from camera_page.messages import LONGEST_MESSAGE, Ask, Seen, Set, read_message
from camera_page.photos import GAP_PX, Photo, sheet_of
from PIL import Image

from tokprune import Answer, Clip, FrameStamp, Region, RequestInvalid, Selection, overlay
from tokprune.types import COLUMN, FRAME, KIND, NEWLINE, PICTURE, ROW, TILE

STAMP = FrameStamp("eye", 7, 100.0, 1.7e9)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        '"seen"',
        "{}",
        '{"type": "shutdown"}',
        '{"type": "seen", "more": 1}',
        '{"type": "ask", "source": 0}',
        '{"type": "ask", "source": 0, "question": ""}',
        '{"type": "ask", "source": "0", "question": "what?"}',
        '{"type": "ask", "source": -1, "question": "what?"}',
        '{"type": "set", "source": 0, "deadline_s": 1}',
        '{"type": "set", "source": 0, "max_new_tokens": 0}',
        '{"type": "set", "source": 0, "max_new_tokens": 100000}',
        '{"type": "set", "source": 0, "max_new_tokens": 1.5}',
        '{"type": "set", "source": 0, "mode": "always"}',
        '{"type": "set", "source": 0, "choices": "yes"}',
        '{"type": "set", "source": 0, "choices": [""]}',
        '{"type": "set", "source": 0, "budget": 0.5}',
        '{"type": "set", "source": 0, "encode": null}',
        '{"type": "set", "source": NaN}',
        '{"type": "webcam", "on": 1}',
        json.dumps({"type": "ask", "source": 0, "question": "w" * 2001}),
        json.dumps({"type": "set", "source": 0, "choices": ["a"] * 33}),
        json.dumps({"type": "seen"}) + " " * 20_000,
        '{"type": "ask", "source": 0, "question": "\\ud800"}',
        "\ud800",
        "[" * 15_000,
    ],
)
def test_what_is_no_message_of_the_page_is_refused(text: str) -> None:
    with pytest.raises(RequestInvalid, match="message"):
        read_message(text)


def test_messages_say_what_is_to_change_and_leave_out_what_is_not() -> None:
    assert read_message('{"type": "seen"}') == Seen()
    assert read_message('{"type": "ask", "source": 2, "question": "what?"}') == Ask(2, "what?")
    changed = read_message('{"type": "set", "source": 1, "budget": "0.25", "selector": null}')
    assert changed == Set(1, budget="0.25", selector=None)
    assert read_message('{"type": "set", "source": 1, "encode": "lazy"}') == Set(1, encode="lazy")
    assert LONGEST_MESSAGE > 33 * 200  # all choices at their longest


def an_answer(regions: list[Region], keep: list[int], *, scored: bool, **changes: Any) -> Answer:
    """An answer about grids with newlines at the ends of rows, as LLaVA-OneVision has them."""
    where: list[Any] = []
    for region in regions:
        for row in range(region.rows):
            for column in range(region.columns + 1):
                token = np.zeros(7, np.int32)
                token[[PICTURE, FRAME, TILE, ROW, COLUMN]] = (*region[:3], row, column)
                token[KIND] = NEWLINE if column == region.columns else 0
                where.append(token)
    scores = np.random.default_rng(0).random(len(where), np.float32) if scored else None
    chosen = np.asarray(keep, np.int64)
    given: dict[str, Any] = {"timings_ms": {}, "ttft_ms": 0.0, "token_ids": (), **changes}
    return Answer(
        text="",
        finish_reason="stop",
        selection=Selection(chosen, len(where), None, None, "count", scores),
        regions=tuple(regions),
        where=np.stack(where),
        selector="test",
        **given,
    )


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize(
    "regions",
    [
        [Region(0, 0, 0, 3, 4)],
        [Region(0, 0, 0, 2, 2), Region(0, 0, 1, 5, 4)],  # tiles: the finest is drawn
        [Region(0, frame, 0, 2, 3) for frame in range(4)],
    ],
)
def test_the_page_draws_the_same_cells_as_the_library(
    regions: list[Region], monkeypatch: pytest.MonkeyPatch, *, scored: bool
) -> None:
    drawn: list[Any] = []
    module = import_module("tokprune.overlay")  # the package has a function of that name
    painted = module._painted

    def note(image: Any, kept: Any, heat: Any, strongest: float) -> Any:
        drawn.append((kept, heat))
        return painted(image, kept, heat, strongest)

    monkeypatch.setattr(module, "_painted", note)
    answer = an_answer(regions, [0, 1, 3, 6, 7], scored=scored)
    frames = np.zeros((len({region.frame for region in regions}), 40, 60, 3), np.uint8)
    overlay(Clip(frames, 1.0) if len(frames) > 1 else frames[0], answer)
    layers = layers_of(answer)
    assert len(layers) == len(drawn)
    for layer, (kept, heat) in zip(layers, drawn, strict=True):
        assert (layer.rows, layer.columns) == kept.shape
        assert layer.kept == np.flatnonzero(kept).tolist()
        if scored:
            assert layer.scores == pytest.approx(heat.ravel().tolist(), rel=1e-3)
        else:
            assert layer.scores is None


def test_stages_stand_in_the_order_of_the_flow_and_sum_up_to_the_first_token() -> None:
    times = {"prefill": 40.0, "vision": 50.0, "wait": 0.0, "decode": 90.0, "select": 2.0}
    answer = an_answer(
        [Region(0, 0, 0, 1, 1)],
        [0],
        scored=False,
        timings_ms=times,
        ttft_ms=100.0,
        token_ids=(1, 2, 3, 4),
    )
    stages = stages_of(answer)
    assert stages == [("vision", 50.0), ("select", 2.0), ("prefill", 40.0), ("other", 8.0)]
    assert tokens_per_s(answer) == pytest.approx(1000 * 3 / 90, abs=0.1)
    alone = an_answer([Region(0, 0, 0, 1, 1)], [0], scored=False, token_ids=(1,))
    assert tokens_per_s(alone) is None


def test_a_picture_travels_with_a_head_that_says_which_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 255, (400, 1600, 3)).astype(np.uint8)
    packed = Photo("live", 3, STAMP, image, 800).packed()
    length = int.from_bytes(packed[:4], "big")
    head = json.loads(packed[4 : 4 + length])
    assert (head["kind"], head["source"], head["number"], head["id"]) == ("live", 3, 7, None)
    assert Image.open(BytesIO(packed[4 + length :])).size == (800, 200)


@pytest.mark.parametrize(("held", "count", "shown"), [(8, 4, [0, 2, 4, 6]), (5, 5, range(5))])
def test_a_video_is_a_sheet_whose_frames_lie_where_it_says(
    held: int, count: int, shown: Any
) -> None:
    shades = (10 + 20 * np.arange(held)).astype(np.uint8)
    clip = Clip(np.tile(shades[:, None, None, None], (1, 30, 40, 3)), 2.0)
    image, sheet = sheet_of(clip, count)
    for place, frame in enumerate(shown):
        left = place % sheet.columns * (sheet.width + GAP_PX)
        top = place // sheet.columns * (sheet.height + GAP_PX)
        part = image[top : top + sheet.height, left : left + sheet.width]
        assert (part == shades[frame]).all()


def test_the_event_log_bounds_its_frames_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    jpeg = bytes(400_000)
    log = EventLog(tmp_path, keep_frames_mb=1)
    for number in range(5):
        log.write({"camera": "../../a door", "frame": number}, jpeg)
    log = EventLog(tmp_path, keep_frames_mb=1)
    log.write({"camera": "eye", "frame": 5}, jpeg)
    kept = sorted((tmp_path / "frames").iterdir())
    assert [path.name for path in kept] == [
        "000000004-.._.._a_door-4.jpg",
        "000000005-eye-5.jpg",
    ]
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(6))
    assert lines[-1]["picture"] == "frames/000000005-eye-5.jpg"
    assert not list(tmp_path.parent.glob("*.jpg"))
    log.write({"camera": "eye", "frame": 6}, bytes(2_000_000))  # larger than all of the ring
    assert sorted((tmp_path / "frames").iterdir()) == kept


def test_the_event_log_bounds_its_lines_and_keeps_no_frames_unless_asked(tmp_path: Path) -> None:
    log = EventLog(tmp_path, log_mb=0.02)
    for number in range(1000):
        log.write({"frame": number, "text": "x" * 80}, b"picture")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["events.1.jsonl", "events.jsonl"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 20_000
    last = (tmp_path / "events.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["frame"] == 999


def test_a_full_disk_is_told_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device", "/secret/place")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        log.write({"frame": 1})
    assert log.error == "The event log cannot be written: No space left on device"
    log.write({"frame": 2})
    assert log.error is None


def test_figures_of_the_machine_are_read_where_there_are_any(tmp_path: Path) -> None:
    files = {
        "proc/stat": "cpu  100 0 100 800 0 0 0 0 0 0\n",
        "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 2097152 kB\n",
        "sys/devices/platform/gpu.0/load": "425\n",
        "sys/class/thermal/thermal_zone0/temp": "51500\n",
        "sys/class/thermal/thermal_zone1/temp": "-256000\n",  # a sensor that is off
        "sys/class/hwmon/hwmon0/temp1_input": "64250\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    figures = MachineFigures(tmp_path)
    (tmp_path / "proc/stat").write_text("cpu  130 0 100 870 0 0 0 0 0 0\n")
    assert figures.read() == {
        "CPU": "30 %",
        "GPU": "42 %",
        "Memory": "6.0 of 8.0 GiB",
        "Hottest": "64 °C",
    }
    assert MachineFigures(tmp_path / "nothing").read() == {}
