"""Answers as figures, where questions or selectors are not of the usual kind."""

from tokprune_export.evaluation.cells import WITHOUT_PRUNING, Cell
from tokprune_export.evaluation.figures import Answered, Question, figures, worst
from tokprune_export.evaluation.record import Given, Record


def question(place: int, group: str = "one") -> Question:
    return Question(str(place), group, "red", dense=False, modality="picture")


def test_the_worst_group_is_told_by_accuracy_where_another_group_was_refused() -> None:
    """Loyalty is no stand-in: group b is least loyal, and has lost no right answer."""
    cell = Cell("evs", "0.5")
    refused = Given("", 0, refused="It takes a video")
    asked = [
        *(("a", "red", Given("blue", 5)), ("a", "red", Given("red", 5))),
        *(("b", "red", Given("red", 5)), *[("b", "green", Given("blue", 5))] * 2),
        ("c", "red", refused),
    ]
    records = {
        str(place): Record(str(place), 9, {WITHOUT_PRUNING.key: Given(full, 9), cell.key: given})
        for place, (_, full, given) in enumerate(asked)
    }
    questions = [question(place, group) for place, (group, *_) in enumerate(asked)]
    answered = Answered(questions, records, [WITHOUT_PRUNING, cell])
    found = figures(answered, {}, [], [], labelled=True)["cells"]["evs"]["0.5"]
    assert found["all"]["accuracy"] is None
    assert found["a"]["loyalty"]["mean"] > found["b"]["loyalty"]["mean"]
    assert worst(found, ["a", "b", "c"]) == ("a", 0.5)


def test_scorer_files_of_one_name_are_told_apart_by_their_folder() -> None:
    cells = [WITHOUT_PRUNING, *(Cell(f"relevance ({name}/scorer)", "0.5", name) for name in "ab")]
    records = {"1": Record("1", 9, {cell.key: Given("red", 5) for cell in cells})}
    answered = Answered([question(1)], records, cells)
    assert [column.name for column in answered.columns[1:]] == [
        "relevance (a/scorer)",
        "relevance (b/scorer)",
    ]
