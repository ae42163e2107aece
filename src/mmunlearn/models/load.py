"""Opening and saving models: from a folder, a hub id or an adapter folder, with its processor."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from mmunlearn.config import ModelConfig
from mmunlearn.errors import ConfigError
from mmunlearn.models.families import PEFT_PREFIX, Family, family_of
from mmunlearn.models.masked_lora import adapter_mask, base_fingerprint, mask_adapter
from mmunlearn.models.saliency_mask import SaliencyMask, load_mask, mask_fingerprint, save_mask
from mmunlearn.run import explain_disk_errors, fingerprint, replace_folder, write_json

ADAPTER_FILE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MASKED_WEIGHTS, MASK_FILE = "masked_adapter_model.safetensors", "mask.safetensors"
"""Instead of ADAPTER_WEIGHTS if the adapter acts through a saliency mask: without it the same weights make another model, so
PEFT and whatever builds on it must not find them."""
FULL_PARTS = "full_parts.safetensors"
"""Beside an adapter: the weights of parts that were tuned fully together with it."""
BAR_BYTES = 1 << 30
CARD_FILE = "mmunlearn.json"
"""Beside the weights: role, method and seed of the run that wrote them."""


@dataclass(frozen=True)
class Loaded:
    """A model ready to be tuned or asked; an adapter it came with is merged already."""

    model: nn.Module
    processor: Any
    family: Family

    @property
    def max_length(self) -> int:
        """Tokens that the language part allows."""
        return _max_length(self.model.config)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the weights as they were when first asked: ask before training. Reads every weight once."""
        return model_fingerprint(self.model)


def load(config: ModelConfig, *, merge: bool = True) -> Loaded:
    """Open a model and its processor.

    Args:
        config: the section `model`; enums may be plain strings.
        merge: fold an adapter into the weights, so that another one can be trained on top. Without it the uppermost adapter
            stays beside them, which asks the model without rounding. Merging is done in float32 and stays there: in half
            precision most of an adapter's small changes would be rounded away.

    Raises:
        ConfigError: nothing to load, not found, not a vision-language model, or an adapter that does not fit.
    """
    path = _path(config)
    if _depth(path) > (0 if merge else 1) and config.dtype != "float32":
        config = replace(config, dtype="float32")
    with _progress_bars_for(Path(_bottom(path))):
        model = _load_model(path, config, merge=merge)
    return Loaded(model.eval(), load_processor(config), family_of(model.config))


def _load_model(path: str, config: ModelConfig, *, merge: bool) -> Any:
    """A model, or an adapter on the model that it was trained on, which may be an adapter folder itself."""
    adapter = _adapter_settings(path)
    if adapter is None:
        model = _load_weights(path, config)
    else:
        adapted = _adapted(_load_model(adapter["base_model_name_or_path"], config, merge=True), path)
        model = adapted.merge_and_unload() if merge else adapted
    # An adapter trained on this model records where it came from; a merged adapter is not the model below it.
    model.name_or_path = str(Path(path).resolve()) if Path(path).is_dir() else path
    return model


def _depth(path: str) -> int:
    """How many adapters lie on top of each other."""
    adapter = _adapter_settings(path)
    return 1 + _depth(adapter["base_model_name_or_path"]) if adapter else 0


def _bottom(path: str) -> str:
    """The folder or hub id with a whole model, below any adapters."""
    adapter = _adapter_settings(path)
    return _bottom(adapter["base_model_name_or_path"]) if adapter else path


def _adapter_settings(path: str) -> dict[str, Any] | None:
    file = Path(path) / ADAPTER_FILE
    return dict(json.loads(file.read_text())) if file.is_file() else None


def _from_pretrained(auto: Any, path: str, config: ModelConfig, what: str, **options: Any) -> Any:
    """Look on the disk first: asking an unreachable hub takes most of a minute before it gives up."""
    options |= {"trust_remote_code": config.trust_remote_code}
    setting = "model.processor" if what == "processor" and config.processor else "model.path"
    if Path(path).exists() or path.startswith((".", "/", "outputs")):
        if not Path(path).is_dir():
            raise ConfigError(f"{setting}: the folder {path} does not exist. Train the model first, or correct the path.")
        try:
            return auto.from_pretrained(path, local_files_only=True, **options)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            remedy = "Set model.processor to a folder or hub id that has one." if what == "processor" else f"Correct {setting}."
            reason = _first_line(error)
            raise ConfigError(f"{path}: no {what} can be read from this folder. {remedy} The reason: {reason}") from error
    try:
        return auto.from_pretrained(path, local_files_only=True, **options)
    except (OSError, ValueError, SafetensorError):
        pass  # not in the local cache of the hub, or damaged there
    try:
        return auto.from_pretrained(path, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"{path}: the {what} is neither in the local cache nor could it be fetched from the hub ({_first_line(error)}). "
            "To run offline, copy the model to this machine and set model.path=/folder/of/the/model; "
            "to try everything without any download, run: mmunlearn demo"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _load_weights(path: str, config: ModelConfig) -> Any:
    dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype, None)
    if dtype is None:
        raise ConfigError(f"model.dtype: {config.dtype!r} is unknown. Use auto, float32, bfloat16 or float16.")
    model, report = _from_pretrained(
        AutoModelForImageTextToText,
        path,
        config,
        "model",
        dtype=dtype,
        attn_implementation=config.attention,
        output_loading_info=True,
        use_safetensors=True,  # other formats are pickles, which can run code
        ignore_mismatched_sizes=True,  # to be named below instead of ending in a RuntimeError without names
    )
    # transformers only warns about these and fills the gaps with random numbers.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            names = ", ".join(sorted(str(name) for name in report[kind])[:5])
            raise ConfigError(f"{path}: the weights do not fit the architecture ({kind.replace('_', ' ')}: {names}).")
    return model


