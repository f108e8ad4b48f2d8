import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import small_bundle
from timed_machine import calibration

from tokprune.bundle import Bundle, open_bundle, verify_bundle
from tokprune.engines.folders import engine_folders
from tokprune.errors import NotCalibrated
from tokprune.files import sha256_file
from tokprune.timing import calibrations
from tokprune.timing.calibrations import (
    Calibration,
    Curve,
    device_name,
    fit,
    folder_name,
    load_calibration,
    save_calibration,
)
from tokprune.timing.latency import open_latency
from tokprune.timing.request_sizes import Sizes

SIZES = Sizes((100,), 50, 20, 1)
PART = Sizes((), 50, 20, 1, parts=(100,))


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("TOKPRUNE_STATE", str(tmp_path / "state"))
    small_bundle.write(tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


def measured(bundle: Bundle, threads: int | None = 1) -> Calibration:
    return msgspec.structs.replace(
        calibration(),
        manifest_sha256=sha256_file(bundle.path / "manifest.json"),
        device=device_name("cpu"),
        threads=threads,
        cores=calibrations.cores(),
    )


@pytest.mark.parametrize(
    ("a", "b", "c"), [(3.0, 0.2, 1e-4), (0.0, 0.5, 0.0), (5.0, 0.0, 0.0), (0.0, 0.0, 2e-3)]
)
def test_a_fit_finds_the_curve_that_made_the_times(a: float, b: float, c: float) -> None:
    sizes = [10, 40, 160, 400, 1000]
    curve = fit([((n,), [a + b * n + c * n * n] * 3) for n in sizes])
    for n in (0, 25, 700, 2000):
        assert curve.ms(n) == pytest.approx(a + b * n + c * n * n, rel=1e-6, abs=1e-6)
    assert curve.spread == pytest.approx(1.0)


def test_runs_that_were_timed_together_are_told_apart() -> None:
    sizes = [(100.0,), (100.0, 100.0), (400.0, 200.0), (800.0, 800.0, 800.0)]
    curve = fit([(each, [sum(4 + 0.1 * n for n in each)] * 3) for each in sizes])
    assert (curve.a, curve.b) == (pytest.approx(4), pytest.approx(0.1))


@pytest.mark.parametrize("seed", range(20))
def test_no_term_is_ever_negative_so_that_more_never_costs_less(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = np.sort(random.integers(1, 2000, 5)).tolist()
    curve = fit([((n,), random.lognormal(2, 1, 7).tolist()) for n in sizes])
    assert min(curve.a, curve.b, curve.c) >= 0
    assert curve.spread >= 1


def test_one_size_alone_gives_a_curve_through_it() -> None:
    assert fit([((500,), [7.0, 7.0])]).ms(500) == pytest.approx(7)


def test_one_slow_run_does_not_move_the_curve() -> None:
    times = [10.0] * 9 + [500.0]
    assert fit([((n,), times) for n in (10, 20, 30)]).ms(20) == pytest.approx(10)


def test_the_spread_is_the_p95_of_long_runs_and_not_of_short_ones() -> None:
    random = np.random.default_rng(0)
    long = (100 * np.exp(random.normal(0, 0.1, 400))).tolist()
    short = [1.0] * 200 + [9.0] * 100  # a pause of the system, for a run of a millisecond
    spread = fit([((1000,), long), ((10,), short)]).spread
    assert spread == pytest.approx(np.exp(0.1645), rel=0.03)


@pytest.mark.parametrize("threads", [None, 1, 4])
def test_what_is_saved_is_found_again(bundle: Bundle, threads: int | None) -> None:
    saved = measured(bundle, threads)
    path = save_calibration(bundle, saved)
    name = f"{folder_name('cpu', threads)}/calibration.json"
    assert path == bundle.path / "device" / name
    assert load_calibration(bundle, "cpu", threads) == saved
    assert open_latency(bundle, "cpu", threads).forecast(SIZES).stage_ms("prefill", 10) > 0


def test_other_threads_and_backends_have_their_own(bundle: Bundle) -> None:
    save_calibration(bundle, measured(bundle, 2))
    assert load_calibration(bundle, "cpu", 1) is None
    assert load_calibration(bundle, "cpu", None) is None
    assert load_calibration(bundle, "cuda", 2) is None


def test_without_one_a_forecast_names_the_command(bundle: Bundle) -> None:
    line = f"tokprune calibrate {bundle.path} --backend cpu --threads 2"
    with pytest.raises(NotCalibrated) as caught:
        open_latency(bundle, "cpu", 2).forecast(SIZES)
    assert line in str(caught.value)
    with pytest.raises(NotCalibrated, match=r"--backend cpu$"):
        open_latency(bundle, "cpu", None).forecast(SIZES)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"manifest_sha256": "1" * 64}, "another bundle"),
        ({"device": "another board"}, "backend cpu on another board.*this is backend cpu on"),
        ({"threads": 3}, "threads 3, this is .* threads 1"),
        ({"backend": "cuda"}, "backend cuda"),
        ({"schema": 3}, "schema 3, this version of tokprune reads 1 to 2"),
        ({"unknown": 1}, "no calibration of this version"),
        ({"stages": {}}, "lacks a stage"),
    ],
)
def test_stale_and_foreign_ones_are_refused_with_the_command(
    bundle: Bundle, changed: dict[str, object], why: str
) -> None:
    path = save_calibration(bundle, measured(bundle))
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    command = r"Measure again: tokprune calibrate \S+ --backend cpu --threads 1"
    with pytest.raises(NotCalibrated, match=f"{why}.*{command}"):
        load_calibration(bundle, "cpu", 1)
    latency = open_latency(bundle, "cpu", 1)  # opening does not fail: most requests need none
    with pytest.raises(NotCalibrated, match=why):
        latency.forecast(SIZES)


