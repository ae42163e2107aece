"""Looks through folders for what this program has written, without following a link or changing anything."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmunlearn.errors import ConfigError, RunError
from mmunlearn.purge.files import read_object, read_settings
from mmunlearn.run import WRITTEN_BY_RUNS, Run, read_json_lines

CARD = "mmunlearn.json"
"""What a model's folder says about itself."""
TELLING = tuple(f"mmunlearn.benchmarks.{name}" for name in ("mllmu.MLLMUBench", "people.People", "table.Table"))
"""Benchmarks whose example ids say whom they are about."""
_LINE_FOLDERS = ("predictions", "judged", "scores")


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Something that a purge cannot remove."""

    path: Path
    why: str
    remedy: str


@dataclass(frozen=True)
class Written:
    """A folder that a run wrote."""

    run: Run
    above: "Written | None" = None
    """The run that it is a part of, as the evaluation by one of several rules."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The recorded configuration; empty if there is none that can be read."""
        try:
            own = read_settings(self.run.config)
        except RunError:
            own = {}
        return own or (self.above.settings if self.above else {})

    @cached_property
    def data(self) -> Mapping[str, Any]:
        """The section `data` of the configuration."""
        section = self.settings.get("data")
        return section if isinstance(section, Mapping) else {}

    @property
    def source(self) -> str:
        """Identifies where the questions come from, so that equal ids mean equal questions; empty if that is not known."""
        named = [self.data.get(key) for key in ("_target_", "name", "root", "table", "seed")]
        return json.dumps(named, default=str) if self.data.get("_target_") else ""

    def lines(self, kind: str) -> list[Path]:
        """The JSON-lines files of a kind: predictions, judged or scores; no links."""
        folder = self.run.root / kind
        return [] if folder.is_symlink() else sorted(path for path in folder.glob("*.jsonl") if is_file(path))

    @cached_property
    def subjects(self) -> dict[str, str]:
        """Whom each scored question is about, by example id; damaged files are left out."""
        found: dict[str, str] = {}
        for path in self.lines("scores"):
            try:
                found |= {str(line["id"]): str(line["subject"]) for line in read_json_lines(path) if "subject" in line}
            except RunError:
                continue
        return found

    @property
    def has_model(self) -> bool:
        """Whether weights, a mask or a training state are kept here."""
        run = self.run
        return any(path.exists() and not path.is_symlink() for path in (run.model, run.mask, run.checkpoints))

    @cached_property
    def card(self) -> dict[str, Any]:
        """What the model says about itself; empty if it says nothing."""
        return object_or_nothing(self.run.model / CARD)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The numbers of a report; empty if this is none."""
        if not is_file(self.run.results):
            return []
        try:
            content = json.loads(self.run.results.read_text(encoding="utf-8"))
        except ValueError:
            return []
        rows = content if isinstance(content, list) else content.get("rows") if isinstance(content, dict) else None
        return [row for row in rows or () if isinstance(row, dict) and "fingerprint" in row]

    @property
    def fingerprint(self) -> str:
        """Of the model that was asked here; empty if none was."""
        return str(object_or_nothing(self.run.model_card).get("fingerprint", ""))


@dataclass
class Scan:
    """What is in the folders."""

    runs: list[Written] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    """Files that no run wrote."""
    rest: list[Rest] = field(default_factory=list)
    """Links that lead out, and folders that cannot be read."""


def scan(folders: Sequence[str]) -> Scan:
    """Look through folders.

    Raises:
        ConfigError: one of them is not there.
    """
    roots = [Path(each).expanduser() for each in folders]
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"purge.folders: {root} is not a folder. Correct the path, or leave it out.")
    if not roots:
        raise ConfigError("purge.folders is empty. Name the folders to be looked through: 'purge.folders=[outputs]'")
    found = Scan()
    resolved = {root: Path(os.path.realpath(root)) for root in roots}
    inside = set(resolved.values())
    for root, real in resolved.items():
        if not any(real != other and real.is_relative_to(other) for other in inside):
            _scan_root(root, inside, found)
    found.runs = list({os.path.realpath(each.run.root): each for each in found.runs}.values())
    found.others = list({os.path.realpath(path): path for path in found.others}.values())
    return found


def _scan_root(root: Path, inside: set[Path], found: Scan) -> None:
    def unreadable(error: OSError) -> None:
        found.rest.append(Rest(path=Path(str(error.filename)), why=f"cannot be read ({error.strerror})", remedy="Look there."))

    runs: dict[Path, Written] = {}
    for name, folders, files in os.walk(root, onerror=unreadable, followlinks=False):
        folder = Path(name)
        found.rest += [rest for each in (*folders, *files) if (rest := _link(folder / each, inside)) is not None]
        folders[:] = sorted(each for each in folders if not (folder / each).is_symlink())
        if not _is_run(folder):
            found.others += [folder / each for each in sorted(files) if is_file(folder / each)]
            continue
        runs[folder] = Written(Run(folder), runs.get(folder.parent) if folder.name in WRITTEN_BY_RUNS else None)
        found.runs.append(runs[folder])
        own = [each for each in files if not written_by_runs(each)]
        found.others += [folder / each for each in sorted(own) if is_file(folder / each)]
        cleaned = {Run(folder).trackers.name, "inspect", *_LINE_FOLDERS}.intersection(folders)
        below = [path for each in cleaned for path in (folder / each).rglob("*")]
        found.rest += [rest for path in below if (rest := _link(path, inside)) is not None]
        kept = {Run(folder).model.name, Run(folder).checkpoints.name, *cleaned}
        folders[:] = [each for each in folders if each not in kept and not written_by_runs(each, temporary=True)]


def _is_run(folder: Path) -> bool:
    """Whether this program wrote something into a folder, by the content of its files, not by their names alone."""
    run = Run(folder)
    if (folder / "inspect").is_dir() and any(each.suffix == ".png" for each in (folder / "inspect").iterdir()):
        return True
    if is_file(run.model / CARD) or is_file(run.mask):
        return True
    written = Written(run)
    if isinstance(written.settings.get("run"), dict) or written.fingerprint or written.rows:
        return True
    results, record = object_or_nothing(run.results), object_or_nothing(run.subjects)
    return {"schema", "model", "tasks"} <= results.keys() or {"remark", "key", "complete"} <= record.keys()


def _link(path: Path, inside: set[Path]) -> Rest | None:
    """What is said of a link that leads out of the folders."""
    if not path.is_symlink():
        return None
    target = Path(os.path.realpath(path))
    if any(target.is_relative_to(root) for root in inside):
        return None
    return Rest(path=path, why=f"a link to {target}, which is not followed", remedy="Name that folder in purge.folders too.")


def is_file(path: Path) -> bool:
    """Whether this is a file itself, not a link to one."""
    return path.is_file() and not path.is_symlink()


def object_or_nothing(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    if not is_file(path):
        return {}
    try:
        return read_object(path)
    except RunError:
        return {}


def written_by_runs(name: str, *, temporary: bool = False) -> bool:
    """Whether a name is that of something that runs write, or of what a killed run left of it.

    Args:
        name: of a file or folder.
        temporary: only the second.
    """
    left = any(name.startswith(f".{each}.") for each in WRITTEN_BY_RUNS)
    return left or (not temporary and name in WRITTEN_BY_RUNS)


def leftovers(folder: Path) -> Iterator[Path]:
    """What killed writes left in a run's folder and in its folders of lines: hidden files and folders."""
    for place in (folder, *(folder / kind for kind in (*_LINE_FOLDERS, "inspect", "checkpoints"))):
        if place.is_dir() and not place.is_symlink():
            hidden = sorted(path for path in place.iterdir() if path.name.startswith("."))
            yield from (path for path in hidden if place != folder or written_by_runs(path.name, temporary=True))
