"""Writing engines: gigabytes at once, whole or not at all, by one process at a time."""

import fcntl
import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tokprune_runtimes.errors import BuildFailed

_PIECE_BYTES = 1 << 24


class StagedEngine:
    """The file that will become the engine."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._digest.hexdigest()

    def write(self, data: memoryview) -> None:
        """Append, in pieces, so that the kernel needs no copy of it all either."""
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            self._digest.update(piece)
            while piece:
                piece = piece[os.write(self._descriptor, piece) :]
        self.size += len(data)


@contextmanager
def staged_engine(
    engine: Path, side_car: Path
) -> Generator[tuple[StagedEngine, list[bytes]], None, None]:
    """Yield a file and a list; put the side-car's bytes in the list to have both published.

    An exception, or an empty list, leaves what was there before. Whoever reads an engine checks its
    side-car's hash first, so a power loss between the two renames makes it stale, not wrong.

    Raises:
        BuildFailed: another process is building the same engine.
        OSError: the folder cannot be written, or the disk is full.
    """
    engine.parent.mkdir(parents=True, exist_ok=True)
    temporary = engine.with_name(f".{engine.name}.tmp")  # always the same: no leftovers pile up
    descriptor = _lock(temporary, engine)
    try:
        os.ftruncate(descriptor, 0)
        contents: list[bytes] = []
        yield StagedEngine(descriptor), contents
        if contents:
            os.fsync(descriptor)
            note = _written(side_car, b"".join(contents))
            try:
                temporary.replace(engine)
                note.replace(side_car)
            except BaseException:
                note.unlink(missing_ok=True)
                raise
            _sync_folder(engine.parent)
    finally:
        temporary.unlink(missing_ok=True)  # before the lock goes; nothing is there after a rename
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write a small file whole, or change nothing.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _written(path, data).replace(path)


def _lock(temporary: Path, engine: Path) -> int:
    """Open the temporary file and hold its lock, which the kernel drops with the process."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(descriptor, temporary):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                message = f"Another process is building {engine}: wait for it, or end it"
                raise BuildFailed(message) from error
            raise
        os.close(descriptor)  # it was published, or removed, before it was locked here


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _written(path: Path, data: bytes) -> Path:
    """Write beside `path`, flushed to the disk."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError:
        return  # some network mounts cannot; they keep names in order anyway
    finally:
        os.close(descriptor)
