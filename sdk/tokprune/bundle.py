"""The exported folder: read, checked, opened. Nothing of it reaches an engine unchecked.

Codes of BundleInvalid, in the order in which they are found:
    folder          the path is no folder that can be read
    missing         manifest.json or a file that it lists is not there
    unreadable      the system refuses to read a file
    path            a name leaves the bundle, or is a link, pipe, device or folder
    size, sha256    a file is not what the exporter wrote
    manifest        manifest.json is no manifest, or was changed after the export
    schema          it was written for another version of tokprune
    numbers         sizes, limits or token ids make no sense
    graph           a graph is no ONNX file, or the host cannot feed it
    unlisted        the manifest lists no hash for a file that it needs
    external_data   an ONNX file points at something else than a listed file beside it
    embed           embed_tokens.npy is not the embedding table

What this does not cover: a manifest that an attacker wrote himself is as good as any other (the
hashes show changes, not who exported), and an attacker who can write the folder while it is
loaded can exchange a file between its check and the engine's opening it, or shorten a mapped one.
Give the bundle an owner other than the robot's process, or a read-only file system.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from jaxtyping import Float

from tokprune import manifest as manifests
from tokprune.containment import check_name, listing, opened_file, opened_folder, read_small
from tokprune.contents import EMBEDDINGS, check_contents, unlisted
from tokprune.errors import BundleInvalid
from tokprune.families.processor_files import PICTURES, TOGETHER, VIDEOS
from tokprune.files import sha256_descriptor
from tokprune.interfaces import check_interface, graph_specs
from tokprune.manifest import SCHEMA_VERSION, File, Manifest
from tokprune.types import Array

T = TypeVar("T")
MANIFEST = "manifest.json"
DEVICE_FOLDER = "device/"  # what this device made of the bundle; not the exporter's, not hashed
_SETTINGS = (PICTURES, TOGETHER)  # one is needed
_READ_IF_THERE = (*_SETTINGS, VIDEOS)  # by families
_NEEDED = (EMBEDDINGS, "config.json", "tokenizer.json")
_MANIFEST_BYTES = 16 << 20
_AGAIN = "Copy or export the bundle again; `tokprune verify` shows every file."


@dataclass(frozen=True)
class Bundle:
    """A folder whose every listed file was checked."""

    path: Path  # absolute
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Return the path of a listed file.

        Raises:
            BundleInvalid: `bundle_invalid.unlisted`.
        """
        if name not in self.manifest.files:
            raise unlisted(name)
        return self.path / name

    def embed_tokens(self) -> Float[Array, "v d"]:
        """Return the embedding table, mapped from the disk, read-only."""
        return np.load(self.file(EMBEDDINGS), mmap_mode="r", allow_pickle=False)


@dataclass(frozen=True)
class FileReport:
    """One file of the bundle as `verify` found it."""

    name: str
    bytes: int
    status: str  # "ok", "unlisted", "made by this device", or the code of what is wrong
    message: str | None = None


@dataclass(frozen=True)
class VerifyReport:
    """What `tokprune verify` shows: every listed file, then those that nobody listed."""

    files: tuple[FileReport, ...]
    code: str | None  # of the first thing that is wrong
    message: str | None

    @property
    def ok(self) -> bool:
        """Whether the bundle is as the exporter wrote it."""
        return self.code is None

    def as_json(self) -> dict[str, Any]:
        """Return the report as `--json` prints it. Keys are only ever added."""
        return {"ok": self.ok, **asdict(self)}


def open_bundle(path: str | Path, *, verify: Literal["full", "sizes"] = "full") -> Bundle:
    """Check an exported folder; only then may an engine open its files.

    Args:
        path: the folder. It may be reached through links; inside it there are none.
        verify: "full" compares the sha256 of every file, "sizes" only their lengths.

    Raises:
        BundleInvalid: it is not as the exporter wrote it.
    """
    with opened_folder(Path(path)) as root:
        manifest = _read_manifest(root)
        check = partial(_check_file, root, hashed=verify == "full")
        for _ in _in_two_threads(check, manifest):
            pass
        check_contents(root, manifest)
    return Bundle(Path(path).resolve(), manifest)


def verify_bundle(path: str | Path) -> VerifyReport:
    """Check every file, and go on after a fault, so that one run shows them all."""
    rows: list[FileReport] = []
    fault: BundleInvalid | None = None
    try:
        with opened_folder(Path(path)) as root:
            manifest = _read_manifest(root)
            rows += _in_two_threads(partial(_report, root), manifest)
            rows += _others(root, manifest)
            bad = next((row for row in rows if row.message), None)
            if bad is None:
                check_contents(root, manifest)
    except BundleInvalid as error:
        fault, bad = error, None
    if bad is not None:
        return VerifyReport(tuple(rows), bad.status, bad.message)
    return VerifyReport(tuple(rows), fault and fault.code, fault and str(fault))


