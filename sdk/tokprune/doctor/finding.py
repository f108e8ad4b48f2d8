"""Findings, and the machine that they are about: every read goes through `Host`."""

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

Status = Literal["ok", "warning", "problem"]

_MAX_BYTES = 1 << 20
_MAC = re.compile(r"\b(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}\b")
_UUID = re.compile(r"\b[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\b")


class Finding(NamedTuple):
    """One thing that was looked at."""

    section: str
    name: str
    status: Status
    value: str
    todo: str = ""  # what to do, where it is not ok


@dataclass(frozen=True)
class Report:
    """All findings, in the order of the sections."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem. Warnings are none."""
        return all(finding.status != "problem" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints. Keys are only ever added."""
        return {"ok": self.ok, "findings": [finding._asdict() for finding in self.findings]}


def installed_version(package: str) -> str | None:
    """Return a distribution's version from its metadata; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Disk(NamedTuple):
    """Of the file system that holds a folder."""

    free_bytes: int
    read_only: bool


def disk_of(path: Path) -> Disk:
    """Return what is left for this user where `path` is or would be.

    Raises:
        OSError: the file system does not answer.
    """
    place = path.absolute()
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    read_only = bool(found.f_flag & os.ST_RDONLY) or not os.access(place, os.W_OK)
    return Disk(found.f_bavail * found.f_frsize, read_only)


@dataclass(frozen=True)
class Host:
    """The machine, or one that a test made up below a folder."""

    root: Path = Path("/")
    installed: Callable[[str], str | None] = installed_version
    disk: Callable[[Path], Disk] = disk_of
    gpu: Callable[[], Mapping[str, str]] = dict[str, str]  # "sm", "cuda", "driver_cuda"
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    secrets: tuple[str, ...] = ()  # names of user and host, which no report shows
    home: Path | None = None

    def path(self, name: str) -> Path:
        """Return where an absolute path of the machine is."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str | None:
        """Return a small file's text without its end, None where there is none to read.

        Pipes and devices are not read, and a driver that has nothing to say is not waited for.
        """
        data = self.data(name)
        return None if data is None else data.decode("utf-8", "replace").strip("\0\n ")

    def data(self, name: str, limit: int = _MAX_BYTES) -> bytes | None:
        """Return a file's bytes, `limit` at most, None where there are none to read."""
        pieces: list[bytes] = []
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            descriptor = os.open(self.path(name), flags)
        except (OSError, ValueError):
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            while limit > 0 and (piece := os.read(descriptor, limit)):
                pieces.append(piece)
                limit -= len(piece)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return b"".join(pieces)

    def number(self, name: str) -> int | None:
        """Return a file's whole number."""
        text = self.text(name)
        return int(text) if text and re.fullmatch(r"-?\d+", text) else None

    def names(self, folder: str, pattern: str = "*") -> list[str]:
        """Return the names in a folder, sorted as people count; empty where there is none."""
        try:
            found = [path.name for path in self.path(folder).glob(pattern)]
        except OSError:
            return []
        return sorted(found, key=lambda name: [int(n) for n in re.findall(r"\d+", name)] or [-1])

    def redact(self, text: str) -> str:
        """Return text without home, names of user and host, MAC addresses and UUIDs."""
        if self.home is not None and len(self.home.parts) > 1:
            text = text.replace(str(self.home), "~")
        for secret in sorted(self.secrets, key=len, reverse=True):
            if secret:
                text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", "***", text)
        return _UUID.sub("***", _MAC.sub("***", text))
