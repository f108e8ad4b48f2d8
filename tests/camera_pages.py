"""The camera page as a running program, and a headless browser that looks at it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import tokprune

TESTS = Path(__file__).parent
PROGRAM = TESTS / "paced_camera_page.py"
FOLDER = TESTS.parent / "samples" / "camera_qa"
PACKAGES = Path(tokprune.__file__).parents[1]
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # tests run as root in containers
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


def why_no_browser() -> str | None:
    """Say why no browser can look at it; None where one can."""
    if find_spec("playwright") is None:
        return "the camera page is not looked at: playwright is not installed"
    if chromium() is None:
        return "the camera page is not looked at: there is no chromium (apt-get install chromium)"
    return None


def chromium() -> str | None:
    """Return where Chromium lies."""
    return next((path for name in CHROMIUMS if (path := shutil.which(name))), None)


@dataclass
class Page:
    """A server that runs."""

    process: "subprocess.Popen[str]"
    url: str
    pace: Path

    def set_pace(self, seconds: float) -> None:
        """Let the model wait so long after each token from now on."""
        self.pace.write_text(str(seconds), encoding="utf-8")

    def tell(self, message: dict[str, Any]) -> None:
        """Say something as a browser would."""
        from websockets.sync.client import connect

        url = f"{self.url.replace('http', 'ws', 1)}live"
        with connect(url, compression=None, max_queue=None) as socket:
            socket.send(json.dumps(message))

    def end(self) -> tuple[int, str, float]:
        """Press Ctrl-C; return exit status, what it told, and the seconds that it took."""
        began_s = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        told = self.process.communicate(timeout=20)[1]
        return self.process.returncode, told, time.monotonic() - began_s


@contextmanager
def camera_page(bundle: Path, folder: Path, *arguments: str, port: int = 0) -> Iterator[Page]:
    """Run the page for a block, on a free port if none is given."""
    pace = folder / "pace"
    pace.write_text("0", encoding="utf-8")
    path = os.pathsep.join([*sys.path, str(PACKAGES)])
    told = {"PYTHONPATH": path, "TOKPRUNE_PACE": str(pace)}
    command = [sys.executable, str(PROGRAM), "--bundle", str(bundle), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--backend", "cpu", "--threads", "1", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **told},
    )
    try:
        yield Page(process, _ready(process), pace)
    finally:
        process.kill()
        process.communicate()


def _ready(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if found := re.match(r"ready: (http://\S+) \(Ctrl-C ends it\)\n", line):
            return found[1]
    raise AssertionError(f"the page did not start: {''.join(lines)}")


def program() -> Any:
    """Return samples/camera_qa/app.py as a module."""
    spec = spec_from_file_location("camera_qa_app", FOLDER / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their types
    spec.loader.exec_module(module)
    return module


@contextmanager
def browser() -> Iterator[Any]:
    """Run a headless Chromium for a block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        try:
            yield started
        finally:
            started.close()
