"""Trackers through the whole command: named before anything loads, and no failure of one costs a run."""

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from command_cases import run_here

from mmunlearn.run import Run, read_json_lines
from mmunlearn.training import job, trackers

THREE_STEPS = ("trainer.args.max_steps=3", "trainer.args.save_steps=1", "trainer.args.logging_steps=1")


class Recorder(GeneralTracker):
    """Keeps what it is told; `fails_in` is a step."""

    name = "recorder"
    requires_logging_directory = False
    told, settings, fails_in = [], {}, 0

    def __init__(self, run_name):
        super().__init__()

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.settings.update(values)

    def log(self, values, step=None):
        if step == self.fails_in:
            raise ConnectionError("no network")
        self.told.append((step, values))


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    monkeypatch.setattr(Recorder, "told", [])
    monkeypatch.setattr(Recorder, "settings", {})
    return Recorder


def test_tracker_that_is_not_installed(world, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    monkeypatch.setattr(job, "open_accelerator", None)
    monkeypatch.setattr(job, "open_benchmark", None)
    monkeypatch.setattr(job, "load", None)
    outcome = run_here("unlearn", *world.settings, f"run.dir={tmp_path / 'run'}", "trainer.args.report_to=[wandb]")
    assert outcome.code == 2, outcome.err
    assert outcome.err == "\nmmunlearn: trainer.args.report_to: wandb is not installed; pip install wandb, or leave it out.\n"
    assert not (tmp_path / "run").exists()


def test_list_that_is_no_list(world, tmp_path):
    outcome = run_here("unlearn", *world.settings, f"run.dir={tmp_path / 'run'}", "trainer.args.report_to=wandb")
    assert outcome.code == 2
    assert "write [wandb]" in outcome.err


@pytest.mark.thorough
def test_tracker_that_fails_and_a_run_that_goes_on_without_it(world, tmp_path, recorder, monkeypatch):
    folder, words = Run(tmp_path / "run"), (*world.settings, *THREE_STEPS)
    monkeypatch.setattr(recorder, "fails_in", 2)
    tracked = ("trainer.args.report_to=[recorder]", f"run.dir={folder.root}")
    outcome = run_here("unlearn", *words, *tracked)
    assert outcome.code == 2, outcome.err
    assert "Tracker recorder failed in step 2 (ConnectionError: no network)" in outcome.err
    assert "Traceback" not in outcome.err
    assert [record["step"] for record in read_json_lines(folder.metrics)] == [1, 2]
    assert [step for step, _ in recorder.told] == [1]

    assert run_here("unlearn", *words, f"run.dir={folder.root}", "run.resume=true").code == 0
    assert run_here("unlearn", *words, f"run.dir={tmp_path / 'whole'}").code == 0
    assert [record["step"] for record in read_json_lines(folder.metrics)] == [1, 2, 3]
    weights = "adapter_model.safetensors"
    assert (folder.model / weights).read_bytes() == (tmp_path / "whole/model" / weights).read_bytes()


@pytest.mark.thorough
def test_resumed_run_reports_the_steps_that_were_missing(world, tmp_path, recorder, monkeypatch):
    words = (*world.settings, *THREE_STEPS, "trainer.args.report_to=[recorder]", f"run.dir={tmp_path / 'run'}")
    monkeypatch.setattr(recorder, "fails_in", 3)
    assert run_here("unlearn", *words).code == 2
    monkeypatch.setattr(recorder, "fails_in", 0)
    assert run_here("unlearn", *words, "run.resume=true").code == 0
    assert [step for step, _ in recorder.told] == [1, 2, 3]
    records = read_json_lines(tmp_path / "run/metrics.jsonl")
    assert [values["terms/forget/raw"] for _, values in recorder.told] == [r["terms"]["forget"]["raw"] for r in records]
    assert recorder.settings["trainer/args/max_steps"] == 3
