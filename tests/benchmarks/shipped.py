"""What lies beside a shipped checkpoint."""

from pathlib import Path


def scorers_of(checkpoint: Path) -> list[str]:
    """Return the options with which `make bundles` exports it."""
    files = {"--scorer": "scorer.safetensors", "--glance-scorer": "glance_scorer.safetensors"}
    there = {option: checkpoint / name for option, name in files.items()}
    return [word for option, path in there.items() if path.exists() for word in (option, str(path))]
