"""Saving a training state so that a resumed run is bit-equal, and finding the last complete one.

A state is the trainable weights, the optimizer's moments and the number of steps done. Data order, dropout and learning
rate are pure functions of (seed, step), so nothing else is needed. Where the weights are sharded, every rank writes and reads
its own shards.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmunlearn.errors import RunError
from mmunlearn.run import explain_disk_errors, flush, replace_folder, write_json

WEIGHTS, OPTIMIZER, PROGRESS = "weights.safetensors", "optimizer.safetensors", "progress.json"
INCOMING = ".incoming"
"""Where the ranks put their shards until all of them are there."""


class Shards(Protocol):
    """What an engine keeps of the state on this rank, where it is not in the parameters and the optimizer."""

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and moments."""

    def put(self, weights: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""


@dataclass(frozen=True)
class Ranks:
    """The ranks among which the weights are sharded; all of them save and load together."""

    accelerator: Accelerator
    shards: Shards | None = None

    def own(self, name: str) -> str:
        """The name of this rank's file."""
        return f"rank-{self.accelerator.process_index}.{name}"

    @property
    def first(self) -> bool:
        """Whether this is the rank that moves files."""
        return bool(self.accelerator.is_main_process)

    def wait(self) -> None:
        """Until every rank has come here."""
        self.accelerator.wait_for_everyone()

    def all(self, good: bool) -> bool:
        """Whether it is so on every rank."""
        bad = torch.tensor([float(not good)], device=self.accelerator.device)
        return not self.accelerator.reduce(bad, reduction="sum").item()


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    key: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int,
    ranks: Ranks | None = None,
) -> None:
    """Write `step-N` under `folder` and delete the oldest ones.

    Args:
        folder: the run's folder of checkpoints.
        step: optimizer steps done.
        key: identifies the configuration; a checkpoint of another one is refused on loading.
        model: its trainable weights are saved.
        optimizer: its state is saved.
        keep: how many checkpoints stay.
        ranks: the weights are sharded among these, and all of them call this.

    Raises:
        RunError: disk full; earlier checkpoints are untouched.
    """
    progress = {"step": step, "key": key}
    if ranks is not None:
        _save_shards(folder, progress, model, optimizer, ranks)
    else:
        _replace(folder, progress, lambda temporary: _write(temporary, model, optimizer))
    if ranks is None or ranks.first:
        found = complete_checkpoints(folder)
        passed_over = [path for path in found if _number(path) > step]  # damaged: the run went on from an earlier one
        for old in (*passed_over, *[path for path in found if path not in passed_over][:-keep]):
            shutil.rmtree(old)


def _replace(folder: Path, progress: dict[str, Any], fill: Callable[[Path], None]) -> None:
    """Put a complete checkpoint in its place at once."""

    def write(temporary: Path) -> None:
        fill(temporary)
        write_json(temporary / PROGRESS, progress)  # last: its presence means complete

    target = folder / f"step-{progress['step']}"
    with explain_disk_errors(target):
        replace_folder(target, write)


