"""Saliency of all families: HF's own eager maps, averaged by numpy, against ours."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from engine_builds import Built
from llava_checkpoint import write_llava_checkpoint
from qwen2_5_checkpoint import write_qwen2_5_checkpoint
from vila_checkpoint import write_vila_checkpoint

import tokprune
from tokprune.commands.bench import Bench, run_bench
from tokprune.commands.calibrate import Calibrate, run_calibrate
from tokprune.commands.inspect import Inspect, run_inspect
from tokprune.families.qwen2_5_vl import windows
from tokprune.families.qwen_patches import patch_positions
from tokprune.graphs import VisionEncoder
from tokprune.manifest import GraphSpec, Manifest
from tokprune_export import export, graphs, parity
from tokprune_export.errors import ExportRefused, ParityFailed
from tokprune_export.families import FAMILIES
from tokprune_export.options import ExportOptions
from tokprune_export.saliency import layers_summed, received
from tokprune_export.scorers import AttentionMean
from tokprune_runtimes import Graph, load_graph

pytestmark = pytest.mark.torch
LAYERS = 2
Feeds = Mapping[str, np.ndarray]
# frames, rows and columns of vision tokens; of tiles, how many
GRIDS = ((1, 1, 1), (1, 8, 3), (3, 5, 7))
TILES = (1, 2, 5)


@pytest.fixture(scope="module")
def checkpoint(
    demo_checkpoint: Path,
    tiny_checkpoint: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """Write a random checkpoint of a family, odd in its dimensions."""
    made: dict[str, Path] = {}

    def write(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name) / "VILA1.5-3b"  # which tells VILA's conversation
        match name:
            case "qwen2_vl":
                return tiny_checkpoint(heads=5, kv_heads=1, head_dim=12, layers=3, tied=True)
            case "qwen2_5_vl":
                write_qwen2_5_checkpoint(folder, demo_checkpoint, fullatt_block_indexes=[3, 0, 2])
            case "llava_onevision":
                write_llava_checkpoint(folder, demo_checkpoint)
            case _:
                write_vila_checkpoint(folder)
        return folder

    return lambda name: made.get(name) or made.setdefault(name, write(name))


@dataclass(frozen=True)
class Encoders:
    """One family's vision encoder: HF's module, our torch half, the graph with and without."""

    name: str
    model: Any
    module: torch.nn.Module
    spec: GraphSpec
    with_saliency: Graph
    without: Graph
    folder: Path


@pytest.fixture(scope="module")
def encoders(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Encoders]:
    made: dict[str, Encoders] = {}

    def make(name: str) -> Encoders:
        folder = tmp_path_factory.mktemp(f"graphs-{name}")
        family = FAMILIES[name]
        model = family.load(checkpoint(name), 1)
        source = family.vision(model, LAYERS)
        (spec, with_saliency), (_, without) = (
            written(folder / each, one)
            for each, one in (("with", source), ("without", family.vision(model)))
        )
        return Encoders(name, model, source.module, spec, with_saliency, without, folder / "with")

    return lambda name: made.get(name) or made.setdefault(name, make(name))


def written(folder: Path, source: Any, precision: Any = "fp32") -> tuple[GraphSpec, Graph]:
    (folder / graphs.FOLDER).mkdir(parents=True)
    spec = graphs.write(source, graphs.Target(folder, 18, 64, precision), "vision_encoder")
    return spec, load_graph(folder / spec.file, "cpu", threads=1)


# --- the formula --------------------------------------------------------------------------------


def summed(maps: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Layers of maps [f, heads, queries, patches] -> what each patch gets [f, patches]."""
    total: Any = 0
    for layer in maps:
        total = total + np.concatenate([each.mean(axis=2).mean(axis=1) for each in layer])
    return total


