"""Which device a model runs on, what to do when its memory is full, and the ranks of a distributed run."""

import contextlib
import os
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from mmunlearn.errors import ConfigError, RunError


def pick_device(name: str, setting: str = "run.device") -> torch.device:
    """The device that a setting names; `auto` is the first GPU, else the CPU.

    Args:
        name: the device.
        setting: the setting, for messages.

    Raises:
        ConfigError: unknown, or a GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not name.startswith("cuda"):
        raise ConfigError(f"{setting}: {name!r} is unknown. Use auto, cpu, cuda or cuda:N.")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"{setting}: {name}, but torch sees no GPU (see `mmunlearn doctor`). Use the CPU (run.device=cpu), or install the "
            "CUDA build of torch that fits the driver."
        )
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{setting}: {name!r} is unknown. Use auto, cpu, cuda or cuda:N.") from error
    if (chosen.index or 0) >= torch.cuda.device_count() and chosen.type == "cuda":
        raise ConfigError(f"{setting}: {name}, but torch sees {torch.cuda.device_count()} GPUs, counted from 0.")
    return chosen


HOST_IS_FULL = "DefaultCPUAllocator: "
"""Before what torch says, in a RuntimeError, where the machine's own memory is full."""


@contextlib.contextmanager
def explain_full_memory(advice: str) -> Iterator[None]:
    """Turn full memory, of a GPU or of the machine, into one clear message.

    Args:
        advice: the settings that need less.

    Raises:
        RunError: says how much was wanted and the advice; files that were written before are untouched.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        wanted = str(error).partition("Tried to allocate ")[2].partition(". ")[0]
        held = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        much = f", {wanted} more than it has were asked for" if wanted else ""
        raise RunError(f"The memory of the GPU is full{much} (this run held up to {held:.1f} GiB). {advice}") from error
    except RuntimeError as error:
        if HOST_IS_FULL not in str(error):
            raise
        raise RunError(f"The memory of this machine is full ({str(error).partition(HOST_IS_FULL)[2]}). {advice}") from error


def open_accelerator(device: str, *, bf16: bool) -> Accelerator:
    """Connect to the other ranks, if there are any, and pick the device.

    Raises:
        ConfigError: the launcher started several ranks but they were not connected.
    """
    chosen = pick_device(device)
    if chosen.index is not None:
        torch.cuda.set_device(chosen)  # Accelerate takes the current one
    precision = "bf16" if bf16 else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # an earlier run of this process used another one; the ranks stay connected
    accelerator = Accelerator(cpu=chosen.type == "cpu", mixed_precision=precision)
    if accelerator.device.type != chosen.type:
        raise ConfigError(f"This process already runs on {accelerator.device}; start another one for run.device={device}.")
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
