import shutil
from pathlib import Path

import msgspec
import pytest
from timed_machine import calibration

from tokprune.bundle import open_bundle
from tokprune.files import sha256_file
from tokprune.timing.calibration_states import list_calibrations
from tokprune.timing.calibrations import FILE, cores, device_name, save_calibration


def test_every_calibration_is_listed_with_why_it_does_not_count(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKPRUNE_STATE", str(tmp_path / "state"))
    folder = tmp_path / "bundle"
    shutil.copytree(demo_bundle, folder, ignore=shutil.ignore_patterns("device"))
    bundle = open_bundle(folder, verify="sizes")
    assert list_calibrations(bundle) == []
    here = msgspec.structs.replace(
        calibration(),
        manifest_sha256=sha256_file(folder / "manifest.json"),
        device=device_name("cpu"),
        cores=cores(),
    )
    good = save_calibration(bundle, here)
    save_calibration(bundle, msgspec.structs.replace(here, threads=2, manifest_sha256="1" * 64))
    elsewhere = folder / "device" / "cpu-some-other-chip-t1"
    shutil.copytree(good.parent, elsewhere)
    (folder / "device" / "cpu-empty-t1").mkdir()
    found = {state.path.parent.name: state for state in list_calibrations(bundle)}
    assert len(found) == 3
    assert found[good.parent.name].state == "fresh"
    assert found[good.parent.name].date == here.date
    assert found[elsewhere.name].state == "other device"
    (stale,) = (state for state in found.values() if state.threads == 2)
    assert stale.state == "stale"
    assert "was measured with another bundle" in str(stale.reason)
    assert stale.as_json()["path"] == str(stale.path)
    assert stale.path.name == FILE
