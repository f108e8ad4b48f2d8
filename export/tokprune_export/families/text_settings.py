"""Settings of an LLM that the graphs of decoder.py would silently ignore."""

from tokprune_export.errors import ExportRefused
from tokprune_export.families.family import Config

STATIC_ROPE = ("default", "mrope", "linear", "llama3", "yarn")


def check_text(text: Config) -> None:
    """Refuse attention to a part of the prompt, and angles that change with its length."""
    sliding = "sliding_attention" in (text.get("layer_types") or ())
    if text.get("use_sliding_window") or sliding:
        raise ExportRefused(
            "config.json has use_sliding_window = true: the graphs attend to everything. "
            "Only checkpoints without sliding windows can be exported"
        )
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in STATIC_ROPE:
        raise ExportRefused(
            f"config.json has rope_type {kind!r}, whose angles change with the prompt's length. "
            f"Can be exported: {', '.join(STATIC_ROPE)}"
        )
