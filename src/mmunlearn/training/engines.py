"""Which engine trains: the model replicated on every rank, or its weights sharded. Refuses what an engine cannot do."""

import importlib.util
import os
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn

from mmunlearn.config import TrainerArgs
from mmunlearn.errors import ConfigError
from mmunlearn.methods.base import Masked, Method, NeedsWholeBatches
from mmunlearn.models.families import Family
from mmunlearn.models.reference import Frozen
from mmunlearn.training.deepspeed_engine import WHOLE_WEIGHTS_END, DeepSpeedZero, completed, freeze, read_settings
from mmunlearn.training.engine import Engine, Replicated
from mmunlearn.training.masking import GradientMask
from mmunlearn.training.sharded import FrozenShards, Sharded, shard

OFF = {"fsdp": "trainer.args.fsdp=false", "deepspeed": "trainer.args.deepspeed=null"}
LAUNCHERS = {"fsdp": "ACCELERATE_USE_FSDP", "deepspeed": "ACCELERATE_USE_DEEPSPEED"}
"""What `accelerate launch` sets where it is configured for an engine of its own."""


class Kind(StrEnum):
    """How a model is spread over the ranks."""

    replicated = "replicated"
    fsdp = "fsdp"
    deepspeed = "deepspeed"


def kind_of(args: TrainerArgs) -> Kind:
    """The engine that the settings ask for, of those that can be had on this machine.

    Raises:
        ConfigError: two are asked for at once.
    """
    if args.fsdp and args.deepspeed:
        both = f"trainer.args.fsdp=true and trainer.args.deepspeed={args.deepspeed}"
        raise ConfigError(f"{both}: only one engine can train. Set {OFF['deepspeed']} or {OFF['fsdp']}.")
    if args.fsdp:
        return Kind.fsdp
    return Kind.deepspeed if args.deepspeed and not _missing() else Kind.replicated


def _missing() -> list[str]:
    """What DeepSpeed needs and this machine has not."""
    reasons = (
        ("no GPU", not torch.cuda.is_available()),
        (
            "DeepSpeed is not installed",
            importlib.util.find_spec("deepspeed") is None,
        ),
    )
    return [reason for reason, absent in reasons if absent]


def deepspeed_notice(console: Console, args: TrainerArgs) -> None:
    """Say in one line when a DeepSpeed file was asked for and cannot be used."""
    if args.deepspeed and (missing := _missing()):
        notice = f"trainer.args.deepspeed={args.deepspeed} is not used: {' and '.join(missing)}. The run goes on plainly."
        console.print(notice, soft_wrap=True)  # one line also in a log file


def check_launcher(args: TrainerArgs) -> None:
    """Compare with what `accelerate launch` was told, before Accelerate acts on it.

    Raises:
        ConfigError: it was told to use an engine, but the settings were not.
    """
    for setting, variable in LAUNCHERS.items():
        if os.environ.get(variable, "false").lower() == "true" and not getattr(args, setting):
            raise ConfigError(
                f"`accelerate launch` was configured for {setting}, but trainer.args.{setting} is not set, so the model would "
                f"be replicated. Set trainer.args.{setting}, or launch without it (see `accelerate config`)."
            )


def check_engine(kind: Kind, args: TrainerArgs, method: Method, accelerator: Accelerator) -> None:
    """What an engine cannot do, known before any model is opened.

    Raises:
        ConfigError: the method cannot be trained so, there are no ranks to share the weights, or DeepSpeed's file is wrong.
    """
    if kind is Kind.replicated:
        return
    name, off = type(method).__name__, OFF[kind]
    if kind is Kind.deepspeed:
        _check_recomputing(args, read_settings(str(args.deepspeed)))
    if isinstance(method, Masked) and method.mask:
        raise ConfigError(
            f"trainer.args.{kind}: {name} works with a saliency mask, which acts on whole gradients before they are added up "
            f"over the ranks; with sharded weights no rank ever holds a whole one. Set {off}: the model is then replicated."
        )
    if isinstance(method, NeedsWholeBatches) and method.whole_batches and accelerator.num_processes > 1:
        raise ConfigError(
            f"trainer.args.{kind}: with these settings the loss of {name} depends on what shares a batch and on its padding, "
            f"and sharded training adds blank pictures so that all ranks use the same layers. Use one process, or set {off}."
        )
    if kind is Kind.fsdp and not torch.distributed.is_initialized():
        raise ConfigError(
            "trainer.args.fsdp=true shards the weights over processes, but this one was started alone. Start it with "
            "`torchrun --nproc_per_node=GPUS train.py ...` (see docs/scaling.md), or set trainer.args.fsdp=false."
        )


def _check_recomputing(args: TrainerArgs, settings: dict[str, Any]) -> None:
    if args.gradient_checkpointing == "selective" and settings["zero_optimization"]["stage"] >= WHOLE_WEIGHTS_END:
        raise ConfigError(
            f"trainer.args.gradient_checkpointing=selective: with {args.deepspeed} weights are gathered anew in the backward "
            "pass, which torch takes for operations that were not there before. Set it to true, or use "
            "trainer.args.fsdp=true trainer.args.deepspeed=null, with which it works."
        )


def spread(kind: Kind, model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Move a model to the device or devices; of a sharded one no rank holds more than its share and the block in use."""
    if kind is Kind.fsdp:
        shard(model, accelerator)
        return model
    return model.to(accelerator.device)


def freezer(kind: Kind, args: TrainerArgs) -> Callable[[nn.Module], nn.Module]:
    """What makes a reference of the model in training, see `Reference.freeze`."""
    if kind is Kind.deepspeed:
        return partial(freeze, str(args.deepspeed))
    return FrozenShards if kind is Kind.fsdp else Frozen


def open_engine(
    kind: Kind,
    model: nn.Module,
    family: Family,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    args: TrainerArgs,
    mask: GradientMask | None = None,
) -> Engine:
    """The engine of a model that was `spread`."""
    if kind is Kind.fsdp:
        return Sharded(model, family, optimizer, accelerator)
    if kind is Kind.replicated:
        return Replicated(model, family, optimizer, accelerator, mask)
    config: Any = model.config
    half = any(parameter.dtype is torch.bfloat16 for parameter in model.parameters())
    width, ranks = int(config.get_text_config().hidden_size), accelerator.num_processes
    settings = completed(str(args.deepspeed), args, ranks=ranks, width=width, half=half)
    return DeepSpeedZero(model, optimizer, accelerator, settings)
