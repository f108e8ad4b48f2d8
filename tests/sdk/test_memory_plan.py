"""Memory plans: their sums, what they refuse, and one of them against a process that did it."""

import json
import os
import resource
import subprocess
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import machines
import msgspec
import pytest
from programs import run_program
from rich.console import Console

from tokprune import memory_estimates as estimates
from tokprune.bundle import Bundle, open_bundle
from tokprune.errors import BackendUnavailable, BundleInvalid, OutOfMemory, RequestInvalid
from tokprune.memory import available_memory
from tokprune.memory_plan import (
    SPARE_BYTES,
    VISION_CACHE_BYTES,
    MemoryPlan,
    MemoryRow,
    memory_plan,
)

MIB = 1 << 20


def plan_of(*rows: MemoryRow, available: int | None, asked: bool = True) -> MemoryPlan:
    return MemoryPlan("cpu", rows, available, 1000, asked)


ROWS = (
    MemoryRow("weights of llm", 1000 * MIB, "loaded"),
    MemoryRow("largest tensor, twice", 300 * MIB, "opening"),
    MemoryRow("vision cache", 100 * MIB, "loaded"),
    MemoryRow("activations of llm", 500 * MIB, "request"),
    MemoryRow("embedding table", 9000 * MIB, "mapped"),
)


def test_what_is_mapped_from_the_disk_is_not_counted_and_caches_are_empty_at_first() -> None:
    plan = plan_of(*ROWS, available=None)
    assert plan.loaded_bytes == 1100 * MIB
    assert plan.opening_bytes == 1300 * MIB
    assert plan.total_bytes == 1600 * MIB
    assert plan.fits


def test_opening_may_take_more_than_any_request() -> None:
    assert plan_of(*ROWS[:3], available=None).total_bytes == 1300 * MIB


@pytest.mark.parametrize("spare", [0, -1])
def test_the_largest_request_counts_where_its_size_was_asked_for(spare: int) -> None:
    plan = plan_of(*ROWS, available=1600 * MIB + SPARE_BYTES + spare)
    assert plan.fits == (spare == 0)
    if plan.fits:
        plan.check()
    else:
        with pytest.raises(OutOfMemory, match="1000 vision tokens"):
            plan.check()


def test_else_a_bundle_that_can_be_opened_is_not_refused() -> None:
    plan = plan_of(*ROWS, available=1400 * MIB, asked=False)
    assert not plan.fits
    plan.check()
    with pytest.raises(OutOfMemory, match="for opening on cpu"):
        plan_of(*ROWS, available=1300 * MIB, asked=False).check()


def test_a_refusal_says_what_is_needed_what_there_is_and_what_takes_most() -> None:
    with pytest.raises(OutOfMemory) as caught:
        plan_of(*ROWS, available=600 * MIB).check()
    message = str(caught.value)
    assert caught.value.code == "out_of_memory"
    needed, missing = 1632 * MIB, 1032 * MIB
    for part in (f"({needed} bytes)", f"({600 * MIB} bytes)", f"({missing} bytes) are missing"):
        assert part in message
    assert "weights of llm (1,000 MiB), activations of llm (500 MiB)" in message
    assert "embedding table" not in message


def test_what_is_unknown_is_said_and_never_counted() -> None:
    plan = plan_of(*ROWS, MemoryRow("scratch memory", None, "request"), available=None)
    assert plan.unknown == ("scratch memory",)
    assert plan.total_bytes == 1600 * MIB
    assert json.loads(json.dumps(plan.as_json()))["rows"][-1]["bytes"] is None
    screen = StringIO()
    Console(width=120, file=screen).print(plan.table())
    text = screen.getvalue()
    assert "unknown" in text
    assert "1,600" in text


def bytes_of(plan: MemoryPlan, name: str) -> int:
    (row,) = [row for row in plan.rows if row.name == name]
    assert row.bytes is not None
    return row.bytes


