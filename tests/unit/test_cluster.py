"""Jobs of a sweep on a cluster, without one: small programs stand in for Slurm's, and a real process is sent real signals."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmunlearn.config import SweepConfig
from mmunlearn.config_enums import Launcher
from mmunlearn.errors import RunError
from mmunlearn.sweep.cluster import Waiting
from mmunlearn.sweep.jobs import Job, SweepFolder, read_index
from mmunlearn.sweep.run import Sweep, run_sweep
from mmunlearn.sweep.runners import last_words
from mmunlearn.sweep.slurm import Earlier, Listed, Queue, name_of, squeue

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Slurm is for Linux")


def program(folder, name, script):
    """A program that a shell finds by its name."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder of programs that are found first."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def job_in(folder, name="a", *overrides):
    return Job(name=name, overrides=overrides, folder=folder / name)


# --- Slurm's list ----------------------------------------------------------------------------------------------------


def test_what_squeue_says(programs):
    program(programs, "squeue", f"test $2 = --user={os.getuid()} && echo '7|PENDING|a|b' && echo '8_1|CANCELLED|c'")
    assert squeue() == [Listed(number="7", state="PENDING", name="a|b"), Listed(number="8_1", state="CANCELLED", name="c")]
    program(programs, "squeue", "echo 'slurm_load_jobs error' >&2; exit 1")
    assert squeue() is None


def queue_of(*answers):
    """A queue that gives these answers one after the other: the state of job 7, "" if it is not listed, None for no answer."""
    left = list(answers)

    def ask():
        state = left.pop(0) if len(left) > 1 else left[0]
        return None if state is None else [Listed(number="7", state=state, name="")] if state else []

    return Queue(ask=ask, every=0)


@pytest.mark.parametrize(
    ("state", "over"),
    [
        ("PENDING", False),
        ("RUNNING", False),
        ("COMPLETING", False),
        ("REQUEUED", False),
        ("SUSPENDED", False),
        ("COMPLETED", True),
        ("CANCELLED", True),
        ("OUT_OF_MEMORY", True),
        ("", True),
    ],
)
def test_when_a_job_is_over(state, over):
    assert queue_of(state).is_over("7", since=0) is over


def test_no_answer_and_an_old_answer_say_nothing():
    assert not queue_of(None).is_over("7", since=0)
    queue = queue_of("")
    assert not queue.is_over("7", since=time.monotonic() + 60)
    queue = queue_of("COMPLETED", None)
    assert queue.is_over("7", since=0)
    assert queue.is_over("7", since=0)  # what was said stays true


def test_slurm_is_asked_now_and_then():
    asked = []
    queue = Queue(ask=lambda: asked.append(1) or [], every=60)
    for _ in range(5):
        queue.is_over("7", since=0)
    assert len(asked) == 1


# --- a job that is waited for ----------------------------------------------------------------------------------------


class Submitted:
    """What submitit keeps of job 7."""

    job_id = "7"

    def __init__(self, folder, code=None):
        self.paths = SimpleNamespace(result_pickle=folder / "result", stderr=folder / "err")
        self.code = code

    def exception(self):
        return None

    def result(self):
        return self.code


def waiting(folder, *answers, code=None):
    job = Submitted(folder, code)
    if code is not None:
        job.paths.result_pickle.touch()
    return Waiting(job, folder / "log", queue_of(*answers), since=0, latency=0)


def test_a_job_that_is_put_back_into_the_queue_is_not_over(tmp_path):
    """It left a result when it was told to stop, which is not that of its last attempt."""
    handle = waiting(tmp_path, "RUNNING", "PENDING", "COMPLETED", code=143)
    assert [handle.poll(), handle.poll()] == [None, None]
    handle.job.code = 0
    assert handle.poll() == 0


@pytest.mark.parametrize(("state", "code"), [("CANCELLED", 143), ("TIMEOUT", 143), ("NODE_FAIL", 143), ("FAILED", 1), ("", 1)])
def test_a_job_without_a_result(state, code, tmp_path):
    assert waiting(tmp_path, state).poll() == code
    assert last_words(tmp_path / "log").startswith(f"Slurm ended job 7 (state: {state or 'unknown'}).")


def test_a_result_may_take_its_time(tmp_path):
    handle = waiting(tmp_path, "COMPLETED", code=None)
    handle.latency = 60
    assert handle.poll() is None
    handle.job.paths.result_pickle.touch()
    handle.job.code = 3
    assert handle.poll() == 3


# --- what an earlier sweep left --------------------------------------------------------------------------------------


def test_a_job_is_known_by_its_folder_and_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = job_in(tmp_path / "s", "a", "x=1", "y=2", f"run.dir={tmp_path}/s")
    name = name_of(job, "some.name")
    queue = Queue(
        ask=lambda: [Listed(number="5", state="COMPLETED", name=name), Listed(number="9", state="RUNNING", name=name)]
    )
    earlier = Earlier.of(queue)
    assert earlier.number(job) == "9"
    assert earlier.number(job_in(Path("s"), "a", "y=2", "run.dir=s", "x=1")) == "9"  # typed otherwise
    assert earlier.number(job_in(tmp_path / "s", "b", "x=1", "y=2")) is None
    with pytest.raises(RunError, match=r"job 9 in Slurm's queue.*scancel 9"):
        earlier.number(job_in(tmp_path / "s", "a", "x=1", "y=3"))
    with pytest.raises(RunError, match="squeue does not answer"):
        Earlier.of(Queue(ask=lambda: None))


# --- a sweep ---------------------------------------------------------------------------------------------------------


