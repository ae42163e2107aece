"""Plots as SVG text. The same data give the same bytes: no dates, a fixed salt for identifiers, glyphs as paths."""

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from mmunlearn.metrics.statistics import Estimate
from mmunlearn.report.collect import Training

MAX_POINTS = 600
"""Longer curves are thinned to this many points, evenly, so that the page stays small."""

_STYLE = {
    "svg.hashsalt": "mmunlearn",
    "svg.fonttype": "path",  # looks the same wherever the page is opened
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555",
    "axes.labelcolor": "#222",
    "xtick.color": "#333",
    "ytick.color": "#333",
    "legend.frameon": False,
}
_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
# After Okabe & Ito, darkened until small text in them is readable on white; markers and dashes repeat the distinction.
_COLOURS = ("#005b96", "#b34700", "#00694a", "#8f3a74", "#2b7299", "#855d00")
_METHOD_MARKERS = ("o", "^", "v", "P", "X", "p", "h")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_ROLE_MARKERS = {"base": "s", "vanilla": "D", "gold": "*", "gold_text": "*"}
_GOLD = "#7a5f00"
_DIRECTIONS = tuple((math.cos(math.radians(angle)), math.sin(math.radians(angle))) for angle in range(30, 390, 30))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model in the plane of forgetting and keeping."""

    label: str
    role: str
    forget: Estimate
    retain: Estimate


def forget_versus_retain(
    points: Sequence[Point],
    *,
    labels: tuple[str, str],
    chance: tuple[float | None, float | None] = (None, None),
    gold: tuple[Estimate | None, Estimate | None] = (None, None),
) -> str:
    """Every model as a labelled point with error bars; gold's intervals as bands, guessing as dotted lines.

    Args:
        points: the models; those with a NaN value are left out.
        labels: what the horizontal (forget) and the vertical (retain) axis show.
        chance: what guessing gets on either axis.
        gold: the numbers of perfect forgetting on either axis.

    Returns:
        An SVG document.
    """
    points = [point for point in points if not math.isnan(point.forget.value + point.retain.value)]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for band, span in ((gold[0], axes.axvspan), (gold[1], axes.axhspan)):
            if band is not None and not math.isnan(band.low):
                span(band.low, band.high, color="#f3d97a", alpha=0.35, linewidth=0, zorder=0)
        for level, line in ((chance[0], axes.axvline), (chance[1], axes.axhline)):
            if level is not None:
                line(level, color="#666", linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        looks = _looks(points)
        for point, (marker, colour) in zip(points, looks, strict=True):
            _draw_point(axes, point, marker, colour)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel=labels[0], ylabel=labels[1])
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        _label_points(figure, axes, points, [colour for _, colour in looks])

    return _svg(draw, 5.2, 4.4)


def loss_curves(training: Training) -> str:
    """Each term's unweighted loss over the optimizer steps, and the retain loss as a monitor.

    Args:
        training: a run with at least one logged step.

    Returns:
        An SVG document.
    """
    curves = _curves(training.steps)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (name, curve) in enumerate(curves.items()):
            steps, losses = _thinned(curve)
            monitor = name == MONITOR
            axes.plot(
                steps,
                losses,
                label=name,
                color="#333" if monitor else _COLOURS[index % 6],
                linestyle=(0, (1, 1.5)) if monitor else _DASHES[index % 4],
                linewidth=1.4,
                marker="o" if len(steps) < 3 else "",  # a single point draws no line
            )
        axes.set(xlabel="optimizer step", ylabel="loss a token, unweighted")
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=8)

    return _svg(draw, 4.6, 3.3)


MONITOR = "retain loss (monitor)"
"""The curve of `retain_loss`, which is measured without being trained on."""


def _curves(steps: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) by term; values that are missing or not finite are left out."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in steps:
        losses = {name: term["raw"] for name, term in line.get("terms", {}).items()}
        losses[MONITOR] = line.get("retain_loss")
        for name, loss in losses.items():
            if loss is not None and math.isfinite(loss):
                curves.setdefault(name, []).append((int(line["step"]), float(loss)))
    monitor = curves.pop(MONITOR, None)
    return curves | ({MONITOR: monitor} if monitor else {})


def _thinned(curve: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    stride = math.ceil(len(curve) / MAX_POINTS)
    kept = [*curve[:-1:stride], curve[-1]]
    return [step for step, _ in kept], [loss for _, loss in kept]


def _looks(points: Sequence[Point]) -> list[tuple[str, str]]:
    """Marker and colour of each point: fixed for the models to compare with, in turn for the methods."""
    looks = []
    methods = 0
    for point in points:
        marker = _ROLE_MARKERS.get(point.role)
        if marker is not None:
            looks.append((marker, _GOLD if point.role.startswith("gold") else "#333333"))
        else:
            looks.append((_METHOD_MARKERS[methods % len(_METHOD_MARKERS)], _COLOURS[methods % len(_COLOURS)]))
            methods += 1
    return looks


def _draw_point(axes: Axes, point: Point, marker: str, colour: str) -> None:
    axes.errorbar(
        point.forget.value,
        point.retain.value,
        xerr=_reach(point.forget),
        yerr=_reach(point.retain),
        fmt=marker,
        color=colour,
        markersize=11 if marker == "*" else 7,
        markeredgecolor="white",
        markeredgewidth=0.7,
        elinewidth=1,
        capsize=2,
        alpha=0.95,
        zorder=3,
    )


def _reach(estimate: Estimate) -> list[list[float]] | None:
    """Distances from the value to the interval's ends, as matplotlib takes them; a bootstrap end may lie beyond it."""
    if math.isnan(estimate.low):
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def _label_points(figure: Figure, axes: Axes, points: Sequence[Point], colours: Sequence[str]) -> None:
    """Put each label where it covers the least of the other labels, points and error bars; a thin line leads to it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # places are compared in pixels, which need the final layout
    renderer = canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    obstacles = [_bars(axes, point) for point in points]
    taken: list[Bbox] = []
    for point, colour in zip(points, colours, strict=True):
        anchor = (point.forget.value, point.retain.value)
        text = axes.annotate(
            point.label,
            anchor,
            xytext=(0, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 5},
            zorder=4,
        )
        size = Text.get_window_extent(text, renderer)  # not the annotation's own: that includes the line
        x, y = axes.transData.transform(anchor)
        best = math.inf
        for reach, (right, up) in itertools.product((10, 22, 38, 56, 76), _DIRECTIONS):
            offset = reach * right, reach * up
            side = "left" if right > 0.3 else "right" if right < -0.3 else "center"
            box = _box(x + offset[0] * figure.dpi / 72, y + offset[1] * figure.dpi / 72, size, side)
            inside = frame.x0 < box.x0 and box.x1 < figure.bbox.x1 and frame.y0 < box.y0 and box.y1 < figure.bbox.y1
            covered = sum(bool(box.overlaps(bar)) for bars in obstacles for bar in bars)
            cost = 100 * (not inside) + 20 * sum(bool(box.overlaps(other)) for other in taken) + 4 * covered + reach / 20
            if cost < best:
                best, chosen = cost, box
                text.set(position=offset, horizontalalignment=side)
        taken.append(chosen.padded(2))


def _box(x: float, y: float, size: Bbox, side: str) -> Bbox:
    """Where a text of that size lies if it is anchored at its `side`, in the middle of its height."""
    left = {"left": x, "right": x - size.width, "center": x - size.width / 2}[side]
    return Bbox.from_bounds(left, y - size.height / 2, size.width, size.height)


def _bars(axes: Axes, point: Point) -> list[Bbox]:
    """What a point covers, in pixels: its marker and its two error bars."""
    x, y = axes.transData.transform((point.forget.value, point.retain.value))
    boxes = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6)]
    if not math.isnan(point.forget.low):
        ends = axes.transData.transform([(point.forget.low, 0), (point.forget.high, 0)])[:, 0]
        boxes.append(Bbox.from_extents(ends[0], y - 2, ends[1], y + 2))
    if not math.isnan(point.retain.low):
        ends = axes.transData.transform([(0, point.retain.low), (0, point.retain.high)])[:, 1]
        boxes.append(Bbox.from_extents(x - 2, ends[0], x + 2, ends[1]))
    return boxes


def _svg(draw: Callable[[Figure], None], width: float, height: float) -> str:
    """Run `draw` on a fresh figure of that size in inches; no pyplot, hence no global state and no display."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=_METADATA)
    return buffer.getvalue()
