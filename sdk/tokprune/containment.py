"""Opening only what a bundle lists: plain files inside it, reached through no link.

Every component of a name is opened relative to the folder before it and without following links,
and what was opened is looked at again, so that a name cannot lead out of the bundle, nor to a
device or a pipe that would block. ONNX Runtime 1.23.2 itself follows `..`, absolute paths and
symlinks in external data (engines.md), so none of this can be left to the engine.
"""

import errno
import os
import stat
import unicodedata
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from tokprune.errors import BundleInvalid

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def check_name(name: str) -> None:
    """Refuse a file name that could leave the bundle or mean another file than it shows.

    Raises:
        BundleInvalid: `bundle_invalid.path`.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        problem = "it must be relative, without '.', '..', '//' or a leading '/'"
    elif "\\" in name or any(unicodedata.category(letter)[0] == "C" for letter in name):
        problem = "backslashes and control characters are not allowed"
    elif any(len(part.encode()) > 255 for part in parts) or len(parts) > 16:
        problem = "it is longer than a file system allows"
    else:
        return
    raise BundleInvalid("path", f"The bundle names the file {name!r:.300}: {problem}. Refused.")


@contextmanager
def opened_folder(path: Path) -> Generator[int, None, None]:
    """Yield a descriptor of the bundle's folder. The folder itself may be reached through links.

    Raises:
        BundleInvalid: `bundle_invalid.folder`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise BundleInvalid(
            "folder",
            f"{str(path)!r} is not a folder that can be read ({_reason(error)}). "
            "Expected a bundle: the folder that tokprune-export wrote.",
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_file(root: int, name: str) -> Generator[int, None, None]:
    """Yield a descriptor of the plain file `name` below the folder `root`.

    Raises:
        BundleInvalid: `bundle_invalid.path`, `.missing` or `.unreadable`.
    """
    check_name(name)
    *folders, last = name.split("/")
    at = os.dup(root)
    try:
        for folder in folders:
            at = _enter(at, folder, name)
        descriptor = _open_plain(at, last, name)
    finally:
        os.close(at)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_small(descriptor: int, name: str, limit_bytes: int) -> bytes:
    """Return a whole file that must not be larger than `limit_bytes`.

    Raises:
        BundleInvalid: `bundle_invalid.size` or `.unreadable`.
    """
    pieces: list[bytes] = []
    rest = limit_bytes + 1
    try:
        while rest and (piece := os.read(descriptor, rest)):
            pieces.append(piece)
            rest -= len(piece)
    except OSError as error:
        raise _refused(error, name) from None
    if not rest:
        message = f"{name} is larger than {limit_bytes} bytes. No exporter writes such a file."
        raise BundleInvalid("size", message)
    return b"".join(pieces)


def listing(root: int) -> list[str]:
    """Return the names of all that is no folder below `root`, links not followed, sorted."""
    names: list[str] = []
    with suppress(OSError):  # what cannot be listed cannot be told
        for folder, _, files, _ in os.fwalk(dir_fd=root):
            names += [os.path.normpath(f"{folder}/{name}") for name in files]
    return sorted(names)


def _enter(at: int, folder: str, name: str) -> int:
    """Open `folder` in `at`, close `at`, and return the new descriptor."""
    try:
        inner = os.open(folder, _FLAGS | os.O_DIRECTORY, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            message = f"{name!r}: {folder!r} is a link or no folder. Copy the bundle with `cp -rL`."
            raise BundleInvalid("path", message) from None
        raise _refused(error, name) from None
    os.close(at)
    return inner


def _open_plain(at: int, last: str, name: str) -> int:
    """Open a file of one link and return its descriptor. Anything else is never opened."""
    try:
        _check_plain(os.stat(last, dir_fd=at, follow_symlinks=False), name)
        descriptor = os.open(last, _FLAGS, dir_fd=at)
    except OSError as error:
        raise _refused(error, name) from None
    try:
        _check_plain(os.fstat(descriptor), name)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_plain(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        problem = "is a link, a folder, a pipe or a device"
    elif status.st_nlink != 1:
        problem = f"is a hard link, one of {status.st_nlink} names of the same bytes"
    else:
        return
    raise BundleInvalid(
        "path",
        f"{name!r} {problem}. A bundle holds plain files only, so that nothing outside it is read "
        "or changes it. Copy it with `cp -rL --no-preserve=links`.",
    )


def _refused(error: OSError, name: str) -> BundleInvalid:
    if error.errno == errno.ENOENT:
        return BundleInvalid("missing", f"{name!r} is missing. Copy or export the bundle again.")
    if error.errno == errno.ELOOP:
        return BundleInvalid("path", f"{name!r} became a link while it was opened. Refused.")
    return BundleInvalid("unreadable", f"{name!r} cannot be read: {_reason(error)}.")


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
