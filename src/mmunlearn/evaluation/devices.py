"""The devices that share an evaluation's questions."""

import torch
from omegaconf import DictConfig

from mmunlearn.errors import ConfigError
from mmunlearn.models.device import pick_device


def asked_devices(config: DictConfig) -> list[torch.device]:
    """One device for each process.

    Raises:
        ConfigError: one is unknown or not there, or `run.device` names another one.
    """
    names = [str(name) for name in config.evaluation.devices]
    if names and config.run.device != "auto":
        raise ConfigError(
            f"evaluation.devices=[{','.join(names)}] and run.device={config.run.device}: choose one; leave run.device out to "
            "share the questions between processes."
        )
    if not names:
        return [pick_device(config.run.device)]
    full = [f"cuda:{name}" if name.isdecimal() else name for name in names]
    if "auto" in full:
        raise ConfigError("evaluation.devices: name each device: [0,1] are GPUs, [cpu,cpu] two processes.")
    return [pick_device(name, setting="evaluation.devices") for name in full]
