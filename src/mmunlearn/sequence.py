"""`mmunlearn sequence`: requests to forget people that come one after the other, each unlearned from the model before."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from mmunlearn.benchmarks.base import Splits
from mmunlearn.benchmarks.chosen import Chosen, check_known
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config import TARGET, DataConfig, ModelConfig, typed
from mmunlearn.config_check import checked
from mmunlearn.config_enums import Quantise
from mmunlearn.data.example import examples_fingerprint
from mmunlearn.data.subjects import normal_name
from mmunlearn.errors import ConfigError, RunError
from mmunlearn.evaluation.ask import run_predict
from mmunlearn.evaluation.job import score_run
from mmunlearn.evaluation.ways import asks_in_several_ways
from mmunlearn.locks import locked
from mmunlearn.methods.finetune import FineTune
from mmunlearn.models.load import folders_below, load
from mmunlearn.report.collect import Collected, collect, redact
from mmunlearn.report.course import course, course_csv, course_section
from mmunlearn.report.export import write_tables
from mmunlearn.report.groups import labels_of_people
from mmunlearn.report.html import write_report
from mmunlearn.run import Run, fingerprint, write_json, write_text
from mmunlearn.training.folder import training_key
from mmunlearn.training.job import open_method, train

console = Console(stderr=True)
CHOSEN = f"{Chosen.__module__}.{Chosen.__name__}"
SECTIONS = ("model", "data", "evaluation")
"""What decides an evaluation."""
SCHEMA = 1
"""Version of `sequence.json`."""


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

    @property
    def record(self) -> Path:
        """What each step was made from and which model each evaluation asked, by content."""
        return self.root / "sequence.json"


def run_sequence(config: DictConfig) -> Path:
    """Unlearn each request from the model before, evaluate every model on all requests, and report.

    What is there already is kept: a sequence that was stopped, or got one more request, goes on. A step that was made from
    another model, or other questions, than there are now is not kept silently: the command says so and ends.

    Args:
        config: complete and checked.

    Returns:
        The folder of the report.

    Raises:
        ConfigError: the requests are empty or overlap, or a setting does not fit.
        DataError: a request names somebody whom the benchmark does not have.
        RunError: another command is using the folder, or a step in it is of another model.
    """
    requests = read_requests(config.sequence.requests)
    _check(config, len(requests))
    folder = SequenceFolder(root=Path(config.run.dir))
    everybody = [person for request in requests for person in request]
    benchmark = open_benchmark(checked(OmegaConf.create({"data": _data(config, everybody, [])})).data)
    splits = benchmark.splits()
    check_known(everybody, (*splits.forget, *splits.retain))
    with locked(Run(folder.root)):
        return _run(config, folder, requests, splits)


def _run(config: DictConfig, folder: SequenceFolder, requests: Sequence[Sequence[str]], splits: Splits) -> Path:
    """The sequence in a folder that is its own."""
    everybody = [person for request in requests for person in request]
    record = SequenceRecord(folder, config.model)
    models = [str(config.model.path or config.model.name)]
    for number, request in enumerate(requests, 1):
        earlier = [person for before in requests[: number - 1] for person in before]
        own = step_config(config, folder.step(number), models[-1], request, earlier, number)
        names = set(map(normal_name, request))
        questions = examples_fingerprint(example for example in splits.forget if normal_name(example.subject) in names)
        _train(own, f"Request {number} of {len(requests)}: {len(request)} people", record, questions)
        models.append(str(folder.step(number).model))
    if config.model.quantise == Quantise.nf4:
        console.print(
            "model.quantise=nf4 is for training: what was trained so is asked with its base in 4 bits, others as stored.",
            highlight=False,
        )
    for number, model in enumerate(models):
        label = f"after request {number}" if number else ""
        _evaluate(evaluation_config(config, folder.evaluation(number), model, everybody, label), record)
    compared = list(config.sequence.compare)
    for number, model in enumerate(compared, 1):
        _evaluate(evaluation_config(config, folder.compared(number), model, everybody, ""), record)
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


class SequenceRecord:
    """`sequence.json`: what each step was made from, and which model each evaluation asked, by content.

    A path may lead to another model tomorrow, so steps and evaluations are held against fingerprints of the weights.
    """

    def __init__(self, folder: SequenceFolder, model: DictConfig) -> None:
        """Read what is there.

        Args:
            folder: of the sequence.
            model: the section `model`, which says how models are opened.

        Raises:
            RunError: the file is not such a record.
        """
        self._file, self._settings = folder.record, replace(typed(model, ModelConfig), quantise=Quantise.none)
        self._content: dict[str, Any] = {"schema": SCHEMA, "models": {}, "steps": {}, "evaluations": {}}
        if self._file.is_file():
            self._content = _read_record(self._file)

    def model(self, path: str) -> str:
        """The fingerprint of a model's weights as evaluations open them; files that are as they were are not read again."""
        state, seen = _state_of_files(path, self._settings.dtype), self._content["models"].get(path)
        if seen is None or not state or seen["files"] != state:
            seen = {"fingerprint": load(replace(self._settings, path=path), merge=False).fingerprint, "files": state}
            self._content["models"][path] = seen
        return str(seen["fingerprint"])

    def check_step(self, run: Run, start: str, made_from: dict[str, str]) -> None:
        """Hold a finished step against the model and the questions that there are now.

        Args:
            run: the step.
            start: where the model before it is, for the message.
            made_from: what it would be made from now.

        Raises:
            RunError: it was made from something else.
        """
        recorded = self._made_from(run)
        if recorded is None:
            console.print(f"{run.root}: {self._file.name} does not say what it was made from; it is taken as it is.")
            self._content["steps"][run.root.name] = {**made_from, "replaces": None, "replaced": None}
        elif recorded["start"] != made_from["start"]:
            before, now = recorded["start"], made_from["start"]
            raise RunError(f"{run.root} was unlearned from the model {before}, but {start} now holds {now}. {_REMEDY}")
        elif recorded["forget"] != made_from["forget"]:
            raise RunError(f"{run.root} unlearned other questions about these people than `data` now has. {_REMEDY}")

    def begin_step(self, run: Run, made_from: dict[str, str]) -> None:
        """Write down what a step is made from before it begins; what it replaces stays known until that is gone."""
        replaces = run.done.stat().st_mtime_ns if run.is_done else None
        entry = {**made_from, "replaces": replaces, "replaced": self._made_from(run) if run.is_done else None}
        self._content["steps"][run.root.name] = entry
        self.write()

    def evaluated(self, run: Run, model: str) -> None:
        """Enter a finished evaluation."""
        self._content["evaluations"][run.root.name] = model
        self.write()

    def write(self) -> None:
        """Keep it."""
        write_json(self._file, self._content)

    def _made_from(self, run: Run) -> dict[str, str] | None:
        """What the finished step in a folder was made from; None if nobody wrote it down."""
        entry = self._content["steps"].get(run.root.name)
        if entry is not None and entry["replaces"] == run.done.stat().st_mtime_ns:
            entry = entry["replaced"]  # the training that was to replace it never came to be
        return None if entry is None else {"start": entry["start"], "forget": entry["forget"]}


