"""The run directory: every file name, atomic writes, and the record of what was run. Nothing else builds a path in a run."""

import errno
import glob
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mmunlearn.errors import RunError

CARD_FILE = "mmunlearn.json"
"""Beside the weights of a model: role, method and seed of the run that wrote them."""
RECORDED_PACKAGES = ("mmunlearn", "torch", "transformers", "accelerate", "peft", "datasets", "numpy", "scipy", "pillow")


MASK_FILE = "mask.safetensors"
"""A saliency mask, in a run's folder or beside the adapter that acts through it."""


@dataclass(frozen=True)
class Run:
    """Every file of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        """Command, versions, commit, machine."""
        return self.root / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON line for each logged training step."""
        return self.root / "metrics.jsonl"

    @property
    def trackers(self) -> Path:
        """What trackers such as TensorBoard write, one folder or file each."""
        return self.root / "trackers"

    @property
    def checkpoints(self) -> Path:
        """One folder `step-N` for each saved training state."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The model that came out, in hub layout (weights, config, processor), or a PEFT adapter folder."""
        return self.root / "model"

    @property
    def prepared(self) -> Path:
        """What a method computed before its first step (likelihoods under the reference)."""
        return self.root / "prepared.json"

    @property
    def subjects(self) -> Path:
        """Whom a training run learned and unlearned, as keyed hashes; asked by `mmunlearn purge`."""
        return self.root / "subjects.json"

    @property
    def mask(self) -> Path:
        """A saliency mask."""
        return self.root / MASK_FILE

    @property
    def saliency(self) -> Path:
        """The counts of a saliency mask, and its overlap with others."""
        return self.root / "saliency.json"

    @property
    def model_card(self) -> Path:
        """Of an evaluation: which model was asked (fingerprint, role, method, seed)."""
        return self.root / "model.json"

    def predictions(self, task: str) -> Path:
        """What the model answered, one JSON line an example."""
        return self.root / "predictions" / f"{task}.jsonl"

    def predictions_part(self, task: str, process: int) -> Path:
        """The same of one of several processes, until they are merged; named by the system's number of the process."""
        return self.root / "predictions" / f"{task}.part-{process}.jsonl"

    def prediction_parts(self, task: str) -> list[Path]:
        """All of those that are there."""
        return sorted((self.root / "predictions").glob(f"{glob.escape(task)}.part-*.jsonl"))

    def scores(self, task: str) -> Path:
        """One JSON line an example: id, subject, metrics."""
        return self.root / "scores" / f"{task}.jsonl"

    @property
    def results(self) -> Path:
        """Aggregated numbers with intervals and counts."""
        return self.root / "results.json"

    def judged(self, task: str) -> Path:
        """What a judge said of the free answers of a task, one JSON line an answer."""
        return self.root / "judged" / f"{task}.jsonl"

    def tables(self, kind: str) -> Path:
        """The result tables of a report, as `md`, `tex` or `csv`."""
        return self.root / f"tables.{kind}"

    def under(self, rules: str, shots: str) -> "Run":
        """The evaluation by some rules, where a run holds several."""
        return Run(self.root / f"{rules}-{shots}")

    @property
    def probe(self) -> Path:
        """What a model is shown to know about each person."""
        return self.root / "probe.json"

    @property
    def frontier(self) -> Path:
        """Every setting of a sweep with its numbers, as CSV."""
        return self.root / "frontier.csv"

    @property
    def selection(self) -> Path:
        """Which settings of a sweep were chosen, by which rule, and how many were tried."""
        return self.root / "selection.json"

    @property
    def course(self) -> Path:
        """What was forgotten and kept request after request, as CSV."""
        return self.root / "course.csv"

    @property
    def report(self) -> Path:
        """The page that people look at."""
        return self.root / "report.html"

    @property
    def lock(self) -> Path:
        """Held by the command that is writing here (`mmunlearn.locks`)."""
        return self.root / "lock"

    @property
    def done(self) -> Path:
        """Written last: its existence means that the run is complete."""
        return self.root / "DONE"

    @property
    def is_done(self) -> bool:
        """Whether the run came to its end."""
        return self.done.is_file()

    def finish(self) -> None:
        """Mark the run as complete."""
        write_text(self.done, datetime.now(UTC).isoformat(timespec="seconds") + "\n")

    def check_clearable(self) -> None:
        """Make sure that `clear` would delete nothing but what runs write.

        Raises:
            RunError: the folder holds something else; a mistyped run.dir must not cost anybody their files.
        """
        foreign = sorted(path.name for path in self._entries() if not _written_by_runs(path.name))
        if foreign:
            raise RunError(
                f"{self.root} holds more than a run ({', '.join(foreign[:5])}), so run.overwrite=true will not delete it. "
                "Choose another run.dir, or empty the folder yourself."
            )

    def clear(self) -> None:
        """Delete what an earlier run left.

        Raises:
            RunError: the folder holds something else.
        """
        self.check_clearable()
        for path in self._entries():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != self.lock:  # held by us: another one in its place would be free to take
                path.unlink()

    def _entries(self) -> list[Path]:
        return list(self.root.iterdir()) if self.root.is_dir() else []


