"""Saving a training state so that a resumed run is bit-equal, and finding the last complete one.

A state is the trainable weights, the optimizer's moments and the number of steps done. Data order, dropout and learning
rate are pure functions of (seed, step), so nothing else is needed.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmunlearn.errors import RunError
from mmunlearn.run import explain_disk_errors, replace_folder, write_json

WEIGHTS, OPTIMIZER, PROGRESS = "weights.safetensors", "optimizer.safetensors", "progress.json"


def save_checkpoint(
    folder: Path, *, step: int, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int
) -> None:
    """Write `step-N` under `folder` and delete the oldest ones.

    Args:
        folder: the run's folder of checkpoints.
        step: optimizer steps done.
        key: identifies the configuration; a checkpoint of another one is refused on loading.
        model: its trainable weights are saved.
        optimizer: its state is saved.
        keep: how many checkpoints stay.

    Raises:
        RunError: disk full; earlier checkpoints are untouched.
    """
    weights = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}

    def write(temporary: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary / WEIGHTS)
        save_file(_flat(optimizer), temporary / OPTIMIZER)
        write_json(temporary / PROGRESS, {"step": step, "key": key})  # last: its presence means complete

    target = folder / f"step-{step}"
    with explain_disk_errors(target):
        replace_folder(target, write)
    for old in complete_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Folders of complete checkpoints, oldest first; half-written ones are left out."""
    found = [path for path in folder.glob("step-*") if (path / PROGRESS).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def load_checkpoint(folder: Path, *, key: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the newest complete checkpoint into model and optimizer.

    Returns:
        Steps done; 0 if there is no checkpoint.

    Raises:
        RunError: the checkpoint belongs to another configuration or is damaged; nothing was changed.
    """
    found = complete_checkpoints(folder)
    if not found:
        return 0
    newest = found[-1]
    progress = json.loads((newest / PROGRESS).read_text())
    if progress["key"] != key:
        raise RunError(
            f"{newest} was written under other settings, or with another model, mask, reference or other data behind the same "
            "paths, so going on from it would mix two runs. Restore what the first start used (see config.yaml), or set "
            "run.overwrite=true to start anew."
        )
    try:
        weights, moments = load_file(newest / WEIGHTS), load_file(newest / OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{newest} cannot be read ({error}). Delete that folder to go on from an earlier state.") from error
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
    _restore(optimizer, moments)
    return int(progress["step"])


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `{position}.{name}` tensors."""
    flat: dict[str, Tensor] = {}
    for position, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            flat[f"{position}.{name}"] = torch.as_tensor(value).detach().contiguous()
    return flat


def _restore(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    parameters = _parameters(optimizer)
    for key, value in flat.items():
        position, name = key.split(".", 1)
        parameter = parameters[int(position)]
        state: dict[str, Any] = optimizer.state[parameter]
        # Step counters stay where the optimizer wants them; the moments live with the parameter.
        state[name] = value.to(parameter.device) if value.shape == parameter.shape or optimizer.defaults["fused"] else value
