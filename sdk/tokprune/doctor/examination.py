"""All that is looked at, each part with a time of its own, so that none hangs the whole."""

import getpass
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from tokprune.backends import has_device
from tokprune.doctor.bundles import bundle_findings, disks
from tokprune.doctor.cameras import cameras
from tokprune.doctor.finding import Finding, Host, Report
from tokprune.doctor.machine import gpu, jetpack, power, processor
from tokprune.doctor.software import backends, software

SECONDS = 20.0  # for one part; asking CUDA takes some
_GPU_SECONDS = 15
_ASK_GPU = """
import json
from tokprune_runtimes.cuda import cuda_versions, device_sm
found = {"sm": device_sm()}
if versions := cuda_versions():
    found["cuda"], found["driver_cuda"] = versions
print(json.dumps({key: value for key, value in found.items() if value}))
"""


class _Part(NamedTuple):
    section: str
    look: Callable[[], Iterator[Finding]]


def examine(
    bundle: str | Path | None = None, *, host: Host | None = None, seconds: float = SECONDS
) -> Report:
    """Look at software, machine, cameras and, if given, a bundle.

    Nothing of it is changed, no engine or device is opened, and names of user, host and home,
    serial numbers and the environment's values stay out of the report.

    Args:
        bundle: an exported folder.
        host: the machine; this one if not given.
        seconds: that one part may take.
    """
    host = host or this_host()
    path = None if bundle is None else Path(bundle)
    parts = [
        _Part("software", lambda: software(host)),
        _Part("board", lambda: jetpack(host)),
        _Part("gpu", lambda: gpu(host)),
        _Part("backends", lambda: backends(host)),
        _Part("power", lambda: power(host)),
        _Part("processor", lambda: processor(host)),
        _Part("disk", lambda: disks(host, path)),
        _Part("cameras", lambda: cameras(host)),
    ]
    if path is not None:
        parts.append(_Part("bundle", lambda: bundle_findings(host, path)))
    findings = [finding for part in parts for finding in _timed(part, seconds)]
    return Report(tuple(_redacted(host, finding) for finding in findings))


def this_host() -> Host:
    """Return this machine."""
    names = {socket.gethostname(), socket.gethostname().partition(".")[0]}
    try:
        names.add(getpass.getuser())
    except (KeyError, OSError):  # a number that has no name, in a container
        names.add(os.environ.get("USER", ""))
    return Host(gpu=ask_gpu, secrets=tuple(names - {"", "root", "localhost"}), home=Path.home())


def ask_gpu() -> Mapping[str, str]:
    """Ask CUDA in a process of its own: a broken driver may hang or crash whoever asks."""
    if not has_device():
        return {}
    command = [sys.executable, "-c", _ASK_GPU]
    packages = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([packages, *filter(None, sys.path)])}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_GPU_SECONDS, env=environment, check=False
        )
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"error": f"CUDA did not answer within {_GPU_SECONDS} s: reboot, check the driver"}
    except (OSError, ValueError):
        return {"error": "asking CUDA crashed: check that driver and cuda-bindings belong together"}


def _timed(part: _Part, seconds: float) -> list[Finding]:
    """Return a part's findings, those that it has by its time's end."""
    found: list[Finding] = []

    def work() -> None:
        try:
            found.extend(part.look())
        except Exception as error:  # a finding too: one odd file must not hide all others
            value = f"could not be looked at ({type(error).__name__}: {error})"
            found.append(Finding(part.section, part.section, "warning", value, "report this"))

    thread = Thread(target=work, name=f"doctor {part.section}", daemon=True)
    thread.start()
    thread.join(seconds)
    if not thread.is_alive():
        return found
    value = f"did not answer within {seconds:g} s"
    todo = "a driver or mount may be stuck: see dmesg"
    return [*found, Finding(part.section, part.section, "warning", value, todo)]


def _redacted(host: Host, finding: Finding) -> Finding:
    value, todo = host.redact(finding.value), host.redact(finding.todo)
    return finding._replace(name=host.redact(finding.name), value=value, todo=todo)
