"""The training of the demo VLM: rows as conversations, a forward pass like transformers's."""

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from tokprune.scenes import Chart, Form, draw, make_page, make_scene
from tokprune.scenes.film import Event, Film, draw_film
from tokprune.scenes.glyphs import CHARACTERS
from tokprune.scenes.pages import FIELDS
from tokprune.scenes.scene import COLORS, Scene, Thing
from tokprune.scenes.signs import Sign
from tokprune.types import KIND, NEWLINE, TILE, Clip, Region

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("scene_modules")]
FOLDER = Path(__file__).parents[2] / "samples" / "scenes"
LAYOUTS = {
    "qwen2_vl": ("plain", "talk", "several", "first", "later", "film"),
    "llava_onevision": ("plain", "talk", "several", "later", "film"),
    "vila": ("plain", "talk", "several", "first", "later"),
}
CASES = [(family, layout) for family, layouts in LAYOUTS.items() for layout in layouts]


class Made(NamedTuple):
    writer: Any
    model: Any
    stock: Any  # transformers' own, of the same weights


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, scene_modules: None) -> dict[str, Made]:
    """A fresh demo VLM of each family, as written to its folder."""
    from demos import DEMOS
    from rows import Writer

    from tokprune_export.families import FAMILIES

    found: dict[str, Made] = {}
    for family, demo in DEMOS.items():
        folder = tmp_path_factory.mktemp(family)
        demo.save(folder, demo.make(demo.sizes["cpu"], 0))
        stock = FAMILIES[family].load(folder, None)
        found[family] = Made(Writer(folder), demo.load(folder).eval(), stock)
    return found


def scene_of(*things: tuple[str, str, bool, int, int, str | None]) -> Scene:
    made = [Thing(c, s, large, 20 if large else 11, x, y, d, 0) for c, s, large, x, y, d in things]
    return Scene(4, 5, 1.0, tuple(made), 0)


