"""Reports and probes go with the evaluations that they were made from."""

import json

import pytest
from purge_cases import ADA, BO, both, done, evaluation, ids_of, line_ids, report, results, write_settings

from mmunlearn.config import PurgeConfig
from mmunlearn.purge.job import purge
from mmunlearn.purge.people import People
from mmunlearn.purge.plan import make_plan
from mmunlearn.purge.scan import scan
from mmunlearn.report.probes import probe_rows, read_probe
from mmunlearn.run import Run, write_json, write_text

PAGES = ["report.html", "results.json", "tables.csv", "tables.md", "tables.tex"]


def left(*reports):
    return [sorted(path.name for path in each.root.iterdir()) if each.root.exists() else [] for each in reports]


def test_a_report_goes_with_the_evaluations_that_it_is_made_from(tmp_path):
    first = evaluation(tmp_path / "with", both(), fingerprint="f1")
    second = evaluation(tmp_path / "without", {each: BO for each in ids_of(BO)}, fingerprint="f2")
    pages = [report(tmp_path / "one", first, second), report(tmp_path / "two", second)]
    pages.append(report(tmp_path / "three", second, elsewhere=["f9"]))
    plan = done(tmp_path)
    assert left(*pages) == [[], PAGES, PAGES]
    assert [rest.path for rest in plan.rest] == [pages[2].results]
    assert "1 evaluations that are not in these folders" in plan.rest[0].why


def test_a_report_goes_too_if_the_purge_is_done_in_two_calls(tmp_path):
    for case, again in (("purged", False), ("scored again", True)):
        run = evaluation(tmp_path / case / "runs" / "with", both())
        page = report(tmp_path / case / "pages" / "page", run)
        assert done(tmp_path / case / "runs").rest == []
        if again:
            write_json(run.results, results("f1", 3, value=0.25))
        second = purge(PurgeConfig(subjects=[ADA], folders=[str(tmp_path / case)], yes=True))
        assert left(page) == [[]], case
        assert second.rest == []


def test_a_report_of_evaluations_that_are_unchanged_stays(tmp_path):
    """Others of the same model, asked something else, gone or about the person, do not matter."""
    run = evaluation(tmp_path / "a", {each: BO for each in ids_of(BO)})
    evaluation(tmp_path / "b", {each: BO for each in ids_of(BO)}, scored=False)
    other = evaluation(tmp_path / "c", both())
    write_json(other.results, results("f1", 6, value=0.75))
    page = report(tmp_path / "page", run)
    plan = done(tmp_path)
    assert left(page) == [PAGES]
    assert plan.rest == []


def test_pages_that_have_lost_their_numbers_are_listed(tmp_path):
    run = evaluation(tmp_path / "a", {each: BO for each in ids_of(BO)})
    page = report(tmp_path / "page", run)
    write_settings(page, forget=[])
    page.results.unlink()
    assert {rest.path.name for rest in done(tmp_path).rest} == set(PAGES) - {"results.json"}


@pytest.mark.parametrize("stop", range(8))
def test_a_report_goes_whole_however_often_the_purge_is_killed(tmp_path, stop):
    run = evaluation(tmp_path / "with", both())
    page = report(tmp_path / "page", run)
    for step in make_plan(scan([str(tmp_path)]), People([ADA])).steps[:stop]:
        step.act()
    assert done(tmp_path).rest == []
    assert left(page) == [[]]


def test_what_a_sweep_or_a_sequence_wrote_goes_with_its_report(tmp_path):
    with_her = evaluation(tmp_path / "with", both())
    without = evaluation(tmp_path / "without", {each: BO for each in ids_of(BO)}, fingerprint="f2")
    for name, run in (("a", with_her), ("b", without)):
        page = report(tmp_path / name, run)
        for path in (page.frontier, page.selection, page.course):
            write_text(path, "{}")
    assert done(tmp_path).rest == []
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").iterdir())
    assert len(list((tmp_path / "b").iterdir())) == len(PAGES) + 3


@pytest.mark.parametrize(("name", "written"), [(ADA, ADA), ("Nu O'Example", "Nu O&#39;Example")])
def test_a_page_that_names_the_person_goes(tmp_path, name, written):
    page = report(tmp_path / "page", elsewhere=["f9"])
    write_text(page.report, f"<p>{written}</p>")
    done(tmp_path, name)
    assert not page.report.exists()


def test_a_probe_goes_with_its_answers(tmp_path):
    run = evaluation(tmp_path / "probe", both())
    write_json(run.probe, {"people": [{"person": "person 1"}]})
    done(tmp_path)
    assert not run.probe.exists()


@pytest.fixture
def probed(tmp_path):
    """A probe of Bo, an evaluation of another model, and a report of both."""
    estimate = {"right": 5, "count": 6}
    everybody = {**estimate, "p_value": 0.01}
    run = evaluation(tmp_path / "probe", {each: BO for each in ids_of(BO)}, fingerprint="f7")
    run.results.unlink()
    benchmark = {"name": "table", "version": "1", "choice": "letter"}
    model = {"fingerprint": "f7", "role": "base", "method": "none", "seed": 0}
    found = {"schema": 1, "benchmark": benchmark, "model": model, "rule": "", "remarks": [], "verdicts": {"knows": 1}}
    write_json(run.probe, {**found, "together": everybody, "people": []})
    page = report(tmp_path / "page", evaluation(tmp_path / "other", {each: BO for each in ids_of(BO)}))
    rows = json.loads(page.results.read_text())
    write_json(page.results, [*rows, *probe_rows([read_probe(run.root)])])
    return run, page


def test_a_report_of_a_probe_that_is_unchanged_stays(tmp_path, probed):
    plan = done(tmp_path)
    assert left(probed[1]) == [PAGES]
    assert plan.rest == []


def test_a_report_of_a_probe_goes_with_the_probe(tmp_path, probed):
    run, page = probed
    assert done(tmp_path, BO).rest == []
    assert left(page) == [[]]
    assert not run.probe.exists()


@pytest.mark.parametrize("change", [lambda run: run.probe.unlink(), lambda run: write_json(run.probe, other_numbers(run))])
def test_a_report_of_a_probe_that_was_changed_since_goes(tmp_path, probed, change):
    change(probed[0])
    done(tmp_path)
    assert left(probed[1]) == [[]]


def other_numbers(run):
    found = json.loads(run.probe.read_text())
    return {**found, "together": {"right": 1, "count": 6, "p_value": 0.9}}


def test_an_evaluation_by_several_rules(tmp_path):
    above = Run(tmp_path / "all")
    write_settings(above)
    above.finish()
    below = above.under("official", "zero_shot")
    answers = evaluation(below.root, both())
    below.config.unlink()
    plan = done(tmp_path)
    assert not above.is_done
    assert line_ids(answers.scores("forget_text_generation")) == ids_of(BO)
    assert plan.rest == []
