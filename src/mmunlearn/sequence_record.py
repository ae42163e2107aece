"""Where a sequence of requests lies, and `sequence.json`: what each of its steps was made from, by content."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from mmunlearn.config import ModelConfig, typed
from mmunlearn.config_enums import Quantise, Role
from mmunlearn.errors import ConfigError, RunError
from mmunlearn.methods.base import Masked
from mmunlearn.models.library import find_model
from mmunlearn.models.load import folders_below, load, read_card
from mmunlearn.models.saliency_mask import load_mask, mask_fingerprint
from mmunlearn.run import Run, fingerprint, write_json
from mmunlearn.training.job import open_method

console = Console(stderr=True)
SCHEMA = 1
"""Version of `sequence.json`."""
MADE_FROM = ("start", "forget", "retain", "mask", "reference")
"""What decides a step besides its settings. Earlier versions wrote down the first two only; not every method has a mask, and
few have another reference than the model before."""


@dataclass(frozen=True, kw_only=True)
class SequenceFolder:
    """Every folder of a sequence beside the report."""

    root: Path

    def step(self, number: int) -> Run:
        """The training for one request, from 1."""
        return Run(self.root / f"step-{number}")

    def evaluation(self, number: int) -> Run:
        """Of the model after a request; 0: before the first."""
        return Run(self.root / f"evaluation-{number}")

    def compared(self, number: int) -> Run:
        """Of a model to compare with, from 1."""
        return Run(self.root / f"evaluation-compared-{number}")

    @property
    def report(self) -> Run:
        """The page about all."""
        return Run(self.root / "report")

    @property
    def record(self) -> Path:
        """What each step was made from, by content."""
        return self.root / "sequence.json"


class SequenceRecord:
    """`sequence.json`: what each step was made from, by content.

    A path may lead to another model, table or mask tomorrow, so steps are held against fingerprints.
    """

    def __init__(self, folder: SequenceFolder, model: DictConfig) -> None:
        """Read what is there.

        Args:
            folder: of the sequence.
            model: the section `model`, which says how models are opened.

        Raises:
            RunError: the file is not such a record.
        """
        self._file, self._settings = folder.record, replace(typed(model, ModelConfig), quantise=Quantise.none)
        self._content: dict[str, Any] = {"schema": SCHEMA, "models": {}, "steps": {}}
        if self._file.is_file():
            self._content = _read_record(self._file)
            self._content.pop("evaluations", None)  # an earlier version's; their folders say it themselves

    def model(self, path: str) -> str:
        """The fingerprint of a model's weights as evaluations open them; files that are as they were are not read again."""
        state, seen = _state_of_files(path, self._settings.dtype), self._content["models"].get(path)
        if seen is None or not state or seen["files"] != state:
            seen = {"fingerprint": load(replace(self._settings, path=path), merge=False).fingerprint, "files": state}
            self._content["models"][path] = seen
        return str(seen["fingerprint"])

    def files_of(self, config: DictConfig, retain: str) -> dict[str, str]:
        """The fingerprints of a step's mask and reference, where it has them.

        What cannot be read is named and left out: a finished step does not need it any more, and a training that does says
        so itself.

        Args:
            config: of the step.
            retain: fingerprint of its retain questions, by which a gold model is found.
        """
        method, named, found = open_method(config.trainer.method), str(config.trainer.reference), {}
        try:
            if isinstance(method, Masked) and method.mask:
                found["mask"] = mask_fingerprint(load_mask(method.mask))
        except ConfigError as error:
            console.print(f"{config.run.dir}: its mask is not compared. {error}", highlight=False)
        try:
            if named == Role.gold or named not in {"", *Role}:
                found["reference"] = self.model(_gold(config, retain) if named == Role.gold else named)
        except ConfigError as error:
            console.print(f"{config.run.dir}: its reference is not compared. {error}", highlight=False)
        return found

    def check_step(self, run: Run, start: str, made_from: dict[str, str]) -> None:
        """Hold a finished step against what there is now.

        What an earlier version did not write down about it is taken as it is, and written down.

        Args:
            run: the step.
            start: where the model before it is, for the message.
            made_from: what it would be made from now.

        Raises:
            RunError: it was made from something else.
        """
        recorded = self._made_from(run)
        if recorded is None:
            console.print(f"{run.root}: {self._file.name} does not say what it was made from; it is taken as it is.")
            self._content["steps"][run.root.name] = {**made_from, "replaces": None, "replaced": None}
            return
        if recorded["start"] != made_from["start"]:
            before, now = recorded["start"], made_from["start"]
            raise RunError(f"{run.root} was unlearned from the model {before}, but {start} now holds {now}. {_REMEDY}")
        for name, message in _CHANGED.items():
            if name in recorded and name in made_from and recorded[name] != made_from[name]:
                raise RunError(f"{run.root} {message}. {_REMEDY}")
        missing = [name for name in made_from if name not in recorded]
        if missing:
            console.print(f"{run.root}: {self._file.name} does not name its {', '.join(missing)}; it is taken as it is.")
            recorded |= {name: made_from[name] for name in missing}

    def begin_step(self, run: Run, made_from: dict[str, str]) -> None:
        """Write down what a step is made from before it begins; what it replaces stays known until that is gone."""
        before = self._made_from(run) if run.is_done else None
        replaced = None if before is None else {name: before[name] for name in MADE_FROM if name in before}
        entry = {**made_from, "replaces": _identity(run) if run.is_done else None, "replaced": replaced}
        self._content["steps"][run.root.name] = entry
        self.write()

    def write(self) -> None:
        """Keep it."""
        write_json(self._file, self._content)

    def _made_from(self, run: Run) -> dict[str, Any] | None:
        """The part of the record that says what the finished step in a folder was made from; None if nobody wrote it down."""
        entry: dict[str, Any] | None = self._content["steps"].get(run.root.name)
        if entry is not None and entry["replaces"] in (_identity(run), run.done.stat().st_mtime_ns):  # a time: earlier version
            entry = entry["replaced"]  # the training that was to replace it never came to be
        return entry


_REMEDY = (
    "So it, and every step after it, is not what this sequence would make. Nothing was changed. Choose another run.dir, or set "
    "run.overwrite=true to unlearn every request anew."
)
_CHANGED = {
    "forget": "unlearned other questions about these people than `data` now has",
    "retain": "was to keep other questions about everybody else than `data` now has",
    "mask": "was unlearned with another mask than trainer.method.mask now holds",
    "reference": "was unlearned with another reference than trainer.reference now leads to",
}


def _identity(run: Run) -> str:
    """Identifies a finished run by when it began and ended, as its files say: a copy of the folder is the same run."""
    files = (run.config, run.environment, run.done)
    return fingerprint([file.read_text(encoding="utf-8") if file.is_file() else "" for file in files])


def _gold(config: DictConfig, retain: str) -> str:
    """Where the training would find its gold model, see `training.identity.open_reference`."""
    start = str(config.model.path)
    around = [Path(config.run.dir).parent, Path(start).parent.parent]
    return str(find_model(Role.gold, data=retain, base=read_card(start).get("base"), beside=around))


def _read_record(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{file}: not JSON ({error}). Delete it; what is finished is then taken as it is.") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise RunError(f"{file}: not the record of a sequence of this version (schema {SCHEMA}). Choose another run.dir.")
    return found


def _state_of_files(path: str, dtype: str) -> str:
    """Identifies names, sizes and times of a model's files, those below an adapter included; empty if any is on the hub."""
    folders = [Path(folder) for folder in folders_below(path)]
    if not all(folder.is_dir() for folder in folders):
        return ""
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    return fingerprint([dtype, [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]])
