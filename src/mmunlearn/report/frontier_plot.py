"""The plot of a sweep: every setting of every method in the plane of forgetting and keeping."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmunlearn.report.frontier import Frontier, Row
from mmunlearn.report.html import Extra
from mmunlearn.report.plots import _COLOURS, _METHOD_MARKERS, Point, _draw_point, _label_points, _looks, _svg
from mmunlearn.report.tables import number
from mmunlearn.report.words import task_title


def frontier_section(found: Frontier) -> Extra:
    """The section of a report about a sweep."""
    tasks = [*found.aim.forget, *(task for tasks in found.aim.kept.values() for task in tasks)]
    said = "; ".join(
        f"{row.setting.method} {row.setting.name}: {number(row.reported.forget.value)}, {number(row.reported.retain.value)}"
        for row in found.rows
        if row.chosen
    )
    return Extra(
        anchor="frontier",
        title="The sweep",
        template="frontier.html.j2",
        values={
            "found": found,
            "tasks": [task_title(task) for task in tasks],
            "plot": frontier_plot(found),
            "alt": f"Scatter plot of all settings. Horizontal: forget. Vertical: retain. Chosen: {said or 'none'}.",
        },
    )


def frontier_plot(found: Frontier) -> str:
    """Small points: settings. Large ones with intervals: what was chosen, and base, vanilla and gold. An SVG document."""
    references = [
        Point(label=model.label, role=model.role, forget=numbers.forget, retain=numbers.retain)
        for model, numbers in found.references
        if not math.isnan(numbers.forget.value + numbers.retain.value)
    ]
    looks = {
        budget.method: (_METHOD_MARKERS[place % len(_METHOD_MARKERS)], _COLOURS[place % len(_COLOURS)])
        for place, budget in enumerate(found.budgets)
    }
    chosen = [_point(row) for row in found.rows if row.chosen]
    points = [*references, *chosen]
    drawn = [*_looks(references), *(looks[point.label] for point in chosen)]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for model, numbers in found.references:
            if model.role == "gold" and not math.isnan(numbers.forget.low + numbers.retain.low):
                axes.axvspan(numbers.forget.low, numbers.forget.high, color="#f3d97a", alpha=0.35, linewidth=0, zorder=0)
                axes.axhspan(numbers.retain.low, numbers.retain.high, color="#f3d97a", alpha=0.35, linewidth=0, zorder=0)
        for method, (marker, colour) in looks.items():
            _draw_settings(axes, [row for row in found.rows if row.setting.method == method], marker, colour)
        for point, (marker, colour) in zip(points, drawn, strict=True):
            _draw_point(axes, point, marker, colour)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.set(xlabel="forget   (gold’s is the ideal)", ylabel="retain   (higher is better)")
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        _label_points(figure, axes, points, [colour for _, colour in drawn])
        if looks:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=8)

    return _svg(draw, 5.6, 4.8)


def _point(row: Row) -> Point:
    return Point(label=row.setting.method, role="unlearned", forget=row.reported.forget, retain=row.reported.retain)


def _draw_settings(axes: Axes, rows: Sequence[Row], marker: str, colour: str) -> None:
    """One method: its settings as small points, and a line through those that none of them beats on the validation half."""
    axes.plot(
        [row.reported.forget.value for row in rows],
        [row.reported.retain.value for row in rows],
        linestyle="",
        marker=marker,
        color=colour,
        markersize=4,
        alpha=0.6,
        label=f"{rows[0].setting.method}, {len(rows)} settings",
        zorder=2,
    )
    edge = sorted((row for row in rows if row.best), key=lambda row: row.validation.distance)
    axes.plot(
        [row.reported.forget.value for row in edge],
        [row.reported.retain.value for row in edge],
        color=colour,
        linewidth=1,
        alpha=0.5,
        zorder=2,
    )
