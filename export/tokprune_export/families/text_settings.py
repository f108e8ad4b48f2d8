"""Settings of an LLM that the graphs of decoder.py would silently ignore."""

from tokprune_export.errors import ExportRefused
from tokprune_export.families.family import Config

STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def check_text(text: Config, *, mrope: bool = False) -> None:
    """Refuse attention to a part of the prompt, and angles that change with its length.

    Args:
        text: settings of the language half.
        mrope: whether the family's positions have the three axes of M-RoPE.
    """
    allowed = ("mrope", *STATIC_ROPE) if mrope else STATIC_ROPE
    sliding = "sliding_attention" in (text.get("layer_types") or ())
    if text.get("use_sliding_window") or sliding:
        raise ExportRefused(
            "config.json has use_sliding_window = true: the graphs attend to everything. "
            "Only checkpoints without sliding windows can be exported"
        )
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in allowed:
        raise ExportRefused(
            f"config.json has rope_type {kind!r}, whose angles change with the prompt's length or "
            f"axes that this family lacks. Can be exported: {', '.join(allowed)}"
        )
