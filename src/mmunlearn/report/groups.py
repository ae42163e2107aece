"""Evaluations by several rules: each set of rules gets tables of its own, since numbers by different rules do not compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from mmunlearn.benchmarks.pseudonyms import pseudonyms
from mmunlearn.config_enums import Protocol, Shots
from mmunlearn.errors import RunError
from mmunlearn.report.collect import ZERO_SHOT, Collected, Evaluation, collect, numbered, read_results
from mmunlearn.report.probes import Probe, is_probe, read_probe, relabelled_probe
from mmunlearn.report.recipes import with_role_notes
from mmunlearn.report.words import FORGET_FAMILIES
from mmunlearn.run import Run

PROTOCOLS = (Protocol.fixed, Protocol.official)
SHOTS = (Shots.zero_shot, Shots.few_shot)
MAIN = (str(Protocol.fixed), str(Shots.zero_shot))
"""The rules of the main part, where any evaluation follows them."""


def expanded(evaluations: Sequence[Path]) -> list[Path]:
    """The folders with results: `evaluation.protocol=both` leaves none in the folder itself, but one below for each way.

    A folder with neither stays, so that reading it says what is missing.
    """
    found: list[Path] = []
    for path in evaluations:
        ways = [Run(path).under(rules, shots) for rules, shots in product(PROTOCOLS, SHOTS)]
        below = [] if Run(path).results.is_file() else [way.root for way in ways if way.results.is_file()]
        found += below or [path]
    return list(dict.fromkeys(found))


def collect_groups(evaluations: Sequence[Path], trainings: Mapping[str, Path]) -> tuple[Collected, ...]:
    """Read evaluation folders, those by the same rules together; rules are benchmark, protocol and shots.

    Args:
        evaluations: run folders of `evaluate` or `score`, also such with one folder for each set of rules; those of `probe` go
            with the main group.
        trainings: as for `collect`; they go with the main group.

    Returns:
        The main group first: that of our own rules without shots, else that of the first folder. Others in the order of
        their first folder.

    Raises:
        RunError: as `collect`; only probes are named; also where evaluations by the same rules differ in the version of the
            benchmark, in the choice score or in the questions.
    """
    by_rules: dict[tuple[str, str, str], list[Path]] = {}
    folders = expanded(evaluations)
    probes = [read_probe(path) for path in folders if is_probe(path)]
    for path in folders:
        if is_probe(path):
            continue
        asked = read_results(path)["benchmark"]
        rules = str(asked["name"]), str(asked["protocol"]), str(asked.get("shots", ZERO_SHOT))
        by_rules.setdefault(rules, []).append(path)
    if not by_rules and probes:
        raise RunError(
            "report.evaluations names runs of `mmunlearn probe` alone. A report shows them beside evaluations: run `mmunlearn "
            "evaluate` and name its folder too."
        )
    if not by_rules:
        return (collect([], trainings),)  # says what is missing
    first = next(iter(by_rules))
    main = next((rules for rules in by_rules if rules[0] == first[0] and rules[1:] == MAIN), first)
    order = [main, *(rules for rules in by_rules if rules != main)]
    groups = (collect(by_rules[rules], trainings if rules == main else {}) for rules in order)
    return _with_probes(tuple(map(with_role_notes, groups)), probes)


def _with_probes(groups: tuple[Collected, ...], probes: Sequence[Probe]) -> tuple[Collected, ...]:
    """The groups with the probes in the first one, under the labels of this report."""
    first = replace(groups[0], probes=tuple(probes))
    people = labels_of_people([first, *groups[1:]])
    models = {model.fingerprint: model.label for model in first.evaluations}
    return replace(first, probes=tuple(relabelled_probe(probe, people, models) for probe in probes)), *groups[1:]


def labels_of_people(groups: Sequence[Collected]) -> dict[str, str]:
    """“person 1”, … for everybody whom any question is about, the forget people first, those only probed last."""
    forget, everyone = (
        frozenset(subject for group in groups for subject in group.subjects(families)) for families in (FORGET_FAMILIES, None)
    )
    probed = {person.subject for group in groups for probe in group.probes for person in probe.people} - {""}
    return pseudonyms(forget, everyone, probed)


def relabelled(collected: Collected, safe: Callable[[str], str]) -> Collected:
    """The same with every text that a user chose (labels, methods, notes) passed through `safe`; labels stay unique."""

    def model(one: Evaluation) -> Evaluation:
        members = tuple(map(model, one.members))
        return replace(one, label=safe(one.label), name=safe(one.name), method=safe(one.method), members=members)

    models = [model(one) for one in collected.evaluations]
    unique = numbered([one.label for one in models])
    return replace(
        collected,
        evaluations=tuple(replace(one, label=label) for one, label in zip(models, unique, strict=True)),
        trainings=tuple(replace(training, label=safe(training.label)) for training in collected.trainings),
        probes=tuple(replace(one, label=safe(one.label), method=safe(one.method)) for one in collected.probes),
        notes=tuple(map(safe, collected.notes)),
    )