_REMEDY = (
    "So it, and every step after it, is not what this sequence would make. Nothing was changed. Choose another run.dir, or set "
    "run.overwrite=true to unlearn every request anew."
)


def _read_record(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{file}: not JSON ({error}). Delete it; what is finished is then taken as it is.") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise RunError(f"{file}: not the record of a sequence of this version (schema {SCHEMA}). Choose another run.dir.")
    return found


def _state_of_files(path: str, dtype: str) -> str:
    """Identifies names, sizes and times of a model's files, those below an adapter included; empty if any is on the hub."""
    folders = [Path(folder) for folder in folders_below(path)]
    if not all(folder.is_dir() for folder in folders):
        return ""
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    return fingerprint([dtype, [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]])


def _train(config: DictConfig, title: str, record: SequenceRecord, questions: str) -> None:
    """Train what is not there yet."""
    run, start = Run(Path(config.run.dir)), str(config.model.path)
    made_from = {"start": record.model(start), "forget": questions}
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


def _evaluate(config: DictConfig, record: SequenceRecord) -> None:
    """Ask what was not asked yet, and anew what was asked of a model that is no longer there, finished or not."""
    run, model = Run(Path(config.run.dir)), record.model(str(config.model.path))
    asked = json.loads(run.model_card.read_text(encoding="utf-8"))["fingerprint"] if run.model_card.is_file() else model
    recorded = OmegaConf.load(run.config) if run.is_done else None
    same = isinstance(recorded, DictConfig) and all(recorded.get(name) == config[name] for name in SECTIONS)
    if asked != model or not same:
        config.run.overwrite = asked != model
        run_predict(config)
        score_run(config)
    record.evaluated(run, model)


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