GRID = Region(0, 0, 0, 4, 5)
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

    ((end, classes),) = find_referents(text, SCENE, GRID)
    assert text[:end].endswith(phrase)
    if meant is None:
        assert classes[0] == 0
        return
    thing = SCENE.things[meant]
    assert classes[:3] == (1, thing.y // 28, thing.x // 28)


def test_a_phrase_that_fits_several_things_or_names_none_is_left_out() -> None:
    from referents import find_referents

    assert find_referents("what color is the star?", SCENE, GRID) == []
    assert find_referents("how many shapes are there?", SCENE, GRID) == []


def test_of_several_pictures_a_phrase_means_a_thing_once_its_picture_is_named() -> None:
    from referents import find_referents

    text = "where is the red star in the second picture?"
    ((end, classes),) = find_referents(text, SCENE, GRID)
    assert text[:end].endswith("second picture")
    assert classes[:3] == (1, 100 // 28, 120 // 28)
    assert (
        find_referents("is the red star above the circle in the first picture?", SCENE, GRID) == []
    )


def test_a_phrase_about_a_video_means_what_the_thing_does() -> None:
    from referents import EVENTS, find_referents

    does, start, color, last_row, last_column = -7, -6, -5, -4, -3
    events = (Event("stays"), Event("turns", 3, 3, color="green"), Event("moves", 1, 5, "left", 40))
    film = Film(4, 5, 8, SCENE.things, events, 0)
    text = "what changes first, the red star or the blue star?"
    (_, star), (_, other) = find_referents(text, film, GRID)
    assert [EVENTS[classes[does]] for classes in (star, other)] == ["turns", "left"]
    assert star[start] == 3
    assert list(COLORS)[star[color]] == "green"
    thing = SCENE.things[2]
    assert other[1:3] == (thing.y // 28, thing.x // 28)
    assert (other[last_row], other[last_column]) == (thing.y // 28, (thing.x - 40) // 28)


def test_a_vision_token_of_a_video_knows_what_its_thing_has_done_so_far(
    made: dict[str, Made],
) -> None:
    from cells import EVENTS, IGNORED, label_events

    shown = scene_of(("red", "star", True, 42, 42, None), ("blue", "cross", True, 98, 98, None))
    events = (Event("disappears", 2, 2), Event("moves", 0, 3, "left", 56))
    film = Film(4, 4, 4, shown.things, events, 0)
    [prepared] = made["llava_onevision"].writer.processor.prepare([Clip(draw_film(film), 4.0)])
    labels = label_events(film, prepared)[:-1].reshape(4, 4, 4, 2)  # without the newline
    star = [EVENTS[label] for label in labels[:, 1, 1, 0]]
    assert star == ["stays", "stays", "disappears", "disappears"]
    assert [int(label) for label in labels[:, 1, 1, 1]] == [IGNORED, IGNORED, 2, 2]
    assert EVENTS[labels[0, 3, 3, 0]] == "stays"
    assert EVENTS[labels[3, 3, 1, 0]] == "left"
    assert (labels[3, 3, 3] == IGNORED).all()


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_the_fast_forward_pass_gives_what_transformers_gives(
    family: str, layout: str, made: dict[str, Made]
) -> None:
    """Every branch of a row is the prompt of a conversation, and its logits are the model's."""
    import torch
    from cells import IGNORED
    from losses import text_states
    from mixture import make_row

    writer, model, stock = made[family]
    row = make_row(Random(5), (4, 6), layout)
    batch = writer.batch([row])
    with torch.no_grad():
        vision = writer.demo.encode(model, batch.pixels)
        hidden = text_states(writer.demo, model, batch, vision)[-1]
        logits = writer.demo.llm(model).head(hidden)[0]
        expected = _hf_vision(writer, stock, row)
    torch.testing.assert_close(vision, expected, atol=1e-4, rtol=1e-3)
    for branch in range(1, int(batch.segments.max()) + 1) or (0,):
        seen = (batch.segments[0] == 0) | (batch.segments[0] == branch)
        prompt, answers = _prompt(writer, row, branch)
        count = len(prompt.ids)
        assert batch.ids[0, seen][:count].tolist() == prompt.ids.tolist()
        assert torch.equal(
            batch.positions[:, 0, seen][:, :count], torch.from_numpy(prompt.positions)
        )
        with torch.no_grad():
            output = _hf_logits(writer, stock, batch, seen, expected)
        asked = batch.labels[0, seen] != IGNORED
        assert int(asked.sum()) >= answers
        largest = float(output.abs().max())
        worst = float((output[asked] - logits[seen][asked]).abs().max())
        assert worst <= 1e-4 * max(1.0, largest)


def _hf_vision(writer: Any, stock: Any, row: Any) -> Any:
    """Run the exporter's encoder, which is compared with HF's elsewhere, and pack on the host."""
    import numpy as np
    import torch
    from rows import draw_medium

    from tokprune_export.families import FAMILIES

    encoder = FAMILIES[writer.family].vision(stock).module
    packed: list[Any] = []
    for prepared in writer.processor.prepare([draw_medium(medium) for medium in row.media]):
        outputs = [
            encoder(*(torch.from_numpy(value) for value in call.values())).numpy()
            for call in prepared.calls
        ]
        packed.append(prepared.pack(outputs))
    return torch.from_numpy(np.concatenate(packed))


def _prompt(writer: Any, row: Any, branch: int) -> tuple[Any, int]:
    """Lay out the conversation of a branch up to its last answer, and how many answers it has."""
    from lines import Answered
    from rows import draw_medium

    from tokprune.prompting import Conversation, Shown, Turn, build_prompt

    prepared = writer.processor.prepare([draw_medium(medium) for medium in row.media])
    turns: list[Turn] = []
    content: list[Any] = []
    for part in [*row.prefix, *(row.branches[branch - 1] if branch else ())]:
        if isinstance(part, int):
            content.append(Shown(part))
            continue
        text = part.text if isinstance(part, Answered) else part
        content += [text] if text else []
        if isinstance(part, Answered):
            turns.append(Turn(tuple(content), part.answer))
            content = []
    turns[-1] = Turn(turns[-1].content)
    prompt = build_prompt(
        Conversation(tuple(turns), row.system),
        prepared,
        writer.chat,
        writer.tokens,
        writer.tokenizer,
        writer.processor,
    )
    return prompt, len(turns)


def _hf_logits(writer: Any, stock: Any, batch: Any, seen: Any, vision: Any) -> Any:
    """Let HF's decoder read one branch, its vision tokens given."""
    from tokprune_export.families import FAMILIES

    text = FAMILIES[writer.family].text(stock)
    embeds = text.embeddings[batch.ids[0, seen]].clone()
    embeds[batch.slots[0, seen]] = vision
    positions = batch.positions[:, 0, seen][:, None]
    output = text.model(
        inputs_embeds=embeds[None],
        position_ids=positions if len(positions) > 1 else positions[0],
        use_cache=False,
    )
    return text.head(output.last_hidden_state)[0]


def test_a_step_draws_the_same_batch_again(made: dict[str, Made]) -> None:
    import torch
    from mixture import make_batch

    for writer, _, _ in made.values():
        one, other = (make_batch(writer, 0, 4321, 0.6) for _ in range(2))
        assert torch.equal(one.pixels["pixel_values"], other.pixels["pixel_values"])
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.referents, other.referents)


def test_dropout_hides_vision_tokens_only_and_things_less_than_background(
    made: dict[str, Made],
) -> None:
    import torch
    from losses import dropped
    from mixture import make_row

    torch.manual_seed(0)
    rows = [make_row(Random(seed), (8, 8), "plain") for seed in range(40)]
    batch = made["qwen2_vl"].writer.batch(rows)
    things = torch.zeros_like(batch.slots)
    things[batch.slots] = batch.cells[:, 0] > 0
    hidden = torch.stack([dropped(batch) for _ in range(30)]).float().mean(0)
    assert not hidden[~batch.slots].any()
    assert hidden[things].mean() < 0.6 * hidden[batch.slots & ~things].mean()


def test_scenes_of_all_sizes_label_every_thing(made: dict[str, Made]) -> None:
    from cells import label_tokens

    processor = made["qwen2_vl"].writer.processor
    for seed, grid in enumerate([(4, 4), (5, 7), (8, 8), (14, 14), (20, 20)]):
        scene = make_scene(Random(seed), *grid)
        [prepared] = processor.prepare([draw(scene)])
        labels = label_tokens(scene, prepared)
        assert len(labels) == grid[0] * grid[1]
        assert len({tuple(row[:2]) for row in labels if row[0] > 0}) == len(scene.things)


def test_newlines_show_nothing_and_crops_what_the_whole_shows(made: dict[str, Made]) -> None:
    from cells import IGNORED, label_tokens

    scene = make_scene(Random(7), 8, 8)
    [prepared] = made["llava_onevision"].writer.processor.prepare([draw(scene)])
    labels = label_tokens(scene, prepared)
    newlines = prepared.where[:, KIND] == NEWLINE
    assert newlines.sum() == 16
    assert (labels[newlines] == IGNORED).all()
    whole = prepared.where[:, TILE] == 0
    shown = [
        {tuple(row[:2]) for row in labels[part & ~newlines] if row[0] > 0}
        for part in (whole, ~whole)
    ]
    assert shown[0] == shown[1]
    assert len(shown[0]) == len(scene.things)


def test_signs_and_pages_label_their_characters(made: dict[str, Made]) -> None:
    from cells import FIELD, FIRST, IGNORED, KINDS, SECOND, label_tokens

    processor = made["qwen2_vl"].writer.processor
    found: Counter[str] = Counter()
    written: Counter[str] = Counter()
    for seed, grid in enumerate([(6, 6), (8, 8), (14, 14), (8, 12)]):
        scene = make_scene(Random(seed), *grid, signs=2)
        page = make_page(Random(seed), *grid)
        if isinstance(page, Form):
            lines = [field.key.upper() + field.value for field in page.fields]
        else:
            lines = [str(bar.number) for bar in page.bars]
        texts = [sign.text for sign in scene.signs], lines
        for shown, wanted in zip((scene, page), texts, strict=True):
            [prepared] = processor.prepare([draw(shown)])
            labels = label_tokens(shown, prepared)
            read = Counter(c for row in labels for c in row[[FIRST, SECOND]] if c > 0)
            found += Counter({CHARACTERS[number - 1]: n for number, n in read.items()})
            written += Counter("".join(wanted))
            signs = (labels[:, 0] == KINDS.index("sign") + 1).any()
            assert signs == (shown is scene)
            form = shown if isinstance(shown, Form) else None
            fields = {FIELDS.index(field.key) + 1 for field in form.fields} if form else set()
            assert {*labels[:, FIELD]} - {0, IGNORED} == fields
    assert found <= written
    assert found.total() >= 0.98 * written.total()  # a third narrow one in a cell is left out


def test_characters_stand_from_the_left_in_the_cell_of_their_centre(made: dict[str, Made]) -> None:
    from cells import FIRST, ORDER, label_tokens

    sign = Sign("red", "AB7", "plain", 20, 42, 42)
    scene = Scene(4, 4, 1.0, (), 0, (sign,))
    [prepared] = made["qwen2_vl"].writer.processor.prepare([draw(scene)])
    labels = label_tokens(scene, prepared).reshape(4, 4, -1)[1]
    row = labels[:, FIRST : FIRST + 2]
    cells = [letter.x // 28 for letter in sign.letters]
    expected = [[0, 0] for _ in range(4)]
    for cell, letter in zip(cells, sign.letters, strict=True):
        free = expected[cell].index(0)
        expected[cell][free] = CHARACTERS.index(letter.character) + 1
    assert row.tolist() == expected
    first_in = [cells.index(cell) + 1 if cell in cells else 0 for cell in range(4)]
    assert labels[:, ORDER].tolist() == first_in


@pytest.mark.parametrize(
    ("text", "phrase", "place"),
    [
        ("what does the red sign say?", "red sign", (30, 40)),
        ("what does the sign say?", "sign", None),
        ("what color is the sign with K7?", "sign", None),
    ],
)
def test_a_phrase_means_the_sign_that_it_fits(
    text: str, phrase: str, place: tuple[int, int] | None
) -> None:
    from referents import find_referents

    signs = (Sign("red", "K7", "plain", 20, 40, 30), Sign("blue", "AB", "plain", 20, 100, 90))
    found = find_referents(text, Scene(4, 5, 1.0, (), 0, signs), GRID)
    if place is None:
        assert found == []
        return
    ((end, classes),) = found
    first = signs[0].letters[0]
    assert text[:end].endswith(phrase)
    assert classes[:3] == (1, first.y // 28, first.x // 28)


def test_a_phrase_means_the_value_of_a_field_and_the_number_of_a_bar() -> None:
    from referents import find_referents

    pages = [make_page(Random(seed), 8, 8) for seed in range(12)]
    region, kinds = Region(0, 0, 0, 8, 8), set()
    for page in pages:
        if isinstance(page, Form):
            letter = page.value_letters(page.fields[0])[0]
            text = f"what is the {page.fields[0].key}?"
        else:
            letter = page.number_letters(page.bars[0])[0]
            text = f"what is the value of the {page.bars[0].color} bar?"
        ((end, classes),) = find_referents(text, page, region)
        assert end == len(text) - 1
        assert classes[:3] == (1, letter.y // 28, letter.x // 28)
        kinds.add(type(page))
    assert kinds == {Form, Chart}


def test_a_token_of_two_frames_shows_what_both_show(made: dict[str, Made]) -> None:
    from cells import IGNORED, label_tokens

    things = scene_of(("red", "circle", True, 42, 42, None)).things
    film = Film(4, 4, 4, things, (Event("appears", 3, 3),), 0)
    [prepared] = made["qwen2_vl"].writer.processor.prepare([Clip(draw_film(film), 4.0)])
    labels = label_tokens(film, prepared).reshape(2, 4, 4, -1)
    assert not labels[0].any()
    assert labels[1, 1, 1, 0] == IGNORED


def test_shares_of_layouts_that_cannot_be_are_refused() -> None:
    from demos import DEMOS
    from mixture import with_layouts

    layouts = with_layouts(DEMOS["qwen2_vl"], {"film": 0.5, "talk": 0.2}).plan.layouts
    assert (layouts["film"], layouts["talk"]) == (0.5, 0.2)
    assert layouts["several"] == DEMOS["qwen2_vl"].plan.layouts["several"]
    with pytest.raises(ValueError, match=r"of 1 together; got talk 0\.06, .*, film 0\.8$"):
        with_layouts(DEMOS["qwen2_vl"], {"film": 0.8})
    with pytest.raises(ValueError, match="no layout 'film'; it has talk, "):
        with_layouts(DEMOS["vila"], {"film": 0.5})


def test_an_encoder_that_is_shown_a_part_says_what_it_says_of_those_patches_alone(
    made: dict[str, Made],
) -> None:
    import torch
    from mixture import make_row

    writer, model, _ = made["qwen2_vl"]
    batch = writer.batch([make_row(Random(5), (4, 6), "plain")])
    unseen = torch.rand(24, generator=torch.Generator().manual_seed(0)) < 0.5
    seen = ~unseen.repeat_interleave(4)
    shown = {
        "pixel_values": batch.pixels["pixel_values"][:, seen],
        "positions": batch.pixels["positions"][seen],
    }
    assert writer.demo.encode_parts
    with torch.no_grad():
        part = writer.demo.encode_parts(model, batch.pixels, unseen)
        expected = writer.demo.encode(model, shown)
    torch.testing.assert_close(part[~unseen], expected, atol=1e-5, rtol=1e-4)


def test_a_small_scorer_sees_64_vision_tokens_at_most(made: dict[str, Made]) -> None:
    from evaluate_checkpoint import media_of
    from make_scorer import SMALL, Options, is_small, questions

    options = Options(Path("checkpoint"), Path("work"), small=True, size=0.01)
    for family in ("qwen2_vl", "llava_onevision"):
        writer = made[family].writer
        found = [s for s in questions(options, films=True) if is_small(writer, s)]
        assert found
        for sample in found:
            prepared = writer.processor.prepare(media_of(sample))
            patches = sum(int((each.where[:, KIND] != NEWLINE).sum()) for each in prepared)
            assert 0 < patches <= SMALL