@pytest.mark.demo
def test_weights_are_those_of_the_graphs_that_will_be_opened(demo_bundle: Path) -> None:
    plan = memory_plan(demo_bundle)
    files = open_bundle(demo_bundle, verify="sizes").manifest.files
    shared = files["onnx/llm.onnx.data"].bytes
    first = bytes_of(plan, "weights of first_layer")
    llm = bytes_of(plan, "weights of llm") - files["onnx/llm.ort.onnx"].bytes
    assert 0.9 * shared < llm <= shared
    assert first < shared / 5  # it reads one layer of the same file
    assert bytes_of(plan, "embedding table") == files["embed_tokens.npy"].bytes


@pytest.mark.demo
def test_more_of_everything_takes_more(demo_bundle: Path) -> None:
    base = memory_plan(demo_bundle, max_vision_tokens=256)
    larger = memory_plan(demo_bundle, max_vision_tokens=1024)
    assert larger.total_bytes > base.total_bytes
    assert larger.loaded_bytes == base.loaded_bytes
    slots = memory_plan(demo_bundle, kv_slots=3, max_vision_tokens=256)
    one = 4096 * 2 * 5 * 2 * 32 * 4  # rows, key and value, layers, heads, their size, float32
    assert slots.loaded_bytes - base.loaded_bytes == one
    cached = memory_plan(demo_bundle, vision_cache_bytes=0, max_vision_tokens=256)
    assert base.loaded_bytes - cached.loaded_bytes == VISION_CACHE_BYTES


@pytest.mark.demo
def test_the_form_that_copies_its_cache_takes_more(demo_bundle: Path) -> None:
    plans = [memory_plan(demo_bundle, llm_form=form) for form in ("ort", "portable")]
    assert plans[1].total_bytes > plans[0].total_bytes
    assert "KV of one step" in [row.name for row in plans[1].rows]


@pytest.mark.demo
@pytest.mark.parametrize(("version", "copies"), [("1.23.2", 1.6), ("1.31.1", 0.0)])
def test_older_runtimes_write_out_the_scores_of_attention(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, version: str, copies: float
) -> None:
    monkeypatch.setattr(estimates, "version", lambda _: version)
    plan = memory_plan(demo_bundle)
    rows, heads = 4096, 4
    grown = bytes_of(plan, "activations of llm") - rows * (4 * 384 + 8 * 128) * 4
    assert grown == int(copies * heads * rows * rows * 4)


