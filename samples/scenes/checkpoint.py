"""What the training writes beside checkpoints: its own state to go on from, and settings."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW


def save_state(
    path: Path,
    facts: Mapping[str, str],
    parameters: Mapping[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Write weights and optimiser state in one rename."""
    tensors = {f"model.{name}": p.detach().cpu() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimiser.state[parameter].items():
            tensors[f"{key}.{name}"] = value.detach().cpu()
    partial = path.with_suffix(".partial")
    save_file({name: t.contiguous() for name, t in tensors.items()}, partial, dict(facts))
    partial.replace(path)


def load_state(
    path: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> dict[str, str]:
    """Read what `save_state` wrote; returns its facts."""
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
            if f"step.{name}" not in tensors:  # nothing depends on it, or it was not trained yet
                continue
            optimiser.state[parameter] = {
                key: tensors[f"{key}.{name}"].to(parameter.device if key != "step" else "cpu")
                for key in MOMENTS
            }
    with safe_open(path, "pt") as file:
        return file.metadata()


def write_json(path: Path, content: object) -> None:
    """Write a file of settings."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
