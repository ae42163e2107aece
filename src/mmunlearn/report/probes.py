"""Runs of `mmunlearn probe` in a report: whom a model is shown to know, without another model to compare with."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmunlearn.benchmarks.pseudonyms import pseudonyms
from mmunlearn.errors import RunError
from mmunlearn.metrics.statistics import Estimate
from mmunlearn.run import Run, read_json_lines

SCHEMA = 1
"""Version of the probe files that are understood."""
TASK = PROTOCOL = "probe"
"""What stands for task and protocol in the rows of a probe: its numbers compare with those of no task."""
EVERYBODY, STAND_INS = "everybody", "stand-ins"
"""Whom a row is about, if not a single person."""
COLUMNS = ("Questions", "Choice right", "Guessing", "p, after Holm", "Answer probability", "Cloze", "ROUGE-L", "Verdict")
"""Of the table of people."""
_KNOWN = {"knows": 1.0, "no sign": 0.0}
"""The verdict as a number; none for a person who was asked too few questions."""


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
    benchmark: str
    version: str
    role: str
    method: str
    seed: int | None
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
        benchmark=str(asked["name"]),
        version=str(asked["version"]),
        role=str(model["role"]),
        method=str(model.get("method") or "").rpartition(".")[2],
        seed=None if model.get("seed") is None else int(model["seed"]),
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


# Rows and tables ----------------------------------------------------------------------------------------------------------


def probe_rows(probes: Iterable[Probe]) -> list[dict[str, Any]]:
    """Flat rows like those of `Collected.rows`, with one more field, `of`: a person's label, `everybody` or `stand-ins`.

    - `probe_accuracy`, `cloze_accuracy`: shares of the questions answered rightly; of choice questions a first place that is
      shared with a wrong option is not right, which makes this another number than `accuracy`;
    - `probe_chance`: what guessing gets on the choice questions;
    - `probe_p_value`: one-sided, against guessing; for everybody as it is, for a person after Holm's correction;
    - `probability`, `rougeL`: means over the person's questions;
    - `probe_knows`: 1 known, 0 no sign, none too few questions; for everybody the share of known people among those tested.

    People are named by their labels in the report, also where the page may show names.
    """
    return [
        {
            "benchmark": probe.benchmark,
            "version": probe.version,
            "protocol": PROTOCOL,
            "fingerprint": probe.fingerprint,
            "role": probe.role,
            "method": probe.method,
            "seed": probe.seed,
            "task": TASK,
            "metric": metric,
            "of": of,
            **estimate.to_json(),
        }
        for probe in probes
        for of, metric, estimate in _numbers(probe)
    ]


def _numbers(probe: Probe) -> Iterator[tuple[str, str, Estimate]]:
    """Whom a number is about, what it is called, and itself."""
    yield from ((EVERYBODY, *one) for one in _of_all(probe.together, probe.verdicts))
    if probe.stand_ins:
        yield from ((STAND_INS, *one) for one in _of_all(probe.stand_ins["together"], probe.stand_ins["verdicts"]))
    for person in probe.people:
        yield from ((person.label, *one) for one in _of_person(person.found))


def _of_all(together: Mapping[str, Any], verdicts: Mapping[str, int]) -> Iterator[tuple[str, Estimate]]:
    tested = sum(verdicts.get(verdict, 0) for verdict in _KNOWN)
    yield "probe_accuracy", _exactly(_share(together), together["count"])
    yield "probe_p_value", _exactly(together["p_value"], together["count"])
    yield (
        "probe_knows",
        _exactly(verdicts.get("knows", 0) / tested if tested else None, tested, sum(verdicts.values()) - tested),
    )


def _of_person(found: Mapping[str, Any]) -> Iterator[tuple[str, Estimate]]:
    choice, known = found["choice"], _KNOWN.get(found["verdict"])
    yield "probe_accuracy", _exactly(_share(choice), choice["count"])
    yield "probe_chance", _exactly(found["chance"], choice["count"])
    yield "probe_p_value", _exactly(found["p_holm"], choice["count"])
    yield "probability", _exactly(found["probability"]["mean"], found["probability"]["count"])
    yield "cloze_accuracy", _exactly(_share(found["cloze"]), found["cloze"]["count"])
    yield "rougeL", _exactly(found["rouge_l"]["mean"], found["rouge_l"]["count"])
    yield "probe_knows", _exactly(known, int(known is not None), int(known is None))


def _share(score: Mapping[str, Any]) -> float | None:
    """Of the questions answered rightly; None where there is none."""
    return score["right"] / score["count"] if score["count"] else None


def _exactly(value: float | None, count: int, unscored: int = 0) -> Estimate:
    """A number without an interval."""
    number = math.nan if value is None else float(value)
    return Estimate(value=number, low=math.nan, high=math.nan, count=count, unscored=unscored)


def probe_cells(probe: Probe) -> list[tuple[str, tuple[str, ...]]]:
    """Each person's label, and what the table shows of them, by `COLUMNS`."""
    return [(person.label, _cells(person.found)) for person in probe.people]


def _cells(found: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(found["questions"]),
        _of_count(found["choice"]),
        _short(found["chance"]),
        _p_value(found["p_holm"]),
        _short(found["probability"]["mean"]),
        _of_count(found["cloze"]),
        _short(found["rouge_l"]["mean"]),
        str(found["verdict"]),
    )


def probe_note(probe: Probe) -> str:
    """What stands below the table: everybody as one, stand-ins, the rule and its remarks."""
    verdicts = ", ".join(f"{verdict}: {count}" for verdict, count in probe.verdicts.items())
    parts = [f"{verdicts}.", _as_one("All together", probe.together)]
    if probe.stand_ins:
        known = f"{probe.stand_ins['verdicts'].get('knows', 0)} of {len(probe.stand_ins['people'])} would count as known."
        parts += [_as_one("Fictitious stand-ins", probe.stand_ins["together"]), known]
    return " ".join(part for part in [*parts, probe.rule, *probe.remarks] if part)


def _as_one(who: str, together: Mapping[str, Any]) -> str:
    if not together["count"]:
        return ""
    share = f"{together['right']} of {together['count']} choice questions right"
    return f"{who}: {share}, p {_p_value(together['p_value'])} against guessing."


def _of_count(score: Mapping[str, Any]) -> str:
    return f"{score['right']}/{score['count']}" if score["count"] else "–"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
