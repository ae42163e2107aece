"""One self-contained page: no script, no outside request, opens offline and prints."""

import base64
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jinja2
from jinja2.bccache import Bucket
from markupsafe import Markup

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.errors import RunError
from mmunlearn.report import tables, verdict, words
from mmunlearn.report.collect import Collected, Evaluation, Record, redact
from mmunlearn.report.compared import surely
from mmunlearn.report.condition import Replies
from mmunlearn.report.export import published_caution, published_title
from mmunlearn.report.further import Further, further, further_rows
from mmunlearn.report.gallery import gallery
from mmunlearn.report.groups import labels_of_people, relabelled
from mmunlearn.report.inference import ATTACK_TITLES
from mmunlearn.report.narrative import COLLAPSED, narrative
from mmunlearn.report.plots import Point, forget_versus_retain, loss_curves
from mmunlearn.report.published import asked_of, comparable
from mmunlearn.report.published_tables import TABLES
from mmunlearn.run import Run, write_json, write_text

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture of numbers and what it shows in words."""

    source: str
    """A data URI."""
    alt: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A section in front of the others, for reports that are about more than evaluations."""

    anchor: str
    title: str
    template: str
    """A file of `templates/`."""
    values: Mapping[str, Any]
    """What the template shows; it passes texts that may name somebody through `safe_text`."""


@dataclass(frozen=True, kw_only=True)
class Shade:
    """One field of the heat map."""

    text: str
    background: str
    ink: str


def write_report(  # noqa: PLR0913 each is a part of the page
    output: Path,
    collected: Collected,
    *,
    benchmark: Benchmark | None,
    show_subjects: bool,
    title: str,
    banner: str | None,
    commands: Sequence[str],
    others: Sequence[Collected] = (),
    extras: Sequence[Extra] = (),
    people_of: Sequence[Collected] = (),
) -> None:
    """Write `report.html` and `results.json` into a folder, each atomically. The same input gives the same bytes.

    Args:
        output: the folder; made if it is missing.
        collected: what `collect` read.
        benchmark: source of questions and portraits for the gallery; without it there is none.
        show_subjects: whether names, faces, questions and answers may appear. Otherwise people are “person 1”, …, also
            where configurations and commands name them, and there is no gallery.
        title: heading of the page.
        banner: a warning above everything else, e.g. that a demo ranks no methods.
        commands: what to type to get these numbers again.
        others: evaluations by other rules, each shown apart.
        extras: further sections, shown first.
        people_of: evaluations whose people are to be unnamed too, if those shown are about fewer people.

    Raises:
        RunError: the folder holds the results of an evaluation, which the report's would overwrite.
    """
    run = Run(output)
    _refuse_evaluation_folder(run)
    labels = {} if show_subjects else labels_of_people([*people_of, collected, *others])
    people = gallery(collected.unfolded(), benchmark) if show_subjects and benchmark is not None else ()
    safe = partial(redact, names=labels)
    collected, *others = (relabelled(group, safe) for group in (collected, *others))
    compared = further(collected, benchmark)
    page = (
        _templates(safe)
        .get_template("report.html.j2")
        .render(
            css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
            title=safe(title),
            banner=safe(banner or ""),
            commands=[safe(_without_forget_words(command, labels)) for command in commands],
            collected=collected,
            show_subjects=show_subjects,
            people=people,
            heat=_heat_map(collected, labels),
            records=_records([collected, *others], labels),
            extras=extras,
            by_rules=[(group, comparable(asked_of(group), TABLES)) for group in (collected, *others)],
            **_numbers(collected),
            **_comparisons(compared),
        )
    )
    write_text(run.report, page)
    write_json(run.results, [row for group in (collected, *others) for row in group.rows()] + further_rows(compared))


class _Compiled(jinja2.BytecodeCache):
    """The templates as compiled once in this process; the names that a report hides are not part of it."""

    code: ClassVar[dict[str, Any]] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = self.code.get(bucket.key + bucket.checksum)

    def dump_bytecode(self, bucket: Bucket) -> None:
        self.code[bucket.key + bucket.checksum] = bucket.code


def _templates(safe: Callable[[str], str]) -> jinja2.Environment:
    environment = jinja2.Environment(
        bytecode_cache=_Compiled(),
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": tables.number,
        "interval": tables.interval,
        "short": tables.short_interval,
        "bound": _bound,
        "whole": _whole,
        "safe_text": safe,
        "data_uri": _data_uri,
    }
    return environment


