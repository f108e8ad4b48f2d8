"""Run as a program: export the demo Qwen2-VL for the tests, where that was not done before.

`make device` calls it where torch is; its tests find the bundle by the same digest.
"""

from conftest import ROOT, bundle_of

if __name__ == "__main__":
    bundle_of(ROOT / "samples" / "scenes" / "checkpoints" / "qwen2_vl")
