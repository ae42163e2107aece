"""`mmunlearn sequence`: requests to forget people that come one after the other, each unlearned from the model before."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.benchmarks.chosen import Chosen, check_known
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config import TARGET, DataConfig
from mmunlearn.config_check import checked
from mmunlearn.config_enums import Quantise
from mmunlearn.data.example import examples_fingerprint
from mmunlearn.data.subjects import normal_name
from mmunlearn.errors import ConfigError
from mmunlearn.evaluation.ask import run_predict
from mmunlearn.evaluation.job import score_run
from mmunlearn.evaluation.score import questions_fingerprint
from mmunlearn.evaluation.ways import asks_in_several_ways, tasks_of
from mmunlearn.locks import locked
from mmunlearn.methods.finetune import FineTune
from mmunlearn.report.collect import Collected, collect, redact
from mmunlearn.report.course import course, course_csv, course_section
from mmunlearn.report.export import write_tables
from mmunlearn.report.groups import labels_of_people
from mmunlearn.report.html import write_report
from mmunlearn.run import Run, write_text
from mmunlearn.sequence_record import SequenceFolder, SequenceRecord
from mmunlearn.training.folder import training_key
from mmunlearn.training.job import open_method, train

console = Console(stderr=True)
CHOSEN = f"{Chosen.__module__}.{Chosen.__name__}"
SECTIONS = ("model", "data", "evaluation")
"""What decides an evaluation."""


def run_sequence(config: DictConfig) -> Path:
    """Unlearn each request from the model before, evaluate every model on all requests, and report.

    What is there already is kept: a sequence that was stopped, or got one more request, goes on. A step that was made from
    another model, other questions, or another mask or reference than there are now is not kept silently: the command says so
    and ends. An evaluation with other questions than there are now is completed: what was changed is asked and all is scored.

    Args:
        config: complete and checked.

    Returns:
        The folder of the report.

    Raises:
        ConfigError: the requests are empty or overlap, or a setting does not fit.
        DataError: a request names somebody whom the benchmark does not have.
        RunError: another command is using the folder, or a step in it was made from something else.
    """
    requests = read_requests(config.sequence.requests)
    _check(config, len(requests))
    folder = SequenceFolder(root=Path(config.run.dir))
    everybody = [person for request in requests for person in request]
    benchmark = open_benchmark(checked(OmegaConf.create({"data": _data(config, everybody, [])})).data)
    splits = benchmark.splits()
    check_known(everybody, (*splits.forget, *splits.retain))
    with locked(Run(folder.root)):
        return _run(config, folder, requests, benchmark)


def _run(config: DictConfig, folder: SequenceFolder, requests: Sequence[Sequence[str]], benchmark: Benchmark) -> Path:
    """The sequence in a folder that is its own."""
    everybody = [person for request in requests for person in request]
    splits = benchmark.splits()
    everything = (*splits.forget, *splits.retain)
    record = SequenceRecord(folder, config.model)
    models = [str(config.model.path or config.model.name)]
    for number, request in enumerate(requests, 1):
        earlier = [person for before in requests[: number - 1] for person in before]
        own = step_config(config, folder.step(number), models[-1], request, earlier, number)
        names = set(map(normal_name, request))
        gone = names | set(map(normal_name, earlier))
        questions = {
            "forget": examples_fingerprint(each for each in everything if normal_name(each.subject) in names),
            "retain": examples_fingerprint(each for each in everything if normal_name(each.subject) not in gone),
        }
        _train(own, f"Request {number} of {len(requests)}: {len(request)} people", record, questions)
        models.append(str(folder.step(number).model))
    if config.model.quantise == Quantise.nf4:
        console.print(
            "model.quantise=nf4 is for training: what was trained so is asked with its base in 4 bits, others as stored.",
            highlight=False,
        )
    compared = list(config.sequence.compare)
    asked = [
        evaluation_config(config, folder.evaluation(number), model, everybody, f"after request {number}" if number else "")
        for number, model in enumerate(models)
    ]
    asked += [
        evaluation_config(config, folder.compared(number), each, everybody, "") for number, each in enumerate(compared, 1)
    ]
    questions_now = asked_now(asked[0], benchmark)
    for each in asked:
        _evaluate(each, record, questions_now)
    subjects = {normal_name(example.subject): example.subject for example in splits.forget}
    people = [[subjects[normal_name(person)] for person in request] for request in requests]
    return _report(config, folder, people, len(compared))


def read_requests(entries: Sequence[Any] | ListConfig) -> list[list[str]]:
    """The people of each request; a text is the name of a file with one person a line.

    Raises:
        ConfigError: there is no request, one is empty or no list, a file is not there, or two name the same person.
    """
    if not entries:
        raise ConfigError("sequence.requests is empty. Name the people of each: 'sequence.requests=[[ID,ID],[ID]]'.")
    requests = [_request(number, entry) for number, entry in enumerate(entries, 1)]
    seen: dict[str, int] = {}
    for number, request in enumerate(requests, 1):
        if not request:
            raise ConfigError(f"sequence.requests: request {number} names nobody.")
        for person in request:
            if normal_name(person) in seen:
                raise ConfigError(
                    f"sequence.requests: {person!r} is in request {seen[normal_name(person)]} and again in request {number}."
                )
            seen[normal_name(person)] = number
    return requests


def _request(number: int, entry: Any) -> list[str]:
    if isinstance(entry, list | tuple | ListConfig):
        return [str(person) for person in entry]
    file = Path(str(entry)).expanduser()
    if not file.is_file():
        raise ConfigError(
            f"sequence.requests: request {number} is {str(entry)!r}, which is neither a list of people, as in [[ID,ID],[ID]], "
            "nor a file with one person a line."
        )
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _check(config: DictConfig, requests: int) -> None:
    if isinstance(open_method(config.trainer.method), FineTune):
        raise ConfigError("trainer: fine-tuning forgets nobody. Choose a method: trainer=grad_diff | npo | …")
    if asks_in_several_ways(config):
        raise ConfigError("evaluation.protocol, evaluation.shots: a sequence is evaluated in one way, not by `both`.")
    if config.report.show_subjects:
        raise ConfigError("report.show_subjects: the report of a sequence shows nobody.")
    for name in ("evaluations", "trainings"):
        if config.report[name]:
            raise ConfigError(f"report.{name}: a sequence reports on its own models. Name others in sequence.compare.")
    if not 0 <= config.report.gate_margin <= 1:
        raise ConfigError(f"report.gate_margin: {config.report.gate_margin} lies outside 0 to 1. The default is 0.05.")
    if config.model.quantise == Quantise.nf4 and requests > 1:
        raise ConfigError(
            "model.quantise=nf4: the second request would be unlearned from an adapter, and only a whole model can be "
            "trained on in 4 bits. Leave it out, or do one request at a time: `mmunlearn export "
            f"model.path={SequenceFolder(root=Path(config.run.dir)).step(1).model} run.dir=FOLDER` writes a whole model, from "
            "which a sequence with the next request, model.path=FOLDER and another run.dir starts."
        )


def _data(config: DictConfig, forget: Sequence[str], earlier: Sequence[str]) -> dict[str, Any]:
    """The section `data` with other people to be forgotten."""
    plain: Any = OmegaConf.to_container(config.data, resolve=True)
    general = {key: value for key, value in plain.items() if key in DataConfig.__dataclass_fields__}
    own = {key: value for key, value in plain.items() if key not in general}
    return {**general, TARGET: CHOSEN, "of": own, "forget": list(forget), "earlier": list(earlier)}


def step_config(
    config: DictConfig, run: Run, model: str, request: Sequence[str], earlier: Sequence[str], number: int
) -> DictConfig:
    """What `mmunlearn unlearn` would be told to do for one request."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    begun = run.config.is_file() and not plain["run"]["overwrite"]
    settings = {"dir": str(run.root), "label": f"after request {number}", "resume": begun}
    return checked(
        OmegaConf.create(
            {
                "run": {**plain["run"], **settings},
                "model": {**plain["model"], "path": model},
                "data": _data(config, request, earlier),
                "trainer": plain["trainer"],
            }
        )
    )


