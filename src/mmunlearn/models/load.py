"""Opening and saving models: from a folder, a hub id or an adapter folder, with its processor."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import logging

from mmunlearn.config import ModelConfig
from mmunlearn.config_enums import Quantise
from mmunlearn.data.rendering import locates_answers
from mmunlearn.errors import ConfigError
from mmunlearn.models.adapter_folder import (
    FULL_PARTS,
    adapter_settings,
    first_line,
    full_parts,
    hide_without_mask,
    put_adapter_on,
)
from mmunlearn.models.adapter_probe import Probe, probe, write_probe
from mmunlearn.models.families import FAMILIES, PEFT_PREFIX, Family
from mmunlearn.models.fingerprints import model_fingerprint as model_fingerprint
from mmunlearn.models.fingerprints import processor_fingerprint as processor_fingerprint
from mmunlearn.models.generic import recognise
from mmunlearn.models.image_only import Processors
from mmunlearn.models.masked_lora import adapter_mask, base_fingerprint
from mmunlearn.models.quantise import (
    ROUNDED,
    check_installed,
    check_stored,
    check_unpacked,
    keep_as_stored,
    nf4_settings,
    quantisation_of,
    quantise,
    rounding_below,
    rounding_record,
)
from mmunlearn.run import CARD_FILE, explain_disk_errors, replace_folder, write_json

console = Console(stderr=True)
BAR_BYTES = 1 << 30


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


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What only all ranks together can say of a model whose weights are sharded."""

    weights: Mapping[str, torch.Tensor] | None = None
    """By in-memory name, whole; of a LoRA model those that are trained. None: the model has them."""
    probe: Probe | None = None
    """Of a LoRA model."""


def load(config: ModelConfig, *, merge: bool = True) -> Loaded:
    """Open a model and its processor.

    Args:
        config: the section `model`; enums may be plain strings.
        merge: fold an adapter into the weights, so that another one can be trained on top. Without it the uppermost adapter
            stays beside them, which asks the model without rounding. Merging is done in float32 and stays there: in half
            precision most of an adapter's small changes would be rounded away. Where `config.quantise` is int8 or int4, an
            adapter is merged in any case, and the sum is rounded, as it would be deployed.

    Raises:
        ConfigError: nothing to load, not found, not a vision-language model, or an adapter that does not fit.
    """
    path, how = _path(config), Quantise(config.quantise)
    _check_quantise(how, path, to_be_trained=merge)
    with _progress_bars_for(Path(_bottom(path))):
        if how in ROUNDED:
            model = deployable(config)
            quantise(model, how)
        else:
            if _depth(path) > (0 if merge else 1) and config.dtype != "float32":
                config = replace(config, dtype="float32")
            model = _load_model(path, config, merge=merge)
    if merge and quantisation_of(model) in ROUNDED:
        raise ConfigError(f"{path} is rounded to {quantisation_of(model)}, which can be evaluated but not trained.")
    family = recognise(model)
    for note in family.notes:
        console.print(note, highlight=False)
    return Loaded(model.eval(), load_processor(config), family)


def _check_quantise(how: Quantise, path: str, *, to_be_trained: bool) -> None:
    check_installed(how, "model.quantise")
    if to_be_trained and how in ROUNDED:
        raise ConfigError(
            f"model.quantise={how} is for evaluation. To train adapters on a model in 4 bits, set model.quantise=nf4 (QLoRA)."
        )
    if how is Quantise.nf4 and _depth(path):
        raise ConfigError(
            f"model.quantise=nf4: {path} holds an adapter, and it would have to be merged first. Write the whole model with "
            f"`mmunlearn export model.path={path} run.dir=FOLDER` and set model.path=FOLDER."
        )