def _refuse_evaluation_folder(run: Run) -> None:
    if run.results.is_file() and isinstance(json.loads(run.results.read_text(encoding="utf-8")), dict):
        raise RunError(
            f"{run.results}: these are the results of an evaluation, which the report's table would overwrite. "
            "Give the report a folder of its own."
        )


def _numbers(collected: Collected) -> dict[str, Any]:
    """Everything in the page that names nobody."""
    measured = {metric for model in collected.evaluations for metrics in model.tasks.values() for metric in metrics}
    return {
        "narrative": narrative(collected),
        "gate_margin": collected.gate_margin,
        "forget_tasks": verdict.forget_tasks(collected),
        "retain_tasks": verdict.headline_tasks(collected, ["retain"]),
        "verdicts": verdict.verdicts(collected),
        "gates": verdict.gates(collected),
        "noise_floor": verdict.noise_floor(collected),
        "summaries": tables.summaries(collected),
        "plane": _plane(collected),
        "curves": [
            Plot(
                source=_data_uri(loss_curves(training)),
                alt=f"Loss of each term over the steps of {training.label}",
                caption=training.label,
            )
            for training in collected.trainings
            if training.steps
        ],
        "cards": [card for card in words.METRIC_CARDS.values() if card.name in measured],
        "terms": words.TERMS,
        "family_names": words.FAMILY_NAMES,
        "task_title": words.task_title,
        "metric_title": tables.metric_title,
        "isnan": math.isnan,
        "overview": tables.overview,
        "rules_title": tables.rules_title,
        "primary_metric": words.primary_metric,
        "published_title": published_title,
        "published_caution": published_caution,
    }


def _comparisons(found: Further) -> dict[str, Any]:
    """What the section on comparisons with gold and vanilla shows; names nobody."""
    collected = found.collected
    goals = {model.record.goal for model in collected.of_role("unlearned")} or {"erase"}

    def worst_replies(model: Evaluation) -> Replies | None:
        kept = [one for one in found.replies_of(model) if words.parse_task(one.task).family in words.KEEP_FAMILIES]
        return max(kept, key=lambda one: (bool(one.warning), one.found.collapsed), default=None)

    return {
        "further": found,
        "quality_tasks": [task for task in found.quality.tasks if words.parse_task(task).family == "forget"],
        "short_tasks": verdict.headline_tasks(collected, ["forget"]),
        "floors_known": any(not math.isnan(found.differences.noise_floor(task)) for task in found.differences.tasks),
        "worst_replies": worst_replies,
        "surely": surely,
        "p_value": _p_value,
        "attack_titles": ATTACK_TITLES,
        "attack_tasks": _one_of_each_modality(found.inference.tasks),
        "pair_title": _pair_title,
        "collapsed": COLLAPSED,
        "goals": goals,
        "both_goals": len(goals) > 1,
    }


def _one_of_each_modality(tasks: Sequence[str]) -> list[str]:
    """The first image task and the first text task."""
    first: dict[str, str] = {}
    for task in tasks:
        first.setdefault(words.parse_task(task).modality, task)
    return list(first.values())


