"""Runs of `mmunlearn probe` in a report: whom a model is shown to know, without another model to compare with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmunlearn.benchmarks.pseudonyms import pseudonyms
from mmunlearn.errors import RunError
from mmunlearn.run import Run, read_json_lines

SCHEMA = 1
"""Version of the probe files that are understood."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """One person, as the probe judged them."""

    subject: str
    """The person; shown only where names may be. Empty if not known."""
    found: Mapping[str, Any]
    """The numbers and the verdict."""
    label: str = ""
    """The person's neutral label in this report."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One run of `mmunlearn probe`."""

    path: Path
    fingerprint: str
    label: str
    """How the report calls the model."""
    title: str
    """The benchmark, its version and the choice score."""
    rule: str
    remarks: tuple[str, ...]
    verdicts: Mapping[str, int]
    """Number of people by verdict."""
    together: Mapping[str, Any]
    """The choice questions about everybody, as one."""
    people: tuple[Probed, ...]
    stand_ins: Mapping[str, Any] | None
    """The same of fictitious people, whom no model can know; None if none were asked about."""


def is_probe(path: Path) -> bool:
    """Whether a folder holds a probe and no scored evaluation."""
    return Run(path).probe.is_file() and not Run(path).results.is_file()


def read_probe(path: Path) -> Probe:
    """Read a run of `mmunlearn probe`.

    Raises:
        RunError: its file is not what a probe writes.
    """
    file = Run(path).probe
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{file}: not JSON ({error}). Run `mmunlearn probe run.dir={path}` again.") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or "people" not in found:
        raise RunError(
            f"{file}: expected what `mmunlearn probe` writes (schema {SCHEMA}). Run it again with this version of mmunlearn, "
            "or leave the folder out of report.evaluations."
        )
    model, asked = found["model"], found["benchmark"]
    subjects = _subjects(Run(path))
    return Probe(
        path=path,
        fingerprint=str(model["fingerprint"]),
        label=str(model.get("label") or (model.get("method") if model["role"] == "unlearned" else "") or model["role"]),
        title=f"{asked['name']} {asked['version']}, choice score {asked['choice']}",
        rule=found["rule"],
        remarks=tuple(found["remarks"]),
        verdicts=found["verdicts"],
        together=found["together"],
        people=tuple(Probed(subject=subjects.get(one["person"], ""), found=one) for one in found["people"]),
        stand_ins=found.get("stand_ins"),
    )


def _subjects(run: Run) -> dict[str, str]:
    """Person by what the probe calls them, name or label: it numbers people otherwise than a report about several models does.

    Empty if the scores are gone; then it cannot be told whether the probe wrote names, and everybody is “a person”.
    """
    files = sorted(run.scores("any").parent.glob("*.jsonl"))
    names = {line["subject"] for file in files for line in read_json_lines(file)} - {""}
    return {label: name for name, label in pseudonyms(names).items()} | {name: name for name in names}


def relabelled_probe(probe: Probe, people: Mapping[str, str], models: Mapping[str, str]) -> Probe:
    """The same with the report's labels.

    Args:
        probe: as read.
        people: neutral label by person.
        models: label by fingerprint.
    """
    labelled: Sequence[Probed] = [replace(one, label=people.get(one.subject, "a person")) for one in probe.people]
    return replace(probe, people=tuple(labelled), label=models.get(probe.fingerprint, probe.label))
