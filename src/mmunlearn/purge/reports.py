"""Which reports have numbers about the people in them: by the evaluations that they were made from, as these are today."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmunlearn.config_enums import Shots
from mmunlearn.errors import RunError
from mmunlearn.purge import files
from mmunlearn.purge.contents import Unread, holds
from mmunlearn.purge.people import People
from mmunlearn.purge.scan import Written, is_file, object_or_nothing
from mmunlearn.purge.steps import Order, Plan
from mmunlearn.report.probes import EVERYBODY, PROTOCOL, STAND_INS, is_probe, probe_rows, read_probe

TOGETHER = (EVERYBODY, STAND_INS)
_NUMBERS = ("value", "low", "high", "count", "unscored")
Key = tuple[str, str, str, str]
"""Fingerprint of the model, name, version and protocol of the benchmark."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation, or what a purge left of it."""

    fingerprint: str
    results: Mapping[str, Any]
    """`results.json`; empty if it is gone."""
    touched: bool
    """Whether it has answers about the people now."""
    probed: Sequence[Mapping[str, Any]] = ()
    """Of a probe: its rows about everybody as one."""

    @property
    def key(self) -> Key | None:
        """What rows of a report say of where they are from; None if that is gone."""
        if self.probed:
            return self.fingerprint, str(self.probed[0]["benchmark"]), str(self.probed[0]["version"]), PROTOCOL
        benchmark = self.results.get("benchmark")
        if not isinstance(benchmark, Mapping):
            return None
        shots = str(benchmark.get("shots", Shots.zero_shot))
        protocol = str(benchmark.get("protocol")) + ("" if shots == Shots.zero_shot else f", {shots}")
        return (self.fingerprint, str(benchmark.get("name")), str(benchmark.get("version")), protocol)

    def has(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether all these numbers stand in its results today."""
        if self.probed:
            today = {(row["of"], row["metric"]): row for row in self.probed}
            return all(_equal(row, today.get((row.get("of"), row.get("metric")), {})) for row in rows)
        tasks = self.results.get("tasks")
        return isinstance(tasks, Mapping) and all(_same(row, tasks) for row in rows)


def _same(row: Mapping[str, Any], tasks: Mapping[str, Any]) -> bool:
    return _equal(row, (tasks.get(row.get("task", "")) or {}).get(row.get("metric", "")) or {})


def _equal(row: Mapping[str, Any], today: Mapping[str, Any]) -> bool:
    return all(today.get(name) == row.get(name) for name in _NUMBERS)


def _probed(written: Written) -> list[dict[str, Any]]:
    """The rows of a probe that are about everybody as one; single people have other labels in each report."""
    if not is_probe(written.run.root):
        return []
    try:
        return [row for row in probe_rows([read_probe(written.run.root)]) if row["of"] in TOGETHER]
    except (RunError, KeyError, TypeError):
        return []  # damaged, which the last net lists


def plan_reports(plan: Plan, runs: Sequence[Written], touched: Sequence[Written], people: People) -> None:
    """Delete reports that were made with answers about the people, or of which that cannot be ruled out any more.

    A report is stale if one of its evaluations is here but has other numbers today, or none: a purge in several calls
    leaves it like that. A report whose evaluations are elsewhere is left to the reader.
    """
    roots = {each.run.root for each in touched}
    evaluated = [
        Evaluated(
            fingerprint=each.fingerprint or str((results.get("model") or {}).get("fingerprint", "")),
            results=results,
            touched=each.run.root in roots,
            probed=_probed(each),
        )
        for each in runs
        if not each.rows and ((results := object_or_nothing(each.run.results)) or each.fingerprint)
    ]
    for each in runs:
        _plan_report(plan, each, evaluated, people)


def _plan_report(plan: Plan, written: Written, evaluated: Sequence[Evaluated], people: People) -> None:
    run = written.run
    made = (run.report, *map(run.tables, ("md", "tex", "csv")), run.frontier, run.selection, run.course)
    pages = [path for path in made if is_file(path)]
    rows = [path for path in (run.results,) if written.rows]
    states = [_state(key, group, evaluated) for key, group in _groups(written.rows)]
    why = next((state for state in states if state and state != _ELSEWHERE), "")
    if any(_names(path, people) for path in pages) or any(files.is_naming(row, people) for row in written.rows):
        why = why or "names them"
    if why:
        for path in pages:
            plan.delete(Order.pages, path, f"{why}; report again")
        for path in rows:
            plan.delete(Order.rows, path, f"numbers of a report: {why}; report again")
    elif pages and not rows:
        plan.leave(pages, "a page without the numbers that tell what it was made from", "Report again, or delete it.")
    elif missing := states.count(_ELSEWHERE):
        reason = f"made from {missing} evaluations that are not in these folders, so it may be about them too"
        plan.leave([run.results], reason, "Name their folders in purge.folders too, or report again.")


_ELSEWHERE = "elsewhere"


def _groups(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Key, list[Mapping[str, Any]]]]:
    """The rows of each evaluation that a report was made from."""
    groups: dict[Key, list[Mapping[str, Any]]] = {}
    for row in rows:
        key = tuple(str(row.get(name)) for name in ("fingerprint", "benchmark", "version", "protocol"))
        groups.setdefault((key[0], key[1], key[2], key[3]), []).append(row)
    yield from groups.items()


def _state(key: Key, rows: Sequence[Mapping[str, Any]], evaluated: Sequence[Evaluated]) -> str:
    """Why a report's rows are about the people, or may be; empty if they are not."""
    if key[3] == PROTOCOL:
        measured = [row for row in rows if row.get("of") in TOGETHER]
    else:
        measured = [row for row in rows if "of" not in row]  # the others were worked out from several evaluations
    same = [each for each in evaluated if each.key == key and measured and each.has(measured)]
    if same:
        return "made from answers about them" if any(each.touched for each in same) else ""
    candidates = [each for each in evaluated if each.fingerprint == key[0] and each.key in (key, None)]
    if any(each.touched for each in candidates):
        return "made from answers about them"
    if candidates:
        return "its evaluations were changed since, so it may hold numbers about them"
    return _ELSEWHERE


def _names(path: Path, people: People) -> bool:
    try:
        return holds(path, people)
    except (Unread, RunError):
        return False  # the last net lists it
