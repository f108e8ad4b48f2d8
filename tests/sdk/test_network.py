import os
import platform
import signal
import subprocess
from pathlib import Path

import pytest
from guarded_ask import SOCKET_CALLS
from narrow_disk import UNSHARE
from programs import run_freely, run_program

WATCHED = platform.system() == "Linux" and platform.machine() in SOCKET_CALLS
needs_seccomp = pytest.mark.skipif(not WATCHED, reason="the guard knows no socket call here")
# What makes a user's telemetry go where the user has not sent it must not be switched on by CI.
HOME_VARIABLES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
QUIET_VARIABLES = ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "ORT_RUNNING_UNIT_TESTS")


@pytest.fixture
def plain_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and no variable that would switch telemetry off for us."""
    for name in HOME_VARIABLES:
        monkeypatch.setenv(name, str(tmp_path))
    for name in QUIET_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@needs_seccomp
@pytest.mark.demo
@pytest.mark.parametrize("seconds", [0, pytest.param(60, marks=pytest.mark.soak)])
def test_load_and_ask_make_no_socket_and_leave_nothing_at_home(
    demo_bundle: Path, plain_home: Path, seconds: int
) -> None:
    answer = run_program("guarded_ask.py", "network", str(demo_bundle), str(seconds))
    assert answer["kept"] == answer["total"] / 2
    assert list(plain_home.rglob("*")) == []  # no device id, no store of events to be sent


@needs_seccomp
def test_whoever_makes_a_socket_is_found_out(tmp_path: Path) -> None:
    done = run_freely("guarded_ask.py", "planted", str(tmp_path), "0")
    assert done.returncode == -signal.SIGSYS


@pytest.mark.demo
def test_a_read_only_system_answers(demo_bundle: Path) -> None:
    if subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets nobody remount (unshare --user --mount)")
    answer = run_program("guarded_ask.py", "read-only", str(demo_bundle), "0", before=UNSHARE)
    assert answer["writable"] == []
    assert answer["kept"] == answer["total"] / 2
    assert os.access(demo_bundle, os.W_OK)
