"""Adapters on disk: a PEFT folder, what stands beside it, and the checks that all of it acts once it is opened."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mmunlearn.errors import ConfigError
from mmunlearn.models.adapter_probe import check_probe
from mmunlearn.models.bfloat_lora import multiply_in_bfloat16
from mmunlearn.models.families import PEFT_PREFIX
from mmunlearn.models.masked_lora import base_fingerprint, mask_adapter
from mmunlearn.models.saliency_mask import SaliencyMask, load_mask, mask_fingerprint, save_mask
from mmunlearn.run import MASK_FILE

ADAPTER_FILE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MASKED_WEIGHTS = "masked_adapter_model.safetensors"
"""Instead of ADAPTER_WEIGHTS if the adapter acts through a saliency mask: without it the same weights make another model, so
PEFT and whatever builds on it must not find them."""
FULL_PARTS = "full_parts.safetensors"
"""Beside an adapter: the weights of parts that were tuned fully together with it."""


def first_line(error: Exception) -> str:
    """What an error says, cut short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def adapter_settings(path: str) -> dict[str, Any] | None:
    """What PEFT wrote about an adapter; None for a folder or hub id that holds none.

    Raises:
        ConfigError: the file is damaged or does not name the model below the adapter.
    """
    file = Path(path) / ADAPTER_FILE
    if not file.is_file():
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({first_line(error)}). Copy the adapter's folder again.") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("base_model_name_or_path"), str):
        raise ConfigError(f"{file} does not name the model below the adapter (base_model_name_or_path). Write its path there.")
    return settings


def put_adapter_on(model: Any, path: str) -> Any:
    """Put an adapter on a model and check that every one of its weights found its place.

    Args:
        model: the model below it.
        path: the adapter's folder.

    Raises:
        ConfigError: it is incomplete or damaged, or does not fit.
    """
    mask = _mask_beside(Path(path))
    file = Path(path) / (ADAPTER_WEIGHTS if mask is None else MASKED_WEIGHTS)
    if not file.is_file():
        raise ConfigError(f"{path}: {file.name} is missing. Adapters in other formats (pickles) are not opened.")
    try:
        _restore_full_parts(model, Path(path) / FULL_PARTS)
        if mask is None:
            adapted = PeftModel.from_pretrained(model, path)
            from_file = adapted.load_adapter(path, adapter_name="check")
            adapted.delete_adapter("check")
        else:
            # PEFT's loader knows one file name only.
            settings = PeftConfig.from_pretrained(path)
            settings.inference_mode = True
            adapted = PeftModel(model, settings)
            from_file = set_peft_model_state_dict(adapted, load_file(file))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{path}: the adapter cannot be loaded into {model.name_or_path} ({first_line(error)}).") from error
    if from_file.unexpected_keys or any("lora_" in key for key in from_file.missing_keys):
        raise ConfigError(f"{path}: the adapter does not fit the model {model.name_or_path}; it would do nothing in part.")
    multiply_in_bfloat16(adapted)
    if mask is not None:
        _put_mask_on(adapted, mask, file)
    check_probe(adapted, Path(path))
    return adapted


def _mask_beside(folder: Path) -> SaliencyMask | None:
    """The mask of an adapter folder; None for a plain adapter.

    Raises:
        ConfigError: the mask is missing or damaged, or stands beside the weights of a plain adapter.
    """
    mask = folder / MASK_FILE
    if not mask.is_file() and not (folder / MASKED_WEIGHTS).is_file():
        return None
    if (folder / ADAPTER_WEIGHTS).is_file():
        raise ConfigError(
            f"{folder}: {ADAPTER_WEIGHTS}, the weights of a plain adapter, stands beside the files of a masked one "
            f"({MASKED_WEIGHTS}, {MASK_FILE}). Copy the whole folder again, or remove what does not belong to the model."
        )
    if not mask.is_file():
        raise ConfigError(
            f"{folder}: {MASK_FILE} is missing. This adapter acts through its mask, and without it the weights would make "
            "another model. Copy the whole folder again, or repeat the unlearning."
        )
    try:
        return load_mask(mask)
    except ConfigError as error:
        raise ConfigError(
            f"{folder}: the mask of the adapter cannot be read, and without it the weights would make another model. Copy the "
            f"whole folder again, or repeat the unlearning. The reason: {error}"
        ) from error


def _put_mask_on(adapted: Any, mask: SaliencyMask, file: Path) -> None:
    """Restore a masked adapter, with the mask that it was trained with and no other."""
    try:
        mask_adapter(adapted, mask)
    except ConfigError as error:
        raise ConfigError(
            f"{file.parent}: {MASK_FILE} is not the mask of this adapter. Copy the whole folder again, or repeat the "
            f"unlearning. The reason: {error}"
        ) from error
    with safe_open(file, framework="pt") as opened:
        trained_with = opened.metadata() or {}
    if trained_with.get("mask") != mask_fingerprint(mask):
        raise ConfigError(
            f"{file.parent}: {MASK_FILE} is not the mask that {file.name} was trained with. Copy the whole folder again, or "
            "repeat the unlearning."
        )
    below, expected = base_fingerprint(adapted), trained_with.get("base", "")
    # In another precision the same weights look different.
    if below.partition(":")[0] == expected.partition(":")[0] and below != expected:
        raise ConfigError(
            f"{file.parent}: the model below this masked adapter is not the one that it was trained on, so that weights "
            "outside the mask would differ too. Restore that model at base_model_name_or_path, or repeat the unlearning."
        )


def _restore_full_parts(model: nn.Module, file: Path) -> None:
    """Weights that were tuned fully beside an adapter, which PEFT's own files leave out."""
    if not file.is_file():
        return
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in load_file(file).items():
            if name not in own or own[name].shape != tensor.shape:
                raise ConfigError(f"{file}: {name} does not fit the model {getattr(model, 'name_or_path', '')}.")
            own[name].copy_(tensor)


def full_parts(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that an adapter's model tunes fully, by the names of the model below it."""
    return {
        name.removeprefix(PEFT_PREFIX): parameter.detach().contiguous()
        for name, parameter in model.named_parameters()
        if isinstance(model, PeftModel) and parameter.requires_grad and "lora_" not in name
    }


def hide_without_mask(folder: Path, mask: SaliencyMask, base: str) -> None:
    """Give the weights that PEFT wrote a name that it does not look for, and put the mask beside them."""
    weights = folder / ADAPTER_WEIGHTS
    trained_with = {"format": "pt", "mask": mask_fingerprint(mask), "base": base}
    save_file(load_file(weights), folder / MASKED_WEIGHTS, metadata=trained_with)
    weights.unlink()
    save_mask(mask, folder / MASK_FILE)
