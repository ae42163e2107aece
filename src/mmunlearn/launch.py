"""From the words of a command line to checked configurations, one a job; Hydra composes, this module explains."""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mmunlearn.config import Config, SweepConfig, configs_folder, typed
from mmunlearn.config_check import checked
from mmunlearn.errors import ConfigError, UserError, did_you_mean
from mmunlearn.sweep.jobs import Ended, combinations, planned
from mmunlearn.sweep.run import Sweep, run_sweep

MULTIRUN = frozenset({"-m", "--multirun"})
HYDRAS_SWEEPS = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper", "hydra.sweep")
Verb = Callable[[DictConfig], object]
NAMES_A_CONFIG = {"--config-name", "-cn"}
FLAGS_WITH_VALUE = {*NAMES_A_CONFIG, "--config-path", "-cp", "--config-dir", "-cd", "--package", "-p", "--cfg", "-c"}

QUIET = (
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
)
"""A run's folder is made by the run itself, after all checks have passed; Hydra is to write nothing of its own."""


def launch(name: str, verb: Verb, config_name: str, sections: Sequence[str], words: Sequence[str]) -> int:
    """Compose the configuration that `words` ask for, check it and call the verb; with `-m`, for every combination.

    Args:
        name: the verb as it is typed, for jobs in processes of their own.
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
    _check_config_name(flags)
    if MULTIRUN & set(flags):
        return _sweep(name, verb, config_name, sections, flags, parsed)
    _check_sections(parsed, sections)
    failure = _one_job(verb, config_name, flags, parsed)
    return failure.exit_code if failure else 0


def _one_job(
    verb: Verb, config_name: str, flags: Sequence[str], parsed: Sequence[Override], *, hydra_reports: bool = False
) -> UserError | None:
    """Run one job; returns the user's error that it ended with, which has been said."""
    failures: list[UserError] = []

    def job(config: DictConfig) -> None:
        try:
            verb(checked(config))
        except UserError as error:
            failures.append(error)
            _say(str(error))

    _with_hydra(job, config_name, flags, parsed, hydra_reports=hydra_reports)
    return failures[0] if failures else None


def _with_hydra(
    job: Verb, config_name: str, flags: Sequence[str], parsed: Sequence[Override], *, hydra_reports: bool = False
) -> None:
    """Call `job` with what Hydra composes; with `--cfg` and the like Hydra prints that instead.

    With `hydra_reports` Hydra prints an error that nobody expected and turns it into SystemExit, so that other jobs may run.

    Raises:
        ConfigError: nothing can be composed of these words.
    """
    words = list(map(_tolerant, parsed))
    only_names = set(flags[::2]) <= NAMES_A_CONFIG and len(flags) % 2 == 0
    if only_names and not hydra_reports and not any(word.lstrip("+~").startswith("hydra") for word in words):
        composed = _composed(flags[-1] if flags else config_name, words)
        if "${hydra:" not in OmegaConf.to_yaml(composed):  # which only a whole run of Hydra can resolve
            job(composed)
            return
    command = list(sys.argv)

    def called(config: DictConfig) -> None:
        sys.argv = command  # what was typed is what environment.json records
        job(config)

    sys.argv = [sys.argv[0], *flags, *QUIET, *words]
    try:
        hydra.main(config_path=str(configs_folder()), config_name=config_name, version_base="1.3")(called)()
    finally:
        sys.argv = command


def _composed(config_name: str, words: list[str]) -> DictConfig:
    """What `hydra.main` would hand over, which composes twice on the way."""
    try:
        with hydra.initialize_config_dir(str(configs_folder()), version_base="1.3"):
            composed: DictConfig = hydra.compose(config_name, overrides=words)
    except HydraException as error:
        reasons = dict.fromkeys(str(reason) for reason in (error, error.__cause__) if reason)
        raise ConfigError("\n".join(reasons)) from error
    return composed


def _sweep(
    name: str, verb: Verb, config_name: str, sections: Sequence[str], flags: Sequence[str], parsed: Sequence[Override]
) -> int:
    """Run every combination; see `mmunlearn.sweep`."""
    if "run" not in sections or "sweep" in sections:
        raise ConfigError(f"mmunlearn {name} is not for sweeps: leave out -m.")
    _check_sections(parsed, (*sections, "sweep"))
    for override in parsed:
        if str(override.key_or_group).startswith(HYDRAS_SWEEPS):
            raise ConfigError(
                f"{override.input_line}: Hydra's launchers are not used. Set sweep.parallel=N for jobs side by side, or "
                "sweep.launcher=slurm; run.dir is the sweep's folder."
            )
    flags = [flag for flag in flags if flag not in MULTIRUN]
    own = [override for override in parsed if str(override.key_or_group).split(".")[0] != "sweep"]
    jobs = combinations(own)
    for word in dict.fromkeys(itertools.chain(*jobs)):
        _tolerant(*_parsed([word]))  # a preset that does not exist is told before the first job
    first = [*_parsed(jobs[0]), *(override for override in parsed if override not in own)]
    composed: list[DictConfig] = []
    _with_hydra(composed.append, config_name, flags, first)
    if not composed:  # --cfg has printed it
        return 0
    folder = OmegaConf.select(composed[0], "run.dir")
    if not folder:
        raise ConfigError("run.dir: name the folder of the sweep.")
    run = {"dir": folder, "overwrite": OmegaConf.select(composed[0], "run.overwrite", default=False)}
    settings = checked(OmegaConf.create({"run": run, "sweep": composed[0].get("sweep") or {}}))
    root = Path(settings.run.dir)
    sweep = Sweep(
        verb=name,
        sections=tuple(sections),
        flags=tuple(flags),
        folder=root,
        jobs=tuple(planned(own, root)),
        settings=typed(settings.sweep, SweepConfig),
        overwrite=settings.run.overwrite,
    )

    def here(words: Sequence[str]) -> Ended:
        try:
            failure = _one_job(verb, config_name, flags, _parsed(words), hydra_reports=True)
        except UserError as error:  # what was asked cannot be composed
            _say(str(error))
            return Ended(code=error.exit_code, error=str(error))
        except SystemExit as stop:  # how Hydra ends after an error that is nobody's fault but ours, or the machine's
            return Ended(code=int(stop.code or 0), error="an unexpected error; what it was stands above in the output")
        return Ended(code=failure.exit_code, error=str(failure)) if failure else Ended(code=0)

    return run_sweep(sweep, here)


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
            if section == "sweep":
                raise ConfigError(f"{override.input_line}: this is for sweeps: add -m.")
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
        if str(value) not in choices:
            hint = did_you_mean(str(value), choices)
            raise ConfigError(f"{override.key_or_group}={value}: there is no such preset. {hint}")


def _check_config_name(flags: Sequence[str]) -> None:
    for flag, value in itertools.pairwise(flags):
        names = {path.stem for path in configs_folder().glob("*.yaml")}
        if flag in NAMES_A_CONFIG and value.removesuffix(".yaml") not in names:
            raise ConfigError(f"--config-name {value}: there is no such configuration. {did_you_mean(value, names)}")