def test_one_without_parts_is_read_and_whole_pictures_stand_for_them(bundle: Bundle) -> None:
    """As versions before schema 2 wrote them."""
    path = save_calibration(bundle, measured(bundle))
    raw = json.loads(path.read_text())
    del raw["parts"]
    path.write_text(json.dumps({**raw, "schema": 1}))
    found = load_calibration(bundle, "cpu", 1)
    assert found is not None
    assert found.parts is None
    forecast = open_latency(bundle, "cpu", 1).forecast
    assert forecast(PART).stage_ms("vision", 0) == forecast(SIZES).stage_ms("vision", 0)
    assert forecast(SIZES).unit_ms(100) == forecast(SIZES).stage_ms("vision", 0)


def test_parts_of_pictures_have_a_curve_of_their_own(bundle: Bundle) -> None:
    curve = Curve(2.0, 0.1, 0.0, 1.2, [])
    saved = msgspec.structs.replace(measured(bundle), parts=curve)
    save_calibration(bundle, saved)
    assert load_calibration(bundle, "cpu", 1) == saved
    forecast = open_latency(bundle, "cpu", 1).forecast
    assert forecast(PART).stage_ms("vision", 0) == curve.ms(100)
    assert forecast(SIZES).stage_ms("vision", 0) == saved.stages["vision"].ms(100)
    assert forecast(SIZES).unit_ms(100) == curve.ms(100)
    both = replace(SIZES, parts=(100, 40))
    whole = saved.stages["vision"].ms(100)
    assert forecast(both).stage_ms("vision", 0) == whole + curve.ms(100) + curve.ms(40)


def test_a_curve_of_parts_that_promises_nonsense_is_refused(bundle: Bundle) -> None:
    curve = Curve(-2.0, 0.1, 0.0, 1.2, [])
    save_calibration(bundle, msgspec.structs.replace(measured(bundle), parts=curve))
    with pytest.raises(NotCalibrated, match="make no sense"):
        load_calibration(bundle, "cpu", 1)


@pytest.mark.parametrize("term", [{"a": -1.0}, {"spread": 0.5}, {"a": 0.0, "b": 0.0, "c": 0.0}])
def test_curves_that_promise_nonsense_are_refused(bundle: Bundle, term: dict[str, float]) -> None:
    path = save_calibration(bundle, measured(bundle))
    raw = json.loads(path.read_text())
    raw["stages"]["prefill"] |= term
    path.write_text(json.dumps(raw))
    with pytest.raises(NotCalibrated, match="make no sense"):
        load_calibration(bundle, "cpu", 1)


def test_with_threads_of_the_engines_choice_the_processors_must_be_as_many(bundle: Bundle) -> None:
    more = calibrations.cores() + 1
    save_calibration(bundle, msgspec.structs.replace(measured(bundle, None), cores=more))
    with pytest.raises(NotCalibrated, match=f"with {more} processors"):
        load_calibration(bundle, "cpu", None)
    save_calibration(bundle, msgspec.structs.replace(measured(bundle, 1), cores=more))
    assert load_calibration(bundle, "cpu", 1) is not None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b" " * (1 << 20) + b"{}"])
def test_what_is_no_calibration_is_refused(bundle: Bundle, data: bytes) -> None:
    path = save_calibration(bundle, measured(bundle))
    path.write_bytes(data)
    with pytest.raises(NotCalibrated, match="Measure again"):
        load_calibration(bundle, "cpu", 1)


def test_a_link_is_not_followed(bundle: Bundle, tmp_path: Path) -> None:
    path = save_calibration(bundle, measured(bundle))
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(NotCalibrated, match="is a link"):
        load_calibration(bundle, "cpu", 1)


def test_a_read_only_bundle_keeps_it_in_the_users_cache(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = calibrations.can_make
    monkeypatch.setattr(
        calibrations, "can_make", lambda path: bundle.path not in path.parents and real(path)
    )
    saved = measured(bundle)
    path = save_calibration(bundle, saved)
    assert path.is_relative_to(tmp_path / "state" / sha256_file(bundle.path / "manifest.json"))
    assert load_calibration(bundle, "cpu", 1) == saved


def test_a_calibrated_bundle_is_still_as_exported_and_has_no_engines(bundle: Bundle) -> None:
    save_calibration(bundle, measured(bundle))
    report = verify_bundle(bundle.path)
    assert report.ok
    assert "made by this device" in {file.status for file in report.files}
    assert engine_folders(open_bundle(bundle.path)) == []


def test_a_copied_bundle_takes_its_calibration_along(bundle: Bundle, tmp_path: Path) -> None:
    saved = measured(bundle)
    save_calibration(bundle, saved)
    shutil.copytree(bundle.path, tmp_path / "copy")
    assert load_calibration(open_bundle(tmp_path / "copy"), "cpu", 1) == saved


def test_folders_are_named_by_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrations, "device_name", lambda _: "AMD EPYC 9V74 (80-Core)\0")
    assert folder_name("cpu", 2) == "cpu-amd-epyc-9v74-80-core-t2"
    assert folder_name("tensorrt", None) == "tensorrt-amd-epyc-9v74-80-core-tauto"
    monkeypatch.setattr(calibrations, "device_name", lambda _: "///")
    assert folder_name("cpu", 1) == "cpu-unknown-t1"
