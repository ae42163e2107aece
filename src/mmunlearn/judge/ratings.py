"""The ratings on disk: which are known, which answers they are about, and which still have to be asked for.

`judged/<task>.jsonl` has one JSON line an answer and judge: `id`, `subject`, `score` (1 to 10; null: the reply holds no
rating), `reply` (the judge's words), `finish`, `answered_by`, `tokens_in`, `tokens_out`, `judge` (model, endpoint, prompt
version), `key` and `about`, which identifies the stored answer that it is about: what was replaced since has no rating.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmunlearn.benchmarks.base import Ask, Benchmark, Task
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.config import JudgeConfig
from mmunlearn.data.example import Example, drawn
from mmunlearn.errors import ConfigError, RunError, did_you_mean
from mmunlearn.evaluation.score import own_predictions
from mmunlearn.evaluation.ways import evaluations_in, tasks_of
from mmunlearn.judge.address import endpoint_of
from mmunlearn.judge.prompt import PROMPT_VERSION, Answered, read_score
from mmunlearn.judge.reply import Reply
from mmunlearn.metrics.cards import CARDS
from mmunlearn.metrics.statistics import Estimate, clustered_interval
from mmunlearn.run import Run, append_json_line, fingerprint, read_json_lines, write_json_lines

METRIC = "judge_factuality"
FREE_KINDS = ("generation", "caption", "qa")
"""The kinds of task whose answers are free; blanks and choices need no judge."""
CUT_OFF = "length"
"""The `finish` of a reply that was not written to its end, and that therefore cannot be trusted to be read."""

JudgedBy = Mapping[str, str]
"""Who rates: model, endpoint, prompt version."""
Rating = Mapping[str, Any]
"""What a line says beside the answer that it is about."""
_RATING_FIELDS = ("score", "reply", "finish", "answered_by", "tokens_in", "tokens_out", "judge", "key")


def judged_by(settings: JudgeConfig) -> JudgedBy:
    """What identifies a judge; ratings of different ones are never taken for each other."""
    return {"model": settings.model, "endpoint": endpoint_of(settings.url), "prompt": PROMPT_VERSION}


def rating_key(judge: JudgedBy, answered: Answered) -> str:
    """Identifies a request by all that decides its reply."""
    who = [judge.get(name) for name in ("model", "endpoint", "prompt")]
    return fingerprint([*who, answered.question, answered.expected, answered.answer])


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The answers of one task of one evaluation."""

    run: Run
    task: str
    examples: tuple[Example, ...]
    """Those that are to be judged."""
    answers: Mapping[str, Answered]
    """By example id, also of those that `judge.limit` leaves out."""
    keys: Mapping[str, str]
    """By example id, of those that are to be judged."""
    about: Mapping[str, str]
    """By example id, what identifies the stored answer (see `answer_mark`), of all answers."""

    @property
    def path(self) -> Path:
        """Where its ratings are."""
        return self.run.judged(self.task)

    def add(self, example: Example, rating: Rating) -> None:
        """Append a rating."""
        append_json_line(self.path, self._line(example, rating))

    def tidy(self, known: Mapping[str, Rating]) -> None:
        """Rewrite the file: without ratings of answers that are no longer there, and with all that is known already, last.

        Ratings by other judges, and of questions that are not asked now (judge.limit), stay.
        """
        kept = [self._marked(line) for line in read_json_lines(self.path) if self._stays(line)]
        own = [self._line(e, known[self.keys[e.id]]) for e in self.examples if self.keys[e.id] in known]
        if kept or own or self.path.is_file():
            write_json_lines(self.path, [*kept, *own])

    def _stays(self, line: Mapping[str, Any]) -> bool:
        if line["id"] not in self.answers:  # evaluation.limit was another one
            return True
        is_own = line["key"] == self.keys.get(line["id"])
        return not is_own and line["key"] == rating_key(line["judge"], self.answers[line["id"]])

    def _line(self, example: Example, rating: Rating) -> dict[str, Any]:
        fields = {name: rating[name] for name in _RATING_FIELDS}
        return self._marked({"id": example.id, "subject": example.subject, **fields})

    def _marked(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """A line with the mark of the answer that is there now."""
        return {**line, "about": self.about[line["id"]]} if line["id"] in self.about else dict(line)

    def estimate(self, known: Mapping[str, Rating]) -> Estimate:
        """The mean rating, clustered by person; what has no rating, for whatever reason, is unscored."""
        scores = [known.get(self.keys[example.id], {}).get("score") for example in self.examples]
        values = [math.nan if score is None else score for score in scores]
        return clustered_interval(values, [example.subject for example in self.examples], bounds=CARDS[METRIC].range)


def answer_mark(prediction_key: str, text: str) -> str:
    """Identifies a stored answer: model, question, expected answer and settings (all in its key), and what was said."""
    return fingerprint([prediction_key, text])


@dataclass(frozen=True, kw_only=True)
class Rated:
    """The ratings of a task by one judge: the one who rated most of the answers that are there now."""

    judge: JudgedBy = field(default_factory=dict)
    """Empty if nobody rated any of them."""
    lines: Mapping[str, Rating] = field(default_factory=dict)
    """By example id, with those that hold no rating."""
    replaced: int = 0
    """Questions with nothing but ratings of answers that are no longer there, or of which that cannot be told."""


def read_ratings(run: Run, task: str, ids: Collection[str] | None = None) -> Rated:
    """The ratings of a task's present answers.

    Of several judges the one with most rated answers counts, so that a few ratings by a newer one do not take the place of a
    full set; of equal ones who was asked last.

    Args:
        run: the evaluation.
        task: its task.
        ids: of the questions that count; None for all.
    """
    present = {line["id"]: answer_mark(line["key"], line["text"]) for line in read_json_lines(run.predictions(task))}
    by_judge: dict[str, dict[str, Rating]] = {}
    asked = set()
    for line in read_json_lines(run.judged(task)):
        if ids is not None and line["id"] not in ids:
            continue
        asked.add(line["id"])
        if line.get("about") == present.get(line["id"], ""):
            who = judge_name(line["judge"])
            own = by_judge.pop(who, {})
            by_judge[who] = own | {line["id"]: line}  # in the order in which they were asked last
    replaced = len(asked.difference(*by_judge.values()))
    if not by_judge:
        return Rated(replaced=replaced)
    best = max(reversed(by_judge.values()), key=lambda lines: sum(line["score"] is not None for line in lines.values()))
    return Rated(judge=next(iter(best.values()))["judge"], lines=best, replaced=replaced)


def judge_name(judge: JudgedBy) -> str:
    """A judge in words: model, endpoint and version of the prompt, all that tells judges apart."""
    return f"{judge.get('model', '?')} at {judge.get('endpoint', '?')}, prompt {judge.get('prompt', '?')}"


def rating_of(reply: Reply, judge: JudgedBy, key: str) -> Rating:
    """A judge's reply as it is kept."""
    score = math.nan if reply.finish == CUT_OFF else read_score(reply.text)
    return {
        "score": None if math.isnan(score) else score,
        "reply": reply.text,
        "finish": reply.finish,
        "answered_by": reply.answered_by,
        "tokens_in": reply.tokens_in,
        "tokens_out": reply.tokens_out,
        "judge": dict(judge),
        "key": key,
    }


def known_ratings(runs: Iterable[Run]) -> dict[str, Rating]:
    """Every rating in some evaluations, by key: the same answer elsewhere needs no second request.

    Raises:
        RunError: a line is not one of ours.
    """
    known: dict[str, Rating] = {}
    for run in runs:
        for path in sorted(run.judged("any").parent.glob("*.jsonl")):
            for line in read_json_lines(path):
                if not {"id", *_RATING_FIELDS} <= line.keys():
                    raise RunError(
                        f"{path}: a line is no rating of this version ({str(line)[:60]}). Delete the file to ask again."
                    )
                known[line["key"]] = line
    return known


# --- opening evaluations ----------------------------------------------------------------------------------------------


def open_sheets(settings: JudgeConfig, judge: JudgedBy) -> list[Sheet]:
    """The free answers of all evaluations that are to be judged.

    Raises:
        ConfigError: no evaluation, none with free answers, or a task that none of them has.
        RunError: a folder holds no evaluation, or an unfinished one.
    """
    if not settings.evaluations:
        raise ConfigError('judge.evaluations is empty. Name evaluation folders: "judge.evaluations=[outputs/a,outputs/b]"')
    opened: dict[str, Benchmark] = {}  # several evaluations mostly ask the same questions
    sheets, there = [], set()
    for run in _evaluations(settings.evaluations):
        for task in _free_tasks(run, opened):
            there.add(task.name)
            if not settings.tasks or task.name in settings.tasks:
                sheets.append(_sheet(run, task, settings.limit, judge))
    if not there:
        raise ConfigError(f"judge.evaluations: none has a task of free answers (of the kinds {', '.join(FREE_KINDS)}).")
    for name in settings.tasks:
        if name not in there:
            raise ConfigError(f"judge.tasks: {name!r} is no task of free answers there. {did_you_mean(name, there)}")
    return sheets


def _evaluations(folders: Sequence[str]) -> list[Run]:
    """The evaluations in some folders, each once.

    Raises:
        RunError: a folder holds none.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        runs = evaluations_in(Run(Path(folder).expanduser()))
        if not runs:
            raise RunError(
                f"{folder} holds no evaluation. Make one with `mmunlearn evaluate run.dir={folder}`, or leave it out."
            )
        found |= {run.root.resolve(): run for run in runs}
    return list(found.values())


def _free_tasks(run: Run, opened: dict[str, Benchmark]) -> list[Task]:
    """The tasks of free answers, as the evaluation recorded that it asked them."""
    recorded = OmegaConf.load(run.config)
    if not isinstance(recorded, DictConfig) or not {"data", "evaluation"} <= recorded.keys():
        raise RunError(f"{run.config} does not say what was asked. Restore the file or leave the folder out.")
    source = OmegaConf.to_yaml(recorded.data)
    if source not in opened:
        opened[source] = open_benchmark(recorded.data)
    tasks = tasks_of(recorded, opened[source])
    return [task for task in tasks if task.ask is Ask.generate and task.name.split("_", 2)[-1] in FREE_KINDS]


def _sheet(run: Run, task: Task, limit: int, judge: JudgedBy) -> Sheet:
    examples = drawn(task.examples, limit)
    said = own_predictions(run, task)
    missing = [example.id for example in examples if example.id not in said]
    if missing:
        raise RunError(
            f"{run.predictions(task.name)}: {len(missing)} of {len(examples)} questions have no answer yet, the first is "
            f"{missing[0]}. Run `mmunlearn predict` with the settings in {run.config}; it goes on where it stopped."
        )
    answers = {
        e.id: Answered(question=e.question, expected=e.answer, answer=said[e.id].text) for e in task.examples if e.id in said
    }
    keys = {e.id: rating_key(judge, answers[e.id]) for e in examples}
    about = {id_: answer_mark(said[id_].key, said[id_].text) for id_ in answers}
    return Sheet(run=run, task=task.name, examples=examples, answers=answers, keys=keys, about=about)
