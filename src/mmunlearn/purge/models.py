"""Which models, masks and training states were made from the people: by the run's record, else by its settings and data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.benchmarks.people import People as EmbeddedPeople
from mmunlearn.benchmarks.people_clear import PeopleClear
from mmunlearn.data.example import Example, examples_fingerprint
from mmunlearn.data.subjects import Part, normal_name
from mmunlearn.errors import DataError, UserError
from mmunlearn.purge.files import to_be_forgotten
from mmunlearn.purge.people import People
from mmunlearn.purge.scan import Written, innermost, object_or_nothing

FINE_TUNING = "mmunlearn.methods.finetune.FineTune"
NO_RECORD = "does not record whom it was made from, and that cannot be found out from its data"


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a run's model, mask or training state has to do with the people."""

    parts: Mapping[str, Part] = field(default_factory=dict)
    """Those of them who are in it, by normal name."""
    recorded: frozenset[str] = frozenset()
    """Those whom the run's own record tells."""
    doubt: str = ""
    """Why somebody may be in it who is not among these; empty: nobody is."""
    through: Path | None = None
    """The model that it was started from, if that is how somebody came in."""

    @property
    def part(self) -> Part | None:
        """The weightiest of the parts; None: nobody is in it, or nobody who is known."""
        return next((part for part in (Part.learned, Part.forgot) if part in self.parts.values()), None)

    def unrecorded(self) -> dict[Part, list[str]]:
        """Whom the run's record does not tell."""
        missing = {name: part for name, part in self.parts.items() if name not in self.recorded}
        return {part: sorted(name for name, own in missing.items() if own is part) for part in set(missing.values())}


def made_alone(written: Written, people: People) -> Made:
    """What a run has to do with the people by itself, whatever model it was started from."""
    record = object_or_nothing(written.run.subjects)
    recorded: dict[str, Part] = {}
    if {"key", "complete", *map(str, Part)} <= record.keys():
        recorded = people.parts(record)
        if record["complete"]:
            return Made(parts=recorded, recorded=frozenset(recorded))
    told = {name: Part.forgot for name in _forgotten(written, people)}
    parts, doubt = {**told, **recorded}, ""
    if parts.keys() < set(people.names):
        if written.settings:
            today, certain = _by_data(written, people)
            parts = {**today, **parts}
        else:
            certain = is_untrained(written.card)
        doubt = "" if certain else NO_RECORD
    return Made(parts=parts, recorded=frozenset(recorded), doubt=doubt)


def is_untrained(card: Mapping[str, Any]) -> bool:
    """Whether a model's card says that it has random weights."""
    return card.get("role") == "base" and card.get("method") == "none"


def _forgotten(written: Written, people: People) -> list[str]:
    """Those of the people whom a run's settings name as to be forgotten, if it uses them: the gold model does not."""
    if _method(written) == FINE_TUNING and written.data.get("split") == "retain":
        return []
    named = {normal_name(entry) for entry in to_be_forgotten(written.settings)}
    return [name for name in people.names if name in named]


def _method(written: Written) -> str:
    trainer = written.settings.get("trainer")
    method = trainer.get("method") if isinstance(trainer, Mapping) else None
    return str(method.get("_target_", "")) if isinstance(method, Mapping) else ""


def _by_data(written: Written, people: People) -> tuple[dict[str, Part], bool]:
    """For runs of versions that wrote no record, and for masks: what the data say today.

    Returns:
        Who is in them, and whether nobody else of the people was in the run: only a model's card can tell that, which holds
        the fingerprint of the data it was fine-tuned on. Anybody may have been taken out of the data since.
    """
    try:
        benchmark = local_benchmark(written.source, written.data)
        splits = benchmark.splits()
        certain = False
        if _method(written) == FINE_TUNING:
            split = str(written.data.get("split", "full"))
            learned = list(splits.retain if split.startswith("retain") else splits.full)
            certain = written.card.get("data") == examples_fingerprint(learned)
            sides = {Part.learned: [*learned, *(splits.forget if split == "retain_and_text" else ())]}
        else:
            sides = {Part.forgot: list(splits.forget), Part.learned: list(splits.retain)}
    except UserError:
        return {}, False
    found: dict[str, Part] = {}
    for part, examples in sides.items():
        for name in {normal_name(example.subject) for example in examples}.intersection(people.names):
            found.setdefault(name, part)
    return found, certain


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
    inner = innermost(data)
    for key in ("root", "train_root"):
        if inner.get(key) and not Path(str(inner[key])).expanduser().is_dir():
            raise DataError(f"data.{key}={inner[key]} is not there any more.")
    benchmark = open_benchmark(OmegaConf.create(dict(inner)))
    if isinstance(benchmark, EmbeddedPeople | PeopleClear) and not benchmark.folder.is_dir():
        raise DataError(f"{benchmark.folder} is not there any more.")
    return benchmark if inner is data else open_benchmark(OmegaConf.create(dict(data)))


def subjects_by_id(written: Written) -> dict[str, str] | None:
    """Whom the questions of a run's benchmark are about, by example id; None if its files are not here."""
    return _subjects_by_id(written.source, _Section(written.asked))


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
