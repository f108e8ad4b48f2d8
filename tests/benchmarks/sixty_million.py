"""A bundle in which vision tokens cost time: a random Qwen2-VL of 60 million parameters.

python tests/benchmarks/sixty_million.py FOLDER writes it; deadline.py does so where it is missing.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from random_checkpoint import write_checkpoint

ROOT = Path(__file__).parents[2]
LIKE = ROOT / "samples" / "scenes" / "checkpoints" / "qwen2_vl"
BUILT = ROOT / "build" / "benchmarks" / "sixty-million"
LARGEST_PX = 784  # side of a picture: 784 vision tokens
EXPORT = "from tokprune_export.cli import export_main; export_main()"


def write(bundle: Path) -> None:
    """Write the checkpoint and export it, in fp32 and without a scorer."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "sixty-million"
        write_checkpoint(
            checkpoint, LIKE, heads=9, kv_heads=3, head_dim=64, layers=20, tied=True, seed=0
        )
        settings = checkpoint / "preprocessor_config.json"
        found = json.loads(settings.read_text())
        found["size"] = {**found["size"], "longest_edge": LARGEST_PX**2}
        settings.write_text(json.dumps(found))
        bundle.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-c", EXPORT, str(checkpoint), str(bundle)], check=True)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