def deployable(config: ModelConfig) -> Any:
    """The whole model as it is deployed: adapters merged in float32, the sum rounded once to the precision it is to have.

    That precision is `config.dtype`; with `auto` the one of the model below the adapters. Buffers stay in float32, as they do
    when a model is opened in half precision.
    """
    path = _path(config)
    if not _depth(path):
        return _load_model(path, replace(config, quantise=Quantise.none), merge=True)
    model = _load_model(path, replace(config, dtype="float32", quantise=Quantise.none), merge=True)
    below = _from_pretrained(AutoConfig, _bottom(path), config, "model").dtype or torch.float32
    dtype = below if config.dtype == "auto" else _named_dtype(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def _load_model(path: str, config: ModelConfig, *, merge: bool) -> Any:
    """A model, or an adapter on the model that it was trained on, which may be an adapter folder itself."""
    adapter = adapter_settings(path)
    if adapter is None:
        model = _load_weights(path, config)
    else:
        below = adapter["base_model_name_or_path"]
        how, dtype = rounding_below(read_card(path))
        check_installed(how, f"{path}: the adapter was trained on weights in {how}, which")
        base = _load_model(below, replace(config, quantise=how, dtype=dtype or config.dtype), merge=True)
        widened = config.dtype == "float32" and dtype not in ("", "float32")
        if how is not Quantise.none and (merge or widened):  # merged as it is, the sum would be rounded to 4 bits again
            base = base.dequantize(dtype=torch.float32).float()
        adapted = put_adapter_on(base, path)
        model = adapted.merge_and_unload() if merge else adapted
    # An adapter trained on this model records where it came from; a merged adapter is not the model below it.
    model.name_or_path = str(Path(path).resolve()) if Path(path).is_dir() else path
    return model


def _depth(path: str) -> int:
    """How many adapters lie on top of each other."""
    adapter = adapter_settings(path)
    return 1 + _depth(adapter["base_model_name_or_path"]) if adapter else 0


def _bottom(path: str) -> str:
    """The folder or hub id with a whole model, below any adapters."""
    adapter = adapter_settings(path)
    return _bottom(adapter["base_model_name_or_path"]) if adapter else path


def _from_pretrained(auto: Any, path: str, config: ModelConfig, what: str, **options: Any) -> Any:
    """Look on the disk first: asking an unreachable hub takes most of a minute before it gives up."""
    options |= {"trust_remote_code": config.trust_remote_code}
    setting = "model.processor" if what == "processor" and config.processor else "model.path"
    if Path(path).exists() or path.startswith((".", "/", "outputs")):
        if not Path(path).is_dir():
            raise ConfigError(f"{setting}: the folder {path} does not exist. Train the model first, or correct the path.")
        try:
            return auto.from_pretrained(path, local_files_only=True, **options)
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            remedy = "Set model.processor to a folder or hub id that has one." if what == "processor" else f"Correct {setting}."
            reason = first_line(error)
            raise ConfigError(f"{path}: no {what} can be read from this folder. {remedy} The reason: {reason}") from error
    try:
        return auto.from_pretrained(path, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, SafetensorError):
        pass  # not in the local cache of the hub, or damaged there
    try:
        return auto.from_pretrained(path, **options)
    except ImportError as error:
        raise ConfigError(f"{path}: the {what} needs a package that is not installed: {first_line(error)}") from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigError(
            f"{path}: the {what} is neither in the local cache nor could it be fetched from the hub ({first_line(error)}). "
            "To run offline, copy the model to this machine and set model.path=/folder/of/the/model; "
            "to try everything without any download, run: mmunlearn demo"
        ) from error


def _load_weights(path: str, config: ModelConfig) -> Any:
    dtype = _named_dtype(config)
    stored = _from_pretrained(AutoConfig, path, config, "model")
    check_stored(stored, path)
    family = FAMILIES.get(str(stored.model_type))
    _check_works(family, config)
    options: dict[str, Any] = {}
    if config.quantise == Quantise.nf4:
        own = stored.dtype or torch.float32
        options["quantization_config"] = nf4_settings(own if dtype == "auto" else dtype, family, config.tune)
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
        **options,
    )
    keep_as_stored(model)
    check_unpacked(model)
    # transformers only warns about these and fills the gaps with random numbers.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            names = ", ".join(sorted(str(name) for name in report[kind])[:5])
            raise ConfigError(f"{path}: the weights do not fit the architecture ({kind.replace('_', ' ')}: {names}).")
    return model


