"""A tracker gets the numbers of metrics.jsonl, and no failure of one costs the record or the model."""

import json
from collections import Counter

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from mmunlearn.errors import ConfigError, RunError
from mmunlearn.methods.grad_diff import GradDiff
from mmunlearn.run import Run, read_json_lines
from mmunlearn.training import trackers
from mmunlearn.training.logging import StepLog
from mmunlearn.training.trackers import Trackers, check_trackers, flat, tracked_run, tracking


class Lines(GeneralTracker):
    """A tracker of Accelerate's kind that writes a line for everything it is told."""

    name = "lines"
    requires_logging_directory = True
    fails_in = ""

    def __init__(self, run_name, logging_dir):
        super().__init__()
        self.path = f"{logging_dir}/{self.name}.jsonl"
        self._note("create", run_name)

    def _note(self, what, value, **more):
        with open(self.path, "a") as file:
            file.write(json.dumps({what: value, **more}) + "\n")
        if what == self.fails_in or self.fails_in == f"log {more.get('step')}":
            raise OSError("no network")  # a tracker's own error may be of any kind

    @property
    def tracker(self):
        return self.path

    def start(self):
        self._note("start", True)

    def store_init_configuration(self, values):
        self._note("settings", values)

    def log(self, values, step=None):
        self._note("log", values, step=step)

    def finish(self):
        self._note("finish", True)


@pytest.fixture(autouse=True)
def lines(monkeypatch):
    """The tracker, known to Accelerate under its name, and a second one of the same kind."""
    Accelerator(cpu=True)
    other = type("Others", (Lines,), {"name": "others"})
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "lines", Lines)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "others", other)
    return Lines


def told(folder, name="lines"):
    return read_json_lines(folder / f"{name}.jsonl")


def kinds(folder, name="lines"):
    return [next(iter(line)) for line in told(folder, name)]


def run(make_training, folder, *, names=("lines",), first_step=0, **args):
    """Train, as a job does, with trackers around it; their folder is `folder/trackers`."""
    training = make_training(GradDiff(), args={"report_to": list(names), **args})
    tracked_run(Run(folder), training, first_step=first_step)


def leaf(record, key):
    """The number in a nested record that a flattened key stands for."""
    for name in key.split("/"):
        record = record[name]
    return record


def count_numbers(record):
    if isinstance(record, dict):
        return sum(map(count_numbers, record.values()))
    return record is not None


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_the_tracker_gets_the_numbers_of_the_record(make_training, tmp_path):
    run(make_training, tmp_path, max_steps=5, logging_steps=2)
    records = read_json_lines(tmp_path / "metrics.jsonl")
    logged = [line for line in told(tmp_path / "trackers") if "log" in line]
    assert [record["step"] for record in records] == [line["step"] for line in logged] == [1, 2, 4, 5]
    for record, line in zip(records, logged, strict=True):
        assert line["log"] == {key: leaf(record, key) for key in line["log"]}
        assert len(line["log"]) == count_numbers(record) - 1, "all of them but the step"
    assert {"terms/forget/raw", "terms/retain/weighted", "retain_loss", "gradient_norm/language", "seconds"} <= set(line["log"])
    assert {"epoch", "learning_rate/language"} <= set(line["log"])
    assert "step" not in line["log"]


def test_opened_once_told_the_settings_and_closed(make_training, tmp_path):
    run(make_training, tmp_path, names=("lines", "others"), max_steps=2)
    for name in ("lines", "others"):
        assert kinds(tmp_path / "trackers", name) == ["create", "start", "settings", "log", "log", "finish"]
        created, _, told_settings, *_ = told(tmp_path / "trackers", name)
        assert created["create"] == "mmunlearn"
        assert told_settings["settings"]["method"] == "GradDiff"
        assert told_settings["settings"]["args/max_steps"] == 2


def test_the_recorded_configuration_is_what_a_tracker_is_told(make_training, tmp_path):
    Run(tmp_path).config.write_text("model:\n  path: somewhere\nrun:\n  seed: 3\n")
    run(make_training, tmp_path, max_steps=1)
    assert told(tmp_path / "trackers")[2]["settings"] == {"model/path": "somewhere", "run/seed": 3}


def test_what_is_not_known_is_left_out(tmp_path):
    with tracking(["lines"], tmp_path, {}) as sink:
        sink.log(7, {"step": 7, "retain_loss": None, "terms": {}, "seconds": 0.5})
    assert {"log": {"seconds": 0.5}, "step": 7} in told(tmp_path)


def test_settings_become_one_level_of_plain_values(tmp_path):
    settings = {"run": {"seed": 3, "role": None}, "trainer": {"args": {"bf16": True, "report_to": ["lines"]}}, "name": "x"}
    with tracking(["lines"], tmp_path, settings):
        pass
    (found,) = [line["settings"] for line in told(tmp_path) if "settings" in line]
    assert found == {
        "run/seed": 3,
        "run/role": "None",
        "trainer/args/bf16": True,
        "trainer/args/report_to": "['lines']",
        "name": "x",
    }


