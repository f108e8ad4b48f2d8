"""The samples' modules are found as their programs find them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from camera_pages import FOLDER

SCENES = Path(__file__).parents[2] / "samples" / "scenes"

sys.path.append(str(FOLDER))


@pytest.fixture(scope="module")
def scene_modules() -> Iterator[None]:
    """The modules that train the demos can be imported, and are forgotten afterwards."""
    known = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCENES)
        yield
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(SCENES)):
            del sys.modules[name]