def _save_shards(
    folder: Path, progress: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> None:
    """Every rank writes its own; once all are there, the first rank moves them into place."""
    incoming = folder / INCOMING
    if ranks.first:
        shutil.rmtree(incoming, ignore_errors=True)
    ranks.wait()
    with explain_disk_errors(incoming):
        incoming.mkdir(parents=True, exist_ok=True)
        _write(incoming, model, optimizer, ranks)
    ranks.wait()

    def move(temporary: Path) -> None:
        for file in incoming.iterdir():
            file.replace(temporary / file.name)

    if ranks.first:
        _replace(folder, progress, move)
        incoming.rmdir()
    ranks.wait()


def _write(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks | None = None) -> None:
    if ranks is not None and ranks.shards is not None:
        weights, moments = ranks.shards.tensors()
    else:
        weights = {name: local(parameter.detach()) for name, parameter in model.named_parameters() if parameter.requires_grad}
        moments = _flat(optimizer)
    for name, tensors in ((WEIGHTS, weights), (OPTIMIZER, moments)):
        file = folder / (name if ranks is None else ranks.own(name))
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
        flush(file)


def local(tensor: Tensor) -> Tensor:
    """What of a tensor is on this rank: a shard of it, or all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def complete_checkpoints(folder: Path) -> list[Path]:
    """Folders of complete checkpoints, oldest first; half-written ones are left out."""
    found = [path for path in folder.glob("step-*") if _number(path) >= 0 and (path / PROGRESS).is_file()]
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    """The step in a checkpoint's name; -1 if it is no name of ours."""
    step = path.name.removeprefix("step-")
    return int(step) if step.isdecimal() else -1


def load_checkpoint(
    folder: Path, *, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks | None = None
) -> int:
    """Load the newest readable checkpoint into model and optimizer.

    Args:
        folder: the run's folder of checkpoints.
        key: identifies the configuration.
        model: its trainable weights are overwritten.
        optimizer: its state is overwritten.
        ranks: the weights are sharded among these, and all of them call this.

    Returns:
        Steps done; 0 if there is no checkpoint.

    Raises:
        RunError: the checkpoint belongs to another configuration, or there are only damaged ones; nothing was changed.
    """
    found = complete_checkpoints(folder)
    if not found:
        return 0
    damaged: list[str] = []
    for path in reversed(found):
        read = _read(path, ranks)
        good = not isinstance(read, Exception)
        if ranks is not None and not ranks.all(good) and good:
            damaged.append(f"{path} cannot be read on another rank")
            continue
        if isinstance(read, Exception):
            damaged.append(f"{path} cannot be read ({read})")
            continue
        progress, weights, moments = read
        _check_key(path, progress, key)
        if damaged:
            warnings.warn(f"{'; '.join(damaged)}. Going on from {path.name}, the one before.", RuntimeWarning, stacklevel=2)
        if ranks is not None and ranks.shards is not None:
            ranks.shards.put(weights, moments)
        else:
            _put(weights, moments, model, optimizer)
        return int(progress["step"])
    raise RunError(f"{'; '.join(damaged)}. There is no other checkpoint: delete it to start from the first step.")


def _read(
    path: Path, ranks: Ranks | None
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]] | OSError | ValueError | SafetensorError:
    """Progress, weights and moments, or what is wrong with them."""
    weights, moments = ((name if ranks is None else ranks.own(name)) for name in (WEIGHTS, OPTIMIZER))
    try:
        return json.loads((path / PROGRESS).read_text()), load_file(path / weights), load_file(path / moments)
    except (OSError, ValueError, SafetensorError) as error:
        return error


def _check_key(path: Path, progress: dict[str, Any], key: str) -> None:
    if progress["key"] != key:
        raise RunError(
            f"{path} was written under other settings, or with another model, mask, reference or other data behind the same "
            "paths, so going on from it would mix two runs. Restore what the first start used (see config.yaml), or set "
            "run.overwrite=true to start anew."
        )


def _put(weights: dict[str, Tensor], moments: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                local(parameter).copy_(weights[name])
    _restore(optimizer, moments)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `{position}.{name}` tensors."""
    flat: dict[str, Tensor] = {}
    for position, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            flat[f"{position}.{name}"] = local(torch.as_tensor(value)).detach().contiguous()
    return flat


def _restore(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    parameters = _parameters(optimizer)
    for key, value in flat.items():
        position, name = key.split(".", 1)
        parameter = parameters[int(position)]
        state: dict[str, Any] = optimizer.state[parameter]
        # Step counters stay where the optimizer wants them; the moments live with the parameter.
        follows = value.shape == local(parameter).shape or optimizer.defaults["fused"]
        state[name] = _like(value.to(parameter.device), parameter) if follows else value


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A shard as part of a tensor that is sharded as a parameter is."""
    if not isinstance(parameter, DTensor) or value.shape != local(parameter).shape:
        return value
    whole: Tensor = DTensor.from_local(
        value, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )
    return whole
