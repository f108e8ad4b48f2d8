import errno
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from counts import CHUNKS, share
from narrow_disk import UNSHARE
from programs import run_program

from tokprune.files import atomic_write, sha256_file, staged_folder


@pytest.fixture
def no_space(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A disk on which `left[0]` bytes can still be written with os.write."""
    left = [0]
    write = os.write

    def limited(descriptor: int, data: bytes | memoryview) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = write(descriptor, data[: left[0]])
        left[0] -= count
        return count

    monkeypatch.setattr(os, "write", limited)
    yield left
    monkeypatch.undo()


def test_a_written_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")
    atomic_write(path, b"new" * 100_000)
    assert path.read_bytes() == b"new" * 100_000
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    atomic_write(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_symlink_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"kept")
    (tmp_path / "link").symlink_to("target")
    atomic_write(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"kept"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("left", [0, 1, 999])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, no_space: list[int], left: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    no_space[0] = left
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, b"n" * 1000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_staged_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    output = tmp_path / "new" / "output"
    with staged_folder(output) as folder:
        (folder / "inner").mkdir()
        (folder / "inner/file").write_bytes(b"data")
        assert not output.exists()
        assert folder.parent == output.parent
    assert (output / "inner/file").read_bytes() == b"data"
    assert list(output.parent.iterdir()) == [output]


def test_a_staged_folder_goes_away_with_an_error(tmp_path: Path) -> None:
    def interrupted() -> None:
        with staged_folder(tmp_path / "output") as folder:
            (folder / "file").write_bytes(b"data")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling link"])
def test_nothing_that_exists_is_overwritten(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "output"
    if kind == "file":
        output.write_bytes(b"")
    elif kind == "dangling link":
        output.symlink_to("nowhere")
    else:
        output.mkdir()
    if kind == "folder":
        (output / "file").write_bytes(b"")
    with pytest.raises(FileExistsError, match="remove it"), staged_folder(output):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == [output]


def test_an_output_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with pytest.raises(FileExistsError), staged_folder(output):
        output.mkdir()
    assert list(tmp_path.iterdir()) == [output]


def test_a_change_of_the_working_folder_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with staged_folder(Path("output")) as folder:
        os.chdir("elsewhere")
        (folder / "file").write_bytes(b"")
    assert (tmp_path / "output/file").exists()


def test_leftovers_of_dead_runs_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    dead = tmp_path / f".output.tmp-{os.getpid()}-{'0' * 16}"  # that its pid lives means nothing
    dead.mkdir()
    (dead / "file").write_bytes(b"")
    dead.with_name(dead.name + ".lock").write_bytes(b"")
    (tmp_path / f".output.tmp-1-{'1' * 16}").write_bytes(b"from atomic_write")
    (tmp_path / f".output.tmp-1-{'2' * 16}").mkdir()
    strangers = {".output.tmp-notes", f".other.tmp-1-{'0' * 16}"}
    for name in strangers:
        (tmp_path / name).mkdir()
    with staged_folder(tmp_path / "output") as live:
        atomic_write(tmp_path / "output", b"another writer of the same name sweeps too")
        (tmp_path / "output").unlink()
        (live / "file").write_bytes(b"")
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {live.name, f"{live.name}.lock", *strangers}
    assert {path.name for path in tmp_path.iterdir()} == {"output", *strangers}


def test_the_hash_is_that_of_hashlib(tmp_path: Path) -> None:
    for size in (0, 1, (1 << 20) - 1, 1 << 20, (3 << 20) + 7):
        data = os.urandom(size)
        (tmp_path / "file").write_bytes(data)
        assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_power_loss_at_any_point_leaves_all_or_nothing(tmp_path: Path, chunk: int) -> None:
    found = run_program("power_loss.py", str(tmp_path / "disk"), str(chunk), str(share(500)))
    assert found["tried"] == share(500)
    assert found["partial"] == []
    assert found["not_mended"] == []
    assert found["absent"] > 0
    assert found["complete"] > 0


def test_a_writer_that_does_not_flush_is_found_out(tmp_path: Path) -> None:
    found = run_program("power_loss.py", str(tmp_path / "disk"), "19", "50", "careless")
    assert found["partial"] != []


def test_nothing_partial_stays_on_full_disks_and_bundles_open_from_read_only_ones(
    tmp_path: Path,
) -> None:
    if subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk (unshare --user --mount)")
    found = run_program("narrow_disk.py", str(tmp_path), before=UNSHARE)
    assert found["full"]["refused"] >= 10
    assert set(found["full"]["errors"]) == {"ENOSPC", "short write by numpy"}
    assert found["full"]["left"] == []
    assert found["full"]["ok"]
    read_only = {"ok": True, "files": 13, "errors": ["EROFS", "EROFS"], "unchanged": True}
    assert found["read_only"] == read_only