@pytest.mark.demo
def test_load_refuses_before_any_engine_opens_a_file(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["tokprune.memory_plan"]  # `tokprune.memory_plan` is the function
    monkeypatch.setattr(module, "available_memory", lambda: 40 * MIB)
    with pytest.raises(OutOfMemory, match=r"\(41943040 bytes\)"):
        memory_plan(demo_bundle).check()
    program = """
import sys
from tokprune.memory_plan import memory_plan
assert memory_plan(sys.argv[1]).total_bytes
assert not {"onnxruntime", "tensorrt", "cuda"} & set(sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, demo_bundle], check=True, env=environment)


@pytest.mark.demo
@pytest.mark.parametrize("options", [{"max_vision_tokens": 0}, {"kv_slots": 0}])
def test_numbers_below_one_are_refused(demo_bundle: Path, options: dict[str, int]) -> None:
    with pytest.raises(RequestInvalid, match="must be 1 or more, got 0"):
        memory_plan(demo_bundle, **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.demo
def test_a_form_that_the_bundle_has_not_is_refused(demo_bundle: Path) -> None:
    with pytest.raises(BackendUnavailable, match="'trt' for onnxruntime-cpu"):
        memory_plan(demo_bundle, llm_form="trt")


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid):
        memory_plan(tmp_path)


@pytest.mark.demo
def test_on_tensorrt_engines_are_counted_and_scratch_is_unknown(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = open_bundle(demo_bundle, verify="sizes").manifest.graphs.llm[0]
    cars = {name: SimpleNamespace(bytes=size) for name, size in (("llm", 70), ("scorer", 7))}
    engines = SimpleNamespace(form=form, side_cars=cars)
    monkeypatch.setattr("tokprune.engines.states.find_engines", lambda *_: engines)
    plan = memory_plan(demo_bundle, backend="tensorrt-rtx")
    assert (bytes_of(plan, "engine of llm"), bytes_of(plan, "engine of scorer")) == (70, 7)
    assert plan.unknown == ("scratch memory",)
    assert plan.available_bytes is None  # of a graphics card
    plan.check()


@pytest.mark.demo
def test_on_cuda_weights_are_counted_and_activations_are_unknown(demo_bundle: Path) -> None:
    plan = memory_plan(demo_bundle, backend="cuda")
    assert plan.unknown == ("activations",)
    assert bytes_of(plan, "weights of llm") > 4 * MIB


@pytest.mark.demo
def test_the_estimate_is_near_what_a_process_takes(demo_bundle: Path) -> None:
    """379 MiB for 1,024 vision tokens in one picture; 304 without saliency (docs/results)."""
    cell = {"kind": "vision_encoder", "path": str(demo_bundle), "size": 1024}
    measured = run_program("benchmarks/memory_use.py", "--cell", json.dumps(cell))
    models = estimates.models(demo_bundle)
    widths = estimates.Widths(96, 192, 4)
    assert models.vision == widths
    estimated = estimates.encoder_bytes(widths, 1, 4096, 1176, saliency=True)
    assert estimated == pytest.approx(measured["request"], rel=0.1)


def test_a_config_without_widths_leaves_activations_unknown(tmp_path: Path) -> None:
    for text in ("[]", '{"hidden_size": 64}'):
        (tmp_path / "config.json").write_text(text)
        assert estimates.models(tmp_path).llm is None


@pytest.mark.parametrize(
    ("config", "widths"),
    [
        (
            {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2},  # flat, as older
            estimates.Widths(8, 16, 2),
        ),
        (
            {"text_config": {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}},
            estimates.Widths(8, 16, 2),
        ),
    ],
)
def test_widths_are_found_in_configs_old_and_new(
    tmp_path: Path, config: dict[str, object], widths: estimates.Widths
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert estimates.models(tmp_path).llm == widths


def test_the_tightest_control_group_counts(tmp_path: Path) -> None:
    machines.common(tmp_path, cores="", total_gib=8, left_gib=4)
    assert available_memory(tmp_path) == 4 << 30
    machines.write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/robot/camera\n",
            "sys/fs/cgroup/robot/memory.max": f"{2 << 30}\n",
            "sys/fs/cgroup/robot/memory.current": f"{1 << 30}\n",
            "sys/fs/cgroup/robot/camera/memory.max": "max\n",
            "sys/fs/cgroup/robot/camera/memory.current": "5\n",
        },
    )
    assert available_memory(tmp_path) == 1 << 30
    machines.write(tmp_path, {"sys/fs/cgroup/robot/memory.current": f"{3 << 30}\n"})
    assert available_memory(tmp_path) == 0


def test_the_processs_own_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines.common(tmp_path, cores="", total_gib=8, left_gib=4)
    machines.write(tmp_path, {"proc/self/statm": "256 1 1\n"})
    taken = 256 * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (taken + 12345, resource.RLIM_INFINITY))
    assert available_memory(tmp_path) == 12345


@pytest.mark.demo
def test_fewer_bits_are_unpacked_on_the_cpu_and_not_on_a_gpu(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "version", lambda _: "1.31.1")
    bundle = open_bundle(demo_bundle, verify="sizes")
    spec = bundle.manifest.graphs.vision_encoder
    wide = estimates.weights(bundle, "vision_encoder", spec)
    for precision, packed in (("fp16", 2), ("int4", 2)):  # of int4, only the LLM has 4 bits
        manifest = msgspec.structs.replace(bundle.manifest, precision=precision)
        narrow = estimates.weights(Bundle(bundle.path, manifest), "vision_encoder", spec)
        assert narrow.largest == packed * wide.largest
    manifest = msgspec.structs.replace(bundle.manifest, precision="fp16")
    on_gpu = estimates.weights(Bundle(bundle.path, manifest), "vision_encoder", spec, on_cpu=False)
    assert on_gpu == wide
