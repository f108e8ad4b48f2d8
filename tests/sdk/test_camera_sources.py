"""Names of picture sources: what they mean, and what is said where they mean nothing."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tokprune import RequestInvalid
from tokprune.camera.naming.options import CameraOptions
from tokprune.camera.naming.sources import parse_source
from tokprune.camera.reading.opening import opener_of
from tokprune.camera.reading.reader import SourceGone


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures and a film, which is where the program runs."""
    monkeypatch.chdir(tmp_path)
    for number in (10, 2, 1):
        picture = np.full((4, 6, 3), number, np.uint8)
        Image.fromarray(picture).save(tmp_path / f"shot{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "kitchen.mp4").write_bytes(b"\0")
    (tmp_path / "100%.mp4").write_bytes(b"\0")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "kind", "name", "shown", "address"),
    [
        ("/dev/video0", "device", "video0", "/dev/video0", "/dev/video0"),
        ("v4l2:///dev/video2", "device", "video2", "/dev/video2", "/dev/video2"),
        (
            "/dev/v4l/by-id/usb-046d_C920_1-video-index0",
            "device",
            "usb-046d_C920_1-video-index0",
            "/dev/v4l/by-id/usb-046d_C920_1-video-index0",
            "/dev/v4l/by-id/usb-046d_C920_1-video-index0",
        ),
        ("csi://0", "csi", "csi0", "csi://0", "0"),
        ("rtsp://10.0.0.5/s", "network", "10.0.0.5", "rtsp://10.0.0.5", "rtsp://10.0.0.5/s"),
        ("RTSP://Cam:554/s", "network", "Cam", "rtsp://Cam:554", "rtsp://Cam:554/s"),
        ("rtsps://u:p@cam/s", "network", "cam", "rtsps://cam", "rtsps://u:p@cam/s"),
        ("rtsp://u:p@q@cam/s", "network", "cam", "rtsp://cam", "rtsp://u:p%40q@cam/s"),
        ("rtsp://u:a b%@cam/s t", "network", "cam", "rtsp://cam", "rtsp://u:a%20b%@cam/s%20t"),
        ("rtsp://cam/s?a=1#end", "network", "cam", "rtsp://cam", "rtsp://cam/s?a=1"),
        ("http://[::1]:80/v", "network", "[::1]", "http://[::1]:80", "http://[::1]:80/v"),
        ("https://cam.lan./v", "network", "cam.lan.", "https://cam.lan.", "https://cam.lan./v"),
        ("http://my_cam:8080/?x", "network", "my_cam", "http://my_cam:8080", "http://my_cam:8080/?x"),
        ("kitchen.mp4", "file", "kitchen", "file kitchen.mp4", "kitchen.mp4"),
        ("file://kitchen.mp4", "file", "kitchen", "file kitchen.mp4", "kitchen.mp4"),
        ("file://kitch%65n.mp4", "file", "kitchen", "file kitchen.mp4", "kitchen.mp4"),
        ("file://100%.mp4", "file", "100%", "file 100%.mp4", "100%.mp4"),
        ("shot1.png", "pictures", "shot1", "pictures shot1.png", "shot1.png"),
        ("*.png", "pictures", "pictures", "pictures *.png", "*.png"),
        ("fake://", "fake", "fake", "fake://scenes", "fake://scenes"),
        ("fake://scenes?seed=3", "fake", "fake", "fake://scenes", "fake://scenes?seed=3"),
        (" fake://scenes\n", "fake", "fake", "fake://scenes", "fake://scenes"),
    ],
)  # fmt: skip
def test_a_text_means_a_source(
    text: str, kind: str, name: str, shown: str, address: str, folder: Path
) -> None:
    source = parse_source(text)
    assert (source.kind, source.name, source.shown) == (kind, name, shown)
    assert source.address.reveal() == address
    assert source.live == (kind not in ("file", "pictures"))


def test_a_path_means_what_lies_there(folder: Path) -> None:
    assert parse_source(folder).kind == "pictures"
    assert parse_source(folder).name == folder.name
    assert parse_source(folder / "kitchen.mp4").kind == "file"
    assert parse_source(Path("/dev/video0")).kind == "device"
    assert parse_source(f"file://{folder}/kitchen.mp4").address.reveal() == f"{folder}/kitchen.mp4"


def test_options_are_what_the_camera_is_asked_for() -> None:
    given = "v4l2:///dev/video0?width=1280&height=720&fps=29.97&format=MJPG"
    wanted = CameraOptions(width=1280, height=720, fps=29.97, format="mjpeg")
    assert parse_source(given).options == wanted
    assert parse_source("v4l2:///dev/video0?format=YUYV").options.format == "yuyv422"
    assert parse_source("csi://1?flip=rotate-180&fps=30").options == CameraOptions(fps=30.0, flip=2)
    assert parse_source("csi://1?flip=6").options.flip == 6


