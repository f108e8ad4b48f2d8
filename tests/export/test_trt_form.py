"""The LLM's form for TensorRT: run by ONNX Runtime, built by TensorRT-RTX, both on the CPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from engine_builds import Built

from tokprune.llm_calls import SEEN_STEP, Call, cache_length, feeds_of
from tokprune.manifest import LlmForm, Precision
from tokprune_export import graphs, parity, quantize
from tokprune_export.decoder import Decoder
from tokprune_export.families import FAMILIES
from tokprune_export.oracle import Run
from tokprune_export.parity_report import RULES, compare
from tokprune_runtimes import load_graph

pytestmark = pytest.mark.torch
LONGEST = 600  # rows of the cache: no multiple of the steps in which it is looked at
WIDTH = 128


@dataclass(frozen=True)
class Written:
    folder: Path
    forms: dict[str, LlmForm]

    def logits(self, form: str, run: Run) -> np.ndarray:
        graph = load_graph(self.folder / self.forms[form].graph.file, "cpu", threads=1)
        return parity.run_llm(graph, self.forms[form], run, run.embeds)


@pytest.fixture(scope="module", params=["fp16", "int4"])
def written(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Written:
    precision: Precision = request.param
    family = FAMILIES["qwen2_vl"]
    folder = tmp_path_factory.mktemp("forms")
    (folder / graphs.FOLDER).mkdir()
    model = family.load(tiny_checkpoint(heads=4, kv_heads=2, head_dim=32, layers=1), None)
    text = family.text(model)
    decoder = Decoder(text)
    scales = quantize.find_scales(decoder)[0] if precision == "int4" else {}
    target = graphs.Target(folder, 18, LONGEST, precision, scales)
    makers = graphs.FORMS[precision]
    forms = {name: makers[name](text, decoder, target) for name in ("portable", "trt")}
    return Written(folder, forms)


def a_run(lengths: Sequence[int]) -> Run:
    rng, count = np.random.default_rng(0), sum(lengths)
    embeds = rng.normal(size=(count, WIDTH)).astype(np.float32)
    positions = np.broadcast_to(np.arange(count), (3, count))
    nothing = np.zeros((0, 0), np.float32)
    return Run("", embeds, positions, np.zeros(count, np.float32), tuple(lengths), nothing)


@pytest.mark.parametrize("lengths", [(1,), (300, 1, 1), (1, 254, 1, 1, 1), (594,)])
def test_it_says_what_the_portable_form_says(written: Written, lengths: Sequence[int]) -> None:
    run = a_run(lengths)
    ours, theirs = (written.logits(form, run) for form in ("trt", "portable"))
    np.testing.assert_allclose(ours, theirs, atol=5e-3 * np.abs(theirs).max())
    assert compare("llm", "trt", "", ours, theirs, RULES["fp16"]).ok


def test_rows_that_were_written_later_are_not_seen(written: Written) -> None:
    """A cache that holds rows of an answer that was cancelled gives the same as a fresh one."""
    form, run = written.forms["trt"], a_run((20, 4))
    graph = load_graph(written.folder / form.graph.file, "cpu", threads=1)
    loop = graph.loop(parity.carries(form, 24))
    embeds = run.embeds
    assert embeds is not None

    def step(start: int, end: int) -> np.ndarray:
        rows = slice(start, end)
        call = Call(embeds[None, rows], run.positions[:, None, rows], run.bias[None, :end])
        return loop.step(feeds_of(form, call))["logits"]

    first = step(0, 20)
    step(20, 24)
    loop.rewind(0)
    np.testing.assert_array_equal(step(0, 20), first)


def test_its_cache_has_the_length_of_the_longest_request(written: Written) -> None:
    form = written.forms["trt"]
    assert cache_length(form, 7) == LONGEST
    assert cache_length(written.forms["portable"], 7) == 7
    assert (form.cache, form.graph.opset) == ("in_place", 24)
    names = {tensor.name for tensor in form.graph.inputs}
    assert {"attention_mask", "write_indices"} <= names
    assert "attention_bias" not in names


def test_it_shares_the_weights_of_the_portable_form(written: Written) -> None:
    files = {path.name for path in (written.folder / graphs.FOLDER).iterdir()}
    assert files == {"llm.onnx.data", "llm.portable.onnx", "llm.trt.onnx"}
    weights = (written.folder / "onnx/llm.onnx.data").stat().st_size
    assert (written.folder / "onnx/llm.trt.onnx").stat().st_size < weights / 3


def test_tensorrt_builds_it_with_its_own_attention_and_cache(written: Written) -> None:
    form = written.forms["trt"]
    built = Built(written.folder / form.graph.file)
    assert built.layers.count("KV_CACHE_UPDATE") == 2
    assert built.layers.count("ATTENTION_OUTPUT") == 1
    seen = (1, SEEN_STEP, LONGEST)
    size = built.build(form.graph, {"T": (1, 64, 512), "S": seen}, {"T": (1, 1, 1), "S": seen})
    assert size > 100_000
    assert not [message for message in built.messages if "Unused Input" in message]


def test_tensorrt_builds_the_portable_form_too(written: Written) -> None:
    form = written.forms["portable"]
    built = Built(written.folder / form.graph.file)
    prefill = {"T": (1, 64, 512), "P": (0, 0, 0)}
    assert built.build(form.graph, prefill, {"T": (1, 1, 1), "P": (1, 64, 511)}) > 100_000