def slurm_sweep(folder, *names, **parameters):
    jobs = tuple(job_in(folder, name, f"x={name}") for name in names)
    settings = SweepConfig(launcher=Launcher.slurm, slurm=parameters)
    return Sweep(verb="v", sections=("run",), flags=(), folder=folder, jobs=jobs, settings=settings)


def test_a_job_that_slurm_does_not_take(programs, tmp_path, capfd):
    """One clear message, and the others are not tried."""
    pytest.importorskip("submitit")
    for name, script in {"srun": "", "squeue": "", "sbatch": "echo 'sbatch: error: invalid partition: no' >&2; exit 1"}.items():
        program(programs, name, script)
    assert run_sweep(slurm_sweep(tmp_path / "s", "a", "b", slurm_partition="no"), lambda words: None) == 2
    jobs = read_index(SweepFolder(root=tmp_path / "s"))["jobs"]
    assert [job["state"] for job in jobs] == ["failed", "waiting"]
    assert jobs[0]["error"] == "sweep.slurm: Slurm does not take the job: invalid partition: no."
    assert capfd.readouterr().err.count("invalid partition") == 1


def test_without_an_answer_nothing_is_begun(programs, tmp_path):
    pytest.importorskip("submitit")
    program(programs, "srun", "")
    program(programs, "squeue", "exit 1")
    with pytest.raises(RunError, match="squeue does not answer"):
        run_sweep(slurm_sweep(tmp_path / "s", "a"), lambda words: None)
    assert not (tmp_path / "s").exists()


# --- on a node -------------------------------------------------------------------------------------------------------

COMMAND = (
    "import pathlib, signal, sys, time\n"
    "heard = []\n"
    "signal.signal(signal.SIGTERM, lambda *_: heard.append(1))\n"
    "print('listens', flush=True)\n"
    "for _ in range(1000):\n"
    "    time.sleep(0.01)\n"
    "    if heard: break\n"
    "time.sleep(0.3)\n"
    "print(f'heard {len(heard)}', flush=True)\n"
    "sys.exit(143 if heard else 9)"
)
NODE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored in the background of a shell
    "import sys; from mmunlearn.sweep.node import run_command; "
    "print(run_command(lambda: [sys.executable, '-S', '-c', sys.argv[1]], sys.argv[2]))"
)


def told(log, *signals, to=os.killpg):
    """Runs a command as a node does, and sends signals to every process of the job, as Slurm does; what the node says.

    With `to=os.kill` the signals go to the node's process alone.
    """
    with subprocess.Popen(
        [sys.executable, "-c", NODE, COMMAND, str(log)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as node:
        until = time.monotonic() + 60
        while not (log.is_file() and "listens" in log.read_text()):
            assert time.monotonic() < until
            time.sleep(0.01)
        for number in signals:
            to(node.pid, number)
            time.sleep(0.1)
        return node.communicate()[0].strip()


TWICE = {"heard 1", "heard 2"}
"""SIGTERM reaches the command by itself, and is passed on; within seconds that counts as one (see `training/stopping.py`)."""


@pytest.mark.parametrize(
    ("signals", "heard"),
    [
        ([signal.SIGUSR2], {"heard 1"}),  # a time limit is near
        ([signal.SIGTERM], TWICE),  # scancel
        ([signal.SIGTERM, signal.SIGUSR2], TWICE),
        ([signal.SIGCONT, signal.SIGUSR2, signal.SIGUSR2], {"heard 1"}),
    ],
    ids=["limit", "cancelled", "cancelled, limit", "limit twice"],
)
def test_a_command_is_told_to_save_its_state(signals, heard, tmp_path):
    assert told(tmp_path / "log", *signals) == "143"
    first, last, end = (tmp_path / "log").read_text().split("\n")
    assert (first, end) == ("listens", "")
    assert last in heard


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_what_reaches_the_node_alone_is_passed_on(number, tmp_path):
    assert told(tmp_path / "log", number, to=os.kill) == "143"
    assert (tmp_path / "log").read_text().split("\n") == ["listens", "heard 1", ""]


def test_an_interrupted_node_leaves_no_command_behind(tmp_path):
    """As submitit's local executor ends its jobs."""
    assert told(tmp_path / "log", signal.SIGINT, to=os.kill) == ""
    assert (tmp_path / "log").read_text().split("\n") == ["listens", "heard 1", ""]


RULE = "-" * 11
TRACE = f"Job (task=0) failed during processing with trace:\n{RULE}\nTraceback:\n  x\nOSError: no space\n{RULE}\nSee the logs"


@pytest.mark.parametrize(("said", "reason"), [(TRACE, "OSError: no space"), ("failed otherwise", "failed otherwise")])
def test_why_a_node_could_not_run_a_job(said, reason, tmp_path):
    handle = waiting(tmp_path, "COMPLETED", code=0)
    handle.job.exception = lambda: RuntimeError(said)
    assert handle.poll() == 1
    assert f"The node could not run the job ({reason})." in last_words(tmp_path / "log")


def test_a_result_of_an_earlier_attempt_hides_nothing(tmp_path):
    """Told to stop, put back into the queue, and then out of memory."""
    assert waiting(tmp_path, "OUT_OF_MEMORY", code=143).poll() == 1
    assert "OUT_OF_MEMORY" in last_words(tmp_path / "log")


def test_what_is_run_is_asked_for_when_the_job_begins(tmp_path):
    """A job that was put back into the queue goes on from its checkpoint."""
    jobs = SweepFolder(root=tmp_path)
    sweep = Sweep(verb="v", sections=("run", "trainer"), flags=(), folder=jobs.root, jobs=(), settings=SweepConfig())
    words = partial(sweep.words, job_in(tmp_path))
    assert "run.resume=true" not in words()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").touch()
    assert "run.resume=true" in words()
