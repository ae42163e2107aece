"""Plots: same bytes for the same data, readable as XML, robust against holes in the data."""

import math
import xml.etree.ElementTree as ElementTree

from mmunlearn.metrics.statistics import Estimate
from mmunlearn.report.collect import Record, Training
from mmunlearn.report.plots import MAX_POINTS, MONITOR, Point, _curves, _thinned, forget_versus_retain, loss_curves


def estimate(value, reach=0.05):
    return Estimate(value=value, low=value - reach, high=value + reach, count=10, unscored=0)


def points():
    labels = ["base", "vanilla", "gold", "GradDiff", "NPO", "GradAscent"]
    roles = ["base", "vanilla", "gold", "unlearned", "unlearned", "unlearned"]
    return [
        Point(label=label, role=role, forget=estimate(0.2 + 0.02 * index), retain=estimate(0.9 - 0.01 * index))
        for index, (label, role) in enumerate(zip(labels, roles, strict=True))
    ]


def training(*lines):
    return Training(label="M", steps=lines, record=Record(config="", environment={}, goal="erase"))


def test_plots_are_deterministic_xml_without_dates():
    first, second = (forget_versus_retain(points(), labels=("x", "y"), gold=(estimate(0.2), None)) for _ in range(2))
    assert first == second
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert "dc:date" not in first
    run = training(*({"step": step, "terms": {"forget": {"raw": -step}}, "retain_loss": None} for step in range(5)))
    assert loss_curves(run) == loss_curves(run)


def test_a_model_without_a_number_is_left_out():
    lost = Point(label="lost", role="unlearned", forget=estimate(math.nan), retain=estimate(0.5))
    assert forget_versus_retain([*points(), lost], labels=("x", "y")) == forget_versus_retain(points(), labels=("x", "y"))
    forget_versus_retain([], labels=("x", "y"))


def test_missing_bounds_draw_no_bars():
    bare = Estimate(value=0.5, low=math.nan, high=math.nan, count=1, unscored=0)
    forget_versus_retain([Point(label="one", role="unlearned", forget=bare, retain=bare)], labels=("x", "y"))


def test_holes_and_infinities_are_not_drawn():
    lines = [
        {"step": 1, "terms": {"forget": {"raw": 1.0}}, "retain_loss": 0.5},
        {"step": 2, "terms": {"forget": {"raw": math.inf}, "retain": {"raw": 2.0}}, "retain_loss": None},
        {"step": 3, "terms": {"forget": {"raw": None}}},
    ]
    assert _curves(lines) == {"forget": [(1, 1.0)], "retain": [(2, 2.0)], MONITOR: [(1, 0.5)]}
    loss_curves(training(*lines))


def test_long_curves_are_thinned_and_keep_their_ends():
    steps, losses = _thinned([(step, float(step)) for step in range(10_001)])
    assert len(steps) <= MAX_POINTS + 1
    assert (steps[0], steps[-1], losses[-1]) == (0, 10_000, 10_000.0)
    assert _thinned([(7, 1.0)]) == ([7], [1.0])
