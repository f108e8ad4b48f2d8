"""Writers that are killed at chosen points, and disks that lose what was not flushed.

Run as a program, `power_loss.py FOLDER CHUNK COUNT` tries COUNT points and prints what it found as
JSON; a fourth word, `careless`, takes the flushing away. Each writer runs in a forked child that
counts the calls which change files and kills itself with SIGKILL before or after one of them. Then
the power is cut: of every file that was not flushed since its last change, the disk keeps all, a
part, or zeros; of every such folder, some names.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from counts import PARTS

from tokprune import files
from tokprune.files import atomic_write, staged_folder

_WRITERS = ("folder", "file")
_CHANGES = {"write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "flock", "open"}
_OLD, _NEW = b"old" * 100, b"new" * 5000


@dataclass
class Findings:
    """What the tried points left behind."""

    tried: int = 0
    absent: int = 0  # no new artefact, as before the writer started
    complete: int = 0
    partial: list[str] = field(default_factory=list)
    not_mended: list[str] = field(default_factory=list)


def write_folder(target: Path) -> None:
    """Write a folder in the way of the exporter: large files first, the manifest last."""
    with staged_folder(target) as folder:
        (folder / "onnx").mkdir()
        for name, data in contents().items():
            (folder / name).write_bytes(data)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents().items()}
        atomic_write(folder / "manifest.json", json.dumps(hashes).encode())


def contents() -> dict[str, bytes]:
    """Return the files of the folder, manifest.json excepted."""
    names = ["config.json", "tokenizer.json", *(f"onnx/{letter}.onnx" for letter in "abcdef")]
    return {name: name.encode() * 1000 for name in names}


def write_file(target: Path) -> None:
    """Replace a file."""
    atomic_write(target, _NEW)


def try_point(folder: Path, writer: str, point: int, seed: int, findings: Findings) -> None:
    """Kill a writer at `point`, cut the power, look, and start the writer again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    target = folder / "artefact"
    if writer == "file":
        target.write_bytes(_OLD)
    flushed = folder.with_name(f"{folder.name}.flushed")
    flushed.write_bytes(b"")
    _run(writer, target, point, flushed)
    lose_power(folder, set(flushed.read_text().split("\n")), random.Random(seed))
    after = _state(target)
    findings.tried += 1
    findings.absent += after == "absent"
    findings.complete += after == "complete"
    if after == "partial":
        findings.partial.append(f"{writer} at {point}, seed {seed}")
    _run(writer, target, None, flushed)  # the next start
    if _state(target) != "complete" or [path.name for path in folder.iterdir()] != ["artefact"]:
        left = sorted(path.name for path in folder.iterdir())
        findings.not_mended.append(f"{writer} at {point}, seed {seed}: {left}")


def lose_power(folder: Path, flushed: set[str], chance: random.Random) -> None:
    """Damage what was not flushed since its last change. `folder` itself is the disk's root."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what lies deeper comes first
        if _stamp(path) in flushed or (path.is_file() and path.read_bytes() == _OLD):
            continue
        if path.is_dir():
            for inner in path.iterdir():
                if chance.random() < 0.3:
                    shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
            continue
        kept = chance.choice([0.0, 0.5, 1.0])
        data = path.read_bytes()
        cut = data[: int(len(data) * kept)]
        path.write_bytes(cut + bytes(len(data) - len(cut)) * chance.randrange(2))


def points(folder: Path, writer: str) -> int:
    """Return at how many points a writer can be killed."""
    flushed = folder / "flushed"
    folder.mkdir(parents=True, exist_ok=True)
    return _run(writer, folder / "artefact", None, flushed)


def main(folder: Path, chunk: int, count: int) -> Findings:
    """Try this chunk's part of all points, spread evenly over both writers."""
    findings = Findings()
    totals = {writer: points(folder / f"count-{writer}", writer) for writer in _WRITERS}
    for number in range(chunk, count * PARTS, PARTS):
        writer = _WRITERS[number // PARTS % 4 == 0]
        point = number * totals[writer] // (count * PARTS)
        try_point(folder / "disk", writer, point, number, findings)
    return findings


def _run(writer: str, target: Path, point: int | None, flushed: Path) -> int:
    """Run a writer in a forked child and return how many points it passed."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        _write_and_die(writer, target, point, flushed, send)
    os.close(send)
    with os.fdopen(receive, "rb") as stream:
        passed = int(stream.read() or 0)
    _, status = os.waitpid(pid, 0)
    expected = 0 if point is None else signal.SIGKILL
    if status != expected:
        raise RuntimeError(f"{writer} at {point}: the child ended with {status}")
    return passed


def _write_and_die(
    writer: str, target: Path, point: int | None, flushed: Path, send: int
) -> NoReturn:
    passed = 0
    log = os.open(flushed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tick() -> None:
        nonlocal passed
        passed += 1
        if point is not None and passed > point:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(frame: FrameType, event: str, called: Any) -> None:
        ours = frame.f_code is not noted_fsync.__code__
        if ours and event.startswith("c_") and called.__name__ in _CHANGES:
            tick()

    def noted_fsync(descriptor: int) -> None:
        tick()
        os.write(log, f"{_stamp(descriptor)}\n".encode())  # the flush itself: power is cut here
        tick()

    os.fsync = noted_fsync
    code = 1
    try:
        sys.setprofile(watch)
        with suppress(FileExistsError):  # the killed run was through
            (write_folder if writer == "folder" else write_file)(target)
        sys.setprofile(None)
        os.write(send, str(passed).encode())
        code = 0
    finally:
        os._exit(code)


def _stamp(path: Path | int) -> str:
    status = os.stat(path)  # noqa: PTH116  (of a descriptor too)
    return f"{status.st_ino} {status.st_mtime_ns} {status.st_size}"


def _state(target: Path) -> str:
    """Return "absent", "complete" or "partial"."""
    if not target.exists() or (target.is_file() and target.read_bytes() == _OLD):
        return "absent"
    if target.is_file():
        return "complete" if target.read_bytes() == _NEW else "partial"
    found = {
        path.relative_to(target).as_posix(): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
    }
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents().items()}
    whole = {**contents(), "manifest.json": json.dumps(hashes).encode()}
    return "complete" if found == whole else "partial"


if __name__ == "__main__":
    if sys.argv[4:] == ["careless"]:  # proves that the trial finds a writer that does not flush
        files._sync_tree = files._sync_folder = lambda folder: None
    found = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
