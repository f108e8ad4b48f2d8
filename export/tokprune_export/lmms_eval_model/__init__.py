"""tokprune as a model of lmms-eval (github.com/EvolvingLMMs-Lab/lmms-eval), the field's harness.

`lmms-eval --model tokprune --model_args bundle=FOLDER,budget=0.25 --tasks mmstar`. The harness
finds `manifest` by its entry point (pyproject.toml) and calls it whenever it starts, whatever model
is asked for: so nothing heavy is imported here.
"""

from typing import Any

_CLASSES = f"{__name__}.model"


def manifest() -> Any:
    """Return what lmms-eval 0.7 registers: the model for its chat tasks, and for its simple ones.

    Simple ones (`--force_simple`) are those whose choices are compared by likelihood.
    """
    from lmms_eval.models.registry_v2 import (  # pyright: ignore[reportMissingImports]
        ModelManifest,
    )

    return ModelManifest(
        model_id="tokprune",
        chat_class_path=f"{_CLASSES}.Tokprune",
        simple_class_path=f"{_CLASSES}.TokpruneSimple",
    )