def evaluation_config(config: DictConfig, run: Run, model: str, everybody: Sequence[str], label: str) -> DictConfig:
    """What `mmunlearn evaluate` would be told; every model is asked the same questions, about all requests.

    Nothing is rounded: `model.quantise=nf4` is how a step is trained, and its adapter opens its base in 4 bits by itself.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return checked(
        OmegaConf.create(
            {
                "run": {"dir": str(run.root), "device": plain["run"]["device"], "label": label},
                "model": {**plain["model"], "path": model, "quantise": str(Quantise.none)},
                "data": _data(config, everybody, []),
                "evaluation": plain["evaluation"],
            }
        )
    )


def _train(config: DictConfig, title: str, record: SequenceRecord, questions: dict[str, str]) -> None:
    """Train what is not there yet."""
    run, start = Run(Path(config.run.dir)), str(config.model.path)
    made_from = {"start": record.model(start), **questions, **record.files_of(config, questions["retain"])}
    recorded = OmegaConf.load(run.config) if run.is_done else None
    same = isinstance(recorded, DictConfig) and training_key(recorded) == training_key(config)
    if same and not config.run.overwrite:
        record.check_step(run, start, made_from)
        console.print(f"{title}: from {run.root}", highlight=False, soft_wrap=True)
        return
    console.print(f"[bold]{title}[/bold]", highlight=False)
    if not run.is_done or config.run.overwrite:  # else it is refused
        record.begin_step(run, made_from)
    train(config)


def asked_now(config: DictConfig, benchmark: Benchmark) -> str:
    """Identifies the questions that an evaluation would ask now, as its results do."""
    return questions_fingerprint(tasks_of(config, benchmark))


def _evaluate(config: DictConfig, record: SequenceRecord, questions: str) -> None:
    """Ask what was not asked yet, and anew what was asked of a model, or in words, that are no longer there, finished or not.

    Args:
        config: of the evaluation.
        record: knows models by content.
        questions: those that there are now, see `asked_now`; answers to the same question are not asked for again.
    """
    run, model = Run(Path(config.run.dir)), record.model(str(config.model.path))
    asked = json.loads(run.model_card.read_text(encoding="utf-8"))["fingerprint"] if run.model_card.is_file() else model
    recorded = OmegaConf.load(run.config) if run.is_done else None
    same = isinstance(recorded, DictConfig) and all(recorded.get(name) == config[name] for name in SECTIONS)
    if asked != model or not same or _scored_questions(run) != questions:
        config.run.overwrite = asked != model
        run_predict(config)
        score_run(config)
    record.write()


def _scored_questions(run: Run) -> str:
    """What a finished evaluation has asked; empty if its results do not say so."""
    results = json.loads(run.results.read_text(encoding="utf-8")) if run.results.is_file() else {}
    return str(results.get("benchmark", {}).get("questions", ""))


def _report(config: DictConfig, folder: SequenceFolder, requests: Sequence[Sequence[str]], compared: int) -> Path:
    own = [folder.evaluation(number).root for number in range(len(requests) + 1)]
    found = collect([*own, *(folder.compared(number).root for number in range(1, compared + 1))], {})
    collected = replace(found, gate_margin=config.report.gate_margin)
    by_path = {model.path: model for model in collected.evaluations}
    steps = course(collected, [by_path[path] for path in own], requests)
    shown = _ends(collected, own)
    run, title = folder.report, config.report.title
    write_report(
        run.root,
        shown,
        benchmark=None,
        show_subjects=False,
        title=title,
        banner=config.report.banner or None,
        commands=(),
        extras=[course_section(steps)],
        people_of=[collected],
    )
    labels = labels_of_people([collected])
    write_tables(run, [shown], title=title, safe=lambda text: redact(text, labels))
    write_text(run.course, course_csv(steps))
    console.print(f"Report: [bold]{run.report}[/bold], every number over the requests in {run.course}", soft_wrap=True)
    return run.root


def _ends(collected: Collected, steps: Sequence[Path]) -> Collected:
    """Without the models between the first and the last: people who were not requested yet are no failure of theirs."""
    between = set(steps[1:-1])
    return replace(collected, evaluations=tuple(model for model in collected.evaluations if model.path not in between))
