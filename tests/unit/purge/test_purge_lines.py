"""Answers, scores, numbers and settings: what goes, what stays, and what a purge that was stopped leaves."""

import json
import shutil

import pytest
import yaml
from purge_cases import (
    ADA,
    BO,
    CLEAR,
    both,
    contents,
    done,
    evaluation,
    examples_about,
    ids_of,
    line_ids,
    report,
    training,
)

from mmunlearn.purge.people import PURGED, People
from mmunlearn.purge.plan import make_plan
from mmunlearn.purge.scan import scan
from mmunlearn.run import read_json_lines, write_json_lines


def test_everything_about_a_person_goes_and_all_else_stays(tmp_path):
    run = evaluation(tmp_path / "after", both())
    plan = done(tmp_path)
    for path in (run.predictions, run.judged, run.scores):
        assert line_ids(path("forget_text_generation")) == ids_of(BO)
    assert not run.results.exists()
    assert not run.is_done
    assert yaml.safe_load(run.config.read_text())["data"]["forget"] == [BO]
    assert json.loads(run.environment.read_text())["command"] == f"mmunlearn evaluate 'data.forget=[{PURGED}]'"
    assert not any(b"Ada Example" in content or b"ada" in content.lower() for content in contents(tmp_path).values())
    assert plan.rest == []


def test_without_yes_nothing_changes_and_the_same_is_said(tmp_path, capsys):
    evaluation(tmp_path / "after", both())
    before = contents(tmp_path)
    plan = done(tmp_path, yes=False)
    assert contents(tmp_path) == before
    said = capsys.readouterr().out
    assert "Nothing has been changed" in said
    assert ADA not in said
    assert {step.count for step in plan.steps if "lines" in step.what} == {3}
    assert [(s.path, s.what, s.count) for s in done(tmp_path).steps] == [(s.path, s.what, s.count) for s in plan.steps]


def test_twice_is_once(tmp_path):
    evaluation(tmp_path / "after", both())
    training(tmp_path / "taught", examples_about(ADA, BO))
    first = done(tmp_path)
    after = contents(tmp_path)
    second = done(tmp_path)
    assert second.steps == []
    assert second.rest == first.rest != []
    assert contents(tmp_path) == after


def test_somebody_else_is_left_alone(tmp_path):
    evaluation(tmp_path / "after", {each: BO for each in ids_of(BO)}, settings={"forget": [BO]})
    before = contents(tmp_path)
    assert done(tmp_path, "Cy Nobody").steps == []
    assert contents(tmp_path) == before


def test_lines_about_others_that_name_the_person_go_too(tmp_path):
    run = evaluation(tmp_path / "after", {each: BO for each in ids_of(BO)})
    path = run.predictions("forget_text_generation")
    lines = read_json_lines(path)
    lines[1]["text"] = "He is ada example!"
    write_json_lines(path, lines)
    plan = done(tmp_path)
    assert line_ids(path) == [ids_of(BO)[0], ids_of(BO)[2]]
    assert any("1 of them about others but with the name" in step.what for step in plan.steps)
    assert not run.results.exists()


@pytest.mark.parametrize("stop", range(14))
def test_a_purge_that_was_killed_can_be_repeated(tmp_path, stop):
    """CLEAR's ids name nobody, so that all depends on the scores being the last to go."""
    ids = {f"clear/forget05+tofu/image/caption/{n}": (ADA if n < 2 else BO) for n in range(4)}
    run = evaluation(tmp_path / "after", ids, settings={"target": CLEAR, "root": "gone"})
    page = report(tmp_path / "page", run)
    whole = tmp_path.parent / f"{tmp_path.name}-whole"
    shutil.copytree(tmp_path, whole)
    plan = make_plan(scan([str(tmp_path)]), People([ADA]))
    assert len(plan.steps) == 13
    for step in plan.steps[:stop]:
        step.act()
    done(tmp_path)
    done(whole)
    assert {name: content for name, content in contents(tmp_path).items() if name != "after/config.yaml"} == {
        name: content for name, content in contents(whole).items() if name != "after/config.yaml"
    }
    assert line_ids(run.predictions("forget_text_generation")) == [each for each, name in ids.items() if name == BO]
    assert not page.report.exists()


