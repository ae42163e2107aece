"""The jobs of a sweep: combinations, names, index, and processes that fail, are killed or are told to stop."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from mmunlearn import launch
from mmunlearn.config import SweepConfig
from mmunlearn.config_check import checked
from mmunlearn.config_enums import Launcher
from mmunlearn.errors import ConfigError, RunError
from mmunlearn.run import Run, write_json
from mmunlearn.sweep.cluster import cluster_start
from mmunlearn.sweep.evaluations import evaluation_config
from mmunlearn.sweep.jobs import Ended, Index, Job, SweepFolder, combinations, planned, read_index
from mmunlearn.sweep.run import Sweep, run_sweep
from mmunlearn.sweep.runners import last_words, local_start, side_by_side


def parsed(*words):
    return OverridesParser.create().parse_overrides(list(words))


# --- what the jobs are -----------------------------------------------------------------------------------------------


def test_combinations_are_the_product_of_all_lists():
    found = combinations(parsed("a.b=1,2,3", "c=x", "trainer=npo,po", "+d=range(0,2)"))
    expected = itertools.product(("1", "2", "3"), ("npo", "po"), ("0", "1"))
    assert found == [(f"a.b={b}", "c=x", f"trainer={t}", f"+d={d}") for b, t, d in expected]


def test_a_list_in_brackets_is_one_value():
    assert combinations(parsed("evaluation.splits=[forget,retain]")) == [("evaluation.splits=[forget,retain]",)]


def test_jobs_are_named_by_what_differs(tmp_path):
    jobs = planned(parsed("model.path=/a/b,'/c d'", "run.seed=0,1", "x=5"), tmp_path)
    assert [job.name for job in jobs] == [
        "model.path=_a_b,run.seed=0",
        "model.path=_a_b,run.seed=1",
        "model.path=_c_d,run.seed=0",
        "model.path=_c_d,run.seed=1",
    ]
    assert [job.folder for job in jobs] == [tmp_path / job.name for job in jobs]
    assert jobs[3].overrides == ("model.path='/c d'", "run.seed=1", "x=5")


def test_long_names_are_cut_and_stay_apart(tmp_path):
    first, second = planned(parsed(f"a={'x' * 300}1,{'x' * 300}2"), tmp_path)
    assert first.name != second.name
    assert max(len(job.name.encode()) for job in (first, second)) <= 200


@pytest.mark.parametrize(
    ("words", "message"),
    [(["run.seed=0,0"], "more than once"), (["run.dir=a,b"], "one folder"), (["a=interval(0,1)"], "no end of values")],
)
def test_sweeps_that_cannot_be(words, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        planned(parsed(*words), tmp_path)


# --- a sweep whose jobs only write files -----------------------------------------------------------------------------


def sweep_of(folder, *words, sections=("run", "trainer"), overwrite=False, **settings):
    jobs = tuple(planned(parsed(*words), folder))
    own = SweepConfig(**settings)
    return Sweep(verb="v", sections=sections, flags=(), folder=folder, jobs=jobs, settings=own, overwrite=overwrite)


def finishing(begun, failing=()):
    """What runs a job in this process: leaves config.yaml, and DONE unless its seed is to fail."""

    def here(words):
        folder = Path(next(word for word in words if word.startswith("run.dir=")).split("=", 1)[1].strip("'"))
        begun.append((folder.name, "run.resume=true" in words))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text("{}")
        code = next((code for seed, code in dict(failing).items() if f"run.seed={seed}" in words), 0)
        if code == 0:
            (folder / "DONE").touch()
        return Ended(code=code, error="it broke" if code else "")

    return here


def states(folder):
    return {job["name"]: job["state"] for job in read_index(SweepFolder(root=folder))["jobs"]}


def test_a_failing_job_stops_no_other_and_is_tried_again(tmp_path):
    begun = []
    sweep = sweep_of(tmp_path, "run.seed=0,1,2")
    assert run_sweep(sweep, finishing(begun, {1: 2})) == 2
    assert states(tmp_path) == {"run.seed=0": "finished", "run.seed=1": "failed", "run.seed=2": "finished"}
    assert read_index(SweepFolder(root=tmp_path))["jobs"][1]["error"] == "it broke"
    assert run_sweep(sweep, finishing(begun)) == 0
    assert begun[3:] == [("run.seed=1", True)]  # finished ones are skipped, the other one goes on
    assert set(states(tmp_path).values()) == {"finished"}
    assert run_sweep(sweep, finishing(begun)) == 0
    assert len(begun) == 4


def test_a_larger_sweep_in_the_same_folder_keeps_what_was_tried(tmp_path):
    begun = []
    run_sweep(sweep_of(tmp_path, "run.seed=0,1"), finishing(begun))
    run_sweep(sweep_of(tmp_path, "run.seed=2,1"), finishing(begun))
    assert [name for name, _ in begun] == ["run.seed=0", "run.seed=1", "run.seed=2"]
    assert list(states(tmp_path)) == ["run.seed=0", "run.seed=1", "run.seed=2"]


def test_a_finished_job_of_other_settings_is_not_taken_for_this_one(tmp_path):
    begun = []
    run_sweep(sweep_of(tmp_path, "run.seed=0,1", "x=1"), finishing(begun))
    run_sweep(sweep_of(tmp_path, "x=1", "run.seed=0,1"), finishing(begun))  # the order of the words does not matter
    assert len(begun) == 2
    run_sweep(sweep_of(tmp_path, "run.seed=0,1", "x=2"), finishing(begun))
    assert len(begun) == 4  # the job itself then says that the folder is taken


def test_a_folder_of_other_settings_is_not_finished_the_second_time_either(tmp_path):
    """The job fails, since its folder is taken, and again when repeated; the first settings find their runs as they were."""
    begun = []
    run_sweep(sweep_of(tmp_path, "run.seed=0,1", "x=1"), finishing(begun))
    for _ in range(2):
        assert run_sweep(sweep_of(tmp_path, "run.seed=0,1", "x=2"), finishing(begun, {0: 2, 1: 2})) == 2
        assert states(tmp_path) == {"run.seed=0": "failed", "run.seed=1": "failed"}
    assert len(begun) == 6
    assert run_sweep(sweep_of(tmp_path, "run.seed=0,1", "x=1"), finishing(begun)) == 0
    assert len(begun) == 6
    jobs = read_index(SweepFolder(root=tmp_path))["jobs"]
    assert [(job["state"], job["overrides"][-1], job["error"]) for job in jobs] == [("finished", "x=1", "")] * 2


@pytest.mark.parametrize(
    ("word", "composed", "again"),
    [
        *((f"{prefix}run.overwrite={yes}", False, True) for prefix in ("", "++") for yes in ("true", "True", "1", "yes", "on")),
        ("~run.overwrite", True, False),
        *((f"run.overwrite={no}", True, False) for no in ("false", "False", "0", "no")),
        ("x=1", True, True),  # a preset says it
        ("x=1", False, False),
    ],
)
def test_overwriting_does_every_job_again(word, composed, again, tmp_path):
    begun = []
    for _ in range(2):
        run_sweep(sweep_of(tmp_path, "run.seed=0,1", word, overwrite=composed), finishing(begun))
    assert [name for name, _ in begun] == ["run.seed=0", "run.seed=1"] * (2 if again else 1)


@pytest.mark.parametrize(("words", "expected"), [((), False), (("+mine=anew",), True), (("run.overwrite=yes",), True)])
def test_a_preset_may_say_that_jobs_are_overwritten(words, expected, tmp_path, monkeypatch):
    """The composed value counts, wherever it was set."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "anew.yaml").write_text("# @package _global_\nrun:\n  overwrite: true\n")
    swept = []
    monkeypatch.setattr(launch, "run_sweep", lambda sweep, here: swept.append(sweep) or 0)
    flags = ("-m", "--config-dir", str(tmp_path))
    sections = ("run", "report")
    assert launch.launch("report", print, "report", sections, [*flags, f"run.dir={tmp_path}/s", "run.seed=0,1", *words]) == 0
    assert [sweep.overwrite for sweep in swept] == [expected]
    assert len(swept[0].jobs) == 2


