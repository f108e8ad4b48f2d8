"""Selectors by name: which a bundle can run, and what is said of the others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from stub_model import Stub, a_model, a_picture, a_vlm

from tokprune import RequestInvalid, SelectorUnavailable, clip_of, load
from tokprune.commands.ask import Ask, run_ask
from tokprune.manifest import Tensor
from tokprune.model import Model
from tokprune.pinned import pinning
from tokprune.scenes import suite
from tokprune.selectors import AGNOSTIC, LEARNED, SELECTORS, method_of


def model(*outputs: str, trained: bool = True) -> Model:
    made = a_model(Stub())
    manifest = made.bundle.manifest
    encoder = msgspec.structs.replace(
        manifest.graphs.vision_encoder,
        outputs=[Tensor(name, "float32", ["n"]) for name in outputs],
    )
    manifest = msgspec.structs.replace(
        manifest,
        graphs=msgspec.structs.replace(manifest.graphs, vision_encoder=encoder),
        scorer=msgspec.structs.replace(manifest.scorer, trained=trained),
    )
    return replace(made, bundle=replace(made.bundle, manifest=manifest))


def test_all_of_the_design_have_a_row() -> None:
    assert set(SELECTORS) == {
        "relevance", "relevance-spread", "relevance-coverage", "relevance-mmr", "scope-relevance",
        "attention", "attention-spread", "attention-coverage", "spread", "vtc-cls", "divprune",
        "cdpruner", "scope", "dart", "apet", "apet-merge", "flashvlm", "globalcom2", "recoverable",
        "evs", "vidcom2", "ts-llava", "pool", "random", "uniform",
    }  # fmt: skip


def test_what_reads_relevance_is_learned_and_what_reads_no_question_can_be_pinned() -> None:
    assert sorted(LEARNED) == [
        "relevance", "relevance-coverage", "relevance-mmr", "relevance-spread", "scope-relevance",
    ]  # fmt: skip
    assert "scope" in AGNOSTIC
    assert not AGNOSTIC & LEARNED
    assert pinning("divprune") == "divprune"
    with pytest.raises(RequestInvalid, match="'cdpruner' reads the question: choose one of apet"):
        pinning("cdpruner")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("full", r"'full' is no selector but no pruning at all: ask with a budget of 1\.0\. The"),
        ("downsample", r"'downsample' is no selector but smaller pictures.*`tokprune-eval` have"),
        ("oracle", r"'oracle' is no selector but the true relevance.*`tokprune-eval` have"),
        ("divprun", r"Unknown selector 'divprun'\. Did you mean 'divprune'\?"),
    ],
)
def test_a_name_without_a_row_says_what_it_is_and_where_it_can_be_had(
    name: str, message: str
) -> None:
    with pytest.raises(RequestInvalid, match=message):
        method_of(name)
    with a_vlm(Stub()) as vlm, pytest.raises(RequestInvalid, match=message):
        vlm.ask(a_picture(), "what?", selector=name)


def test_the_command_says_so_before_it_opens_the_bundle() -> None:
    with pytest.raises(RequestInvalid, match="'oracle' is no selector"):
        run_ask(Ask(Path("nowhere"), "what?", image=(Path("no.png"),), selector="oracle"))


def test_a_bundle_runs_what_it_has_the_graphs_for() -> None:
    of_saliency = {"scope", "vtc-cls", "flashvlm", "recoverable", "globalcom2"}
    assert set(model().selectors) == set(SELECTORS) - of_saliency
    assert set(model("vision_tokens", "saliency").selectors) == set(SELECTORS)
    untrained = model("vision_tokens", "saliency", trained=False)
    assert set(untrained.selectors) == set(SELECTORS) - LEARNED


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_without_a_trained_scorer_relevance_names_the_commands(name: str) -> None:
    with pytest.raises(SelectorUnavailable, match=f"'{name}' needs a trained scorer.*--scorer"):
        model(trained=False).selector(name)


@pytest.mark.parametrize("name", ["scope", "vtc-cls", "flashvlm", "recoverable", "globalcom2"])
def test_without_saliency_the_command_that_exports_it_is_named(name: str) -> None:
    with pytest.raises(
        SelectorUnavailable,
        match=f"'{name}' needs the vision encoder's.*`tokprune-export.*saliency",
    ):
        model().selector(name)
    assert model("vision_tokens", "saliency").selector(name)[0] == name


@pytest.mark.demo
@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision", "vila"])
def test_demo_bundles_answer_with_every_selector_that_they_can_run(
    demo_bundles: Callable[..., Path], family: str
) -> None:
    (sample,) = suite("dev", 1, tokens=64)
    film = clip_of([sample.pictures[0]] * 8, 4.0)
    with load(demo_bundles(family), backend="cpu", threads=1) as vlm:
        for name in vlm.model.selectors:
            needs = SELECTORS[name].needs
            if "tiles" in needs and family != "llava_onevision":
                continue
            shown = film if "frames" in needs else sample.pictures[0]
            answer = vlm.ask(shown, sample.question, 0.25, name, max_new_tokens=3)
            assert (answer.selector, answer.selection.reason) == (name, "ratio")
            assert answer.kept == -(-answer.total // 4) == len(answer.selection.keep)
            assert (answer.selection.embeds is not None) == (
                name in ("pool", "apet-merge", "recoverable")
            )
            if "frames" in needs:
                with pytest.raises(RequestInvalid, match="compares the frames of a video"):
                    vlm.ask(sample.pictures[0], sample.question, 0.25, name)
