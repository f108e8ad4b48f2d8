"""A bundle on this machine: its files, its engines, its calibration, and whether there is room."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from tokprune.bundle import Bundle, open_bundle
from tokprune.containment import opened_file, opened_folder, read_small
from tokprune.doctor.finding import Finding, Host
from tokprune.doctor.software import is_installed_version
from tokprune.engines.folders import EngineFolder, device_roots, engine_folders, state_folder
from tokprune.engines.profiles import engine_specs
from tokprune.engines.states import ENGINE_NAMES, build_line, engine_form, source_sha256
from tokprune.errors import BundleInvalid, TokpruneError
from tokprune.memory_plan import memory_plan
from tokprune_runtimes.side_car import SideCar

CALIBRATION = "calibration.json"
_LITTLE_DISK = 1 << 30
_SIDE_CAR_BYTES = 1 << 20


def disks(host: Host, bundle: Path | None) -> Iterator[Finding]:
    """Yield the room where engines and calibrations are written."""
    places = [("state folder", state_folder(host.environment, host.home), _state_name(host))]
    if bundle is not None:
        places.insert(0, ("bundle's folder", bundle, str(bundle)))
    for name, place, shown in places:
        try:
            found = host.disk(place)
        except OSError as error:
            yield Finding("disk", name, "warning", f"{shown}: {error.strerror}", "check its mount")
            continue
        value = f"{shown}: {found.free_bytes / 2**30:.1f} GiB free"
        if found.read_only and name == "state folder":
            todo = "set TOKPRUNE_STATE to a folder that can be written"
            yield Finding("disk", name, "warning", f"{value}, cannot be written", todo)
        elif found.read_only:
            yield Finding("disk", name, "ok", f"{value}, cannot be written; the state folder can")
        else:
            todo = "engines take as much as the bundle" if found.free_bytes < _LITTLE_DISK else ""
            yield Finding("disk", name, "warning" if todo else "ok", value, todo)


def _state_name(host: Host) -> str:
    """Return the state folder without the values of environment variables."""
    if host.environment.get("TOKPRUNE_STATE"):
        return "$TOKPRUNE_STATE"
    cache = "$XDG_CACHE_HOME" if host.environment.get("XDG_CACHE_HOME") else "~/.cache"
    return f"{cache}/tokprune"


def bundle_findings(host: Host, path: Path) -> Iterator[Finding]:
    """Yield what is to be said of a bundle. Sizes are compared, not hashes; nothing is loaded."""
    try:
        bundle = open_bundle(path, verify="sizes")
    except BundleInvalid as error:
        yield Finding("bundle", "files", "problem", f"{error.code}: {error}", "export it again")
        return
    manifest = bundle.manifest
    count, size = len(manifest.files), sum(file.bytes for file in manifest.files.values())
    value = f"{count} files of the sizes that were exported, {size / 2**20:.0f} MiB; hashes: "
    yield Finding("bundle", "files", "ok", f"{value}`tokprune verify`")
    yield Finding("bundle", "model", "ok", f"{manifest.family}, {manifest.precision}")
    yield from _memory(bundle)
    yield from _engines(host, bundle)
    yield _calibration(bundle)


def _memory(bundle: Bundle) -> Iterator[Finding]:
    try:
        plan = memory_plan(bundle)
        plan.check()
    except TokpruneError as error:
        yield Finding("bundle", "memory", "problem", "does not fit on the CPU", str(error))
        return
    opening, largest = plan.opening_bytes / 2**20, plan.total_bytes / 2**20
    value = f"about {opening:,.0f} MiB to open on the CPU, {largest:,.0f} for the largest question"
    todo = "" if plan.fits else "the largest questions do not fit: use smaller pictures"
    yield Finding("bundle", "memory", "ok" if plan.fits else "warning", value, todo)


def _engines(host: Host, bundle: Bundle) -> Iterator[Finding]:
    folders = engine_folders(bundle)
    if not folders:
        yield Finding("bundle", "engines", "ok", "none; TensorRT needs `tokprune build`")
    for folder in folders:
        faults = [fault for name in ENGINE_NAMES if (fault := _fault(host, bundle, folder, name))]
        name = f"engines {folder.path.name}"
        if faults:
            line = build_line(bundle, folder.kind, folder.form)
            yield Finding("bundle", name, "warning", f"stale: {'; '.join(faults)}", line)
        else:
            yield Finding("bundle", name, "ok", "fresh, by their side-cars")


def _fault(host: Host, bundle: Bundle, folder: EngineFolder, name: str) -> str | None:
    """Return what is wrong with an engine, by its side-car alone: TensorRT is not imported."""
    try:
        form = engine_form(bundle, folder.kind, folder.version, folder.form)
        spec = engine_specs(bundle.manifest, form)[name]
        with opened_folder(folder.path) as root:
            with opened_file(root, f"{name}.json") as descriptor:
                data = read_small(descriptor, f"{name}.json", _SIDE_CAR_BYTES)
            with opened_file(root, f"{name}.engine"):
                size = folder.engine(name).stat().st_size
        car = msgspec.json.decode(data, type=SideCar)
    except (TokpruneError, msgspec.MsgspecError, OSError) as error:
        return f"{name}: {error}"
    if car.source_sha256 != source_sha256(bundle, spec):
        return f"{name} was built from another graph"
    if car.bytes != size:
        return f"{name} has {size} bytes, not {car.bytes}"
    if not is_installed_version(host, folder.kind, car.version):
        return f"{name} was built by {car.engine} {car.version}, which is not what is installed"
    return None


def _calibration(bundle: Bundle) -> Finding:
    found = [
        path.parent.name
        for root in device_roots(bundle)
        for path in sorted(root.glob(f"*/{CALIBRATION}"))
    ]
    if found:
        return Finding("bundle", "calibration", "ok", ", ".join(found))
    todo = f"tokprune calibrate {bundle.path}, before budgets such as ttft:300ms"
    return Finding("bundle", "calibration", "warning", "none of this device", todo)
