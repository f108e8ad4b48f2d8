"""The torch half of each family, by the same names as `tokprune.families.FAMILIES`."""

from tokprune_export.families import qwen2_vl
from tokprune_export.families.family import Family, Trial

FAMILIES: dict[str, Family] = {
    "qwen2_vl": qwen2_vl.FAMILY,
}

__all__ = ["FAMILIES", "Family", "Trial"]
