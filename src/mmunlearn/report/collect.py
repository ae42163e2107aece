"""Reads evaluation and training folders into one record, and refuses to put numbers side by side that do not compare."""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mmunlearn.benchmarks.pseudonyms import pseudonyms as pseudonyms
from mmunlearn.config_enums import Shots
from mmunlearn.errors import RunError
from mmunlearn.metrics.statistics import Estimate
from mmunlearn.report.probes import Probe
from mmunlearn.report.redaction import redact as redact
from mmunlearn.report.words import ROLE_ORDER, has_options, parse_task, primary_metric
from mmunlearn.run import Run, read_json_lines

ZERO_SHOT = str(Shots.zero_shot)
SCHEMA = 1
"""Version of the `results.json` files that are understood."""
GATE_MARGIN = 0.05
"""By how much the vanilla model must surely beat the gold model before anything can be called forgotten."""


@dataclass(frozen=True, kw_only=True)
class QuestionScores:
    """What one question was scored with."""

    subject: str
    metrics: Mapping[str, float]
    """NaN: could not be scored."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """How a folder came to be: what a reader needs to repeat it."""

    config: str
    """The text of `config.yaml`; empty if there is none."""
    environment: Mapping[str, Any]
    """`environment.json`; empty if there is none."""
    goal: str
    """`erase` or `visual_only`, as the model's card says, else from the configuration."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluated model."""

    path: Path
    label: str
    """How tables and plots call it, unique within a report."""
    role: str
    """base, vanilla, gold, gold_text or unlearned."""
    method: str
    seed: int | None
    fingerprint: str
    tasks: Mapping[str, Mapping[str, Estimate]]
    scores: Mapping[str, Mapping[str, QuestionScores]]
    """By task and question id."""
    record: Record
    name: str = ""
    """The label before it was made unique."""
    precision: str = ""
    """What its weights were rounded to when it was asked (int8, int4); empty: nothing."""
    members: tuple["Evaluation", ...] = ()
    """The single models, one a seed, that this row is the mean of (see `seeds.fold_seeds`); empty for a single model."""

    def estimate(self, task: str, metric: str) -> Estimate | None:
        """The aggregated number, or None if it was not measured."""
        return self.tasks.get(task, {}).get(metric)

    def singles(self) -> tuple["Evaluation", ...]:
        """The models behind this row: itself, or one a seed."""
        return self.members or (self,)

    def spread(self, task: str, metric: str) -> tuple[float, float] | None:
        """The lowest and the highest number of any seed; None for a single model or where no seed has a number."""
        found = [estimate.value for member in self.members if (estimate := member.estimate(task, metric)) is not None]
        values = [value for value in found if not math.isnan(value)]
        return (min(values), max(values)) if values else None


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run."""

    label: str
    steps: tuple[Mapping[str, Any], ...]
    """The lines of `metrics.jsonl`."""
    record: Record


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Everything a report is made from."""

    benchmark: str
    version: str
    protocol: str
    """With the shots, where there are any."""
    evaluations: tuple[Evaluation, ...]
    """Base, vanilla, gold, then the methods in the order given."""
    trainings: tuple[Training, ...]
    chance: Mapping[str, float]
    """By choice task: the accuracy of guessing; from the number of options of each question."""
    notes: tuple[str, ...]
    """What a reader should know before comparing."""
    probes: tuple[Probe, ...] = ()
    """Runs of `mmunlearn probe` that are shown beside the evaluations."""
    choice: str = ""
    """The score that decides multiple choice (`evaluation.choice`); empty where the reply itself does."""
    gate_margin: float = GATE_MARGIN
    """0 to 1; by how much vanilla must surely beat gold before anything can be called forgotten."""

    def of_role(self, role: str) -> tuple[Evaluation, ...]:
        """The rows with this role; seeds that were folded together are one."""
        return tuple(evaluation for evaluation in self.evaluations if evaluation.role == role)

    def singles_of_role(self, role: str) -> tuple[Evaluation, ...]:
        """The models with this role, one a seed."""
        return tuple(single for evaluation in self.of_role(role) for single in evaluation.singles())

    def references(self, role: str) -> tuple[Evaluation, ...]:
        """Those that other models are held against: of a role with rounded and unrounded models, the unrounded ones."""
        found = self.singles_of_role(role)
        return tuple(model for model in found if not model.precision) or found

    def unfolded(self) -> "Collected":
        """The same with one row for each model, none folded."""
        return replace(self, evaluations=tuple(single for each in self.evaluations for single in each.singles()))

    def task_names(self) -> tuple[str, ...]:
        """Every task of any model, in the order in which they first appear."""
        return tuple(dict.fromkeys(task for evaluation in self.evaluations for task in evaluation.tasks))

    def primary_metric(self, task: str) -> str:
        """The metric that stands for a task in summaries, under the rules by which it was asked."""
        scored = next((model.tasks[task] for model in self.evaluations if task in model.tasks), {})
        return primary_metric(task, scored)

    def subjects(self, families: Collection[str] | None = None) -> frozenset[str]:
        """Every person whom a scored question is about; of some families of tasks only, or of all."""
        return frozenset(
            scores.subject
            for evaluation in self.evaluations
            for task, questions in evaluation.scores.items()
            if families is None or parse_task(task).family in families
            for scores in questions.values()
            if scores.subject
        )

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each single model, task and metric; the content of a report's `results.json`."""
        return [row for _, row in self.rows_by_model(self.unfolded().evaluations)]

    def rows_by_model(self, models: Iterable[Evaluation]) -> list[tuple[Evaluation, dict[str, Any]]]:
        """Flat rows of some models, each with the model that it is about."""
        return [
            (
                evaluation,
                {
                    "benchmark": self.benchmark,
                    "version": self.version,
                    "protocol": self.protocol,
                    "fingerprint": evaluation.fingerprint,
                    "role": evaluation.role,
                    "method": evaluation.method,
                    "seed": evaluation.seed,
                    "task": task,
                    "metric": metric,
                    **estimate.to_json(),
                },
            )
            for evaluation in models
            for task, metrics in evaluation.tasks.items()
            for metric, estimate in metrics.items()
        ]