def describe(bundle: Bundle) -> dict[str, Any]:
    """Return what `tokprune inspect` shows. Keys are only ever added."""
    manifest = bundle.manifest
    serves = {f"llm.{form.form}": form.serves for form in manifest.graphs.llm}
    return {
        "family": manifest.family,
        "precision": manifest.precision,
        "encoder_precision": manifest.encoder_precision or manifest.precision,
        "graphs": {
            name: {
                "file": spec.file,
                "opset": spec.opset,
                "bytes": manifest.files[spec.file].bytes,
                **({"serves": serves[name]} if name in serves else {}),
            }
            for name, spec in graph_specs(manifest).items()
        },
        "llm": msgspec.to_builtins(manifest.llm),
        "limits": msgspec.to_builtins(manifest.limits),
        "scorer": msgspec.to_builtins(manifest.scorer),
        "saliency_layers": manifest.saliency_layers,
        "default_selector": manifest.default_selector,
        "files": len(manifest.files),
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "source": msgspec.to_builtins(manifest.source),
        "tokprune_version": manifest.tokprune_version,
        "schema_version": manifest.schema_version,
    }


def _read_manifest(root: int) -> Manifest:
    """Read manifest.json, and check all that can be checked without looking at other files."""
    with opened_file(root, MANIFEST) as descriptor:
        data = read_small(descriptor, MANIFEST, _MANIFEST_BYTES)
    try:
        _check_schema(manifests.schema_version(data))
        manifest = manifests.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        message = f"{MANIFEST} is no manifest of a bundle ({str(error)!r:.300}). {_AGAIN}"
        raise BundleInvalid("manifest", message) from None
    if not manifests.is_sealed(data, manifest):
        message = f"{MANIFEST} was changed after the export: its seal does not fit. {_AGAIN}"
        raise BundleInvalid("manifest", message)
    check_interface(manifest)
    for name in manifest.files:
        check_name(name)
    graphs = (spec.file for spec in graph_specs(manifest).values())
    for name in (*_NEEDED, *graphs):
        if name not in manifest.files:
            raise unlisted(name)
    if not any(name in manifest.files for name in _SETTINGS):
        raise unlisted(_SETTINGS[0])
    for name in _READ_IF_THERE:
        if name not in manifest.files and _is_there(root, name):
            raise unlisted(name)
    return manifest


def _is_there(root: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _check_schema(version: Any) -> None:
    number = version if type(version) is int else 0  # JSON's `true` would equal 1
    if number == SCHEMA_VERSION:
        return
    todo = "export the bundle again with this tokprune"
    if number > SCHEMA_VERSION:
        todo = "it comes from a newer tokprune. Update: pip install -U tokprune"
    raise BundleInvalid(
        "schema",
        f"{MANIFEST} has schema_version {version!r:.60}, expected {SCHEMA_VERSION}: {todo}",
    )


def _in_two_threads(check: Callable[[str, File], T], manifest: Manifest) -> Iterator[T]:
    """Check all listed files and yield the results in order. SHA-256 runs outside the GIL."""
    with ThreadPoolExecutor(2) as pool:
        try:
            yield from pool.map(check, manifest.files.keys(), manifest.files.values())
        finally:
            pool.shutdown(cancel_futures=True)


def _check_file(root: int, name: str, listed: File, *, hashed: bool) -> None:
    with opened_file(root, name) as descriptor:
        size = os.fstat(descriptor).st_size
        if size != listed.bytes:
            message = f"{name!r} has {size} bytes, expected {listed.bytes!r:.60}. {_AGAIN}"
            raise BundleInvalid("size", message)
        if not hashed:
            return
        try:
            digest = sha256_descriptor(descriptor)
        except OSError as error:
            raise BundleInvalid("unreadable", f"{name!r}: {error.strerror}. {_AGAIN}") from None
        if digest != listed.sha256:
            message = (
                f"{name!r} is not what the exporter wrote: its sha256 is {digest}, expected "
                f"{listed.sha256!r:.80}. {_AGAIN}"
            )
            raise BundleInvalid("sha256", message)


def _others(root: int, manifest: Manifest) -> list[FileReport]:
    """Report the files that the manifest does not list. Nothing of them is ever opened."""
    rows: list[FileReport] = []
    for name in listing(root):
        if name in manifest.files or name == MANIFEST:
            continue
        status = "made by this device" if name.startswith(DEVICE_FOLDER) else "unlisted"
        size = os.stat(name, dir_fd=root, follow_symlinks=False).st_size
        rows.append(FileReport(name, size, status))
    return rows


def _report(root: int, name: str, listed: File) -> FileReport:
    try:
        _check_file(root, name, listed, hashed=True)
    except BundleInvalid as error:
        return FileReport(name, listed.bytes, error.code, str(error))
    return FileReport(name, listed.bytes, "ok")