def test_a_resumed_run_goes_on_at_its_step(make_training, tmp_path):
    run(make_training, tmp_path, max_steps=2)
    run(make_training, tmp_path, first_step=2, max_steps=5)
    assert [line["step"] for line in told(tmp_path / "trackers") if "log" in line] == [1, 2, 3, 4, 5]


def test_without_trackers_nothing_is_written_besides_the_record(make_training, tmp_path):
    run(make_training, tmp_path, names=(), max_steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_record_needs_no_sink(make_training, tmp_path):
    training = make_training(GradDiff(), args={"max_steps": 1})
    assert training.log == StepLog(training.log.path)
    training.run()
    assert len(read_json_lines(training.log.path)) == 1


def test_flat():
    assert flat({"a": {"b": {"c": 1}, "d": [2]}, "e": None, "f": {}}) == {"a/b/c": 1, "a/d": [2], "e": None}


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_tracker_that_fails_ends_the_run_with_the_record_complete(make_training, tmp_path, lines, monkeypatch):
    monkeypatch.setattr(lines, "fails_in", "log 3")
    with pytest.raises(RunError, match=r"Tracker lines failed in step 3 \(OSError: no network\)\.") as caught:
        run(make_training, tmp_path, max_steps=5)
    assert "run.resume=true" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    records = read_json_lines(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(count_numbers(record) == count_numbers(records[0]) for record in records)
    assert kinds(tmp_path / "trackers")[-1] == "finish"


@pytest.mark.parametrize("fails_in", ["create", "start", "settings"])
def test_a_tracker_that_does_not_start_stops_everything_before_the_first_step(make_training, tmp_path, monkeypatch, fails_in):
    monkeypatch.setattr(LOGGER_TYPE_TO_CLASS["others"], "fails_in", fails_in)
    with pytest.raises(RunError, match=r"Tracker others did not start \(OSError: no network\)\..*trainer\.args\.report_to"):
        run(make_training, tmp_path, names=("lines", "others"), max_steps=1)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert kinds(tmp_path / "trackers", "lines")[-1] == "finish"
    assert Counter(kinds(tmp_path / "trackers", "others"))["finish"] == (fails_in == "settings")


def test_a_tracker_that_cannot_be_closed_costs_nothing(make_training, tmp_path, lines, monkeypatch):
    monkeypatch.setattr(lines, "fails_in", "finish")
    monkeypatch.setattr(LOGGER_TYPE_TO_CLASS["others"], "fails_in", "")
    with pytest.warns(RuntimeWarning, match=r"Tracker lines could not be closed \(OSError: no network\)"):
        run(make_training, tmp_path, names=("others", "lines"), max_steps=1)
    assert kinds(tmp_path / "trackers", "others")[-1] == "finish"


def test_it_does_not_hide_why_a_run_ended(tmp_path, lines, monkeypatch):
    monkeypatch.setattr(lines, "fails_in", "finish")
    with pytest.warns(RuntimeWarning), pytest.raises(RunError, match="became nan"), tracking(["lines"], tmp_path, {}):
        raise RunError("The loss became nan.")


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "trackers").write_text("a file")
    with (
        pytest.raises(RunError, match=r"trackers: cannot be written.*run\.dir"),
        tracking(["lines"], tmp_path / "trackers", {}),
    ):
        pass


def test_finishing_twice_is_finishing_once(tmp_path):
    opened = Trackers()
    opened.start(["lines"], tmp_path, {})
    opened.finish()
    opened.finish()
    assert Counter(kinds(tmp_path))["finish"] == 1


# --- names -----------------------------------------------------------------------------------------------------------


def test_trackers_that_exist_and_are_installed_are_taken(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["wandb"])
    check_trackers([])
    check_trackers(["wandb", "lines"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wandb"], "trainer.args.report_to: wandb is not installed; pip install wandb, or leave it out."),
        (["tensorbord"], "there is no tracker 'tensorbord'. Did you mean 'tensorboard'?"),
        (["all"], "there is no tracker 'all'. Known: aim, "),
        (["none"], "there is no tracker 'none'. Leave the list empty: []."),
        (["lines", "lines"], "lines is named twice"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_named_with_the_remedy(names, message, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    with pytest.raises(ConfigError) as caught:
        check_trackers(names)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("trainer.args.report_to: ")
    assert message in line


def test_all_that_cannot_be_used_are_named_at_once(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    with pytest.raises(ConfigError) as caught:
        check_trackers(["wandb", "lines", "mlflow", "x"])
    assert len(str(caught.value).splitlines()) == 3
