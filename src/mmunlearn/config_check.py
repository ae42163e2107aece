"""The check of a whole configuration, which reports all problems at once, and says what was meant.

A section with `_target_` (`data`, `trainer.method`) also takes the fields of the class that it names; that class is the
schema, there is no registry.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from functools import cache, reduce
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmunlearn.config import TARGET, Config, SaliencyConfig, configs_folder
from mmunlearn.config_enums import Mode, Rule
from mmunlearn.errors import ConfigError, UserError, did_you_mean

TARGETED = ("data", "trainer.method")
"""The sections that name a class."""
CHECKED_LATER = (
    *("demo.see", "demo.base", "demo.vanilla", "demo.gold", "demo.gold_text", "demo.masks", "demo.methods"),
    "data.of",
    "sweep.slurm",
)
"""Sections that become configurations of their own, and are checked as such: of trainers, of a benchmark, of submitit."""


def checked(config: DictConfig) -> DictConfig:
    """Check names and types of all settings and fill in the defaults.

    Returns:
        A complete, resolved configuration, whose `data` and `trainer.method` keep their `_target_`.

    Raises:
        ConfigError: with every problem in one message.
    """
    problems: list[str] = []
    plain = _resolved(config, problems)
    _check_section("", plain, Config, problems)
    if not problems:
        complete = _merge(plain)
        problems += _cross_field_problems(complete)
    if problems:
        raise ConfigError("\n".join(problems))
    for path in ("run.dir", "model.path", "model.processor"):
        OmegaConf.update(complete, path, _without_tilde(OmegaConf.select(complete, path)))
    return complete


def _without_tilde(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _resolved(config: DictConfig, problems: list[str]) -> dict[str, Any]:
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        return dict(OmegaConf.to_container(own, resolve=True, throw_on_missing=True))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        problems.append(f"{getattr(error, 'full_key', '') or 'configuration'}: {str(error).splitlines()[0]}")
        return {}


def _check_section(path: str, section: dict[str, Any], schema: Any, problems: list[str]) -> None:
    """Unknown keys of a section and, going down, of the sections in it; values get the type of their field."""
    fields = _fields_with_target(path, section, schema, problems)
    for key, value in section.items():
        here = f"{path}.{key}".lstrip(".")
        if key == TARGET:
            continue
        if key not in fields:
            problems.append(_unknown(path, str(key), fields))
        elif here in CHECKED_LATER:
            continue
        elif isinstance(value, dict):
            if dataclasses.is_dataclass(fields[key]) or here in TARGETED:
                _check_section(here, value, fields[key], problems)
            else:
                problems.append(f"{here}: expected one value, not a section.")
        elif here in TARGETED:
            problems.append(f"{here}: expected a section with {TARGET}, not {value!r}. Presets: {_presets(here)}.")
        else:
            section[key] = _converted(here, value, fields[key], problems)


def _fields_with_target(path: str, section: Mapping[str, Any], schema: Any, problems: list[str]) -> dict[str, Any]:
    fields = _fields(schema) if dataclasses.is_dataclass(schema) else {}
    if path in TARGETED:
        try:
            fields |= _fields(target_class(path, section))
        except ConfigError as error:
            problems.append(str(error))
            fields |= dict.fromkeys(section)  # without the class nothing can be said about its fields
    return fields


def _fields(schema: Any) -> dict[str, Any]:
    return {item.name: item.type for item in dataclasses.fields(schema) if item.init}


def target_class(path: str, section: Mapping[str, Any]) -> Any:
    """The class that a section names.

    Raises:
        ConfigError: no `_target_`, or no such class, or not one of this package's dataclasses.
    """
    target = section.get(TARGET)
    if not isinstance(target, str):
        raise ConfigError(f"{path}: names no class. Choose a preset ({_presets(path)}).")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path}.{TARGET}: cannot import {target!r} ({error}). Presets: {_presets(path)}.") from error
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise ConfigError(f"{path}.{TARGET}: {target!r} is not a dataclass, so its settings cannot be checked.")
    return found


def build(path: str, section: Mapping[str, Any] | None) -> Any:
    """The object that a section describes by `_target_` and the fields of that class.

    Args:
        path: where the section stands, for messages.
        section: what stands there.

    Raises:
        ConfigError: no class is named.
        UserError: the class does not take these values.
    """
    if not section or TARGET not in section:
        raise ConfigError(f"{path}: names no class. Choose a preset ({_presets(path)}).")
    target_class(path, section)  # a recorded configuration may come from somebody else
    try:
        return instantiate(section, _convert_="all", _recursive_=False)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):  # Hydra's wrapping says "Error in call to target"
            raise error.__cause__ from error
        raise


def _presets(path: str) -> str:
    group = path.split(".")[0]
    names = sorted(file.stem for file in (configs_folder() / group).glob("*.yaml"))
    return ", ".join(f"{group}={name}" for name in names)


def _unknown(path: str, key: str, fields: Mapping[str, Any]) -> str:
    here = f"{path}.{key}".lstrip(".")
    if path == "trainer.args":
        reason = _training_argument_reason(key)
        if reason:
            return f"{here}: {reason}"
    return f"{here}: there is no such setting. {did_you_mean(key, fields)}"


_REASONS = {
    "warmup_ratio": "was removed from transformers 5; give trainer.args.warmup_steps a number below 1 instead.",
    "optim": "the optimizer is AdamW; another one is not supported yet.",
    "seed": "set run.seed.",
    "output_dir": "set run.dir.",
    "overwrite_output_dir": "set run.overwrite.",
    "resume_from_checkpoint": "set run.resume=true.",
    "fp16": "float16 training needs loss scaling, which is not supported; use trainer.args.bf16.",
    "remove_unused_columns": "nothing is ever removed from a batch.",
    "per_device_eval_batch_size": "set evaluation.batch_size.",
    "max_seq_length": "sequences are never truncated, since that would cut image tokens.",
}


def _training_argument_reason(key: str) -> str:
    if key in _REASONS:
        return _REASONS[key]
    from transformers import TrainingArguments  # slow to import, and needed for this message only

    known = {item.name for item in dataclasses.fields(TrainingArguments)}
    return "an argument of transformers' Trainer that is not supported here." if key in known else ""


def _converted(path: str, value: Any, expected: Any, problems: list[str]) -> Any:
    """One value in the type of its field ("1e-3" becomes 0.001), by OmegaConf's own conversion rules."""
    if expected is Any or expected is None:
        return value
    if dataclasses.is_dataclass(expected):
        problems.append(f"{path}: expected a section, not {value!r}.")
        return value
    # `bool | str` takes every spelling of a truth value that a plain bool takes, and words.
    for kind in (bool, expected) if expected == bool | str else (expected,):
        with suppress(OmegaConfBaseException):
            return OmegaConf.merge(_probe(kind), {"value": value}).value
    problems.append(f"{path}: {_type_message(value, expected)}")
    return value


