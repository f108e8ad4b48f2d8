"""`tokprune doctor` on machines that tests make up (tests/machines.py)."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import machines
import pytest
from machines import CPU_PACKAGES, JETSON_PACKAGES, SERIAL, desktop, orin, thor

from tokprune.commands.doctor import Doctor, findings_table, run_doctor
from tokprune.doctor import Finding, Host, Report, examination, examine
from tokprune.doctor.finding import Disk
from tokprune.doctor.software import is_installed_version


def found(report: Report, section: str, name: str) -> Finding:
    (finding,) = [one for one in report.findings if (one.section, one.name) == (section, name)]
    return finding


def values(report: Report, section: str) -> dict[str, str]:
    return {one.name: one.value for one in report.findings if one.section == section}


def test_an_orin_with_jetpack_6_shows_board_sm_power_mode_and_cameras(tmp_path: Path) -> None:
    report = examine(host=orin(tmp_path))
    assert report.ok
    assert values(report, "board") == {
        "model": "NVIDIA Jetson AGX Orin Developer Kit",
        "L4T": "36.4.3",
        "JetPack": "6.2+b77",
    }
    assert values(report, "gpu") == {"SM": "sm87", "CUDA": "12.6"}
    mode = found(report, "power", "power mode")
    assert (mode.value, mode.status) == ("MODE_30W", "warning")
    assert "sudo nvpmodel -m 0" in mode.todo
    assert found(report, "power", "clock").value == "1728 of 2201 MHz allowed"
    assert found(report, "power", "temperature").value == "51 C at most (cpu-thermal)"
    assert values(report, "processor")["model"] == "ARM part 0xd42"
    assert found(report, "memory", "swap").value == "4.0 GiB (zram)"
    assert found(report, "cameras", "CSI").value == "vi-output, imx219 9-0010"
    assert values(report, "backends")["tensorrt"] == "could run a bundle"
    assert "no onnxruntime-gpu for Orin and Thor" in values(report, "backends")["cuda"]


def test_a_camera_has_its_stable_name_without_its_serial_number(tmp_path: Path) -> None:
    camera = found(examine(host=orin(tmp_path)), "cameras", "/dev/video1")
    name = "/dev/v4l/by-id/usb-046d_HD_Pro_Webcam_C920_*-video-index0"
    assert camera.value == f"HD Pro Webcam C920 ({name})"
    assert [path.name for path in tmp_path.glob(name.lstrip("/"))] == [
        f"usb-046d_HD_Pro_Webcam_C920_{SERIAL}-video-index0"
    ]


def test_a_thor_has_its_sm_from_the_device_tree_and_says_that_it_is_hot(tmp_path: Path) -> None:
    report = examine(host=thor(tmp_path))
    assert values(report, "gpu")["SM"] == "sm110"
    jetpack = found(report, "board", "JetPack")
    assert (jetpack.status, jetpack.value.split()[0]) == ("warning", "7")
    heat = found(report, "power", "heat of gpu-thermal")
    assert (heat.status, heat.value) == ("warning", "101 C, clocks go down from 99 C on")
    assert found(report, "power", "power mode").status == "ok"


def test_a_pc_without_a_gpu_can_use_the_cpu_alone(tmp_path: Path) -> None:
    report = examine(host=desktop(tmp_path, with_gpu=False))
    assert report.ok
    backends = values(report, "backends")
    assert backends.pop("cpu") == "could run a bundle"
    assert all("there is no NVIDIA GPU" in value for value in backends.values())
    assert not values(report, "board")


def test_a_pc_with_a_gpu_shows_it_its_driver_and_what_can_use_it(tmp_path: Path) -> None:
    packages = {
        **CPU_PACKAGES,
        "onnxruntime-gpu": "1.31.1",
        "tensorrt-rtx": "1.7.1.116",
        "cuda-bindings": "13.5.0",
    }
    del packages["onnxruntime"]
    report = examine(host=desktop(tmp_path, with_gpu=True, packages=packages))
    assert report.ok
    assert values(report, "gpu") == {
        "GPU 0": "NVIDIA GeForce RTX 4090",
        "driver": "580.65.06",
        "SM": "sm89",
        "CUDA": "13.0",
        "driver's CUDA": "13.0",
    }
    backends = values(report, "backends")
    assert [name for name, value in backends.items() if value == "could run a bundle"] == [
        "cpu",
        "cuda",
        "tensorrt-rtx",
    ]
    assert "pip install 'tokprune[tensorrt]'" in backends["tensorrt"]


def test_limits_of_the_control_group_are_found(tmp_path: Path) -> None:
    report = examine(host=desktop(tmp_path, with_gpu=False))
    assert found(report, "processor", "control group").value == "4 cores"
    assert "threads=4" in found(report, "processor", "control group").todo
    assert found(report, "memory", "control group").value == "8.0 GiB at most"
    assert found(report, "memory", "memory").value.startswith("7.0 GiB left to this process")


def test_both_onnxruntimes_at_once_are_a_problem_with_the_lines_that_mend_it(
    tmp_path: Path,
) -> None:
    packages = {**CPU_PACKAGES, "onnxruntime-gpu": "1.31.1"}
    report = examine(host=desktop(tmp_path, with_gpu=True, packages=packages))
    assert not report.ok
    problem = found(report, "software", "onnxruntime")
    assert problem.status == "problem"
    assert "pip uninstall -y onnxruntime-gpu" in problem.todo
    assert "pip install --no-deps onnxruntime-gpu" in problem.todo


def test_without_onnxruntime_there_is_a_problem(tmp_path: Path) -> None:
    packages = {name: found for name, found in CPU_PACKAGES.items() if name != "onnxruntime"}
    report = examine(host=desktop(tmp_path, with_gpu=False, packages=packages))
    assert not report.ok
    assert found(report, "software", "onnxruntime").todo == "pip install onnxruntime"


def test_an_environment_that_hides_jetpacks_tensorrt_is_told_how_to_be_made(tmp_path: Path) -> None:
    report = examine(host=replace(orin(tmp_path), installed=CPU_PACKAGES.get))
    assert "--system-site-packages" in values(report, "backends")["tensorrt"]


def test_an_old_jetpack_is_a_problem(tmp_path: Path) -> None:
    host = orin(tmp_path)
    machines.write(tmp_path, {"var/lib/dpkg/status": machines.DPKG.format(version="5.1.2-b104")})
    assert found(examine(host=host), "board", "JetPack").status == "problem"


def test_a_package_that_was_removed_is_not_taken_for_installed(tmp_path: Path) -> None:
    host = orin(tmp_path)
    status = machines.DPKG.format(version="6.2+b77").replace("install ok", "deinstall ok")
    machines.write(tmp_path, {"var/lib/dpkg/status": status})
    assert found(examine(host=host), "board", "JetPack").value.startswith("6 by its L4T")


def test_a_missing_nvpmodel_is_a_warning(tmp_path: Path) -> None:
    host = orin(tmp_path)
    (tmp_path / "var/lib/nvpmodel/status").unlink()
    assert found(examine(host=host), "power", "power mode").status == "warning"


def test_a_machine_of_which_nothing_can_be_read_is_looked_at_all_the_same(tmp_path: Path) -> None:
    report = examine(host=machines.host(tmp_path, CPU_PACKAGES))
    assert report.ok
    assert found(report, "memory", "memory").status == "warning"


def test_files_full_of_noise_are_no_crash(tmp_path: Path) -> None:
    host = orin(tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.write_bytes(b"\xff\x00 R36 : < > 99\n" * 3)
    assert all(finding.value for finding in examine(host=host).findings)


@pytest.mark.parametrize(
    "name", ["proc/cpuinfo", "sys/class/video4linux/video0/name", "etc/nv_tegra_release"]
)
def test_a_pipe_in_place_of_a_file_does_not_block(tmp_path: Path, name: str) -> None:
    host = orin(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    began = time.monotonic()
    assert examine(host=host).findings
    assert time.monotonic() - began < examination.SECONDS


def test_a_part_that_never_answers_is_reported_and_the_others_are_there(tmp_path: Path) -> None:
    stuck = threading.Event()

    def blocked(_: Path) -> Disk:
        stuck.wait(60)
        return Disk(0, read_only=False)

    report = examine(host=replace(orin(tmp_path), disk=blocked), seconds=0.5)
    stuck.set()
    disk = found(report, "disk", "disk")
    assert (disk.status, disk.value) == ("warning", "did not answer within 0.5 s")
    assert found(report, "cameras", "CSI").status == "ok"


def test_a_part_that_fails_is_a_warning(tmp_path: Path) -> None:
    def broken() -> dict[str, str]:
        raise ZeroDivisionError("odd")

    report = examine(host=replace(orin(tmp_path), gpu=broken))
    assert "ZeroDivisionError: odd" in found(report, "gpu", "gpu").value


def test_no_device_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = orin(tmp_path)
    opened: list[str] = []
    real = os.open

    def watched(path: object, *arguments: int, **options: int) -> int:
        opened.append(str(path))
        return real(path, *arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(os, "open", watched)
    examine(host=host)
    assert any(path.endswith("cpuinfo") for path in opened)
    assert not [path for path in opened if path.startswith(f"{tmp_path}/dev/")]


def test_a_full_disk_and_a_state_folder_that_cannot_be_written_are_warnings(tmp_path: Path) -> None:
    full = replace(orin(tmp_path), disk=lambda _: Disk(1 << 20, read_only=False))
    assert found(examine(host=full), "disk", "state folder").status == "warning"
    locked = replace(full, disk=lambda _: Disk(1 << 40, read_only=True))
    assert "TOKPRUNE_STATE" in found(examine(host=locked), "disk", "state folder").todo


def test_the_report_has_no_names_numbers_or_values_of_the_environment(tmp_path: Path) -> None:
    host = orin(tmp_path)
    machines.camera(tmp_path, 2, "cam of anna at robot-7, 00:1A:2b:3c:4D:5e", f"odd-{SERIAL}")
    about = "Model: X anna\nGPU UUID: GPU-12345678-9abc-def0-1234-56789abcdef0\n"
    machines.write(tmp_path, {"proc/driver/nvidia/gpus/0000:01:00.0/information": about})
    secret = {"TOKEN": "hunter2", "XDG_CACHE_HOME": "/srv/hidden"}
    report = examine(host=replace(host, environment=secret))
    text = json.dumps(report.as_json())
    for word in ("anna", "robot-7", SERIAL, "00:1A", "hunter2", "hidden", "12345678-9abc"):
        assert word not in text
    assert found(report, "disk", "state folder").value.startswith("$XDG_CACHE_HOME/tokprune: ")
    assert found(report, "cameras", "/dev/video2").value.startswith("cam of *** at ***, ***")


def test_a_name_inside_another_word_is_left_alone() -> None:
    host = Host(secrets=("av", ""), home=Path("/"))
    assert host.redact("av saved /var/av: avoid") == "*** saved /var/***: avoid"


def test_an_engine_is_stale_where_another_version_is_installed() -> None:
    host = Host(installed=JETSON_PACKAGES.get)
    assert is_installed_version(host, "tensorrt", "10.3.0")
    assert not is_installed_version(host, "tensorrt", "10.16.1.11")
    assert is_installed_version(host, "tensorrt-rtx", "1.7.1.116")  # nothing tells


@pytest.mark.demo
def test_a_bundle_is_looked_at_and_what_is_missing_has_its_command(
    tmp_path: Path, demo_bundle: Path
) -> None:
    report = examine(demo_bundle, host=orin(tmp_path))
    assert report.ok
    assert found(report, "bundle", "files").status == "ok"
    assert found(report, "bundle", "engines").value.startswith("none")
    assert "tokprune calibrate" in found(report, "bundle", "calibration").todo
    assert "MiB to open on the CPU" in found(report, "bundle", "memory").value


def test_a_folder_that_is_no_bundle_is_a_problem(tmp_path: Path) -> None:
    report = examine(tmp_path / "none", host=orin(tmp_path / "orin"))
    assert not report.ok
    assert found(report, "bundle", "files").value.startswith("bundle_invalid.folder")


def test_the_command_prints_json_and_its_exit_code_tells_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = orin(tmp_path / "orin")
    monkeypatch.setattr(examination, "this_host", lambda: host)
    assert run_doctor(Doctor(json=True)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert set(report["findings"][0]) == {"section", "name", "status", "value", "todo"}
    assert run_doctor(Doctor(tmp_path / "none", json=True)) == 1
    assert run_doctor(Doctor()) == 0
    assert "tokprune doctor" in capsys.readouterr().out


def test_markup_in_what_was_found_is_text(tmp_path: Path) -> None:
    machines.camera(tmp_path, 0, "[red]cam[/]")
    report = examine(host=machines.host(tmp_path, CPU_PACKAGES))
    table = findings_table(report)
    assert any("\\[red]cam" in str(cell) for cell in table.columns[2].cells)


def test_nothing_heavy_is_imported() -> None:
    program = """
import sys
from tokprune.doctor import examine
assert examine().findings
heavy = {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "av", "torch", "prometheus_client"}
assert not heavy & {name.partition(".")[0] for name in sys.modules}
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
