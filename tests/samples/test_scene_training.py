"""The training of the demo VLM: rows as conversations, a forward pass like transformers's."""

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from tokprune.scenes import make_scene
from tokprune.scenes.scene import Scene, Thing

pytestmark = pytest.mark.torch
FOLDER = Path(__file__).parents[2] / "samples" / "scenes"
LAYOUTS = ("plain", "talk", "several", "first", "later")


class Made(NamedTuple):
    writer: Any
    model: Any


@pytest.fixture(scope="module", autouse=True)
def made() -> Iterator[Made]:
    """The sample's modules can be imported, and are forgotten afterwards."""
    known = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        from network import SIZES, make_model
        from rows import Writer
        from tokenizer import build_tokenizer

        tokenizer = build_tokenizer()
        yield Made(Writer(tokenizer), make_model(SIZES["cpu"], tokenizer, 0).eval())
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


def scene_of(*things: tuple[str, str, bool, int, int, str | None]) -> Scene:
    made = [Thing(c, s, large, 20 if large else 11, x, y, d, 0) for c, s, large, x, y, d in things]
    return Scene(4, 5, 1.0, tuple(made), 0)


SCENE = scene_of(
    ("red", "circle", True, 30, 20, "7"),
    ("red", "star", False, 120, 100, None),
    ("blue", "star", True, 70, 60, None),
)


@pytest.mark.parametrize(
    ("text", "phrase", "meant"),
    [
        ("where is the red star?", "red star", 1),
        ("what color is the circle?", "circle", 0),
        ("what color is the small star?", "small star", 1),
        ("what is the large red shape?", "large red shape", 0),
        ("what shape is blue?", "shape is blue", 2),
        ("what color is the shape with digit 7?", "shape with digit 7", 0),
        ("is there a green cross?", "green cross", None),
    ],
)
def test_a_phrase_means_the_thing_that_it_fits(text: str, phrase: str, meant: int | None) -> None:
    from referents import find_referents

    ((end, classes),) = find_referents(text, SCENE)
    assert text[:end].endswith(phrase)
    if meant is None:
        assert classes[0] == 0
        return
    thing = SCENE.things[meant]
    assert classes[:3] == (1, thing.y // 28, thing.x // 28)


def test_a_phrase_that_fits_several_things_or_names_none_is_left_out() -> None:
    from referents import find_referents

    assert find_referents("what color is the star?", SCENE) == []
    assert find_referents("how many shapes are there?", SCENE) == []


def test_of_several_pictures_a_phrase_means_a_thing_once_its_picture_is_named() -> None:
    from referents import find_referents

    text = "where is the red star in the second picture?"
    ((end, classes),) = find_referents(text, SCENE)
    assert text[:end].endswith("second picture")
    assert classes[:3] == (1, 100 // 28, 120 // 28)
    assert find_referents("is the red star above the circle in the first picture?", SCENE) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_of_a_row_are_those_of_transformers(layout: str, made: Made) -> None:
    import torch
    from mixture import make_row, to_batch

    row = make_row(Random(3), (4, 6), layout)
    batch = to_batch(made.writer, [row])
    for branch in range(int(batch.segments.max()) + 1):
        seen = (batch.segments[0] == 0) | (batch.segments[0] == branch)
        ids = batch.ids[:, seen]
        kinds = (ids == made.model.config.image_token_id).int()
        grids = torch.tensor([[1, 8, 12]] * len(row.scenes))
        expected, _ = made.model.model.get_rope_index(ids, kinds, image_grid_thw=grids)
        assert torch.equal(expected[:, 0], batch.positions[:, 0, seen])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fast_forward_pass_gives_what_transformers_gives(layout: str, made: Made) -> None:
    import torch
    from losses import text_states
    from mixture import make_row, to_batch
    from network import encode_pictures, normalise
    from rows import IGNORED

    model = made.model
    row = make_row(Random(5), (4, 6), layout)
    batch = to_batch(made.writer, [row])
    with torch.no_grad():
        vision = encode_pictures(model, batch.patches, batch.grid)
        hidden = text_states(model, batch, vision, drop=False)[-1]
        logits = model.lm_head(hidden)[0]
    patches = normalise(batch.patches).reshape(-1, 3, 1, 196).expand(-1, -1, 2, -1)
    for branch in range(1, int(batch.segments.max()) + 1) or (0,):
        seen = (batch.segments[0] == 0) | (batch.segments[0] == branch)
        with torch.no_grad():
            output = model(
                input_ids=batch.ids[:, seen],
                mm_token_type_ids=(batch.ids[:, seen] == model.config.image_token_id).int(),
                pixel_values=patches.reshape(len(patches), -1),
                image_grid_thw=torch.tensor([[1, 8, 12]] * len(row.scenes)),
            )
        asked = batch.labels[0, seen] != IGNORED
        assert asked.any()
        largest = float(output.logits.abs().max())
        worst = float((output.logits[0, asked] - logits[seen][asked]).abs().max())
        assert worst <= 1e-4 * max(1.0, largest)


def test_a_step_draws_the_same_batch_again(made: Made) -> None:
    import torch
    from mixture import make_batch

    one, other = (make_batch(made.writer, 0, 4321, 0.6) for _ in range(2))
    assert torch.equal(one.patches, other.patches)
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.referents, other.referents)


def test_dropout_hides_vision_tokens_only_and_things_less_than_background(made: Made) -> None:
    import torch
    from losses import dropped
    from mixture import make_row, to_batch

    torch.manual_seed(0)
    rows = [make_row(Random(seed), (8, 8), "plain") for seed in range(40)]
    batch = to_batch(made.writer, rows)
    slots = batch.positions[1] != batch.positions[0]
    slots |= batch.positions[2] != batch.positions[0]
    things = torch.zeros_like(slots)
    image = batch.ids == batch.ids[slots][0]
    things[image] = batch.cells[..., 0].flatten() != 0
    hidden = torch.stack([dropped(batch, image) for _ in range(30)]).float().mean(0)
    assert not hidden[~image].any()
    assert hidden[things].mean() < 0.6 * hidden[image & ~things].mean()


def test_scenes_of_all_sizes_label_every_thing() -> None:
    from cells import label_cells

    for seed, grid in enumerate([(4, 4), (5, 7), (8, 8), (14, 14), (20, 20)]):
        scene = make_scene(Random(seed), *grid)
        labels = label_cells(scene)
        assert len(labels) == grid[0] * grid[1]
        assert len({tuple(row[:2]) for row in labels if row[0] > 0}) == len(scene.things)
