"""Real small and read-only file systems, mounted where nobody else sees them.

Run as a program under `unshare --user --map-root-user --mount` (no rights are needed, and the
mounts go with the process): `narrow_disk.py FOLDER` prints what happened as JSON.
"""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import small_bundle

from tokprune.bundle import open_bundle, verify_bundle
from tokprune.files import atomic_write, staged_folder

UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "--")
_PAGE = 4096


def main(folder: Path) -> dict[str, Any]:
    """Fill small disks at every stage, then run from a read-only root."""
    return {"full": full_disks(folder / "small"), "read_only": read_only(folder)}


def full_disks(disk: Path) -> dict[str, Any]:
    """Write the bundle to disks of growing size until one holds it."""
    disk.mkdir()
    errors: list[str] = []
    left: list[str] = []
    for pages in range(1, 64):
        _mount("-t", "tmpfs", "-o", f"size={pages * _PAGE}", "none", str(disk))
        error = _export(disk / "bundle")
        if error is None:
            found = {"refused": len(errors), "errors": sorted(set(errors)), "left": left}
            return {**found, "ok": verify_bundle(disk / "bundle").ok}
        errors.append(error)
        left += [path.name for path in disk.iterdir()]
        subprocess.run(["umount", str(disk)], check=True)
    raise RuntimeError("the bundle did not fit into the largest disk")


def read_only(folder: Path) -> dict[str, Any]:
    """Open a bundle where nothing at all can be written."""
    small_bundle.write(folder / "bundle")
    before = sorted(path.name for path in folder.iterdir())
    _mount("-o", "remount,bind,ro", "/")
    _mount("--bind", str(folder), str(folder))  # it may lie on another disk
    _mount("-o", "remount,bind,ro", str(folder))

    def written() -> None:
        atomic_write(folder / "file", b"data")

    def staged() -> None:
        with staged_folder(folder / "output"):
            pass

    return {
        "ok": verify_bundle(folder / "bundle").ok,
        "files": len(open_bundle(folder / "bundle").manifest.files),
        "errors": [_error(written), _error(staged)],
        "unchanged": before == sorted(path.name for path in folder.iterdir()),
    }


def _export(output: Path) -> str | None:
    def export() -> None:
        with staged_folder(output) as folder:
            small_bundle.write(folder)

    return _error(export)


def _error(write: Callable[[], None]) -> str | None:
    try:
        write()
    except OSError as error:  # numpy's has no number: "1280 requested and 992 written"
        return errno.errorcode[error.errno] if error.errno else "short write by numpy"
    return None


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
