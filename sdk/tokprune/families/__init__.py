"""Model families, by the name that a manifest gives. One row each, one module each."""

from tokprune.families import qwen2_vl
from tokprune.families.family import Family, Processor, Span

FAMILIES: dict[str, Family] = {
    "qwen2_vl": qwen2_vl.FAMILY,
}

__all__ = ["FAMILIES", "Family", "Processor", "Span"]
