"""The record of `make perf`: what is shown is what was measured, and what got slower is said."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch

from mmunlearn.models.tiny_families import build_tiny_family

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from perf import __main__ as suite  # noqa: E402
from perf import shapes  # noqa: E402
from perf.common import CORPUS  # noqa: E402
from perf.figures import with_tables  # noqa: E402


@pytest.fixture
def recorded():
    return json.loads(suite.RESULTS.read_text(encoding="utf-8"))


def test_the_page_shows_what_is_recorded(recorded):
    page = (suite.HERE / "README.md").read_text(encoding="utf-8")
    assert with_tables(page, recorded) == page, "make perf RECORD=1, or python -m perf --draw"


def test_every_kind_of_measurement_is_watched(recorded):
    names = suite.ratios(recorded)
    cases = [case for kind in ("training", "saliency", "evaluation") for case in recorded[kind]["cases"]]
    assert len(names) == len(cases) + len(suite.TARGETS) * len(recorded["training"]["methods"])
    assert all(value > 0 for value in names.values())


def test_the_same_again_is_not_slower(recorded):
    assert suite.slower(suite.ratios(recorded), suite.ratios(recorded), suite.TOLERANCE) == []


@pytest.mark.parametrize("kind", ["training", "saliency", "evaluation"])
def test_what_fell_is_named_and_nothing_else(recorded, kind):
    found = copy.deepcopy(recorded)
    case = found[kind]["cases"][1]
    case["times_as_fast"] *= 0.99 * (1 - suite.TOLERANCE)
    found[kind]["cases"][0]["times_as_fast"] *= 1.01 * (1 - suite.TOLERANCE)
    (line,) = suite.slower(suite.ratios(found), suite.ratios(recorded), suite.TOLERANCE)
    assert line.startswith(kind)
    assert case["shape"] in line


def test_a_method_that_became_dearer_is_named(recorded):
    found = copy.deepcopy(recorded)
    found["training"]["methods"]["demo"]["npo"] *= 1.5
    (line,) = suite.slower(suite.ratios(found), suite.ratios(recorded), suite.TOLERANCE)
    assert "npo" in line


def test_what_is_no_longer_measured_is_named(recorded):
    found = copy.deepcopy(recorded)
    gone = found["evaluation"]["cases"].pop()
    (line,) = suite.slower(suite.ratios(found), suite.ratios(recorded), suite.TOLERANCE)
    assert gone["task"] in line
    assert line.endswith("no longer measured")


def test_a_slower_run_leaves_the_record_as_it_was(recorded, monkeypatch, capsys):
    found = copy.deepcopy(recorded)
    for case in found["training"]["cases"]:
        case["times_as_fast"] /= 2
    monkeypatch.setattr(suite, "measure", lambda people: found)
    monkeypatch.setattr(sys, "argv", ["perf"])
    before = suite.RESULTS.read_bytes()
    assert suite.main() == 1
    assert suite.RESULTS.read_bytes() == before
    assert capsys.readouterr().err.startswith("Slower than recorded:\n  training")


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_shapes_have_as_many_weights_as_the_published_models(name):
    shape = shapes.SHAPES[name]
    tiny, _ = build_tiny_family(shape.family, CORPUS, seed=0, size=shape.pixels)
    model = shapes.make_model(shapes.config_of(tiny.config, shape), torch.bfloat16, torch.device("meta"))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(shape.parameters, rel=0.005)