def collect(evaluations: Sequence[Path], trainings: Mapping[str, Path]) -> Collected:
    """Read evaluation folders (with `results.json`) and training folders (with `metrics.jsonl`).

    Args:
        evaluations: run folders of `evaluate` or `score`; at least one.
        trainings: run folders of `finetune` or `unlearn` by the label that their curves get.

    Raises:
        RunError: no evaluation, a folder without results, results of an unknown schema, or results that differ in
            benchmark, version, protocol or shots and therefore must not stand in one table.
    """
    if not evaluations:
        raise RunError("A report needs at least one evaluation folder; none was given. Run `mmunlearn evaluate` first.")
    raw = [read_results(Path(path)) for path in evaluations]
    name, version, protocol = _same_benchmark(dict(zip(evaluations, raw, strict=True)))
    models = with_labels([_evaluation(Path(path), results) for path, results in zip(evaluations, raw, strict=True)])
    models.sort(key=lambda model: ROLE_ORDER.index(model.role))  # stable: methods stay in the order given
    return Collected(
        benchmark=name,
        version=version,
        protocol=protocol,
        evaluations=tuple(models),
        trainings=tuple(_training(label, Path(path)) for label, path in trainings.items()),
        chance=_chance(models),
        notes=tuple(_notes(models)),
        choice="" if protocol.startswith("official") else str(raw[0]["benchmark"].get("choice", "")),
    )


def read_replies(evaluation: Evaluation, task: str) -> dict[str, str]:
    """What the model wrote for each question of a task, by question id; empty if the predictions were not kept."""
    return {line["id"]: line["text"] for line in read_json_lines(Run(evaluation.path).predictions(task))}


def primary_values(evaluation: Evaluation, task: str, metric: str) -> dict[str, float]:
    """The per-question numbers behind a task's aggregated metric, by question id; empty if they were not kept."""
    scores = evaluation.scores.get(task, {})
    return {id_: question.metrics[metric] for id_, question in scores.items() if metric in question.metrics}


def read_results(path: Path) -> dict[str, Any]:
    """The `results.json` of an evaluation folder.

    Raises:
        RunError: it is not there, or not what it should be.
    """
    file = Run(path).results
    if not file.is_file():
        raise RunError(
            f"{file}: not there, so {path} holds no scored evaluation. Run `mmunlearn score run.dir={path}` first, "
            "or leave the folder out."
        )
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{file}: not JSON ({error}). Delete it and run `mmunlearn score run.dir={path}` again.") from error
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        found = results.get("schema") if isinstance(results, dict) else "a list of rows, as a report writes it"
        raise RunError(
            f"{file}: expected the results of one evaluation with schema {SCHEMA}, found {found}. "
            "Give evaluation folders, scored with this version of mmunlearn."
        )
    role = results["model"]["role"]
    if role not in ROLE_ORDER:
        raise RunError(f"{file}: unknown model role {role!r}. Known: {', '.join(ROLE_ORDER)}. Set run.role and score again.")
    return results


def _same_benchmark(results: Mapping[Path, Mapping[str, Any]]) -> tuple[str, str, str]:
    """Name, version and protocol (with the shots, if any), which must be the same in all folders, as must the questions."""
    for field in ("name", "version", "protocol", "shots", "choice", "questions"):
        missing = ZERO_SHOT if field == "shots" else None  # results written before there were shots do not say so
        if field == "choice" and all(result["benchmark"]["protocol"] == "official" for result in results.values()):
            continue  # the published rules read the reply and know no choice score
        found = {path: str(result["benchmark"].get(field, missing)) for path, result in results.items()}
        if len(set(found.values())) > 1:
            if field == "questions":
                raise RunError(
                    "The evaluations were asked different questions, so their numbers do not compare: evaluation.limit, "
                    f"evaluation.splits or the data differ between {', '.join(map(str, found))}. See their config.yaml."
                )
            listing = "; ".join(f"{path}: {value}" for path, value in found.items())
            raise RunError(
                f"The evaluations differ in benchmark {field} ({listing}), so their numbers do not compare. "
                "Report them separately, or evaluate again with one version."
            )
    benchmark = next(iter(results.values()))["benchmark"]
    shots = benchmark.get("shots", ZERO_SHOT)
    protocol = str(benchmark["protocol"]) if shots == ZERO_SHOT else f"{benchmark['protocol']}, {shots}"
    return str(benchmark["name"]), str(benchmark["version"]), protocol