def qwen(one: Encoders, grid: tuple[int, int, int]) -> tuple[Feeds, np.ndarray]:
    """Random patches, and what HF's maps say of vision tokens, told by their row and column."""
    visual, (frames, rows, columns) = one.model.model.visual, grid
    merge = visual.spatial_merge_size
    place = patch_positions(rows, columns, merge)
    channels = visual.patch_embed.proj.weight[0].numel()
    pixels = torch.randn(frames, len(place), channels, generator=torch.Generator().manual_seed(7))
    thw = torch.tensor([[frames, rows * merge, columns * merge]])
    full = sorted(getattr(visual, "fullatt_block_indexes", range(len(visual.blocks))))
    layers = [visual.blocks[number].attn for number in full[-LAYERS:]]
    maps: dict[Any, list[np.ndarray]] = {layer: [] for layer in layers}
    modeling: Any = sys.modules[type(layers[0]).__module__]
    eager = modeling.eager_attention_forward

    def recorded(module: Any, *arguments: Any, **options: Any) -> Any:
        output, weights = eager(module, *arguments, **options)
        if module in maps:
            maps[module].append(weights.numpy())
        return output, weights

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(modeling, "eager_attention_forward", recorded)
        patch.setattr(visual.config, "_attn_implementation", "eager")
        visual(pixels.flatten(0, 1), grid_thw=thw)
    shares = summed(list(maps.values()))
    feeds = {"pixel_values": pixels.numpy(), "positions": place}
    if one.name == "qwen2_5_vl":
        settings = visual.config
        order, _ = modeling.get_vision_window_index(
            thw, merge, settings.window_size, settings.patch_size
        )
        back = np.empty((frames * rows * columns, merge**2), np.float32)
        back[order.numpy()] = shares.reshape(-1, merge**2)  # HF puts patches of a window together
        shares = back.reshape(frames, -1)
        side = settings.window_size // merge // settings.patch_size
        feeds |= windows(place, side, merge)._asdict()
    tokens = np.zeros((frames, rows, columns), np.float32)
    for patch, (row, column) in enumerate(place // merge):
        tokens[:, row, column] += shares[:, patch] / merge**2
    return feeds, tokens.reshape(frames, -1)


def tiles(one: Encoders, count: int) -> tuple[Feeds, np.ndarray]:
    """Random tiles, and what SigLIP's own `output_attentions` say of vision tokens."""
    llava = one.name == "llava_onevision"
    tower = one.model.model.vision_tower if llava else one.model.tower
    side_px = tower.config.image_size
    pixels = torch.randn(count, 3, side_px, side_px, generator=torch.Generator().manual_seed(7))
    used = 3 if llava else 2  # all of 3 layers; VILA's select layer is -2
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(tower.config, "_attn_implementation", "eager")
        maps = tower(pixel_values=pixels, output_attentions=True).attentions
    shares = summed([[each.numpy()] for each in maps[used - LAYERS : used]])
    if llava:
        newline = np.zeros((count, 1), np.float32)
        return {"pixel_values": pixels.numpy()}, np.concatenate([shares, newline], axis=1)
    side = round(shares.shape[1] ** 0.5)
    picture = shares.reshape(count, side, side)
    cut = [
        picture[:, row : row + 2, column : column + 2].mean(axis=(1, 2))
        for column in range(0, side, 2)  # down the columns; a square at the edge has fewer patches
        for row in range(0, side, 2)
    ]
    return {"pixel_values": pixels.numpy()}, np.stack(cut, axis=1)


CASES = [
    *((name, qwen, grid) for name in ("qwen2_vl", "qwen2_5_vl") for grid in GRIDS),
    *((name, tiles, count) for name in ("llava_onevision", "vila") for count in TILES),
]


@pytest.mark.parametrize(("name", "oracle", "size"), CASES)
def test_saliency_is_the_mean_of_hfs_own_maps_in_our_half_and_in_the_graph(
    encoders: Callable[[str], Encoders], name: str, oracle: Callable[..., Any], size: Any
) -> None:
    one = encoders(name)
    feeds, expected = oracle(one, size)
    outputs = one.with_saliency.run(feeds)
    with torch.no_grad():
        tokens, ours = one.module(**{name: torch.from_numpy(feeds[name]) for name in feeds})
    assert expected.shape == tuple(ours.shape) == outputs["saliency"].shape
    assert tokens.shape[:2] == ours.shape
    assert ours.dtype == torch.float32
    largest = expected.max()
    assert np.abs(ours.numpy() - expected).max() <= 1e-5 * largest
    assert np.abs(outputs["saliency"] - expected).max() <= 1e-5 * largest
    if expected.shape[1] > 1:
        assert expected.std(axis=1).min() > 1e-3 * largest  # else equality would mean little


@pytest.mark.parametrize(("name", "oracle", "size"), CASES)
def test_vision_tokens_are_the_same_bits_with_saliency_and_without(
    encoders: Callable[[str], Encoders], name: str, oracle: Callable[..., Any], size: Any
) -> None:
    one = encoders(name)
    feeds, _ = oracle(one, size)
    with_saliency, without = one.with_saliency.run(feeds), one.without.run(feeds)
    assert without.keys() == {"vision_tokens"}
    assert with_saliency["vision_tokens"].tobytes() == without["vision_tokens"].tobytes()


@pytest.mark.parametrize("name", FAMILIES)
def test_each_token_has_the_saliency_that_hf_packs_at_its_place(
    encoders: Callable[[str], Encoders], name: str
) -> None:
    one, family = encoders(name), FAMILIES[name]
    encoder, seen = VisionEncoder(one.with_saliency), set[str]()
    for trial in family.trials(one.model):
        vision = encoder(trial.media)
        with torch.no_grad():
            expected = family.saliency(one.model, trial.inputs, LAYERS).numpy()
        assert vision.saliency is not None
        assert np.abs(vision.saliency - expected).max() <= 1e-5 * expected.max()
        assert (vision.saliency > 0).tolist() == (vision.where[:, 6] == 0).tolist()
        seen.add(trial.name)
    assert any("frames" in name or "videos" in name for name in seen)


def test_hf_attends_as_before_when_it_was_watched(encoders: Callable[[str], Encoders]) -> None:
    for name, family in FAMILIES.items():
        model = encoders(name).model
        trial = next(iter(family.trials(model)))
        with torch.no_grad():
            before = family.encode(model, trial.inputs)
            family.saliency(model, trial.inputs, LAYERS)
            assert torch.equal(family.encode(model, trial.inputs), before)


# --- memory -------------------------------------------------------------------------------------


def sizes_beside_the_tokens(path: Path, feeds: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Elements of all values that saliency alone needs, at input shapes of a real picture."""
    model = onnx.load(path, load_external_data=False)
    for value in model.graph.input:
        for axis, size in zip(value.type.tensor_type.shape.dim, feeds[value.name], strict=True):
            axis.dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True)).graph
    tokens = next(value for value in graph.outputs if value.name == "vision_tokens")
    needed, ahead = set[Any](), [tokens.producer()]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in needed:
            needed.add(node)
            ahead += [value.producer() for value in node.inputs if value is not None]
    alone = [value for node in graph if node not in needed for value in node.outputs]
    return {str(value.name): elements(value) for value in alone}


def elements(value: Any) -> int:
    """Count a value's elements; shape inference does not evaluate -1 in a Reshape of a Reshape."""
    if value.shape.is_static():
        return int(np.prod(value.shape.numpy()))
    assert value.producer().op_type in ("Reshape", "ReduceMean")  # which never make more of them
    return elements(value.producer().inputs[0])


HEADS, PATCHES = 16, 6000  # of Qwen2-VL, a picture of 1,500 vision tokens


def test_saliency_never_holds_the_maps_of_all_heads_of_a_real_encoder(
    demo_checkpoint: Path, tmp_path: Path
) -> None:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    given = json.loads((demo_checkpoint / "config.json").read_text())
    vision = {**given["vision_config"], "num_heads": HEADS, "embed_dim": HEADS * 8, "depth": 1}
    config = Qwen2VLConfig(**{**given, "vision_config": vision})
    model = Qwen2VLForConditionalGeneration(config)
    spec, _ = written(tmp_path, FAMILIES["qwen2_vl"].vision(model, 1))
    channels = spec.inputs[0].shape[2]
    shapes = {"pixel_values": (1, PATCHES, int(channels)), "positions": (PATCHES, 2)}
    alone = sizes_beside_the_tokens(tmp_path / spec.file, shapes)
    largest = sorted(alone.values())[-4:]
    assert largest == [PATCHES**2] * 4  # one head's, and never 16 of them
    assert sum(size == PATCHES**2 for size in alone.values()) == 2 * HEADS


def test_saliency_of_narrow_queries_is_summed_in_float32() -> None:
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 3000, 2, 8, generator=random).half() for _ in range(2))
    ours = received(query, key)
    wide = received(query.float(), key.float())
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, wide, rtol=5e-3, atol=0)  # scores are rounded, sums are not
    assert abs(float(ours.sum()) - 1) < 1e-5


