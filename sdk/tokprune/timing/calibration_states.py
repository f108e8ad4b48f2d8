"""Which calibrations a bundle has, and which of them count here."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from tokprune.bundle import Bundle
from tokprune.engines.folders import device_roots
from tokprune.errors import NotCalibrated
from tokprune.timing.calibrations import FILE, folder_name, load_calibration
from tokprune_runtimes import BACKENDS, Backend

_FOLDER = re.compile(rf"({'|'.join(sorted(BACKENDS, key=len, reverse=True))})-.+-t(auto|\d+)")


class CalibrationState(NamedTuple):
    """One calibration."""

    path: Path
    backend: str
    threads: int | None  # None: as many as the engine chooses
    state: Literal["fresh", "stale", "other device"]
    reason: str | None  # why it does not count
    date: str | None  # when it was measured, ISO 8601

    def as_json(self) -> dict[str, object]:
        """Return it as `--json` prints it."""
        return {**self._asdict(), "path": str(self.path)}


def list_calibrations(bundle: Bundle) -> list[CalibrationState]:
    """Return all, of the bundle's folder and of the one for read-only bundles."""
    found: list[CalibrationState] = []
    for root in device_roots(bundle):
        with suppress(OSError):
            for folder in sorted(root.iterdir()):
                parts = _FOLDER.fullmatch(folder.name)
                if parts and (folder / FILE).is_file():
                    threads = None if parts[2] == "auto" else int(parts[2])
                    found.append(_state(bundle, folder, parts[1], threads))
    return found


def _state(bundle: Bundle, folder: Path, name: str, threads: int | None) -> CalibrationState:
    path = folder / FILE
    backend: Backend = next(each for each in BACKENDS if each == name)
    if folder.name != folder_name(backend, threads):
        reason = "measured on another device"
        return CalibrationState(path, backend, threads, "other device", reason, None)
    try:
        calibration = load_calibration(bundle, backend, threads)
    except NotCalibrated as error:
        return CalibrationState(path, backend, threads, "stale", str(error), None)
    date = None if calibration is None else calibration.date
    return CalibrationState(path, backend, threads, "fresh", None, date)