WRITTEN_BY_RUNS = frozenset(
    {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "model", "model.json", "predictions", "scores"}
    | {"results.json", "report.html", "inspect", "DONE", "prepared.json", MASK_FILE, "saliency.json", "trackers"}
    | {"probe.json", "subjects.json", "judged", "lock", "tables.md", "tables.tex", "tables.csv"}
    | {"frontier.csv", "selection.json", "course.csv"}
    | {f"{rules}-{shots}" for rules in ("fixed", "official") for shots in ("zero_shot", "few_shot")}
)
"""Everything that a run puts into its folder, besides the temporary files of a killed one."""


def _written_by_runs(name: str) -> bool:
    return name in WRITTEN_BY_RUNS or any(name.startswith(f".{each}.") for each in WRITTEN_BY_RUNS)


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one clear message.

    Raises:
        RunError: naming the file, the reason and the remedy; what was there before is untouched.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = _error_number(error)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"{path}: no space left on the disk, so nothing was written there; earlier files are untouched. "
                "Free some space or set run.dir to another disk, then start again with run.resume=true."
            ) from error
        if code in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise RunError(f"{path}: may not be written ({os.strerror(code)}). Set run.dir to a folder of yours.") from error
        if code in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise RunError(
                f"{path}: cannot be written, because a file stands where a folder is needed, or a folder where a file is. "
                "Choose another run.dir."
            ) from error
        raise


def _error_number(error: Exception) -> int | None:
    """The system's number of an error; safetensors tells it in words only, "… (os error 28)"."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and move it into place.

    A reader sees the old file or the new one, never half of either.
    """
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            flush(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file's content is on the disk, so that what is written after it is not there before it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a new folder beside `folder` and move it into place; on any failure the old one stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        fill(temporary)
        temporary.chmod(0o755)
        if folder.exists():
            folder.replace(old)
        try:
            temporary.replace(folder)
        finally:
            if old.exists() and not folder.exists():
                old.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN must have been turned into None before."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records))


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object and flush, so that a killed run loses at most the line being written."""
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every complete line of a JSON-lines file; a last line cut off by a kill is left out.

    Raises:
        RunError: a line before the last is not JSON.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")  # bytes: a kill may have cut a character in two
    records = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except ValueError as error:  # not JSON, or not UTF-8
            if number == len(lines):  # no newline behind it: the writer was killed here
                break
            raise RunError(f"{path}, line {number}: not JSON ({error}). Delete the file to compute it again.") from error
    return records


def fingerprint(value: Any) -> str:
    """Sixteen hexadecimal digits that identify a JSON-able value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def environment() -> dict[str, Any]:
    """What is needed to repeat the run: command, the folder in which it was typed, package versions, commit, machine."""
    versions = {}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "folder": os.getcwd(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": versions,
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of the source tree, with a mark if it has uncommitted changes; "unknown" outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        dirty = " + uncommitted changes" if git("status", "--porcelain", "--untracked-files=no").strip() else ""
        return git("rev-parse", "HEAD").strip()[:12] + dirty
    except (OSError, subprocess.SubprocessError):
        return "unknown"