def _p_value(value: float) -> str:
    """Two decimals, but small ones as such."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else tables.number(value)


def _whole(value: float) -> str:
    """Without decimals; “–” for NaN."""
    return "–" if math.isnan(value) else f"{value:z.0f}".replace("-", "−")


def _pair_title(task: str) -> str:
    """What an image task and its text task have in common: “Forget, choice”."""
    name = words.parse_task(task)
    return f"{words.FAMILY_NAMES[name.family]}, {words.kind_title(name.kind)}"


def _bound(value: float) -> str:
    """The end of a range: 0, 1, −100, ∞."""
    return f"{value:g}".replace("inf", "∞").replace("-", "−")


def _plane(collected: Collected) -> Plot | None:
    """The plot of forgetting against keeping, from the headline tasks; None if either was not asked."""
    headline = verdict.headline_tasks(collected, ["forget", "retain"])
    forget, retain = (next((task for task in headline if task.startswith(family)), None) for family in ("forget", "retain"))
    if forget is None or retain is None:
        return None
    names = collected.primary_metric(forget), collected.primary_metric(retain)
    points = [
        Point(label=model.label, role=model.role, forget=x, retain=y)
        for model in collected.evaluations
        if (x := model.estimate(forget, names[0])) and (y := model.estimate(retain, names[1]))
    ]
    axes = tuple(
        f"{words.task_title(task)}: {tables.metric_title(name)}" for task, name in zip((forget, retain), names, strict=True)
    )
    goal = next((model.record.goal for model in collected.of_role("unlearned")), "erase")
    gold = verdict.ideal(collected, goal, forget, names[0]), verdict.ideal(collected, goal, retain, names[1])
    chance = collected.chance.get(forget), collected.chance.get(retain)
    svg = forget_versus_retain(
        points,
        labels=(f"{axes[0]}   (gold's is the ideal)", f"{axes[1]}   (higher is better)"),
        chance=chance,
        gold=gold,
    )
    said = "; ".join(f"{p.label}: {tables.number(p.forget.value)}, {tables.number(p.retain.value)}" for p in points)
    return Plot(
        source=_data_uri(svg),
        alt=f"Scatter plot. Horizontal: {axes[0]}. Vertical: {axes[1]}. {said}.",
        caption="Each model with its 95 % intervals."
        + (" Shaded: gold’s intervals, where perfect forgetting would lie." if any(gold) else "")
        + (" Dotted: guessing." if any(level is not None for level in chance) else ""),
    )


def _heat_map(collected: Collected, labels: Mapping[str, str]) -> dict[str, Any] | None:
    """People in rows, models in columns: how much each model knows of each forget person."""
    tasks = verdict.headline_tasks(collected, ["forget"])
    if not tasks:
        return None
    metric = collected.primary_metric(tasks[0])
    means = {model.label: verdict.person_means(model, tasks[0], metric) for model in collected.evaluations}
    columns = {label: values for label, values in means.items() if values}
    people = sorted({subject for values in columns.values() for subject in values}, key=lambda s: _natural(labels.get(s, s)))
    rows = [
        (labels.get(subject, subject), [_shade(values.get(subject, math.nan)) for values in columns.values()])
        for subject in people
    ]
    return {"task": tasks[0], "metric": metric, "columns": list(columns), "rows": rows} if rows else None


def _natural(label: str) -> tuple[str, int, str]:
    """“person 2” before “person 10”."""
    head = label.rstrip("0123456789")
    return head, int(label[len(head) :] or 0), label


def _shade(value: float) -> Shade:
    """White for 0 to dark blue for 1, with ink that stands out (contrast of 4.5 or more)."""
    if math.isnan(value):
        return Shade(text="–", background="#ffffff", ink="#000000")
    share = min(1.0, max(0.0, value))
    red, green, blue = (round(255 + (end - 255) * share) for end in (8, 48, 107))
    ink = "#ffffff" if share > 0.655 else "#000000"  # where both have the same contrast
    return Shade(text=tables.number(value), background=f"#{red:02x}{green:02x}{blue:02x}", ink=ink)


def _without_forget_list(config: str) -> str:
    """A recorded configuration without the lists of people to be forgotten: some of them may not have been asked about."""
    lists = r"(?m)^( +)(forget|earlier|requests):(?: \[.*\]| (?!null$|''$|\"\"$).+|(?:\n\1 *-.*(?:\n\1 +[^ -].*)*)+)$"
    return re.sub(lists, r"\1\2: (withheld)", config)


def _without_forget_words(command: str, labels: Mapping[str, str]) -> str:
    """The same of a command."""
    lists = r"(data\.(?:of\.)?forget|data\.earlier|sequence\.requests)=.*?(?=\s+[\w./+~-]+=|$)"
    withheld = re.sub(lists, r"\1=(withheld)", command)
    return withheld if labels else command


def _records(groups: Sequence[Collected], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """What was run: one entry for each evaluation and training."""
    entries: list[tuple[str, Record, str]] = [
        (
            f"Evaluation of {model.label}{' by other rules' if place else ''}",
            model.record,
            f"model {model.fingerprint}, role {model.role}",
        )
        for place, group in enumerate(groups)
        for model in group.unfolded().evaluations
    ]
    entries += [(f"Training of {training.label}", training.record, "") for group in groups for training in group.trainings]
    result = []
    for name, record, detail in entries:
        environment = record.environment
        packages = environment.get("packages", {})
        result.append(
            {
                "name": name,
                "detail": detail,
                "command": redact(_without_forget_words(str(environment.get("command", "not recorded")), labels), labels),
                "commit": str(environment.get("commit", "not recorded")),
                "started": str(environment.get("started", "not recorded")),
                "versions": ", ".join(f"{package} {version}" for package, version in packages.items()),
                "python": str(environment.get("python", "not recorded")),
                "config": redact(_without_forget_list(record.config) if labels else record.config, labels),
            }
        )
    return result


def _data_uri(svg: str) -> str:
    """As an image, not inline: identifiers of several plots cannot clash, and the page's styles cannot reach in."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