def _adapted(model: Any, path: str) -> Any:
    """Put an adapter on a model and check that every one of its weights found its place."""
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
        raise ConfigError(f"{path}: the adapter cannot be loaded into {model.name_or_path} ({_first_line(error)}).") from error
    if from_file.unexpected_keys or any("lora_" in key for key in from_file.missing_keys):
        raise ConfigError(f"{path}: the adapter does not fit the model {model.name_or_path}; it would do nothing in part.")
    if mask is not None:
        _put_mask_on(adapted, mask, file)
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


def _full_parts(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that an adapter's model tunes fully, by the names of the model below it."""
    return {
        name.removeprefix(PEFT_PREFIX): parameter.detach().contiguous()
        for name, parameter in model.named_parameters()
        if isinstance(model, PeftModel) and parameter.requires_grad and "lora_" not in name
    }


def load_processor(config: ModelConfig) -> Any:
    """The processor of a model (tokenizer, image processor, chat template), without its weights.

    Raises:
        ConfigError: there is none, or it is incomplete.
    """
    path = _path(config)
    source = config.processor or path
    if Path(source).is_dir() and not (Path(source) / "tokenizer_config.json").is_file():
        source = _bottom(path)
    processor = _from_pretrained(AutoProcessor, source, config, "processor")
    if not hasattr(processor, "image_processor") or not getattr(processor, "chat_template", None):
        raise ConfigError(
            f"{source}: there is no complete processor (tokenizer, image processor, chat template) beside the weights. "
            "Set model.processor to a folder or hub id that has one."
        )
    return processor


def load_max_length(config: ModelConfig) -> int:
    """Tokens that a model's language part allows, without opening its weights."""
    return _max_length(_from_pretrained(AutoConfig, _bottom(_path(config)), config, "configuration"))


def _path(config: ModelConfig) -> str:
    path = config.path or config.name
    if not path:
        raise ConfigError("model.path is empty. Give a folder with a saved model, or choose a preset: model=llava-1.5-7b-hf.")
    return path


def _max_length(config: Any) -> int:
    return int(getattr(config, "text_config", config).max_position_embeddings)


def save(model: nn.Module, processor: Any, folder: Path, card: dict[str, Any] | None = None) -> None:
    """Write a model (or, for a LoRA model, its adapter) and its processor in hub layout.

    The folder appears at once or not at all: a full disk leaves what was there before.
    """

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)  # type: ignore[operator]
        processor.save_pretrained(temporary)
        if full := _full_parts(model):
            save_file(full, temporary / FULL_PARTS)
        if mask := adapter_mask(model):
            _hide_without_mask(temporary, mask, base_fingerprint(model))
        write_json(temporary / CARD_FILE, card or {})

    with explain_disk_errors(folder), _progress_bars_for(model):
        replace_folder(folder, write)


def _hide_without_mask(folder: Path, mask: SaliencyMask, base: str) -> None:
    """Give the weights that PEFT wrote a name that it does not look for, and put the mask beside them."""
    weights = folder / ADAPTER_WEIGHTS
    trained_with = {"format": "pt", "mask": mask_fingerprint(mask), "base": base}
    save_file(load_file(weights), folder / MASKED_WEIGHTS, metadata=trained_with)
    weights.unlink()
    save_mask(mask, folder / MASK_FILE)


@contextmanager
def _progress_bars_for(what: Path | nn.Module) -> Iterator[None]:
    """Let transformers draw its bars for models that take a while, and not for small ones."""
    if isinstance(what, Path):
        num_bytes = sum(file.stat().st_size for file in what.glob("*.safetensors")) if what.is_dir() else BAR_BYTES
    else:
        num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in what.parameters())
    if num_bytes < BAR_BYTES:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def read_card(path: str) -> dict[str, Any]:
    """What a folder written by this package says about its model (role, method, seed); empty for other models.

    Raises:
        ConfigError: the card is damaged.
    """
    file = Path(path) / CARD_FILE
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{file}: not a JSON object ({error}). Delete the file, and set run.role where a verb asks for it."
        ) from error


def folders_below(path: str) -> list[str]:
    """The folder or hub id that a model is opened from, and those of the models below it if it is an adapter."""
    adapter = _adapter_settings(path)
    return [path, *folders_below(adapter["base_model_name_or_path"])] if adapter else [path]


def model_fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that identify the weights (in-memory names, shapes, bytes) and the mask of an adapter."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    if mask := adapter_mask(model):
        digest.update(mask_fingerprint(mask).encode())
    return digest.hexdigest()


def processor_fingerprint(processor: Any) -> str:
    """Identifies what a processor makes of text and images: chat template, vocabulary, image settings."""
    tokenizer = processor.tokenizer.backend_tokenizer.to_str()
    return fingerprint([processor.chat_template, tokenizer, processor.image_processor.to_dict()])