@cache
def _probe(expected: Any) -> Any:
    """A configuration of one value of this type."""
    return OmegaConf.structured(dataclasses.make_dataclass("Probe", [("value", expected)]))


@cache
def _defaults(schema: Any) -> dict[str, Any]:
    """The defaults of a dataclass and those in it; to be copied, not changed."""
    return dict(OmegaConf.to_container(OmegaConf.structured(schema)))  # type: ignore[arg-type]


def _type_message(value: Any, expected: Any) -> str:
    for kind in (expected, *get_args(expected)):  # the second for `Role | None`
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            return f"{value!r} is not one of {', '.join(kind)}. {did_you_mean(str(value), map(str, kind))}"
    if get_origin(expected) in (list, tuple):
        return f"{value!r} is one value, but a list is expected: write [{value}]."
    return f"{value!r} is not of type {getattr(expected, '__name__', expected)}."


def _merge(plain: dict[str, Any]) -> DictConfig:
    """Defaults of all sections under the given values, which were checked one by one."""
    complete = copy.deepcopy(_defaults(Config))
    for path in TARGETED:  # such a section has the fields of two classes, so no schema could hold it
        *sections, key = path.split(".")
        given, own = reduce(_section, sections, plain).get(key), reduce(_section, sections, complete)
        if given is not None:
            own[key] = _laid_over(_defaults(target_class(path, given)), own[key] or {})
    merged: Any = OmegaConf.to_container(DictConfig(_laid_over(complete, plain)), resolve=True, enum_to_str=True)
    return DictConfig(merged)


