"""Which weights change: freezing, LoRA or full tuning of each part, and the table that shows it."""

from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from mmunlearn.config import Lora, Tune
from mmunlearn.config_enums import Mode
from mmunlearn.errors import ConfigError
from mmunlearn.models.bfloat_lora import multiply_in_bfloat16
from mmunlearn.models.families import Family, Part, bare_name, part_of
from mmunlearn.models.quantise import num_weights


@dataclass(frozen=True)
class PartSummary:
    """One row of the start-up table."""

    part: Part
    mode: Mode
    tensors: int
    """Trainable tensors."""
    trainable: int
    """Trainable weights."""
    total: int
    """All weights."""


def modes(tune: Tune) -> dict[Part, Mode]:
    """The mode of each part."""
    return {part: Mode(getattr(tune, part).mode) for part in Part}


def apply_tuning(model: nn.Module, family: Family, tune: Tune, lora: Lora) -> nn.Module:
    """Freeze what is frozen, add LoRA adapters where they are asked for, free the rest.

    Weights that never get a gradient (see `Family.unused`) stay frozen.

    Raises:
        ConfigError: a part to be tuned ends up without a trainable tensor, or is to be tuned fully in half precision.
    """
    chosen = modes(tune)
    adapted = [part for part in Part if chosen[part] is Mode.lora]
    unused = tuple(prefix for prefix in family.unused(model.config) if _is_prefix(prefix, model))
    model.requires_grad_(False)
    for part in adapted:
        if part not in family.lora_modules:
            raise ConfigError(
                f"model.tune.{part}.mode=lora, but the {part} part of a model of type {family.model_type!r} has no linear "
                "layer that an adapter could be put on. Set it to full or freeze."
            )
    if adapted:
        pattern = "|".join(f"(?:{family.lora_modules[part]})" for part in adapted)
        excluded = "|".join(f"(?:{prefix.replace('.', chr(92) + '.')}.*)" for prefix in unused)
        settings = LoraConfig(
            r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=pattern, exclude_modules=excluded or None
        )
        model = get_peft_model(model, settings)
        multiply_in_bfloat16(model)
    for name, parameter in model.named_parameters():
        bare = bare_name(name)
        part = part_of(name, family)
        if chosen[part] is Mode.full and not bare.startswith(unused):
            if parameter.is_floating_point() and parameter.dtype is not torch.float32:
                raise ConfigError(
                    f"model.tune.{part}.mode=full, but its weights are {str(parameter.dtype).removeprefix('torch.')}: most "
                    "updates would be smaller than the distance between two such numbers and be lost. Set model.dtype=float32 "
                    "(on a GPU with trainer.args.bf16=true), or tune the part with mode=lora."
                )
            parameter.requires_grad_(True)
    for row in summarise(model, family, tune):
        if row.mode is not Mode.freeze and row.tensors == 0:
            raise ConfigError(
                f"model.tune.{row.part}.mode={row.mode}, but none of its {row.total:,} weights would be trained. "
                f"Set it to freeze, or check the names in models/families.py."
            )
    return model


def _is_prefix(prefix: str, model: nn.Module) -> bool:
    return any(name.startswith(prefix) for name, _ in model.named_parameters())


def summarise(model: nn.Module, family: Family, tune: Tune) -> list[PartSummary]:
    """Count trainable and all weights of each part."""
    rows = []
    for part, mode in modes(tune).items():
        own = [parameter for name, parameter in model.named_parameters() if part_of(name, family) is part]
        free = [parameter for parameter in own if parameter.requires_grad]
        rows.append(
            PartSummary(
                part=part,
                mode=mode,
                tensors=len(free),
                trainable=sum(num_weights(parameter) for parameter in free),
                total=sum(num_weights(parameter) for parameter in own),
            )
        )
    return rows


def trainable(model: nn.Module, family: Family) -> dict[Part, list[tuple[str, nn.Parameter]]]:
    """Names and parameters that change, by part; parts without any are left out."""
    found: dict[Part, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(part_of(name, family), []).append((name, parameter))
    return found
