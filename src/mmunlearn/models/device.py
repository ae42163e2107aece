"""Which device a model runs on, and the ranks of a distributed run."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mmunlearn.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device that `run.device` names; `auto` is the first GPU, else the CPU.

    Raises:
        ConfigError: unknown, or a GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not name.startswith("cuda"):
        raise ConfigError(f"run.device: {name!r} is unknown. Use auto, cpu, cuda or cuda:N.")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"run.device={name}, but torch sees no GPU (see `mmunlearn doctor`). Set run.device=cpu, or install the CUDA "
            "build of torch that fits the driver."
        )
    return torch.device(name)


def open_accelerator(device: str, *, bf16: bool) -> Accelerator:
    """Connect to the other ranks, if there are any, and pick the device.

    Raises:
        ConfigError: the launcher started several ranks but they were not connected.
    """
    chosen = pick_device(device)
    accelerator = Accelerator(cpu=chosen.type == "cpu", mixed_precision="bf16" if bf16 else "no")
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        # Accelerate does this silently in some CPU set-ups: every rank would train on its own.
        raise ConfigError(f"The launcher started {expected} ranks, but only {accelerator.num_processes} is connected.")
    return accelerator


def same_on_all_ranks(value: str) -> str:
    """What the first rank says, so that no rank goes its own way."""
    values = [value]
    broadcast_object_list(values, from_process=0)
    return values[0]
