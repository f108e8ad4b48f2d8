"""The torch half of each family, by the same names as `tokprune.families.FAMILIES`."""

from tokprune_export.families import llava_onevision, qwen2_5_vl, qwen2_vl, vila
from tokprune_export.families.family import Family, Trial

FAMILIES: dict[str, Family] = {
    "llava_onevision": llava_onevision.FAMILY,
    "qwen2_5_vl": qwen2_5_vl.FAMILY,
    "qwen2_vl": qwen2_vl.FAMILY,
    "vila": vila.FAMILY,
}

__all__ = ["FAMILIES", "Family", "Trial"]
