"""Writing that survives power loss: under the name that was asked for stands all of it, or nothing.

Whatever is not finished has a name `.<name>.tmp-<pid>-<random>` beside the target and is held by a
file lock. The kernel drops the lock with the process, so the next writer tells the leftovers of a
dead run from a live one whoever has its pid now, and removes them.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_CHUNK_BYTES = 1 << 20
_LOCK = ".lock"  # suffix of the file whose lock tells that a staged folder's writer lives


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` under `path`, replacing what is there, or change nothing.

    A symlink at `path` is replaced, not followed.

    Raises:
        OSError: the disk is full, read-only or broken.
    """
    path = path.absolute()
    _sweep(path)
    temporary, descriptor = _create_locked(path, "")
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # nothing is there after the rename
        os.close(descriptor)
    _sync_folder(path.parent)


@contextmanager
def staged_folder(output: Path) -> Generator[Path, None, None]:
    """Yield an empty folder that becomes `output` when the block ends well, and else goes away.

    Raises:
        FileExistsError: something has this name already.
        OSError: the disk is full, read-only or broken.
    """
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    _sweep(output)
    _refuse_existing(output)
    lock, descriptor = _create_locked(output, _LOCK)
    folder = lock.with_name(lock.name.removesuffix(_LOCK))
    try:
        folder.mkdir()
        yield folder
        _sync_tree(folder)
        _refuse_existing(output)
        folder.rename(output)
        _sync_folder(output.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # nothing is there after the rename
        lock.unlink(missing_ok=True)  # last: a folder without it is a dead run's
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in pieces."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return sha256_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sha256_descriptor(descriptor: int) -> str:
    """Return the hexadecimal SHA-256 of an open file, from where it stands to its end."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    while count := os.readv(descriptor, [buffer]):
        digest.update(buffer[:count])
    return digest.hexdigest()


def _refuse_existing(output: Path) -> None:
    if output.exists() or output.is_symlink():
        message = "there is something of this name already: remove it, or choose another"
        raise FileExistsError(errno.EEXIST, message, str(output))


def _create_locked(target: Path, suffix: str) -> tuple[Path, int]:
    """Create a temporary file beside `target` and lock it until its descriptor is closed."""
    while True:
        name = f".{target.name}.tmp-{os.getpid()}-{secrets.token_hex(8)}{suffix}"
        path = target.with_name(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # another writer swept it away before it was locked


def _sweep(target: Path) -> None:
    """Remove what dead runs left beside `target`.

    What another user left may stay: it is hidden, and nobody takes it for the target.
    """
    ours = re.compile(rf"\.{re.escape(target.name)}\.tmp-\d+-[0-9a-f]{{16}}(\.lock)?")
    for path in [found for found in target.parent.iterdir() if ours.fullmatch(found.name)]:
        if path.is_dir() and not path.is_symlink():
            if not path.with_name(path.name + _LOCK).exists():
                shutil.rmtree(path, ignore_errors=True)
        else:
            _sweep_file(path)


def _sweep_file(path: Path) -> None:
    """Remove a temporary or lock file, and the folder it stands for, unless its writer lives."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.name.endswith(_LOCK):
            shutil.rmtree(path.with_name(path.name.removesuffix(_LOCK)), ignore_errors=True)
        path.unlink(missing_ok=True)
    except OSError:
        return
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and itself, to the disk."""
    for root, _, names in os.walk(folder, topdown=False):
        for path in (Path(root, name) for name in names):
            if not path.is_symlink():
                _sync(path)
        _sync_folder(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder; some network mounts cannot, and keep them in order anyway."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
