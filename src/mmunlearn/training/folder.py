"""A training run's folder: may it be used, what is recorded before the first step, what an interrupted run left."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mmunlearn.config_enums import Role
from mmunlearn.errors import RunError
from mmunlearn.locks import is_locked
from mmunlearn.models.load import folders_below
from mmunlearn.run import Run, environment, fingerprint, write_json, write_text


def check_folder(run: Run, config: DictConfig, key: str) -> None:
    """Say why a run's folder cannot be used; nothing is changed yet.

    Raises:
        RunError: an earlier run is in it and neither resume nor overwrite is set, or overwriting would delete other things.
    """
    settings = config.run
    if settings.overwrite:
        run.check_clearable()
        for setting, path in _inputs(config):
            check_outside(run, setting, path)
    if not run.config.is_file() or settings.overwrite:
        return
    if run.is_done:
        raise RunError(
            f"{run.root} holds a finished run. Choose another run.dir, or set run.overwrite=true to delete it and start anew."
        )
    if not settings.resume:
        raise RunError(
            f"{run.root} holds a run that was interrupted. Go on with run.resume=true, "
            "start anew with run.overwrite=true, or choose another run.dir."
        )
    earlier = OmegaConf.load(run.config)
    if not isinstance(earlier, DictConfig) or not _is_ours(earlier) or training_key(earlier) != key:
        raise RunError(
            f"{run.root} holds an interrupted run with other settings (see its config.yaml). Repeat those settings to resume, "
            "or set run.overwrite=true to start anew."
        )


def chosen_folder(config: DictConfig, key: str) -> Path:
    """The run's folder: `run.dir`, or with run.resume=latest the newest interrupted run of the same settings beside it."""
    named = Path(config.run.dir)
    if config.run.resume != "latest" or Run(named).config.is_file():
        return named
    candidates = [path for path in named.parent.glob("*/") if _may_go_on(Run(path), key)]
    return max(candidates, key=lambda path: Run(path).config.stat().st_mtime, default=named)


def _may_go_on(run: Run, key: str) -> bool:
    """Whether a folder holds an interrupted training of these settings, and not one that is running now."""
    if run.is_done or not run.config.is_file() or is_locked(run):
        return False
    try:
        earlier = OmegaConf.load(run.config)
        return isinstance(earlier, DictConfig) and _is_ours(earlier) and training_key(earlier) == key
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException):  # somebody else's config.yaml
        return False


def _is_ours(config: DictConfig) -> bool:
    """Whether a recorded configuration is one of a training run."""
    sections = ("run", "model", "data", "trainer", "trainer.args")
    return all(isinstance(OmegaConf.select(config, section), DictConfig) for section in sections)


def _inputs(config: DictConfig) -> Iterator[tuple[str, str]]:
    """What a run is made from, with the settings that name it."""
    if config.model.path:
        yield from (("model.path", path) for path in folders_below(config.model.path))
    if config.trainer.reference and config.trainer.reference != Role.gold:
        yield from (("trainer.reference", path) for path in folders_below(config.trainer.reference))
    for setting in ("model.processor", "trainer.method.mask"):
        path = OmegaConf.select(config, setting)
        if path:
            yield setting, str(path)


def check_outside(run: Run, setting: str, path: str) -> None:
    """Make sure that overwriting a run does not delete what the new one is made from.

    Raises:
        RunError: it would.
    """
    if Path(path).expanduser().resolve().is_relative_to(run.root.resolve()):
        raise RunError(f"run.overwrite=true would delete {setting}={path}. Choose another run.dir.")


def start_folder(run: Run, config: DictConfig) -> None:
    """Delete what is to be overwritten and record settings and environment."""
    if config.run.overwrite:
        run.clear()
    write_text(run.config, OmegaConf.to_yaml(config))
    write_json(run.environment, environment())


def training_key(config: DictConfig) -> str:
    """Identifies the settings that decide the weights."""
    chosen: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, ["model", "data", "trainer"]), resolve=True)
    chosen["trainer"]["args"].pop("report_to", None)  # decides no weight: a run may go on without a tracker that failed
    return fingerprint([chosen, config.run.seed, config.run.goal])


def store_likelihoods(run: Run, key: str, likelihoods: Mapping[str, float]) -> None:
    """Keep what was computed under the reference, so that a resumed run does not compute it again."""
    if likelihoods:
        write_json(run.prepared, {"key": key, "log_likelihoods": dict(likelihoods)})


def stored_likelihoods(run: Run, key: str) -> dict[str, float]:
    """What an interrupted run of the same settings computed under the reference."""
    if not run.prepared.is_file():
        return {}
    stored = json.loads(run.prepared.read_text(encoding="utf-8"))
    return dict(stored["log_likelihoods"]) if stored["key"] == key else {}
