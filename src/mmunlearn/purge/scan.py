"""Looks through folders for what this program has written, without following a link or changing anything."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmunlearn.errors import ConfigError, RunError
from mmunlearn.locks import is_locked
from mmunlearn.purge.files import read_object, read_settings, readable
from mmunlearn.run import CARD_FILE, WRITTEN_BY_RUNS, Run, read_json_lines

TELLING = tuple(f"mmunlearn.benchmarks.{name}" for name in ("mllmu.MLLMUBench", "people.People", "table.Table"))
"""Benchmarks whose example ids say whom they are about."""
_LINE_FOLDERS = ("predictions", "judged", "scores")
_PARTS = (Run(Path()).model.name, Run(Path()).checkpoints.name, Run(Path()).trackers.name, "inspect", *_LINE_FOLDERS)
"""Folders inside that of a run that belong to it."""


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
    def asked(self) -> Mapping[str, Any]:
        """The section of the benchmark that the questions are from, where another one only splits them anew (`Chosen`)."""
        return innermost(self.data)

    @property
    def source(self) -> str:
        """Identifies where the questions come from, so that equal ids mean equal questions; empty if that is not known."""
        named = [self.asked.get(key) for key in ("_target_", "name", "root", "table", "seed")]
        return json.dumps(named, default=str) if self.asked.get("_target_") else ""

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
                with readable(path):
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
        return object_or_nothing(self.run.model / CARD_FILE)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The numbers of a report; empty if this is none."""
        if not is_file(self.run.results):
            return []
        try:
            with readable(self.run.results):
                content = json.loads(self.run.results.read_text(encoding="utf-8"))
        except (ValueError, RunError):
            return []
        rows = content if isinstance(content, list) else content.get("rows") if isinstance(content, dict) else None
        return [row for row in rows or () if isinstance(row, dict) and "fingerprint" in row]

    @property
    def fingerprint(self) -> str:
        """Of the model that was asked here; empty if none was."""
        return str(object_or_nothing(self.run.model_card).get("fingerprint", ""))


def innermost(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section of a benchmark, or of the one inside it that it takes its questions from."""
    inner = data.get("of")
    return innermost(inner) if isinstance(inner, Mapping) else data


@dataclass
class Scan:
    """What is in the folders."""

    runs: list[Written] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    """Files that no run wrote."""
    inner: list[Path] = field(default_factory=list)
    """Files in the folders of runs."""
    entries: list[Path] = field(default_factory=list)
    """Everything that has a name: files, folders and links, the folders looked through included."""
    rest: list[Rest] = field(default_factory=list)
    """Links that lead out, and folders that cannot be read."""

    def busy(self) -> list[Path]:
        """The folders in which a run is writing now."""
        named = [path for path in self.entries if path.name == Run(path.parent).lock.name and is_file(path)]
        return [path.parent for path in named if is_locked(Run(path.parent))]

    @cached_property
    def inner_set(self) -> frozenset[Path]:
        """`inner`, to be asked often; when the scan is complete."""
        return frozenset(self.inner)


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
    found.others, found.inner, found.entries = map(_once, (found.others, found.inner, found.entries))
    return found


def _once(paths: Sequence[Path]) -> list[Path]:
    """Paths without those that lead to the same place; a link and its target are two places."""
    return list({Path(os.path.realpath(path.parent)) / path.name: path for path in paths}.values())


def _scan_root(root: Path, inside: set[Path], found: Scan) -> None:
    def unreadable(error: OSError) -> None:
        found.rest.append(Rest(path=Path(str(error.filename)), why=f"cannot be read ({error.strerror})", remedy="Look there."))

    runs: dict[Path, Written] = {}
    parts: set[Path] = set()
    found.entries.append(root)
    for name, folders, files in os.walk(root, onerror=unreadable, followlinks=False):
        try:
            _scan_folder(Path(name), folders, files, found, inside, runs, parts)
        except OSError as error:  # it may be listed, but not entered
            unreadable(error)
            folders.clear()


def _scan_folder(
    folder: Path,
    folders: list[str],
    files: list[str],
    found: Scan,
    inside: set[Path],
    runs: dict[Path, Written],
    parts: set[Path],
) -> None:
    """Note what is in one folder; `runs` and `parts` (folders that belong to a run) are those found so far."""
    found.entries += [folder / each for each in sorted((*folders, *files))]
    found.rest += [rest for each in (*folders, *files) if (rest := _link(folder / each, inside)) is not None]
    folders[:] = sorted(each for each in folders if not (folder / each).is_symlink())
    own = [folder / each for each in sorted(files) if is_file(folder / each)]
    if folder in parts:  # belongs to a run with all that is in it
        found.inner += own
        parts |= {folder / each for each in folders}
    elif is_run(folder):
        runs[folder] = Written(Run(folder), runs.get(folder.parent) if folder.name in WRITTEN_BY_RUNS else None)
        found.runs.append(runs[folder])
        found.inner += [path for path in own if written_by_runs(path.name)]
        found.others += [path for path in own if not written_by_runs(path.name)]
        parts |= {folder / each for each in folders if each in _PARTS or written_by_runs(each, temporary=True)}
    else:
        found.others += own


def is_run(folder: Path) -> bool:
    """Whether this program wrote something into a folder, by the content of its files, not by their names alone."""
    run = Run(folder)
    if (folder / "inspect").is_dir() and any(each.suffix == ".png" for each in (folder / "inspect").iterdir()):
        return True
    if is_file(run.model / CARD_FILE) or is_file(run.mask):
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


def is_plain(folder: Path, name: str) -> bool:
    """Whether a folder has a part of this name that is no link: what a link leads to is never changed."""
    return (folder / name).exists() and not (folder / name).is_symlink()


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
