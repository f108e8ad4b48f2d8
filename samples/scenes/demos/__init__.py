"""The demo VLMs, by the names of tokprune's families."""

from demos import llava_onevision, qwen2_vl, vila
from demos.demo import Demo

DEMOS: dict[str, Demo] = {
    "llava_onevision": llava_onevision.DEMO,
    "qwen2_vl": qwen2_vl.DEMO,
    "vila": vila.DEMO,
}

__all__ = ["DEMOS", "Demo"]
