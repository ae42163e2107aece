"""Which models, masks and training states were made from the people: by the run's record, else by its settings and data."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.benchmarks.people import People as EmbeddedPeople
from mmunlearn.benchmarks.people_clear import PeopleClear
from mmunlearn.data.example import Example
from mmunlearn.data.subjects import Part
from mmunlearn.errors import DataError, UserError
from mmunlearn.purge.files import to_be_forgotten
from mmunlearn.purge.people import People
from mmunlearn.purge.scan import Written, object_or_nothing

FINE_TUNING = "mmunlearn.methods.finetune.FineTune"


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a run's model, mask or training state has to do with the people."""

    part: Part | None
    """None: nothing, or nothing that is known."""
    certain: bool = True
    """Whether that is known."""
    recorded: bool = False
    """Whether the run's own record of subjects says so."""
    through: Path | None = None
    """The model that it was started from, if that is how they came in."""


def made_from(runs: Sequence[Written], people: People) -> dict[Path, Made]:
    """What each run with a model, mask or training state has to do with the people, by the run's folder.

    A model that was started from one which learned them has learned them too, whatever it was trained on itself.
    """
    found = {each.run.root: _made(each, people) for each in runs if each.has_model}
    parents = {each.run.root: parent for each in runs if each.has_model and (parent := _parent(each, found)) is not None}
    changed = True
    while changed:
        changed = False
        for root, parent in parents.items():
            if found[root].part is None and found[parent].part is not None:
                found[root] = Made(part=Part.learned, through=parent)
                changed = True
    return found


def _parent(written: Written, roots: Iterable[Path]) -> Path | None:
    """The run whose model this one was started from, if it is among those found."""
    model = written.settings.get("model")
    path = str(model.get("path") or "") if isinstance(model, Mapping) else ""
    if not path:
        return None
    above = Path(os.path.realpath(Path(path).expanduser())).parents
    return next((root for root in roots if root != written.run.root and Path(os.path.realpath(root)) in above), None)


def _made(written: Written, people: People) -> Made:
    record = object_or_nothing(written.run.subjects)
    if {"key", "complete", *map(str, Part)} <= record.keys():
        part = people.part(record)
        if part is not None or record["complete"]:
            return Made(part=part, recorded=True)
    if any(map(people.has, to_be_forgotten(written.settings))) and _takes_forget(written):
        return Made(part=Part.forgot)
    if not written.settings:
        untrained = written.card.get("role") == "base" and written.card.get("method") == "none"
        return Made(part=None, certain=untrained)
    return _by_data(written, people)


def _takes_forget(written: Written) -> bool:
    """Whether a run uses the people to be forgotten; the gold model is trained on all others."""
    return not (_method(written) == FINE_TUNING and written.data.get("split") == "retain")


def _method(written: Written) -> str:
    trainer = written.settings.get("trainer")
    method = trainer.get("method") if isinstance(trainer, Mapping) else None
    return str(method.get("_target_", "")) if isinstance(method, Mapping) else ""


def _by_data(written: Written, people: People) -> Made:
    """For runs of versions that wrote no record, and for masks: what the data say today."""
    try:
        benchmark = local_benchmark(written.source, written.data)
        splits = benchmark.splits()
        fine_tuning = _method(written) == FINE_TUNING
        split = str(written.data.get("split", "full"))
        if fine_tuning:
            sides = {Part.learned: [splits.retain if split.startswith("retain") else splits.full]}
            if split == "retain_and_text":
                sides[Part.learned].append(splits.forget)
        else:
            sides = {Part.forgot: [splits.forget], Part.learned: [splits.retain]}
    except UserError:
        return Made(part=None, certain=False)
    for part, examples in sides.items():
        if any(people.has(example.subject) for side in examples for example in side):
            return Made(part=part)
    return Made(part=None)


# --- the benchmark of a run -------------------------------------------------------------------------------------------


def local_benchmark(source: str, data: Mapping[str, Any]) -> Benchmark:
    """The benchmark of a recorded configuration, if its files are here: nothing is downloaded and nothing generated.

    Args:
        source: see `Written.source`.
        data: the section `data`.

    Raises:
        UserError: it is not here, cannot be opened, or is not named.
    """
    if not source:
        raise DataError("The run does not say where its questions come from.")
    for key in ("root", "train_root"):
        if data.get(key) and not Path(str(data[key])).expanduser().is_dir():
            raise DataError(f"data.{key}={data[key]} is not there any more.")
    benchmark = open_benchmark(OmegaConf.create(dict(data)))
    if isinstance(benchmark, EmbeddedPeople | PeopleClear) and not benchmark.folder.is_dir():
        raise DataError(f"{benchmark.folder} is not there any more.")
    return benchmark


def subjects_by_id(written: Written) -> dict[str, str] | None:
    """Whom the questions of a run's benchmark are about, by example id; None if its files are not here."""
    return _subjects_by_id(written.source, _Section(written.data))


class _Section(dict[str, Any]):
    """A section that can be a key of a cache; equal sources are equal."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(str(sorted(self.items(), key=str)))


@cache
def _subjects_by_id(source: str, data: _Section) -> dict[str, str] | None:
    try:
        benchmark = local_benchmark(source, data)
        return {example.id: example.subject for example in _all_examples(benchmark)}
    except UserError:
        return None


def _all_examples(benchmark: Benchmark) -> Iterator[Example]:
    splits = benchmark.splits()
    for side in (splits.forget, splits.retain, splits.full):
        yield from side
    for task in benchmark.tasks():
        yield from task.examples
