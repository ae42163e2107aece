"""`mmunlearn sequence`: request after request, each from the model before; repeated, it does only what is left."""

import csv
import json

import pytest
from command_cases import FEW_QUESTIONS, TWO_STEPS, run_here
from omegaconf import OmegaConf

from mmunlearn.run import read_json_lines


@pytest.fixture(scope="session")
def people(world):
    """Two who are to be forgotten anyway and two who are not, in two requests."""
    splits = world.benchmark().splits()
    forget, retain = (sorted({example.subject for example in side}) for side in (splits.forget, splits.retain))
    return [[forget[0], retain[0]], [retain[1]]]


@pytest.fixture(scope="session")
def sequence(world, people, tmp_path_factory):
    """Words, folder and outcome of two requests, tuned by LoRA."""
    folder = tmp_path_factory.mktemp("sequence") / "run"
    requests = "sequence.requests=[" + ",".join(f"[{','.join(request)}]" for request in people) + "]"
    words = ("sequence", requests, *world.settings, "trainer=grad_diff", *TWO_STEPS, *FEW_QUESTIONS, f"run.dir={folder}")
    outcome = run_here(*words)
    assert outcome.code == 0, outcome.err
    return words, folder, outcome


def test_each_request_starts_from_the_model_before(sequence, world, people):
    folder = sequence[1]
    first, second = (OmegaConf.load(folder / f"step-{number}" / "config.yaml") for number in (1, 2))
    assert first.model.path == str(world.model)
    assert second.model.path == str(folder / "step-1" / "model")
    assert [list(step.data.forget) for step in (first, second)] == people
    assert [list(step.data.earlier) for step in (first, second)] == [[], people[0]]


def test_every_model_is_asked_about_all_requests(sequence, people):
    found = []
    for number in range(3):
        run = sequence[1] / f"evaluation-{number}"
        found.append(json.loads((run / "results.json").read_text())["benchmark"]["questions"])
        assert {line["subject"] for line in read_json_lines(run / "scores" / "forget_image_choice.jsonl")} == {
            *people[0],
            *people[1],
        }
        kept = {line["subject"] for line in read_json_lines(run / "scores" / "retain_image_choice.jsonl")}
        assert not kept & {*people[0], *people[1]}
    assert len(set(found)) == 1


def test_the_report(sequence, people):
    folder = sequence[1] / "report"
    rows = list(csv.DictReader((folder / "course.csv").open()))
    assert [(row["group"], row["model"]) for row in rows[:6]] == [
        (f"Request {request}", step) for request in (1, 2) for step in ("before", "after 1", "after 2")
    ]
    assert [row["requested"] for row in rows[:6]] == ["false", "true", "true", "false", "false", "true"]
    assert [int(row["people"]) for row in rows[:6]] == [2, 2, 2, 1, 1, 1]
    page = (folder / "report.html").read_text()
    assert "Request after request" in page
    assert not any(person in page for person in (*people[0], *people[1]) if not person.isdigit())


def test_repeated_it_does_nothing_again(sequence):
    words, folder, _ = sequence
    made = [*folder.glob("step-*/DONE"), *folder.glob("evaluation-*/DONE")]
    before = [path.stat().st_mtime_ns for path in made]
    assert len(made) == 5
    assert run_here(*words).code == 0
    assert [path.stat().st_mtime_ns for path in made] == before


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ("[]", "is empty"),
        ("[[a,b],[A]]", "again in request 2"),
        ("[nowhere.txt]", "neither a list of people"),
        ("[[a],[]]", "request 2 names nobody"),
        ("[[Nobody Atall]]", "nobody is called 'Nobody Atall'"),
    ],
)
def test_mistakes(requests, message, world, tmp_path):
    outcome = run_here("sequence", f"sequence.requests={requests}", *world.settings, f"run.dir={tmp_path / 'run'}")
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()
