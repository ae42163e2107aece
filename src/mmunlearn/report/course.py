"""Requests to forget that come one after the other: what is still forgotten and what is kept after each."""

import csv
import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from mmunlearn.metrics.statistics import Estimate, clustered_interval
from mmunlearn.report.collect import Collected, Evaluation
from mmunlearn.report.frontier import person_table
from mmunlearn.report.html import Extra
from mmunlearn.report.plots import _COLOURS, _METHOD_MARKERS, _svg
from mmunlearn.report.tables import number
from mmunlearn.report.verdict import headline_tasks
from mmunlearn.report.words import FAMILY_NAMES, task_title

KEPT = ("retain", "real", "general")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One group of people over the steps."""

    title: str
    request: int | None
    """The number of the request that is about them, from 1; None: people who are to be kept."""
    values: tuple[Estimate, ...]
    """Before the first request, and after each."""
    compared: tuple[Estimate, ...]
    """Of the models to compare with, such as gold."""

    def rebound(self) -> float:
        """How much came back: the last number minus that right after the request; NaN for people to be kept."""
        return math.nan if self.request is None else self.values[-1].value - self.values[self.request].value


@dataclass(frozen=True, kw_only=True)
class Course:
    """All groups over all steps."""

    lines: tuple[Line, ...]
    steps: tuple[str, ...]
    compared: tuple[str, ...]
    tasks: tuple[str, ...]
    """By which tasks the requested people are judged."""


def course(collected: Collected, steps: Sequence[Evaluation], requests: Sequence[Collection[str]]) -> Course:
    """Put a sequence together. A number is a mean over persons of their mean over tasks, as in `frontier.numbers`.

    Args:
        collected: everything that was evaluated.
        steps: of these, the model before the first request and the one after each, in that order.
        requests: the people of each request, as the scores name them.

    Raises:
        ValueError: there is not one step more than requests.
    """
    if len(steps) != len(requests) + 1:
        raise ValueError(f"{len(requests)} requests have {len(requests) + 1} models, not {len(steps)}.")
    others = [model for model in collected.evaluations if model.path not in {step.path for step in steps}]
    forget = headline_tasks(collected, ["forget"])
    lines = [
        Line(
            title=f"Request {place}",
            request=place,
            values=tuple(_number(step, forget, people) for step in steps),
            compared=tuple(_number(other, forget, people) for other in others),
        )
        for place, people in enumerate(requests, 1)
    ]
    for family in KEPT:
        tasks = headline_tasks(collected, [family])
        if tasks:
            values, compared = (tuple(_number(model, tasks, None) for model in models) for models in (steps, others))
            lines.append(Line(title=FAMILY_NAMES[family], request=None, values=values, compared=compared))
    names = ("before", *(f"after {place}" for place in range(1, len(steps))))
    return Course(lines=tuple(lines), steps=names, compared=tuple(model.label for model in others), tasks=forget)


def _number(model: Evaluation, tasks: Sequence[str], people: Collection[str] | None) -> Estimate:
    table = person_table(model, tasks)
    own = {person: value for person, value in table.items() if people is None or person in people}
    if not own:
        return Estimate(value=math.nan, low=math.nan, high=math.nan, count=0, unscored=0)
    return clustered_interval(list(own.values()), list(own))


def course_csv(found: Course) -> str:
    """One line for each group and model."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("group", "request", "model", "requested", "value", "low", "high", "people"))
    for line in found.lines:
        for step, (name, estimate) in enumerate(
            zip((*found.steps, *found.compared), (*line.values, *line.compared), strict=True)
        ):
            done = line.request is not None and line.request <= step < len(found.steps)
            ends = ("" if math.isnan(end) else f"{end:.6g}" for end in (estimate.value, estimate.low, estimate.high))
            writer.writerow((line.title, line.request or "", name, str(done).lower(), *ends, estimate.count))
    return file.getvalue()


def course_plot(found: Course) -> str:
    """A line for each group over the steps; a request's markers are filled from its own step on. An SVG document."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = list(range(len(found.steps)))
        for index, line in enumerate(found.lines):
            values = [estimate.value for estimate in line.values]
            kept = line.request is None
            colour = "#555" if kept else _COLOURS[index % len(_COLOURS)]
            dashes = {"Retain": (0, (5, 2)), "Real people": (0, (1, 1.5))}.get(line.title, "-.") if kept else "-"
            axes.plot(places, values, color=colour, linestyle=dashes, linewidth=1.4, label=line.title, zorder=2)
            if line.request is not None:
                marker = _METHOD_MARKERS[index % len(_METHOD_MARKERS)]
                for first, last, fill in ((0, line.request, "white"), (line.request, len(places), colour)):
                    axes.plot(
                        places[first:last],
                        values[first:last],
                        linestyle="",
                        marker=marker,
                        markerfacecolor=fill,
                        markeredgecolor=colour,
                        zorder=3,
                    )
        axes.set(xticks=places, xticklabels=found.steps, ylim=(-0.03, 1.03), ylabel="mean over people")
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize=8)

    return _svg(draw, 5.2, 3.9)


def course_section(found: Course) -> Extra:
    """The section of a report."""
    said = "; ".join(f"{line.title}: {', '.join(number(e.value) for e in line.values)}" for line in found.lines)
    return Extra(
        anchor="course",
        title="Request after request",
        template="course.html.j2",
        values={
            "found": found,
            "tasks": [task_title(task) for task in found.tasks],
            "plot": course_plot(found),
            "alt": f"Line plot over the steps {', '.join(found.steps)}. {said}.",
        },
    )