def _section(within: Mapping[str, Any], key: str) -> Any:
    return within.get(key) or {}


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A new section with the values of both; of two values the one above counts."""
    both = dict(below)
    for key, value in above.items():
        under = both.get(key)
        both[key] = _laid_over(under, value) if isinstance(value, dict) and isinstance(under, dict) else value
    return both


def _cross_field_problems(config: DictConfig) -> list[str]:
    return list(_range_problems(config)) + list(_clashes(config))


_AT_LEAST_ONE = (
    "trainer.args.per_device_train_batch_size",
    "trainer.args.gradient_accumulation_steps",
    "trainer.args.logging_steps",
    "trainer.args.save_total_limit",
    "evaluation.batch_size",
    "data.retain_per_forget",
    "saliency.batch_size",
    "model.peft.r",
    "model.peft.alpha",
)
_AT_LEAST_ZERO = (
    "trainer.args.num_train_epochs",
    "trainer.args.learning_rate",
    "trainer.args.weight_decay",
    "trainer.args.max_grad_norm",
    "trainer.args.warmup_steps",
    "trainer.args.save_steps",
    "trainer.args.stop_forget_loss",
    "trainer.args.dataloader_num_workers",
    "trainer.args.adam_beta1",
    "trainer.args.adam_beta2",
    "trainer.args.adam_epsilon",
    "model.peft.dropout",
    "evaluation.limit",
    "saliency.epsilon",
    "saliency.limit",
    "saliency.max_bytes",
)


_ABOVE_ZERO = ("trainer.args.num_train_epochs",)
_POSITIVE = ("saliency.threshold", "saliency.density")
_BELOW_ONE = ("trainer.args.adam_beta1", "trainer.args.adam_beta2", "model.peft.dropout", "saliency.density")


def _range_problems(config: DictConfig) -> Iterator[str]:
    for bound, paths in ((1, _AT_LEAST_ONE), (0, _AT_LEAST_ZERO)):
        for path in paths:
            value = OmegaConf.select(config, path)
            if not value >= bound:  # not a number is refused too
                yield f"{path}: {value} is too small; the least is {bound}."
    for path in _ABOVE_ZERO:
        value = OmegaConf.select(config, path)
        if value == 0:
            yield f"{path}: {value} would train nothing."
    for path in _POSITIVE:
        value = OmegaConf.select(config, path)
        if not 0 < value < float("inf"):
            yield f"{path}: {value} must be a number above 0."
    for path in _BELOW_ONE:
        value = OmegaConf.select(config, path)
        if value >= 1:
            yield f"{path}: {value} is too large; it must be below 1."


_OF_GRADIENTS = ("loss", "per", "batch_size", "limit", "max_bytes")
_OF_RULE = {
    Rule.fisher_ratio: ("threshold", "epsilon", *_OF_GRADIENTS),
    Rule.forget_gradient: ("density", *_OF_GRADIENTS),
    Rule.random: ("like",),
    Rule.magnitude: ("like",),
}
"""The settings of a mask that a rule looks at, besides those that every rule does."""


def _saliency_problems(saliency: DictConfig) -> Iterator[str]:
    """Settings that the rule would ignore; a preset may still lack `like`, which the verb asks for."""
    defaults = SaliencyConfig()
    used = _OF_RULE[Rule(saliency.rule)]
    for name in dict.fromkeys(name for names in _OF_RULE.values() for name in names):
        if name not in used and saliency[name] != getattr(defaults, name):
            takers = " and ".join(rule for rule, names in _OF_RULE.items() if name in names)
            yield f"saliency.{name}: the rule {saliency.rule} does not use it, only {takers}. Leave it out."


def _clashes(config: DictConfig) -> Iterator[str]:
    yield from _saliency_problems(config.saliency)
    if config.run.resume not in (True, False, "latest"):
        yield f"run.resume={config.run.resume}: must be true, false or latest."
    checkpointing = config.trainer.args.gradient_checkpointing
    if checkpointing not in (True, False, "selective"):
        yield f"trainer.args.gradient_checkpointing={checkpointing}: must be true, false or selective."
    if config.run.resume and config.run.overwrite:
        yield "run.resume and run.overwrite: choose one; resume goes on with the earlier run, overwrite deletes it."
    if all(part.mode == Mode.freeze for part in config.model.tune.values()):
        yield "model.tune: every part is frozen, so nothing would change. Set model.tune.language.mode=lora or full."
