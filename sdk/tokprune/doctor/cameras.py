"""Cameras, by what the kernel lists. No device is opened: some block, and some start to stream."""

import os
import re
from collections.abc import Iterator

from tokprune.doctor.finding import Finding, Host

_CSI_DRIVERS = ("vi-output", "tegra-video")  # what JetPack's kernels call a sensor's device
_SERIAL = re.compile(r"^(.+)_([^_]+)(-video-index\d+)$")


def cameras(host: Host) -> Iterator[Finding]:
    """Yield every video device, its name and its stable name."""
    stable = _stable_names(host)
    devices = host.names("/dev", "video[0-9]*")
    csi: list[str] = []
    for device in devices:
        name = host.text(f"/sys/class/video4linux/{device}/name") or "no name"
        if name.startswith(_CSI_DRIVERS):
            csi.append(name)
        value = f"{name} ({', '.join(stable[device])})" if device in stable else name
        allowed = os.access(host.path(f"/dev/{device}"), os.R_OK | os.W_OK)
        todo = "" if allowed else "sudo usermod -aG video $USER, then log in again"
        yield Finding("cameras", f"/dev/{device}", "ok" if allowed else "warning", value, todo)
    if not devices:
        yield Finding("cameras", "video devices", "ok", "none")
    elif not stable and len(csi) < len(devices):
        value = "none: numbers of devices change when they are plugged again"
        yield Finding("cameras", "stable names", "ok", value)
    if host.text("/etc/nv_tegra_release") is not None:
        yield _csi(host, csi)


def _csi(host: Host, sensors: list[str]) -> Finding:
    daemon = host.path("/usr/sbin/nvargus-daemon").exists()
    if not sensors:
        value = "no sensor that the kernel lists"
        todo = "" if not daemon else "a CSI camera needs /opt/nvidia/jetson-io/jetson-io.py once"
        return Finding("cameras", "CSI", "ok", value, todo)
    if not daemon:
        todo = "sudo apt-get install nvidia-l4t-camera"
        return Finding("cameras", "CSI", "warning", f"{len(sensors)}, no nvargus-daemon", todo)
    return Finding("cameras", "CSI", "ok", ", ".join(sensors))


def _stable_names(host: Host) -> dict[str, list[str]]:
    """Return the names under /dev/v4l/by-id by device, serial numbers as `*`, which a shell takes.

    They have the form usb-MAKER_MODEL_SERIAL-video-indexN; without a serial number the last part
    is of the model, and is hidden too.
    """
    found: dict[str, list[str]] = {}
    for name in host.names("/dev/v4l/by-id"):
        try:
            target = host.path(f"/dev/v4l/by-id/{name}").readlink()
        except OSError:
            continue
        shown = _SERIAL.sub(r"\1_*\3", name)
        shown = "*" if shown == name else shown  # of another form: all of it may be a serial number
        found.setdefault(target.name, []).append(f"/dev/v4l/by-id/{shown}")
    return found