def _evaluation(path: Path, results: Mapping[str, Any]) -> Evaluation:
    model = results["model"]
    tasks = {
        task: {metric: Estimate.from_json(estimate) for metric, estimate in metrics.items()}
        for task, metrics in results["tasks"].items()
    }
    seed = model.get("seed")
    record = _record(path)
    return Evaluation(
        path=path,
        label=model.get("label") or "",
        role=model["role"],
        method=(model.get("method") or "").rpartition(".")[2],
        seed=None if seed is None else int(seed),
        fingerprint=model["fingerprint"],
        precision=str(model.get("quantised", "")),
        tasks=tasks,
        scores={task: _scores(Run(path).scores(task)) for task in tasks},
        record=replace(record, goal=str(model.get("goal") or record.goal)),
    )


def _scores(file: Path) -> dict[str, QuestionScores]:
    return {
        line["id"]: QuestionScores(
            subject=line["subject"],
            metrics={name: math.nan if value is None else float(value) for name, value in line["metrics"].items()},
        )
        for line in read_json_lines(file)
    }


def _training(label: str, path: Path) -> Training:
    if not path.is_dir():
        raise RunError(f"{path}: no such training folder (curves of {label!r}). Correct the path or leave it out.")
    return Training(label=label, steps=tuple(read_json_lines(Run(path).metrics)), record=_record(path))


def _record(path: Path) -> Record:
    run = Run(path)
    config = run.config.read_text(encoding="utf-8") if run.config.is_file() else ""
    environment = json.loads(run.environment.read_text(encoding="utf-8")) if run.environment.is_file() else {}
    try:
        goal = _find(yaml.safe_load(config), "goal")
    except yaml.YAMLError as error:
        raise RunError(f"{run.config}: not YAML ({error}). Restore the file or leave the folder out.") from error
    return Record(config=config, environment=environment, goal=str(goal or "erase"))


def _find(node: Any, key: str) -> Any:
    """The first value of `key` anywhere in nested dictionaries: which section holds the goal is not this layer's matter."""
    if not isinstance(node, dict):
        return None
    if key in node:
        return node[key]
    return next((found for value in node.values() if (found := _find(value, key)) is not None), None)


def with_labels(models: Sequence[Evaluation]) -> list[Evaluation]:
    """The given label, else role or method; the seed is added where that is not unique, then a number."""
    names = [model.label or (model.method or "unlearned" if model.role == "unlearned" else model.role) for model in models]
    repeated = Counter(names)
    labels = [
        f"{name} (seed {model.seed})" if repeated[name] > 1 and model.seed is not None else name
        for name, model in zip(names, models, strict=True)
    ]
    unique = numbered(labels)
    return [replace(model, name=name, label=label) for model, name, label in zip(models, names, unique, strict=True)]


def numbered(labels: Sequence[str]) -> list[str]:
    """Labels with “ #1”, “ #2” behind those that occur more than once."""
    repeated, seen = Counter(labels), Counter[str]()
    unique = []
    for label in labels:
        seen[label] += 1
        unique.append(f"{label} #{seen[label]}" if repeated[label] > 1 else label)
    return unique


def _chance(models: Sequence[Evaluation]) -> dict[str, float]:
    """Mean of one over the number of options, from the first model that kept its predictions of the task."""
    chance: dict[str, float] = {}
    for model in models:
        for task in model.tasks:
            if task in chance or not has_options(task):
                continue
            lines = read_json_lines(Run(model.path).predictions(task))
            options = [len(line.get("option_tokens") or line.get("option_letter_probabilities") or ()) for line in lines]
            options = [count for count in options if count]
            if options:
                chance[task] = sum(1 / count for count in options) / len(options)
    return chance


def _notes(models: Sequence[Evaluation]) -> Iterable[str]:
    """Differences between models that do not forbid a comparison but may mislead it."""
    for task in dict.fromkeys(task for model in models for task in model.tasks):
        asked = {
            model.label: max((estimate.count + estimate.unscored for estimate in model.tasks[task].values()), default=0)
            for model in models
            if task in model.tasks
        }
        if len(set(asked.values())) > 1:
            listing = ", ".join(f"{label}: {count}" for label, count in asked.items())
            yield f"The models were asked different numbers of questions in {task} ({listing})."
    goals = {model.label: model.record.goal for model in models if model.role == "unlearned"}
    if len(set(goals.values())) > 1:
        listing = ", ".join(f"{label}: {goal}" for label, goal in goals.items())
        yield f"The methods pursue different goals ({listing}); their forget text numbers have different ideals."