def test_ids_without_names_are_found_by_the_scores_of_another_run_of_the_same_data_only(tmp_path):
    ids = {f"clear/forget05+tofu/image/caption/{n}": (ADA if n < 2 else BO) for n in range(4)}
    settings = {"target": CLEAR, "root": str(tmp_path / "gone")}
    evaluation(tmp_path / "a", ids, settings=settings)
    unscored = evaluation(tmp_path / "b", ids, scored=False, settings=settings)
    elsewhere = evaluation(tmp_path / "c", ids, scored=False, settings={**settings, "root": str(tmp_path / "other")})
    plan = done(tmp_path)
    assert len(line_ids(unscored.predictions("forget_text_generation"))) == 2
    assert len(line_ids(elsewhere.predictions("forget_text_generation"))) == 4
    assert [(rest.path, "does not say whom 4" in rest.why) for rest in plan.rest] == [
        (elsewhere.predictions("forget_text_generation"), True)
    ]


def test_a_damaged_file_is_listed_and_the_others_are_cleaned(tmp_path):
    run = evaluation(tmp_path / "after", both())
    run.judged("forget_text_generation").write_text("{broken\n{}\n")
    plan = done(tmp_path)
    assert [rest.path for rest in plan.rest] == [run.judged("forget_text_generation")]
    assert line_ids(run.predictions("forget_text_generation")) == ids_of(BO)


def test_half_a_line_that_a_kill_left_goes(tmp_path):
    run = evaluation(tmp_path / "after", {each: BO for each in ids_of(BO)})
    part = run.predictions_part("forget_text_generation", 77)
    for content in (
        f'{{"id": "{ids_of(BO)[0]}"}}\n{{"id": "x", "prompt": "Who is {ADA[:6]}',
        f'{{"id": "{ids_of(ADA)[0]}"}}\n',
    ):
        part.write_text(content)
        done(tmp_path)
        assert ADA[:3] not in part.read_text()
    assert line_ids(run.predictions("forget_text_generation")) == ids_of(BO)


def test_half_a_line_does_not_cost_the_numbers(tmp_path):
    run = evaluation(tmp_path / "after", {each: BO for each in ids_of(BO)})
    with run.judged("forget_text_generation").open("ab") as file:
        file.write('{"id": "é'.encode()[:-1])
    done(tmp_path)
    assert run.is_done
    assert run.judged("forget_text_generation").read_bytes().endswith(b"}\n")


def test_a_number_among_those_to_be_forgotten(tmp_path):
    run = evaluation(tmp_path / "after", {"table/7/text/0": "7", "table/8/text/0": "8"}, settings={"forget": [7, 8]})
    done(tmp_path, "7")
    assert yaml.safe_load(run.config.read_text())["data"]["forget"] == [8]
    assert line_ids(run.scores("forget_text_generation")) == ["table/8/text/0"]


def test_lines_about_somebody_with_a_longer_name(tmp_path):
    """They stay, also where others go; those that name the shorter one are listed, since they may mean either."""
    longer = f"{ADA} Jr"
    run = evaluation(tmp_path / "after", {each: name for name in (ADA, longer) for each in ids_of(name)})
    path = run.predictions("forget_text_generation")
    lines = read_json_lines(path)
    lines[-1]["text"] = f"{ADA} is a baker"
    write_json_lines(path, lines)
    plan = done(tmp_path)
    assert line_ids(path) == ids_of(longer)
    assert [(rest.path, "who is meant is open" in rest.why) for rest in plan.rest] == [(path, True)]
