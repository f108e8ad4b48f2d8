"""The ROS 2 packages: their files, parameters and diagnostics."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from fake_ros_messages import ACTION, KNOWN
from ros_definitions import action_parts, fields_of
from stub_model import Stub, a_picture, a_vlm
from tokprune_ros.asking import Asking, Situation
from tokprune_ros.diagnostics import ERROR, OK, WARN, report
from tokprune_ros.messages import fill_status
from tokprune_ros.settings import Settings, defaults

import tokprune
from tokprune.stats import StatsRecorder

FOLDER = Path(__file__).parents[2] / "samples" / "ros2"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"bundle": ""}, "bundle is empty"),
        ({"admission": "wait"}, "'reject' or 'latest', got 'wait'"),
        ({"deadline_s": 0.0}, "deadline_s must be above 0"),
        ({"max_rate_hz": float("nan")}, "max_rate_hz must be above 0"),
        ({"max_waiting": -1}, "max_waiting must be 0 or more"),
        ({"warmup": ("50%",)}, "50%"),
        ({"encode": "lasy"}, "Did you mean 'lazy'"),
        ({"encode": "follow:none"}, "'follow:8'"),
    ],
)
def test_parameters_that_make_no_sense_are_named(given: dict[str, Any], why: str) -> None:
    with pytest.raises(tokprune.RequestInvalid, match=why):
        Settings(**{"bundle": "b", **given})


@pytest.mark.parametrize("encode", ["coarse", "follow:8"])
def test_what_the_bundle_cannot_is_refused_when_it_is_loaded(
    encode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = a_vlm(Stub())
    monkeypatch.setattr(tokprune, "load", lambda *_, **__: vlm)
    with pytest.raises(tokprune.RequestInvalid, match="full, lazy, repeats, auto"):
        Asking[Any](Settings("b", encode=encode))
    with pytest.raises(tokprune.Closed):
        vlm.ask(a_picture(), "what?")


def situation(state: str | None, **more: Any) -> Situation:
    camera = None
    if state is not None:
        camera: Any = tokprune.CameraStatus(
            name="image", source="pushed", state=state, since_s=0.0, age_s=0.1,  # pyright: ignore
            max_frame_age_s=1.0, fps=9.9, size_wh=(4, 3), frames=7, skipped=0, reconnects=0,
            error="nothing is pushed any more" if state == "LOST" else None,
        )  # fmt: skip
    given = {"goals": 0, "refused_pictures": 0, "refused_why": "", "health": "ready", **more}
    health = tokprune.Health(given.pop("health"), "cpu", 0, "demo")
    counts = StatsRecorder()
    for _ in range(2):
        counts.record_error("busy")
    return Situation(camera is not None, camera, health, counts.snapshot(), **given)


@pytest.mark.parametrize(
    ("now", "level", "message"),
    [
        (None, OK, "not configured"),
        (situation(None), OK, "not active"),
        (situation("LIVE"), OK, "ready"),
        (situation("LIVE", goals=1), OK, "answering"),
        (situation("LIVE", refused_pictures=4, refused_why="encoding 'x'"), WARN, "encoding 'x'"),
        (situation("STALE"), WARN, "the camera is STALE: no question is answered"),
        (situation("CONNECTING"), WARN, "the camera is CONNECTING"),
        (situation("FROZEN"), ERROR, "the camera is FROZEN"),
        (situation("LOST"), ERROR, "the camera is LOST: nothing is pushed any more"),
        (situation("LIVE", health="closed"), ERROR, "the model was closed"),
    ],
)
def test_the_report_says_what_is_wrong(now: Situation | None, level: bytes, message: str) -> None:
    made = report(now, refused_before=3)
    assert (made.level, made.message[: len(message)]) == (level, message)
    known = KNOWN
    status = known["diagnostic_msgs/DiagnosticStatus"]()
    status = fill_status(status, known["diagnostic_msgs/KeyValue"], made, "tokprune")
    values = {pair.key: pair.value for pair in status.values}
    if now is not None:
        assert (values["answered"], values["failed: busy"]) == ("0", "2")


def test_refused_pictures_of_before_are_no_news() -> None:
    assert report(situation("LIVE", refused_pictures=3), refused_before=3).level == OK


def test_package_files_agree_with_each_other() -> None:
    for name, build in (("tokprune_msgs", "ament_cmake"), ("tokprune_ros", "ament_python")):
        root = ET.parse(FOLDER / name / "package.xml").getroot()
        assert (root.tag, root.get("format")) == ("package", "3")
        assert root.findtext("name") == name
        assert root.findtext("version")
        assert root.findtext("license") == "Apache-2.0"
        assert root.findtext("export/build_type") == build
        assert root.find("maintainer").get("email")  # pyright: ignore
    needs = {element.text for element in root.findall("exec_depend")}
    imported = {
        line.split()[1].partition(".")[0]
        for path in (FOLDER / "tokprune_ros").rglob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith(("from ", "import "))
    }
    ros = {name for name in imported if name.endswith(("_msgs", "_interfaces", "_ros"))}
    assert ros - {"tokprune_ros"} | {"ament_index_python", "launch", "rclpy"} <= needs
    assert (FOLDER / "tokprune_ros" / "resource" / "tokprune_ros").is_file()


def test_what_is_installed_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "setuptools", SimpleNamespace(setup=told.update))  # pyright: ignore
    exec((FOLDER / "tokprune_ros" / "setup.py").read_text(), {})
    for _, files in told["data_files"]:
        assert all((FOLDER / "tokprune_ros" / file).is_file() for file in files)
    (script,) = told["entry_points"]["console_scripts"]
    assert script == "ask_node = tokprune_ros.node:main"
    for path in (FOLDER / "tokprune_ros").rglob("*.py"):
        compile(path.read_text(), path, "exec")


def test_the_yaml_names_every_parameter_with_its_default() -> None:
    lines = (FOLDER / "tokprune_ros" / "config" / "tokprune.yaml").read_text().splitlines()
    said: dict[str, str] = {}
    for line in lines:
        code = line.partition(" #")[0] if not line.strip().startswith("#") else ""
        name, colon, value = code.strip().partition(": ")
        if colon:
            said[name] = value.strip()
    written = {
        name: str(value).lower() if isinstance(value, bool) else
        '["0.5"]' if isinstance(value, list) else
        f'"{value}"' if value in ("", "0.5") else str(value)
        for name, value in defaults().items()
    }  # fmt: skip
    del written["bundle"]
    assert said == written


def test_the_action_is_read_as_rosidl_reads_it() -> None:
    goal, result, feedback = action_parts(ACTION.read_text())
    assert [field.name for field in goal][:3] == ["prompt", "budget", "choices"]
    assert {"header", "frame_age_s", "kept", "total", "encode", "encoded"} <= {
        field.name for field in result
    }
    assert not any("Image" in field.kind for field in result)
    assert [field.name for field in feedback] == ["partial_text"]


@pytest.mark.parametrize(
    "line", ["float64 Bad", "float64 a__b", "float64 a_", "flaot64 a", "string", "int8 a\nint8 a"]
)
def test_the_reader_of_definitions_refuses_what_rosidl_refuses(line: str) -> None:
    with pytest.raises(ValueError, match=r"type|field"):
        fields_of(line)
