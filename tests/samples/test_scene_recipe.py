"""How a demo's training goes on from a checkpoint: heads first, then small pictures first."""

from collections import Counter
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pytest

from tokprune.scenes.glyphs import CHARACTERS

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("scene_modules")]
FOLDER = Path(__file__).parents[2] / "samples" / "scenes"


@pytest.fixture
def run(tmp_path: Path, scene_modules: None) -> Any:
    """A training that goes on from the shipped checkpoint, with two steps of the heads alone."""
    from train import Options, Run

    init = FOLDER / "checkpoints" / "qwen2_vl"
    given: Any = {"init": init, "begin": 0.6, "heads_steps": 2, "vision_steps": 3, "steps": 10}
    return Run(Options(tmp_path, **given))


def test_fresh_heads_learn_alone_before_they_move_the_network(run: Any) -> None:
    from mixture import make_batch

    def weights() -> dict[str, Any]:
        return {name: p.detach().clone() for name, p in run.parameters.items()}

    for step, moved in ((0, False), (1, False), (2, True)):
        before = weights()
        run.step = step
        run._train_step(make_batch(run.writer, 0, step, -1.0, begin=0.6))
        changed = {n for n, p in run.parameters.items() if not p.equal(before[n])}
        assert {"heads.cells.weight", "heads.cells.bias"} <= changed
        assert any(not name.startswith("heads.") for name in changed) == moved


def test_the_learning_rate_warms_up_once_the_heads_have_learnt(run: Any) -> None:
    from train import HEADS_RATE

    options = run.options
    assert [options.rate(step) for step in (0, 1)] == [HEADS_RATE] * 2
    assert options.rate(2) == pytest.approx(options.lr / 150)


def test_it_has_a_plan_of_pictures_of_its_own(run: Any) -> None:
    from mixture import make_batch

    def smallest(begin: float) -> float:
        """Share of the steps of the encoder alone that show pictures of 16 vision tokens."""
        batches = (make_batch(run.writer, 1, s, -1.0, factor=0.1, begin=begin) for s in range(40))
        return fmean(int(b.slots[0].sum()) == 16 for b in batches)

    assert run.demo.plan.vision[0] >= 0.4
    assert run.demo.plan.again[0][1][0] <= 0.05
    assert smallest(0.0) > 0.25
    assert smallest(0.6) < 0.2


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision", "vila"])
def test_who_spells_looks_at_the_token_that_shows_the_next_character(
    family: str, scene_modules: None
) -> None:
    from cells import FIRST, SECOND
    from mixture import make_row
    from rows import Writer

    writer = Writer(FOLDER / "checkpoints" / family)
    seen: Counter[bool] = Counter()
    for seed in range(8):
        batch = writer.batch([make_row(Random(seed), (8, 8), "plain")])
        for at, place in enumerate(batch.letters[0].tolist()):
            if place >= 0:
                number = int(batch.slots[0, :place].sum())
                shown = {
                    CHARACTERS[c - 1] for c in batch.cells[number, FIRST : SECOND + 1] if c > 0
                }
                said = writer.tokenizer.decode([int(batch.labels[0, at])]).strip()
                seen[bool(batch.slots[0, place]) and said in shown] += 1
    assert seen[True] > 30
    assert seen[False] <= 2  # a third narrow one in a cell has no label


def test_attention_to_a_hidden_token_is_not_asked_for(scene_modules: None) -> None:
    import torch
    from losses import found_loss
    from network import BLOCKED

    logits = torch.tensor([[5.0, 0.0, BLOCKED], [0.0, 1.0, BLOCKED], [9.0, 0.0, BLOCKED]])
    loss, hits = found_loss(logits, torch.tensor([0, 0, 2]))
    expected = -logits[:2].log_softmax(-1)[:, 0].mean()
    assert torch.isclose(loss, expected)
    assert hits == 0.5
