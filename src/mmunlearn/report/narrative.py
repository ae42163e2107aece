"""The verdict as a paragraph; every word in it follows from numbers."""

import math
from dataclasses import dataclass

from mmunlearn.metrics.statistics import Estimate
from mmunlearn.report import verdict
from mmunlearn.report.collect import Collected
from mmunlearn.report.decisions import rules
from mmunlearn.report.tables import interval, number
from mmunlearn.report.verdict import Finding, Gate, Kept, MethodVerdict
from mmunlearn.report.words import has_options, kind_title, parse_task

VISUAL_ONLY = (
    "The goal visual_only takes away the recognition of faces. It does not erase the facts: asked without a picture, "
    "the model is meant to go on answering."
)
LIMITS = (
    "These numbers come from questions and answers. They can show that a model still knows something; they cannot prove "
    "that nothing is left in its weights. Unless a table below says so, relearning, quantisation and adversarial prompts "
    "were not tested."
)

COLLAPSED = "A model that answers nothing looks like one that forgot: read its forget numbers as damage."


@dataclass(frozen=True, kw_only=True)
class Narrative:
    """The report in words."""

    known: str
    """What there was to forget."""
    methods: tuple[str, ...]
    """What each method did to it, a sentence or two each."""
    remarks: tuple[str, ...]
    """What the numbers cannot say."""
    rules: tuple[tuple[str, str], ...] = ()
    """What each word needs, with its numbers."""


def narrative(collected: Collected) -> Narrative:
    """What was known, what each method did to it, what the numbers cannot say."""
    tasks = verdict.headline_tasks(collected, ["forget"])
    if not tasks:
        nothing = "No task asked about the forget people, so nothing can be said about forgetting."
        return Narrative(known=nothing, methods=(), remarks=(LIMITS,), rules=rules(collected))
    gate = next(gate for gate in verdict.gates(collected) if gate.task == tasks[0])
    methods = verdict.verdicts(collected)
    visual_only = any(method.evaluation.record.goal == "visual_only" for method in methods)
    return Narrative(
        known=" ".join(_known(collected, gate)),
        methods=tuple(_method(method) for method in methods),
        remarks=(VISUAL_ONLY, LIMITS) if visual_only else (LIMITS,),
        rules=rules(collected),
    )


def _kept(kept: Kept) -> str:
    """“97 % (image)”, with a warning where that is no more than guessing."""
    share = "an unknown share" if math.isnan(kept.share) else f"{100 * kept.share:.0f}\u00a0%"
    warning = "; no better than guessing" if kept.at_chance else ""
    return f"{share} ({parse_task(kept.task).modality}{warning})"


def _known(collected: Collected, gate: Gate) -> list[str]:
    """What vanilla and gold reached, and whether that leaves anything to forget."""
    said = []
    for role in ("vanilla", "gold"):
        estimates = [e for model in collected.of_role(role) if (e := model.estimate(gate.task, gate.metric))]
        if estimates:
            said.append(f"the {role} model scores {' and '.join(_with_interval(estimate) for estimate in estimates)}")
    name = parse_task(gate.task)
    chance = collected.chance.get(gate.task) if has_options(gate.task) else None
    guessing = f" Guessing gets {number(chance)}." if chance is not None else ""
    if not said:
        return [_gate_sentence(gate)]
    # Whom this task was about, not the others of its family; none if no scores of single questions were kept.
    people = len({asked.subject for model in collected.evaluations for asked in model.scores.get(gate.task, {}).values()})
    whom = f"the {people} forget people" if people else "the forget people"
    asked = f"Asked about {whom} ({name.modality}, {kind_title(name.kind)}), {', '.join(said)}.{guessing}"
    return [asked, _gate_sentence(gate)]


def _gate_sentence(gate: Gate) -> str:
    if gate.state == verdict.UNKNOWN:
        return f"Whether there was anything to forget is unknown: {gate.reason}."
    difference = number(gate.difference.value) if gate.difference else "–"
    if gate.state == verdict.MEMORISED:
        return f"The difference is {difference} and {gate.reason}: vanilla had memorised them, there was something to forget."
    return (
        f"The difference is {difference} and {gate.reason}: it is not shown that vanilla knew them better than a model "
        "that never saw them, so nothing below can be called forgotten."
    )


def _method(method: MethodVerdict) -> str:
    """One method: did it forget, with and without the picture, and at what price."""
    label = method.evaluation.label
    if not method.findings:
        return f"{label} was not asked about the forget people."
    gold = "gold_text" if method.evaluation.record.goal == "visual_only" else "gold"
    seen: set[str] = set()
    forgot = "; ".join(
        f"{_asked(finding.task, seen)} {_with_interval(finding.estimate)}, {_inside(finding, gold)}: {_word(finding)}"
        for finding in method.findings
    )
    kept = f" Kept of vanilla’s retain score: {', '.join(_kept(kept) for kept in method.kept)}." if method.kept else ""
    if method.warnings:
        return f"{label} has collapsed: {', and '.join(method.warnings)}. {COLLAPSED} Its numbers: {forgot}.{kept}"
    return f"{label}: {forgot}.{kept}"


def _word(finding: Finding) -> str:
    return f"{finding.word} ({finding.reason})" if finding.reason else finding.word


def _asked(task: str, seen: set[str]) -> str:
    """“image”, “text”, and “text, generation” for a second kind of question."""
    name = parse_task(task)
    repeated = name.modality in seen
    seen.add(name.modality)
    return f"{name.modality}, {kind_title(name.kind)}," if repeated else name.modality


def _inside(finding: Finding, gold: str) -> str:
    if finding.inside is None:
        return f"with no {gold} interval to compare with"
    return f"inside {gold}’s interval" if finding.inside else f"outside {gold}’s interval"


def _with_interval(estimate: Estimate) -> str:
    return f"{number(estimate.value)} ({interval(estimate)})"
