"""From the words of a command line to checked configurations, one a job; Hydra composes, this module explains."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from mmunlearn.config import Config, configs_folder
from mmunlearn.config_check import checked
from mmunlearn.errors import ConfigError, StoppedError, UserError, did_you_mean

Verb = Callable[[DictConfig], object]
FLAGS_WITH_VALUE = {"--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd", "--package", "-p", "--cfg", "-c"}

QUIET = (
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra.sweep.subdir=.",
)
"""A run's folder is made by the run itself, after all checks have passed; Hydra is to write nothing of its own."""


def launch(verb: Verb, config_name: str, sections: Sequence[str], words: Sequence[str]) -> int:
    """Compose the configuration that `words` ask for, check it and call the verb; with `-m`, for every combination.

    Args:
        verb: what to do with a checked configuration.
        config_name: the default; `--config-name` among the words replaces it.
        sections: those that the verb uses; a setting in another one would be ignored, so it is an error.
        words: flags of Hydra and overrides `key=value`.

    Returns:
        Exit code: 0, or that of a user's error with which a job ended (the other jobs of a sweep still run).

    Raises:
        ConfigError: the words cannot be understood.
    """
    flags, overrides = _split(words)
    parsed = _parsed(overrides)
    swept = [override.key_or_group for override in parsed if override.is_sweep_override()]
    _check_sections(parsed, sections)
    failures: list[UserError] = []
    command = list(sys.argv)

    def job(config: DictConfig) -> None:
        sys.argv = command  # what was typed is what environment.json records
        if any(isinstance(failure, StoppedError) for failure in failures):
            return  # told to stop: the jobs of a sweep that are left are not begun
        try:
            complete = checked(config)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                complete.run.dir = str(Path(complete.run.dir) / _job_name(swept))
            verb(complete)
        except UserError as error:
            failures.append(error)
            _say(str(error))

    _check_config_name(flags)
    with TemporaryDirectory(prefix="mmunlearn-sweep-") as folder:  # a sweep writes multirun.yaml, whatever it is told
        sys.argv = [sys.argv[0], *flags, *QUIET, f"hydra.sweep.dir='{folder}'", *map(_tolerant, parsed)]
        hydra.main(config_path=str(configs_folder()), config_name=config_name, version_base="1.3")(job)()
    return max((failure.exit_code for failure in failures), default=0)


def _say(message: str) -> None:
    sys.stderr.write(f"\nmmunlearn: {message}\n")


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's own flags, and the overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for word in words:
        (flags if takes_value or word.startswith("-") else overrides).append(word)
        takes_value = word in FLAGS_WITH_VALUE
    return flags, overrides


def _parsed(overrides: Sequence[str]) -> list[Override]:
    found = []
    for word in overrides:
        try:
            found += OverridesParser.create().parse_overrides([word])
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"{word!r} is not a setting of the form key=value ({reason}). A value with '=', a comma, a space or a bracket "
                "needs quotes inside quotes: 'run.dir=\"a=b, c\"'."
            ) from error
    return found


def _check_sections(overrides: Sequence[Override], sections: Sequence[str]) -> None:
    known = [item.name for item in dataclasses.fields(Config)]
    for override in overrides:
        section = str(override.key_or_group).split(".")[0].split("/")[0]
        if section == "deepspeed":
            raise ConfigError("deepspeed: name the file instead: trainer.args.deepspeed=configs/deepspeed/zero3.json")
        if section in known and section not in sections:
            raise ConfigError(f"{override.input_line}: this verb does not use {section!r}, only {', '.join(sections)}.")


def _tolerant(override: Override) -> str:
    """Let an unknown key pass Hydra, whose own message knows no remedy, so that `checked` can name all mistakes at once."""
    line = str(override.input_line)
    group = configs_folder() / str(override.key_or_group)
    if group.is_dir():
        _check_choice(override, group)
        return line
    return line if line.startswith(("+", "~", "hydra")) else f"++{line}"


def _check_choice(override: Override, group: Path) -> None:
    choices = {path.stem for path in group.glob("*.yaml")}
    if override.is_delete():
        return
    for value in override.value().list if override.is_choice_sweep() else [override.value()]:
        if value not in choices:
            hint = did_you_mean(str(value), choices)
            raise ConfigError(f"{override.key_or_group}={value}: there is no such preset. {hint}")


def _check_config_name(flags: Sequence[str]) -> None:
    for flag, value in pairwise(flags):
        names = {path.stem for path in configs_folder().glob("*.yaml")}
        if flag in ("--config-name", "-cn") and value.removesuffix(".yaml") not in names:
            raise ConfigError(f"--config-name {value}: there is no such configuration. {did_you_mean(value, names)}")


def _job_name(swept: Sequence[str]) -> str:
    """The folder of one job of a sweep, named by what differs."""
    settings = HydraConfig.get().overrides.task
    chosen = [setting.lstrip("+") for setting in settings if setting.lstrip("+").split("=")[0] in swept]
    return ",".join(chosen).replace("/", "_") or str(HydraConfig.get().job.num)