def test_a_variable_of_the_environment_holds_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITCHEN", " rtsp://admin:pw@10.0.0.5:554/s\n")
    assert parse_source("env:KITCHEN") == parse_source("rtsp://admin:pw@10.0.0.5:554/s")
    monkeypatch.setenv("KITCHEN", "env:KITCHEN")
    with pytest.raises(RequestInvalid, match="names another one: give the source"):
        parse_source("env:KITCHEN")
    monkeypatch.setenv("KITCHEN", " ")
    with pytest.raises(RequestInvalid, match="KITCHEN is not set, or empty: export KITCHEN="):
        parse_source("env:KITCHEN")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (0, r"source 0 may mean two cameras: write '/dev/video0' for USB .* 'csi://0'"),
        ("1", r"source 1 may mean two cameras: write '/dev/video1' for USB .* 'csi://1'"),
        (True, "may mean two cameras"),
        (2.5, "a text or a path, got float. Sources are: /dev/video0"),
        (None, "got NoneType"),
        ("", "is empty. Sources are"),
        ("~/film.mp4", r"'~' is not expanded here: write the whole path, or Path\("),
        ("video0", r"no file 'video0'. Did you mean '/dev/video0'\?"),
        ("nothing.mp4", "'nothing.mp4' is no file or folder that exists. Sources are"),
        ("x\0y", "control characters"),
        ("x" * 5000, "is no file or folder that exists"),
        ("*.webp", r"'\*.webp' matches no file"),
        ("rtps://cam/", "Unknown kind of source 'rtps://'. Did you mean 'rtsps://'"),
        ("rtp://@:1234", "Unknown kind of source 'rtp://'.*Known: csi://, fake://, file://"),
        ("ros2://topic", "Unknown kind of source 'ros2://'"),
        ("rtsp:cam/s", "begins with 'rtsp:', expected 'rtsp://'"),
        ("csi:0", "begins with 'csi:', expected 'csi://'"),
        ("csi://", "the camera's number is expected, as in csi://0"),
        ("csi://0/1", "the camera's number is expected"),
        ("v4l2://0", "Write v4l2:///dev/video0"),
        ("v4l2://video0", "the path of a device is expected, as in v4l2:///dev/video0"),
        ("/dev/video0?width=640", "takes no options: write v4l2:///dev/video0\\?width"),
        ("/dev/", "is a folder, expected a camera"),
        ("/dev/v4l/by-id/", "is a folder, expected a camera"),
        ("fake://kitchen", "expected 'scenes', as in fake://scenes"),
        ("rtsp://", "names no host, expected HOST or HOST:PORT"),
        ("rtsp://cam:99999/", "no HOST or HOST:PORT stands where one is expected"),
        ("rtsp://admin:p/w@cam/s", r"/ \? # @ : % of a user name or password as %2F"),
        ("rtsp://cam/a@b", "An '@' or .* stands behind the host of rtsp://…"),
        ("http://cam\\x", "stands behind the host of http://…"),
        ("rtsp://" + "u" * 128 + "@cam/", "more than 127 bytes"),
        ("http://cam/" + "x" * 2000, "characters, at most 1900"),
        ("v4l2:///dev/video0?widht=1", "option of v4l2:// 'widht'. Did you mean 'width'?"),
        ("v4l2:///dev/video0?flip=2", "Unknown option of v4l2:// 'flip'"),
        ("csi://0?format=MJPG", "Unknown option of csi:// 'format'"),
        ("csi://0?width=640", "width and height together, got one"),
        ("csi://0?width=640&width=480", "width of csi:// is given twice"),
        ("csi://0?width=0&height=1", "width=0 is no number of pixels from 1 to 16384"),
        ("csi://0?width=x&height=1", "width=x is no number of pixels"),
        ("csi://0?fps=0", "fps=0 is no rate above 0, up to 1000"),
        ("csi://0?fps=nan", "fps=nan is no rate"),
        ("csi://0?flip=clokwise", "Unknown flip 'clokwise'. Did you mean 'clockwise'?"),
        ("v4l2:///dev/video0?format=MPJG", "Unknown format 'MPJG'"),
        ("env:no-name", "the name of an environment variable is expected"),
        ("env:NOT_SET_ANYWHERE", "NOT_SET_ANYWHERE is not set"),
    ],
)
def test_a_refusal_says_what_to_write(text: Any, words: str, folder: Path) -> None:
    with pytest.raises(RequestInvalid, match=words) as refused:
        parse_source(text)
    assert refused.value.__context__ is None


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestInvalid, match="is a pipe, a socket or a device: pass a file"):
        parse_source(tmp_path / "pipe")


@given(st.text(max_size=60) | st.from_regex(r"(rtsp|http|v4l2|csi|fake|env)://?.{0,40}"))
def test_any_text_is_a_source_or_refused(text: str) -> None:
    with suppress(RequestInvalid):
        assert parse_source(text).name


def test_pictures_come_in_natural_order(folder: Path) -> None:
    for source in (folder, f"{folder}/*.png", folder / "*.png"):
        reader = opener_of(parse_source(source))()
        shown = [grabbed.image()[0, 0, 0] for grabbed in iter(reader.read, None)]
        assert shown == [1, 2, 10]
        assert reader.interval_s is None
        reader.close()


def test_a_damaged_picture_is_left_out_and_counted(folder: Path) -> None:
    (folder / "shot3.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    reader: Any = opener_of(parse_source(folder))()
    assert len(list(iter(reader.read, None))) == 3
    assert reader.skipped == 1
    (folder / "empty" / "x.png").write_bytes(b"no picture")
    reader = opener_of(parse_source(folder / "empty"))()
    with pytest.raises(SourceGone, match=r"x\.png.* is no JPEG, PNG or WebP"):
        reader.read()


def test_an_interrupted_reader_of_pictures_gives_none(folder: Path) -> None:
    reader = opener_of(parse_source(folder))()
    reader.read()
    reader.interrupt()
    with pytest.raises(SourceGone, match="reading was stopped"):
        reader.read()


def test_a_drawn_camera_is_opened_by_its_name() -> None:
    reader = opener_of(parse_source("fake://?fps=200&size=224x112"))()
    grabbed = reader.read()
    assert grabbed
    assert grabbed.image().shape == (112, 224, 3)
    reader.close()
    with pytest.raises(RequestInvalid, match=r"'sed'\. Did you mean 'seed'"):
        opener_of(parse_source("fake://scenes?sed=1"))


def test_a_folder_without_pictures_is_refused_at_once(folder: Path) -> None:
    with pytest.raises(RequestInvalid, match="pictures empty has no picture"):
        opener_of(parse_source(folder / "empty"))
