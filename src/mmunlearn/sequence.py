"""`mmunlearn sequence`: requests to forget people that come one after the other, each unlearned from the model before."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from mmunlearn.benchmarks.chosen import Chosen, check_known
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config import TARGET, DataConfig
from mmunlearn.config_check import checked
from mmunlearn.data.subjects import normal_name
from mmunlearn.errors import ConfigError
from mmunlearn.evaluation.ask import run_predict
from mmunlearn.evaluation.job import score_run
from mmunlearn.evaluation.ways import asks_in_several_ways
from mmunlearn.methods.finetune import FineTune
from mmunlearn.report.collect import collect, redact
from mmunlearn.report.course import course, course_csv, course_section
from mmunlearn.report.export import write_tables
from mmunlearn.report.groups import labels_of_people
from mmunlearn.report.html import write_report
from mmunlearn.run import Run, write_text
from mmunlearn.training.folder import training_key
from mmunlearn.training.job import open_method, train

console = Console(stderr=True)
CHOSEN = f"{Chosen.__module__}.{Chosen.__name__}"
SECTIONS = ("model", "data", "evaluation")
"""What decides an evaluation."""


@dataclass(frozen=True, kw_only=True)
class SequenceFolder:
    """Every folder of a sequence beside the report."""

    root: Path

    def step(self, number: int) -> Run:
        """The training for one request, from 1."""
        return Run(self.root / f"step-{number}")

    def evaluation(self, number: int) -> Run:
        """Of the model after a request; 0: before the first."""
        return Run(self.root / f"evaluation-{number}")

    def compared(self, number: int) -> Run:
        """Of a model to compare with, from 1."""
        return Run(self.root / f"evaluation-compared-{number}")

    @property
    def report(self) -> Run:
        """The page about all."""
        return Run(self.root / "report")


def run_sequence(config: DictConfig) -> Path:
    """Unlearn each request from the model before, evaluate every model on all requests, and report.

    What is there already is kept: a sequence that was stopped, or got one more request, goes on.

    Args:
        config: complete and checked.

    Returns:
        The folder of the report.

    Raises:
        ConfigError: the requests are empty or overlap, or a setting does not fit.
        DataError: a request names somebody whom the benchmark does not have.
    """
    requests = read_requests(config.sequence.requests)
    _check(config)
    folder = SequenceFolder(root=Path(config.run.dir))
    everybody = [person for request in requests for person in request]
    benchmark = open_benchmark(checked(OmegaConf.create({"data": _data(config, everybody, [])})).data)
    splits = benchmark.splits()
    check_known(everybody, (*splits.forget, *splits.retain))
    models = [str(config.model.path or config.model.name)]
    for number, request in enumerate(requests, 1):
        earlier = [person for before in requests[: number - 1] for person in before]
        own = step_config(config, folder.step(number), models[-1], request, earlier, number)
        _train(own, f"Request {number} of {len(requests)}: {len(request)} people")
        models.append(str(folder.step(number).model))
    for number, model in enumerate(models):
        label = f"after request {number}" if number else ""
        _evaluate(evaluation_config(config, folder.evaluation(number), model, everybody, label))
    compared = list(config.sequence.compare)
    for number, model in enumerate(compared, 1):
        _evaluate(evaluation_config(config, folder.compared(number), model, everybody, ""))
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


def _check(config: DictConfig) -> None:
    if isinstance(open_method(config.trainer.method), FineTune):
        raise ConfigError("trainer: fine-tuning forgets nobody. Choose a method: trainer=grad_diff | npo | …")
    if asks_in_several_ways(config):
        raise ConfigError("evaluation.protocol, evaluation.shots: a sequence is evaluated in one way, not by `both`.")
    if config.report.show_subjects:
        raise ConfigError("report.show_subjects: the report of a sequence shows nobody.")
    for name in ("evaluations", "trainings"):
        if config.report[name]:
            raise ConfigError(f"report.{name}: a sequence reports on its own models. Name others in sequence.compare.")


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
    """What `mmunlearn evaluate` would be told; every model is asked the same questions, about all requests."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return checked(
        OmegaConf.create(
            {
                "run": {"dir": str(run.root), "device": plain["run"]["device"], "label": label},
                "model": {**plain["model"], "path": model},
                "data": _data(config, everybody, []),
                "evaluation": plain["evaluation"],
            }
        )
    )


def _train(config: DictConfig, title: str) -> None:
    """Train what is not there yet."""
    run = Run(Path(config.run.dir))
    recorded = OmegaConf.load(run.config) if run.is_done else None
    same = isinstance(recorded, DictConfig) and training_key(recorded) == training_key(config)
    if same and not config.run.overwrite:
        console.print(f"{title}: from {run.root}", highlight=False, soft_wrap=True)
        return
    console.print(f"[bold]{title}[/bold]", highlight=False)
    train(config)


def _evaluate(config: DictConfig) -> None:
    """Ask what was not asked yet."""
    run, trained = Run(Path(config.run.dir)), Run(Path(config.model.path).parent)
    if run.is_done:
        recorded = OmegaConf.load(run.config)
        newer = trained.is_done and trained.done.stat().st_mtime > run.done.stat().st_mtime
        if not newer and isinstance(recorded, DictConfig) and all(recorded.get(name) == config[name] for name in SECTIONS):
            return
        config.run.overwrite = newer  # the model was trained anew
    run_predict(config)
    score_run(config)


def _report(config: DictConfig, folder: SequenceFolder, requests: Sequence[Sequence[str]], compared: int) -> Path:
    own = [folder.evaluation(number).root for number in range(len(requests) + 1)]
    collected = collect([*own, *(folder.compared(number).root for number in range(1, compared + 1))], {})
    by_path = {model.path: model for model in collected.evaluations}
    found = course(collected, [by_path[path] for path in own], requests)
    run, title = folder.report, config.report.title
    write_report(
        run.root,
        collected,
        benchmark=None,
        show_subjects=False,
        title=title,
        banner=config.report.banner or None,
        commands=(),
        extras=[course_section(found)],
    )
    labels = labels_of_people([collected])
    write_tables(run, [collected], title=title, safe=lambda text: redact(text, labels))
    write_text(run.course, course_csv(found))
    console.print(f"Report: [bold]{run.report}[/bold], every number over the requests in {run.course}", soft_wrap=True)
    return run.root
