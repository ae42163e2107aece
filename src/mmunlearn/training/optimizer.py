"""The optimizer's parameter groups and the learning rate over time."""

import math

import torch
from torch import nn

from mmunlearn.config import TrainerArgs, Tune
from mmunlearn.config_enums import Scheduler
from mmunlearn.models.families import Family, Part
from mmunlearn.models.tuning import trainable


def build_optimizer(model: nn.Module, family: Family, tune: Tune, args: TrainerArgs) -> torch.optim.Optimizer:
    """AdamW with one parameter group a part, each with its own learning rate."""
    groups = []
    for part, parameters in trainable(model, family).items():
        own = getattr(tune, part).learning_rate
        rate = args.learning_rate if own is None else own
        groups.append({"params": [parameter for _, parameter in parameters], "lr": rate, "peak": rate, "part": str(part)})
    return torch.optim.AdamW(
        groups,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
        fused=True,
    )


def warmup_steps(args: TrainerArgs, total: int) -> int:
    """`warmup_steps` in steps: a number below 1 is a fraction of all steps."""
    return math.ceil(args.warmup_steps * total) if args.warmup_steps < 1 else int(args.warmup_steps)


def rate_factor(step: int, *, total: int, warmup: int, scheduler: Scheduler) -> float:
    """What the peak learning rate is multiplied with in step `step` (from 0); a pure function, so nothing to save."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)
    if scheduler is Scheduler.linear:
        return max(0.0, 1.0 - done)
    if scheduler is Scheduler.cosine:
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return 1.0


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set each group's learning rate for the coming step; returns them by part."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return {str(Part(group["part"])): float(group["lr"]) for group in optimizer.param_groups}
