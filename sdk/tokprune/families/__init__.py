"""Model families, by the name that a manifest gives. One row each, one module each."""

from tokprune.families import llava_onevision, qwen2_5_vl, qwen2_vl, vila
from tokprune.families.family import Family, Processor, Span

FAMILIES: dict[str, Family] = {
    "llava_onevision": llava_onevision.FAMILY,
    "qwen2_5_vl": qwen2_5_vl.FAMILY,
    "qwen2_vl": qwen2_vl.FAMILY,
    "vila": vila.FAMILY,
}

__all__ = ["FAMILIES", "Family", "Processor", "Span"]