class Killed(BaseException):
    """Nothing after it is run, as after SIGKILL."""


def killed_after(act):
    """What runs a job of this process: `act` changes its folder, then the sweep is killed."""

    def here(words):
        folder = Path(next(word for word in words if word.startswith("run.dir=")).split("=", 1)[1].strip("'"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").touch()
        act(folder)
        raise Killed

    return here


def test_a_sweep_killed_between_the_end_of_a_job_and_its_entry(tmp_path):
    sweep = sweep_of(tmp_path, "run.seed=0,1", "x=1")
    with pytest.raises(Killed):
        run_sweep(sweep, killed_after(lambda folder: (folder / "DONE").touch()))
    assert json.loads((tmp_path / "sweep.json").read_text())["jobs"][0]["state"] == "running"
    assert states(tmp_path) == {"run.seed=0": "finished", "run.seed=1": "waiting"}  # also for `mmunlearn sweep`
    begun = []
    assert run_sweep(sweep, finishing(begun)) == 0
    assert begun == [("run.seed=1", False)]
    assert states(tmp_path) == {"run.seed=0": "finished", "run.seed=1": "finished"}
    assert run_sweep(sweep_of(tmp_path, "run.seed=0,1", "x=2"), finishing(begun, {0: 2, 1: 2})) == 2  # it is of x=1


def test_what_a_killed_job_was_to_replace_is_not_taken_for_it(tmp_path):
    """The attempt with x=2 never came to delete what x=1 had made."""
    begun = []
    run_sweep(sweep_of(tmp_path, "run.seed=0,1", "x=1"), finishing(begun))
    with pytest.raises(Killed):
        run_sweep(sweep_of(tmp_path, "run.seed=0,1", "x=2", "run.overwrite=true"), killed_after(lambda folder: None))
    assert states(tmp_path)["run.seed=0"] == "running"
    assert run_sweep(sweep_of(tmp_path, "run.seed=0,1", "x=1"), finishing(begun)) == 0
    assert len(begun) == 2
    assert run_sweep(sweep_of(tmp_path, "run.seed=0,1", "x=2"), finishing(begun, {0: 2, 1: 2})) == 2
    assert len(begun) == 4


def test_what_a_failed_job_has_replaced_is_not_taken_for_what_was_there(tmp_path):
    """An attempt with x=2 deletes the run of x=1 and fails; somebody goes on with it by hand. That is no run of x=1."""
    begun = []
    run_sweep(sweep_of(tmp_path, "run.seed=0,1", "x=1"), finishing(begun))

    def clears(words):
        for seed in (0, 1):
            (tmp_path / f"run.seed={seed}" / "DONE").unlink(missing_ok=True)
        return Ended(code=2, error="it broke")

    run_sweep(sweep_of(tmp_path, "run.seed=0,1", "x=2", "run.overwrite=true"), clears)
    for seed in (0, 1):
        (tmp_path / f"run.seed={seed}" / "DONE").touch()
    run_sweep(sweep_of(tmp_path, "run.seed=0,1", "x=1"), finishing(begun))
    assert len(begun) == 4


def test_a_job_that_fails_after_its_end_is_finished_with_these_settings(tmp_path):
    """Its run is whole, and is skipped when the sweep is repeated."""
    begun = []

    def crashes(words):
        finishing(begun)(words)
        return Ended(code=1, error="an error behind DONE")

    sweep = sweep_of(tmp_path, "run.seed=0,1", "x=1")
    assert run_sweep(sweep, crashes) == 1
    assert run_sweep(sweep, finishing(begun)) == 0
    assert len(begun) == 2


HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
)


def test_a_second_sweep_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    begun, sweep = [], sweep_of(tmp_path, "run.seed=0,1")
    command = [sys.executable, "-S", "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=r"is in use by .*another run\.dir\. Nothing was changed"):
            run_sweep(sweep, finishing(begun))
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
        assert begun == []
        monkeypatch.setenv("RANK", "1")  # of several ranks the first one has it
        assert run_sweep(sweep, finishing(begun)) == 0
        monkeypatch.delenv("RANK")
        other.stdin.close()
        other.wait(10)
    assert run_sweep(sweep, finishing(begun)) == 0
    assert not (tmp_path / "lock").exists()


def test_when_told_to_stop_the_others_are_not_begun(tmp_path):
    begun = []
    assert run_sweep(sweep_of(tmp_path, "run.seed=0,1,2"), finishing(begun, {1: 143})) == 143
    assert states(tmp_path) == {"run.seed=0": "finished", "run.seed=1": "interrupted", "run.seed=2": "waiting"}


def test_the_index_says_what_runs_at_every_moment(tmp_path):
    seen = []

    def here(words):
        seen.append(states(tmp_path))
        return Ended(code=0)

    run_sweep(sweep_of(tmp_path, "run.seed=0,1"), here)
    assert [list(each.values()) for each in seen] == [["running", "waiting"], ["finished", "running"]]


def test_seconds_of_attempts_add_up(tmp_path):
    job = planned(parsed("run.seed=0"), tmp_path)[0]
    index = Index(SweepFolder(root=tmp_path))
    index.plan([job], "command")
    index.ended(job, Ended(code=2, error="no"), 3.0)
    again = Index(SweepFolder(root=tmp_path))
    again.plan([job], "command")
    again.ended(job, Ended(code=0), 4.0)
    assert read_index(SweepFolder(root=tmp_path))["jobs"][0]["seconds"] == 7.0


def test_only_one_of_several_ranks_writes_the_index(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    Index(SweepFolder(root=tmp_path)).plan(planned(parsed("run.seed=0"), tmp_path), "command")
    assert not (tmp_path / "sweep.json").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 99}'])
def test_a_damaged_index_is_named(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(RunError, match=r"sweep\.json"):
        Index(SweepFolder(root=tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parallel": 0}, "parallel"),
        ({"slurm": {"timeout_min": 1}}, "launcher=slurm"),
        ({"devices": ["0"]}, r"sweep\.devices"),
        ({"devices": ["0"], "parallel": 2, "launcher": Launcher.slurm}, r"sweep\.devices"),
    ],
)
def test_settings_that_would_be_ignored_are_errors(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run_sweep(sweep_of(tmp_path, "run.seed=0,1", **settings), finishing([]))
    assert list(tmp_path.iterdir()) == []


# --- evaluations -----------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path):
    """A finished job whose model was trained in 4 bits; the sweep and the settings of the verb."""
    folder = SweepFolder(root=tmp_path)
    run = Run(tmp_path / "job")
    data = {"_target_": "mmunlearn.benchmarks.mllmu.MLLMUBench", "forget_ratio": "5"}
    whole = checked(OmegaConf.create({"run": {"dir": "x"}, "model": {"path": "base", "quantise": "nf4"}, "data": data}))
    run.root.mkdir()
    run.config.write_text(OmegaConf.to_yaml(whole))
    run.finish()
    return folder, run, checked(OmegaConf.create({"run": {"dir": "report"}, "evaluation": {}}))


def test_a_model_trained_in_four_bits_is_asked_as_it_is(trained):
    folder, run, config = trained
    found = evaluation_config(config, "job", run, folder)
    assert found.model.quantise == "none"
    assert found.model.path == str(run.model)
    assert OmegaConf.load(run.config).model.quantise == "nf4"


@pytest.mark.parametrize("finished", [False, True])
def test_what_was_asked_of_a_model_that_was_replaced_is_overwritten(finished, trained):
    folder, run, config = trained
    asked = Run(folder.evaluations / "job")
    assert not evaluation_config(config, "job", run, folder).run.overwrite
    write_json(asked.model_card, {"fingerprint": "0"})
    if finished:
        asked.finish()
    assert not evaluation_config(config, "job", run, folder).run.overwrite
    later = asked.root.stat().st_mtime + 10
    os.utime(run.done, (later, later))
    assert evaluation_config(config, "job", run, folder).run.overwrite


# --- processes -------------------------------------------------------------------------------------------------------


class Noting:
    """Takes down what it is told."""

    def __init__(self):
        self.begun, self.over, self.most, self.now = [], {}, 0, 0

    def started(self, job):
        self.begun.append(job.name)
        self.now += 1
        self.most = max(self.most, self.now)

    def ended(self, job, how):
        self.over[job.name] = how
        self.now -= 1


def run_scripts(folder, scripts, *, parallel, devices=()):
    """Run a Python script for each job, side by side."""
    place, noting = SweepFolder(root=folder), Noting()
    jobs = [Job(name=name, overrides=(), folder=folder / name) for name in scripts]
    start = local_start(place, lambda job: [sys.executable, "-S", "-c", scripts[job.name]], devices, parallel)
    side_by_side(jobs, start, noting, parallel=parallel, said=lambda job: last_words(place.log(job.name)), pause=0.01)
    return noting


FAILS = "import sys; sys.stderr.write('begins\\nmmunlearn: no such file.\\nLook again.\\n'); sys.exit(2)"


def test_processes_end_each_in_its_own_way(tmp_path):
    scripts = {
        "well": "pass",
        "fails": FAILS,
        "dies": "import os; print('so far', flush=True); os.kill(os.getpid(), 9)",
        "last": "pass",
    }
    noting = run_scripts(tmp_path, scripts, parallel=2)
    assert {name: (how.code, how.error) for name, how in noting.over.items()} == {
        "well": (0, ""),
        "fails": (2, "no such file.\nLook again."),
        "dies": (137, "so far"),
        "last": (0, ""),
    }
    assert noting.begun == list(scripts)
    assert noting.most == 2


def test_devices_and_cores_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    script = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])"
    run_scripts(tmp_path, {"a": script, "b": script}, parallel=2, devices=["3", "5"])
    each = max(1, (os.cpu_count() or 1) // 2)
    assert sorted((tmp_path / "logs" / f"{name}.log").read_text().strip() for name in "ab") == [f"3 {each}", f"5 {each}"]


def test_told_to_stop_the_jobs_are_told_and_waited_for(tmp_path):
    script = (
        "import signal, sys, time, pathlib\n"
        f"def end(*_): time.sleep(0.2); pathlib.Path({str(tmp_path)!r}, 'saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"pathlib.Path({str(tmp_path)!r}, 'begun').touch()\n"
        "time.sleep(30)"
    )

    def tell():
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=tell, daemon=True).start()
    noting = run_scripts(tmp_path, {"a": script, "b": "pass"}, parallel=1)
    assert (tmp_path / "saved").exists()
    assert {name: str(how.state) for name, how in noting.over.items()} == {"a": "interrupted"}


def test_last_words(tmp_path):
    log = tmp_path / "log"
    assert "said nothing" in last_words(log)
    log.write_text("mmunlearn: the first attempt.\nbegins\nTraceback\nValueError: five\n\n")
    assert last_words(log) == "the first attempt.\nbegins\nTraceback\nValueError: five"
    log.write_text("begins\nTraceback\nValueError: five\n\n")
    assert last_words(log) == "ValueError: five"


def test_last_words_are_those_of_the_last_attempt(tmp_path):
    """One that is killed says nothing; what an earlier one said is not the reason."""
    name, log = "a", tmp_path / "logs" / "a.log"
    run_scripts(tmp_path, {name: FAILS}, parallel=1)
    assert (
        run_scripts(tmp_path, {name: "import os; os.kill(os.getpid(), 9)"}, parallel=1).over[name].error.startswith("it said")
    )
    dies = "import os; print('so far', flush=True); os.kill(os.getpid(), 9)"
    assert run_scripts(tmp_path, {name: dies}, parallel=1).over[name].error == "so far"
    assert "no such file" in log.read_text()


def test_a_job_that_cannot_be_begun_stops_no_other(tmp_path):
    """Those that run are waited for; no more are begun."""
    place, noting = SweepFolder(root=tmp_path), Noting()
    jobs = [Job(name=name, overrides=(), folder=tmp_path / name) for name in "abc"]
    local = local_start(place, lambda job: [sys.executable, "-S", "-c", "import time; time.sleep(0.3)"], [], 2)

    def start(job, where):
        if job.name == "b":
            raise ConfigError("not taken")
        return local(job, where)

    side_by_side(jobs, start, noting, parallel=2, said=lambda job: "", pause=0.01)
    assert {name: (how.code, how.error) for name, how in noting.over.items()} == {"a": (0, ""), "b": (2, "not taken")}


def test_a_job_s_own_command_repeats_its_words(tmp_path, monkeypatch):
    """Quotes, blanks and commas of a folder's name survive the way through Hydra's grammar."""
    sweep = sweep_of(tmp_path / "it's a, b=c", "x=1,2", parallel=2)
    words = sweep.words(sweep.jobs[0])
    override = OverridesParser.create().parse_overrides([words[-1]])[0]
    assert override.value() == str(sweep.jobs[0].folder)
    assert words[:-1] == ["x=1"]


def test_a_queue_of_a_cluster(tmp_path):
    """Through submitit's own executor for trials, which runs what it pickles in processes."""
    pytest.importorskip("submitit")
    place, noting = SweepFolder(root=tmp_path), Noting()
    scripts = {"well": "print('hello')", "fails": FAILS}
    jobs = [Job(name=name, overrides=(), folder=tmp_path / name) for name in scripts]
    start = cluster_start(place, lambda job: [sys.executable, "-S", "-c", scripts[job.name]], {"cluster": "debug"})
    side_by_side(jobs, start, noting, parallel=2, said=lambda job: last_words(place.log(job.name)), pause=0.01)
    assert {name: how.code for name, how in noting.over.items()} == {"well": 0, "fails": 2}
    assert noting.over["fails"].error == "no such file.\nLook again."
    assert place.log("well").read_text() == "hello\n"


def test_a_queue_refuses_parameters_that_it_does_not_know(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(ConfigError, match=r"sweep\.slurm"):
        cluster_start(SweepFolder(root=tmp_path), list, {"cluster": "local", "partitoin": "gpu"})