def _named_dtype(config: ModelConfig) -> Any:
    """The torch dtype that `model.dtype` names, or `auto`."""
    dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype, None)
    if dtype is None:
        raise ConfigError(f"model.dtype: {config.dtype!r} is unknown. Use auto, float32, bfloat16 or float16.")
    return dtype


def _check_works(family: Family | None, config: ModelConfig) -> None:
    """Refuse settings under which a family does not run, or gives wrong numbers."""
    if family is None:
        return
    if config.attention not in family.attention:
        raise ConfigError(
            f"model.attention={config.attention} does not work for models of type {family.model_type!r}. Use one of "
            f"{', '.join(family.attention)}."
        )
    if config.dtype in family.unsafe_dtypes:
        raise ConfigError(
            f"model.dtype={config.dtype} gives wrong numbers for models of type {family.model_type!r}: "
            f"{family.unsafe_dtypes[config.dtype]}. Use bfloat16 or float32."
        )


def _model_type(path: str, config: ModelConfig) -> str:
    return str(_from_pretrained(AutoConfig, path, config, "model").model_type)


def load_processor(config: ModelConfig) -> Any:
    """The processor of a model (tokenizer, image processor, chat template), without its weights.

    Where its chat template writes an answer otherwise than it asks for one, the family's own takes its place, and says so.

    Raises:
        ConfigError: there is none, or it is incomplete.
    """
    path = _path(config)
    source = config.processor or path
    if Path(source).is_dir() and not (Path(source) / "tokenizer_config.json").is_file():
        source = _bottom(path)
    processor = _from_pretrained(Processors, source, config, "processor")
    if not hasattr(processor, "image_processor") or not getattr(processor, "chat_template", None):
        raise ConfigError(
            f"{source}: there is no complete processor (tokenizer, image processor, chat template) beside the weights. "
            "Set model.processor to a folder or hub id that has one."
        )
    if not locates_answers(processor):
        _replace_template(processor, _model_type(_bottom(path), config), source)
    return processor


def _replace_template(processor: Any, model_type: str, source: str) -> None:
    """Give a processor its family's chat template."""
    template = FAMILIES[model_type].chat_template if model_type in FAMILIES else ""
    if not template:
        raise ConfigError(
            f"{source}: the chat template writes other text before an answer than it does to ask for one, so that answers "
            f"cannot be located, and there is none for models of type {model_type!r} to take its place. Mend "
            "chat_template.jinja there, or set model.processor to a folder with a mended copy."
        )
    processor.chat_template = template
    console.print(
        f"{source}: the chat template writes an answer otherwise than it asks for one; the template of the family "
        f"{model_type!r} (mmunlearn/models/templates.py) takes its place, for asking too.",
        highlight=False,
    )


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


def save(
    model: nn.Module, processor: Any, folder: Path, card: dict[str, Any] | None = None, *, gathered: Gathered | None = None
) -> None:
    """Write a model (or, for a LoRA model, its adapter) and its processor in hub layout.

    The folder appears at once or not at all: a full disk leaves what was there before.

    Args:
        model: what is saved.
        processor: goes beside it.
        folder: where to.
        card: what `mmunlearn.json` there says.
        gathered: what stands in for the model's own weights if they are sharded.
    """
    gathered = gathered or Gathered(probe=probe(model) if isinstance(model, PeftModel) else None)

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary, state_dict=gathered.weights)  # type: ignore[operator]
        processor.save_pretrained(temporary)
        if gathered.probe is not None:
            write_probe(gathered.probe, temporary)
        if full := full_parts(model):
            own = gathered.weights or {}
            save_file({name: own.get(f"{PEFT_PREFIX}{name}", tensor) for name, tensor in full.items()}, temporary / FULL_PARTS)
        if mask := adapter_mask(model):
            hide_without_mask(temporary, mask, base_fingerprint(model))
        write_json(temporary / CARD_FILE, {**(card or {}), **rounding_record(model)})

    with explain_disk_errors(folder), _progress_bars_for(model):
        replace_folder(folder, write)


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
    adapter = adapter_settings(path)
    return [path, *folders_below(adapter["base_model_name_or_path"])] if adapter else [path]
