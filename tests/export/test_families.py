from typing import Any

import pytest

from tokprune.families import FAMILIES as NUMPY_HALVES
from tokprune_export.errors import ExportRefused
from tokprune_export.families import FAMILIES

pytestmark = pytest.mark.torch
QWEN2_VL: dict[str, Any] = {
    "image_token_id": 1,
    "video_token_id": 2,
    "vision_start_token_id": 3,
    "vision_end_token_id": 4,
}


def test_every_family_has_both_halves() -> None:
    assert FAMILIES.keys() == NUMPY_HALVES.keys()


@pytest.mark.parametrize(
    "text",
    [
        {},
        {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
        {"rope_parameters": {"rope_type": "yarn"}, "use_sliding_window": False},
    ],
)
def test_qwen2_vl_takes_settings_that_its_graphs_follow(text: dict[str, Any]) -> None:
    FAMILIES["qwen2_vl"].check({**QWEN2_VL, "text_config": text})
    FAMILIES["qwen2_vl"].check({**QWEN2_VL, **text})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_sliding_window": True}, "use_sliding_window = true"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type 'dynamic', whose angles change"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type 'longrope'"),
        ({"vision_end_token_id": None}, "lacks vision_end_token_id"),
    ],
)
def test_qwen2_vl_refuses_what_its_graphs_would_ignore(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportRefused, match=message):
        FAMILIES["qwen2_vl"].check({**QWEN2_VL, **changes})
