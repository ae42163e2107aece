"""`mmunlearn probe`: which of these people does a model know, before any training and without a model to compare with?"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.markup import escape
from rich.table import Table as TerminalTable

from mmunlearn.benchmarks.base import Benchmark, Task
from mmunlearn.benchmarks.opening import open_benchmark
from mmunlearn.benchmarks.pseudonyms import STAND_IN, pseudonyms
from mmunlearn.benchmarks.table import EVERYBODY, Table
from mmunlearn.config_enums import Choice
from mmunlearn.evaluation.ask import run_predict
from mmunlearn.evaluation.job import console
from mmunlearn.evaluation.probe_people import (
    ALPHA,
    REMARKS,
    RULE,
    Answered,
    Person,
    Score,
    Together,
    Verdict,
    judge,
    questions_needed,
    together,
)
from mmunlearn.evaluation.score import score_task
from mmunlearn.evaluation.ways import asking_of, tasks_of
from mmunlearn.locks import locked
from mmunlearn.run import Run, read_json_lines, write_json

SCHEMA = 1
"""Version of `probe.json`."""
SHOWN = 40
"""So many people stand in the terminal's table; `probe.json` has all."""


def run_probe(config: DictConfig) -> dict[str, Any]:
    """Ask a model about people and say of each whether it is shown to know them.

    Writes the predictions, their scores and `probe.json`, and prints a table. Goes on where an earlier call was stopped.

    Args:
        config: complete and checked; a table of own people without a forget list is asked about everybody.

    Returns:
        The content of `probe.json`.

    Raises:
        ConfigError: asked in several ways.
    """
    asking_of(config)  # one way only, before anything is loaded
    run = Run(Path(config.run.dir))
    with locked(run):
        return _probe(run, about_everybody(config))


def _probe(run: Run, config: DictConfig) -> dict[str, Any]:
    """The answers and what they show, in a folder that is this process's own."""
    run_predict(config)
    benchmark = open_benchmark(config.data)
    choice = Choice(config.evaluation.choice or Choice.letter)
    answers = tuple(_answers(run, tasks_of(config, benchmark), choice))
    subjects = {answer.subject for answer in answers if answer.subject}
    labels = {name: name for name in subjects} if config.report.show_subjects else pseudonyms(subjects)
    real = tuple(answer for answer in answers if not answer.subject.startswith(STAND_IN))
    invented = tuple(answer for answer in answers if answer.subject.startswith(STAND_IN))
    people = judge(real, labels)  # apart, so that the invented ones cost the real ones no correction
    found = _content(run, benchmark, choice, people, together(real), nameless=sum(not answer.subject for answer in real))
    if invented:
        found["stand_ins"] = _stand_ins(judge(invented, labels), together(invented))
    write_json(run.probe, found)
    run.finish()
    _say(found, people, run, named=bool(config.report.show_subjects))
    return found


def about_everybody(config: DictConfig) -> DictConfig:
    """The configuration, with everybody of an own table to be asked about where nobody was named, and all stand-ins."""
    benchmark = open_benchmark(config.data)
    if not isinstance(benchmark, Table) or benchmark.forget:
        return config
    changed: DictConfig = OmegaConf.merge(config)  # type: ignore[assignment]
    changed.data.forget = EVERYBODY
    if benchmark.stand_ins:
        changed.evaluation.splits = list(dict.fromkeys([*config.evaluation.splits, *benchmark.stand_ins_as.parts]))
    return changed


def _answers(run: Run, tasks: Sequence[Task], choice: Choice) -> Iterator[Answered]:
    """Every question with its scores, which are also written to `scores/`."""
    for task in tasks:
        score_task(run, task, choice)
        examples = {example.id: example for example in task.examples}
        for line in read_json_lines(run.scores(task.name)):
            options = examples[line["id"]].choices
            yield Answered(
                subject=line["subject"],
                metrics={name: math.nan if value is None else value for name, value in line["metrics"].items()},
                chance=options.count(examples[line["id"]].answer) / len(options) if options else math.nan,
            )