# --- the whole export ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    bundle: Path
    written: Any
    manifest: Manifest
    rows: list[parity.Row]


def exported(checkpoint: Path, bundle: Path, **options: Any) -> Exported:
    rows, written = list[parity.Row](), list[export.Written]()
    write_graphs = export.write_graphs

    def recorded(*arguments: Any) -> export.Written:
        written.append(write_graphs(*arguments))
        return written[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "write_graphs", recorded)
        given = ExportOptions(str(checkpoint), bundle, saliency=True, **options)
        manifest = export.export(given, lambda _: None, rows.extend)
    return Exported(bundle, written[0], manifest, rows)


@pytest.fixture(scope="module")
def bundle(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    place = tmp_path_factory.mktemp("exported") / "bundle"
    return exported(checkpoint("qwen2_vl"), place)


def test_the_gate_compares_saliency_in_every_case(bundle: Exported) -> None:
    compared = [row for row in bundle.rows if row.graph == "saliency"]
    assert all(row.ok for row in bundle.rows)
    assert [row.case for row in compared] == [
        row.case for row in bundle.rows if row.graph == "vision_encoder"
    ]
    # in multiples of the mean, so that 1e-4 is 1e-4 of what a patch gets on average
    assert all(row.max_abs >= 1 for row in compared)
    report = json.loads((bundle.bundle / "reports/parity.json").read_text())
    assert sum(row["graph"] == "saliency" for row in report["rows"]) == len(compared)


def test_saliency_of_other_tokens_is_out_of_tolerance(bundle: Exported) -> None:
    given = bundle.written
    network = AttentionMean()
    bench = parity.Bench(bundle.bundle, given.graphs, "qwen2_vl")
    moved = [replace(one, saliency=np.roll(one.saliency, 1)) for one in given.expected]
    failed = [row for row in parity.check(bench, moved, network) if not row.ok]
    assert {row.graph for row in failed} == {"saliency"}
    assert [row.case for row in failed] == [one.trial.name for one in moved if len(one.vision) > 1]
    lacking = [replace(one, saliency=None) for one in moved]
    with pytest.raises(ParityFailed, match="saliency that was not asked for"):
        list(parity.check(bench, lacking, network))


def test_a_bundle_tells_that_it_has_saliency(
    bundle: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bundle.manifest.saliency_layers == 1  # a third of two layers
    outputs = {out.name: out.shape for out in bundle.manifest.graphs.vision_encoder.outputs}
    assert outputs == {"vision_tokens": ["F", "q", 60], "saliency": ["F", "q"]}
    vlm = tokprune.load(bundle.bundle, threads=1)
    assert vlm.model.has_saliency
    assert run_inspect(Inspect(bundle.bundle, json=True)) == 0
    assert json.loads(capsys.readouterr().out)["saliency_layers"] == 1


def test_answers_from_the_cache_have_the_same_saliency(bundle: Exported) -> None:
    vlm = tokprune.load(bundle.bundle, threads=1)
    picture = np.random.default_rng(0).integers(0, 256, (84, 140, 3), np.uint8)
    seen = []

    def selector(prompt: Any, vision: Any, first: Any) -> Any:
        seen.append(vision)
        return tokprune.Ranking(lambda k: np.argsort(-vision.saliency, kind="stable")[:k])

    answers = [
        vlm.ask([picture, picture[:56]], "what is this?", 0.5, selector=selector, max_new_tokens=2)
        for _ in range(2)
    ]
    assert [answer.encoder_hits for answer in answers] == [0, 2]
    first, second = (vision.saliency for vision in seen)
    assert first.shape == (len(seen[0].where),)
    assert first.tobytes() == second.tobytes()
    assert answers[0].selection.keep.tolist() == answers[1].selection.keep.tolist()
    size = sum(each.embeds.nbytes + each.saliency.nbytes for each in seen[:1])
    assert vlm._runtime.state.vision_cache.held_bytes == size


def test_bench_and_calibrate_take_a_bundle_with_saliency(
    bundle: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TOKPRUNE_STATE", str(tmp_path))
    few = Bench((bundle.bundle,), size="84x56", rounds=1, warmup=1, max_new_tokens=2, json=True)
    assert run_bench(few) == 0
    assert json.loads(capsys.readouterr().out)
    assert run_calibrate(Calibrate(bundle.bundle, "cpu", 1, seconds=0.2, json=True)) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_narrow_bundles_have_saliency_within_their_rule(
    checkpoint: Callable[[str], Path], tmp_path: Path, precision: str
) -> None:
    made = exported(checkpoint("vila"), tmp_path / "bundle", precision=precision)
    assert all(row.ok for row in made.rows)
    assert sum(row.graph == "saliency" for row in made.rows) == 5
    outputs = {out.name: out.dtype for out in made.manifest.graphs.vision_encoder.outputs}
    assert outputs == {"vision_tokens": "float32", "saliency": "float32"}


@pytest.mark.parametrize(
    ("available", "asked", "summed"),
    [(32, None, 11), (26, None, 9), (4, None, 2), (1, None, 1), (4, 4, 4)],
)
def test_a_third_of_the_layers_is_summed_unless_told(
    available: int, asked: int | None, summed: int
) -> None:
    assert layers_summed(available, asked) == summed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"saliency_layers": 1}, "give --saliency too"),
        ({"saliency": True, "saliency_layers": 3}, "--saliency-layers 3; expected 1 to 2"),
        ({"saliency": True, "saliency_layers": 0}, "--saliency-layers 0; expected 1 to 2"),
    ],
)
def test_layers_that_are_not_there_are_refused_before_weights_are_read(
    checkpoint: Callable[[str], Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    given = ExportOptions(str(checkpoint("qwen2_vl")), tmp_path / "bundle", **options)
    with pytest.raises(ExportRefused, match=message):
        export.make_plan(given, lambda _: None)


def test_layers_that_saliency_may_be_summed_over_are_counted(
    checkpoint: Callable[[str], Path],
) -> None:
    counted = {
        name: FAMILIES[name].attention_layers(export.open_checkpoint(str(checkpoint(name))).config)
        for name in FAMILIES
    }
    assert counted == {"qwen2_vl": 2, "qwen2_5_vl": 3, "llava_onevision": 3, "vila": 2}
    config = {"vision_config": {"depth": 4, "fullatt_block_indexes": [7]}}
    with pytest.raises(ExportRefused, match="no layer in which every patch attends"):
        layers_summed(FAMILIES["qwen2_5_vl"].attention_layers(config), None)


SIZES: dict[str, dict[str, tuple[int, int, int]]] = {
    "qwen2_vl": {"F": (1, 2, 4), "4*q": (4, 400, 1600), "q": (1, 100, 400)},
    "llava_onevision": {"tiles": (1, 2, 4)},
    "vila": {"tiles": (1, 2, 4)},
}


@pytest.mark.parametrize(
    ("name", "precision"), [("qwen2_vl", "fp32"), ("llava_onevision", "fp16"), ("vila", "fp16")]
)
def test_tensorrt_builds_a_vision_encoder_with_saliency(
    encoders: Callable[[str], Encoders], tmp_path: Path, name: str, precision: Any
) -> None:
    one = encoders(name)
    spec, _ = written(tmp_path, FAMILIES[name].vision(one.model, LAYERS), precision)
    built = Built(tmp_path / spec.file)
    assert built.build(spec, SIZES[name]) > 1000
