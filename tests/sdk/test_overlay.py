"""Pictures of what an answer was read from: videos, and pictures at several scales."""

import numpy as np
import pytest

from tokprune import Answer, Clip, Region, RequestInvalid, Selection, overlay
from tokprune.overlay import DIMMED, GAP_PX, SHEET_PX
from tokprune.types import COLUMN, FRAME, KIND, NEWLINE, PICTURE, ROW, TILE

LIGHT = 200


def answer(regions: list[Region], keep: list[int], *, newlines: bool = False) -> Answer:
    """What `ask` returns, of these tokens kept; newlines end rows where they are asked for."""
    where = []
    for region in regions:
        for row in range(region.rows):
            for column in range(region.columns + newlines):
                token = np.zeros(7, np.int32)
                token[[PICTURE, FRAME, TILE, ROW, COLUMN]] = (*region[:3], row, column)
                token[KIND] = NEWLINE if column == region.columns else 0
                where.append(token)
    selection = Selection(np.asarray(keep, np.int64), len(where), None, None, "count")
    return Answer(
        text="",
        finish_reason="stop",
        selection=selection,
        regions=tuple(regions),
        where=np.stack(where),
        selector="test",
        timings_ms={},
        ttft_ms=0.0,
        token_ids=(),
    )


def film(frames: int, height: int = 28, width: int = 42) -> Clip:
    """Grey frames, each a little darker than the one before."""
    shades = (LIGHT - np.arange(frames)).astype(np.uint8)
    return Clip(np.tile(shades[:, None, None, None], (1, height, width, 3)), 2.0)


def frames_of(count: int, rows: int = 2, columns: int = 3, picture: int = 0) -> list[Region]:
    return [Region(picture, frame, 0, rows, columns) for frame in range(count)]


@pytest.mark.parametrize(
    ("held", "regions", "shown"),
    [
        (8, 4, [0, 2, 4, 6]),  # in pairs
        (7, 4, [0, 2, 4, 6]),
        (3, 2, [0, 2]),
        (1, 1, [0]),
        (2, 1, [0]),
        (5, 5, [0, 1, 2, 3, 4]),  # each by itself
    ],
)
def test_a_video_is_drawn_as_a_sheet_of_the_first_frames_of_each_pair(
    held: int, regions: int, shown: list[int]
) -> None:
    whole = list(range(6 * regions))
    sheet = overlay(film(held), answer(frames_of(regions), whole))
    columns = (sheet.shape[1] + GAP_PX) // (42 + GAP_PX)
    for number, frame in enumerate(shown):
        top = number // columns * (28 + GAP_PX)
        left = number % columns * (42 + GAP_PX)
        assert (sheet[top : top + 28, left : left + 42] == LIGHT - frame).all()


def test_each_frame_shows_its_own_kept_patches() -> None:
    keep = [0, 4, 6 + 2, 12 + 5]
    sheet = overlay(film(6), answer(frames_of(3), keep))
    assert sheet.shape == (2 * 28 + GAP_PX, 2 * 42 + GAP_PX, 3)
    for frame, cells in enumerate(([0, 4], [2], [5])):
        top, left = frame // 2 * (28 + GAP_PX), frame % 2 * (42 + GAP_PX)
        for cell in range(6):
            row, column = divmod(cell, 3)
            pixel = sheet[top + 14 * row + 7, left + 14 * column + 7]
            expected = (LIGHT - 2 * frame) * (1 if cell in cells else DIMMED)
            assert np.abs(pixel - expected).max() <= 1


def test_a_sheet_of_large_frames_is_made_smaller() -> None:
    sheet = overlay(film(16, 270, 480), answer(frames_of(8), [0]))
    height, width = sheet.shape[:2]
    assert width <= SHEET_PX
    assert height <= SHEET_PX
    small = overlay(film(16, 1080, 1920), answer(frames_of(8), [0]))
    assert small.shape[1] <= SHEET_PX
    assert small.shape[1] >= SHEET_PX - 8


def test_the_second_video_of_a_question_is_drawn_from_its_own_tokens() -> None:
    regions = [Region(0, 0, 0, 1, 1), *frames_of(2, picture=1)]
    given = answer(regions, [0, 1, 7])
    picture = np.full((28, 42, 3), LIGHT, np.uint8)
    assert (overlay(picture, given) == LIGHT).all()
    sheet = overlay(film(3), given, picture=1)
    for frame, left in enumerate((0, 42 + GAP_PX) if sheet.shape[1] > 42 else (0, 0)):
        top = 0 if sheet.shape[1] > 42 else frame * (28 + GAP_PX)
        assert sheet[top + 7, left + 7, 0] == LIGHT - 2 * frame
        assert sheet[top + 7, left + 35, 0] < LIGHT / 2


def test_a_picture_at_two_scales_shows_the_finer_one() -> None:
    regions = [Region(0, 0, 0, 1, 2), Region(0, 0, 1, 2, 4)]
    given = answer(regions, [0, 3 + 2, 8 + 3], newlines=True)
    drawn = overlay(np.full((28, 56, 3), LIGHT, np.uint8), given)
    kept = drawn[7::14, 7::14, 0] == LIGHT
    assert kept.tolist() == [[False, False, True, False], [False, False, False, True]]


@pytest.mark.parametrize(
    ("frames", "message"),
    [(None, "is a video of 4 frames: give its Clip, got a picture"), (5, "4 frames, which a Clip")],
)
def test_what_was_not_asked_about_is_refused(frames: int | None, message: str) -> None:
    given = answer(frames_of(4), [0])
    medium = np.zeros((28, 42, 3), np.uint8) if frames is None else film(frames)
    with pytest.raises(RequestInvalid, match=message):
        overlay(medium, given)
    with pytest.raises(RequestInvalid, match=r"picture must be 0\.\.0"):
        overlay(medium, given, picture=1)