def _content(
    run: Run, benchmark: Benchmark, choice: Choice, people: Sequence[Person], everybody: Together, *, nameless: int
) -> dict[str, Any]:
    counts = Counter(person.verdict for person in people)
    return {
        "schema": SCHEMA,
        "benchmark": {"name": benchmark.name, "version": benchmark.version, "choice": str(choice)},
        "model": json.loads(run.model_card.read_text(encoding="utf-8")),
        "rule": RULE,
        "alpha": ALPHA,
        "remarks": list(REMARKS),
        "verdicts": {str(verdict): counts[verdict] for verdict in Verdict},
        "together": everybody.to_json(),
        "questions_about_nobody": nameless,
        "people": [person.to_json() for person in people],
    }


def _stand_ins(people: Sequence[Person], everybody: Together) -> dict[str, Any]:
    """What was said about fictitious people, whom a model that was not taught them cannot know."""
    counts = Counter(person.verdict for person in people)
    return {
        "verdicts": {str(verdict): counts[verdict] for verdict in Verdict},
        "together": everybody.to_json(),
        "people": [person.to_json() for person in people],
    }


# --- the terminal -----------------------------------------------------------------------------------------------------


def _say(found: dict[str, Any], people: Sequence[Person], run: Run, *, named: bool) -> None:
    console.print(people_table(people[:SHOWN]))
    if len(people) > SHOWN:
        console.print(f"… and {len(people) - SHOWN} more people, see {run.probe}")
    everybody = found["together"]
    if everybody["count"]:
        share = f"{everybody['right']} of {everybody['count']}"
        console.print(f"All together: {share} choice questions right, p {_equals(everybody['p_value'])} against guessing.")
    if "stand_ins" in found:
        console.print(_about_stand_ins(found["stand_ins"]))
    counts = found["verdicts"]
    console.print(", ".join(f"{verdict}: {count}" for verdict, count in counts.items()) + f", of {len(people)} people.")
    if counts[Verdict.too_few]:
        needed = questions_needed(len(people))
        console.print(f"With {needed} choice questions of 4 options about each of them, there would be a verdict on everybody.")
    console.print(f"\n{RULE}")
    for remark in REMARKS:
        console.print(remark)
    if not named:
        console.print("Names are not shown; report.show_subjects=true shows them and asks nothing again.")
    console.print(f"Written to {run.probe}", soft_wrap=True)


def _about_stand_ins(found: dict[str, Any]) -> str:
    everybody = found["together"]
    share = f"{everybody['right']} of {everybody['count']}"
    known = f"{found['verdicts'][Verdict.knows]} of {len(found['people'])} would count as known"
    return (
        f"Fictitious stand-ins, for comparison: {share} choice questions right, p {_equals(everybody['p_value'])} against "
        f"guessing; {known}. None of them can be known to a model that was not taught them."
    )


def people_table(people: Sequence[Person]) -> TerminalTable:
    """One row for each person."""
    table = TerminalTable(title="What the model is shown to know", title_justify="left", padding=(0, 1, 0, 0), box=None)
    table.add_column("person", overflow="fold", min_width=9)
    for column in ("ques-\ntions", "choice", "chance", "p, Holm", "answer\nprob.", "cloze", "ROUGE-L"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict")
    for person in people:
        verdict = f"[bold]{person.verdict}[/bold]" if person.verdict is Verdict.knows else str(person.verdict)
        table.add_row(
            escape(person.person),
            str(person.questions),
            _share(person.choice),
            _number(person.chance),
            _p_value(person.p_holm),
            _number(person.probability.mean),
            _share(person.cloze),
            _number(person.rouge_l.mean),
            verdict,
        )
    return table


def _share(score: Score) -> str:
    return f"{score.right}/{score.count}" if score.count else "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _equals(p_value: float) -> str:
    text = _p_value(p_value)
    return text if text.startswith("<") else f"= {text}"


def _p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
