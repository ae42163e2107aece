"""Sweeps as a user types them: jobs one after the other and side by side, then evaluations, a choice and a report."""

import csv
import json
import os
import shutil

import pytest
from command_cases import FEW_QUESTIONS, FULL, TWO_STEPS, run_here

pytestmark = pytest.mark.thorough


def index_of(folder):
    return {job["name"]: job for job in json.loads((folder / "sweep.json").read_text())["jobs"]}


@pytest.fixture(scope="session")
def swept(world, tmp_path_factory):
    """Three jobs, one of which cannot but fail; the words, the folder and what was printed."""
    folder = tmp_path_factory.mktemp("swept") / "sweep"
    rates = "trainer.args.learning_rate=1e-4,1e30,1e-3"
    words = ("unlearn", "-m", *world.settings, "trainer=grad_diff", rates, f"run.dir={folder}", *TWO_STEPS, *FULL)
    return words, folder, run_here(*words)


@pytest.fixture(scope="session")
def vanilla(world, tmp_path_factory):
    """The evaluation of the model that the sweep starts from."""
    folder = tmp_path_factory.mktemp("vanilla") / "evaluation"
    outcome = run_here("evaluate", *world.settings, f"run.dir={folder}", *FEW_QUESTIONS)
    assert outcome.code == 0, outcome.err
    return folder


LOW, HIGH, BROKEN = (f"trainer.args.learning_rate={rate}" for rate in ("0.0001", "0.001", "1e+30"))


def test_a_sweep_and_its_index(swept):
    _, folder, outcome = swept
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    jobs = index_of(folder)
    assert {name: job["state"] for name, job in jobs.items()} == {LOW: "finished", BROKEN: "failed", HIGH: "finished"}
    assert "became nan in step 1" in jobs[BROKEN]["error"]
    assert jobs[LOW]["folder"] == str(folder / LOW)
    assert "trainer=grad_diff" in jobs[LOW]["overrides"]
    assert all(job["seconds"] > 0 for job in jobs.values())


def test_repeated_it_does_only_what_is_left(swept, tmp_path):
    words, folder, _ = swept
    copy = tmp_path / "sweep"
    shutil.copytree(folder, copy)
    before = {name: (copy / name / "DONE").stat().st_mtime_ns for name in (LOW, HIGH)}
    outcome = run_here(*(word.replace(str(folder), str(copy)) if "run.dir" in str(word) else word for word in words))
    assert outcome.code == 2
    assert "2 of them finished" in outcome.err
    assert {name: (copy / name / "DONE").stat().st_mtime_ns for name in (LOW, HIGH)} == before


def killed_evaluation_of_another_model(vanilla, folder):
    """What a command left that was asking the model which this job had made before."""
    killed = folder / "evaluations" / LOW
    shutil.copytree(vanilla, killed)
    for name in ("DONE", "results.json"):
        (killed / name).unlink()
    earlier = (folder / LOW / "DONE").stat().st_mtime - 10
    os.utime(killed / "model.json", (earlier, earlier))
    return killed


def test_without_vanilla_nothing_is_asked(swept, tmp_path):
    folder = tmp_path / "sweep"
    shutil.copytree(swept[1], folder)
    before = sorted(path for path in folder.rglob("*"))
    outcome = run_here("sweep", f"sweep.folder={folder}", f"run.dir={tmp_path / 'report'}")
    assert outcome.code == 2
    assert "Without an evaluation of the vanilla model" in outcome.err
    assert sorted(path for path in folder.rglob("*")) == before


def test_from_a_sweep_to_a_choice(swept, vanilla, tmp_path):
    folder = tmp_path / "sweep"
    shutil.copytree(swept[1], folder)
    killed = killed_evaluation_of_another_model(vanilla, folder)
    index = folder / "sweep.json"
    index.write_text(index.read_text().replace(str(swept[1]), str(folder)))
    asked = [word for word in FEW_QUESTIONS if word.startswith("evaluation.")]
    words = ("sweep", f"sweep.folder={folder}", f"report.evaluations=[{vanilla}]", "sweep.keep=0.01", *asked)
    outcome = run_here(*words)
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader((folder / "report" / "frontier.csv").open()))
    assert [row["setting"] for row in rows] == ["learning_rate=0.0001", "learning_rate=0.001"]
    choice = json.loads((folder / "report" / "selection.json").read_text())
    assert choice["budget"] == {"runs": 3, "failed": 1, "methods": {"GradDiff": {"settings": 2, "runs": 2}}}
    assert choice["people"]["forget"] == {"validation": 1, "reported": 2}
    assert "The sweep" in (folder / "report" / "report.html").read_text()
    asked = {json.loads((path / "model.json").read_text())["fingerprint"] for path in (killed, vanilla)}
    assert len(asked) == 2
    answers = sorted((folder / "evaluations").glob("*/predictions/*.jsonl"))
    before = [path.stat().st_mtime_ns for path in answers]
    assert len(answers) == 24
    assert run_here(*words).code == 0
    assert [path.stat().st_mtime_ns for path in answers] == before  # nothing is asked twice


@pytest.mark.thorough
def test_jobs_side_by_side(vanilla, tmp_path):
    """With the quickest verb that has a folder; one of the jobs fails."""
    folder = tmp_path / "it's a sweep"
    words = (f"report.evaluations=[{vanilla}]", "report.gate_margin=0.1,2", f'run.dir="{folder}"', "sweep.parallel=2")
    outcome = run_here("report", "-m", *words)
    assert outcome.code == 2, outcome.err
    jobs = index_of(folder)
    assert [job["state"] for job in jobs.values()] == ["finished", "failed"]
    assert "lies outside 0 to 1" in jobs["report.gate_margin=2"]["error"]
    assert len(list(folder.glob("*/report.html"))) == 1
    assert "lies outside 0 to 1" in (folder / "logs" / "report.gate_margin=2.log").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("unlearn", "sweep.parallel=2"), "add -m"),
        (("unlearn", "-m", "hydra/launcher=joblib", "run.seed=0,1"), "sweep.parallel"),
        (("purge", "-m"), "not for sweeps"),
        (("sweep", "sweep.folder=nowhere"), "holds no sweep"),
        (("sweep", "sweep.keep=2"), "sweep.keep"),
        (("unlearn", "-m", "run.seed=0,1", "sweep.paralel=2", "run.dir=somewhere"), "mean 'parallel'"),
    ],
)
def test_mistakes(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run_here(*words)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []
