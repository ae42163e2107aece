"""Sweeps through a real Slurm, as a user types them. Its default partition is used; sbatch must take jobs of this user."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_cases import FULL, command_environment, run_command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("slurm")]
SLURM = ("sweep.launcher=slurm", "sweep.parallel=4", "+sweep.slurm={timeout_min:10,cpus_per_task:1}")
ENDLESS = ("trainer.args.max_steps=100000", "trainer.args.logging_steps=1", "trainer.args.save_steps=100000")
SHORT = ("trainer.args.max_steps=2", "trainer.args.logging_steps=1")
FEW = 300.0
"""Seconds until something must have happened."""


@pytest.fixture(scope="module")
def slurm():
    """A Slurm that is here and is running. Asked by a test only: one that does not run answers after many seconds."""
    if shutil.which("sbatch") is None or subprocess.run(["squeue"], capture_output=True, check=False).returncode:
        pytest.skip("there is no Slurm here, or it does not answer")


@pytest.fixture(scope="module")
def submitit():
    """Slurm's jobs are made with it."""
    return pytest.importorskip("submitit")


def words(world, folder, rates, steps):
    grid = f"trainer.args.learning_rate={rates}"
    return ("unlearn", "-m", *world.settings, "trainer=grad_diff", grid, f"run.dir={folder}", *steps, *FULL, *SLURM)


def jobs_of(folder):
    return json.loads((folder / "sweep.json").read_text())["jobs"]


def in_queue(name):
    """Numbers and states of the jobs that are waiting or running."""
    command = ["squeue", "--noheader", f"--user={os.getuid()}", "--format=%i %T %j"]
    lines = [line.split(" ", 2) for line in subprocess.check_output(command, text=True).splitlines()]
    return {number: state for number, state, called in lines if called.startswith(f"{name}.")}


def until(happened):
    end = time.monotonic() + FEW
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.5)


def test_one_fails_and_the_others_are_skipped_when_repeated(submitit, world, tmp_path):
    folder = tmp_path / "sweep"
    outcome = run_command(*words(world, folder, "1e-4,1e30", SHORT), cwd=tmp_path)
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert [job["state"] for job in jobs_of(folder)] == ["finished", "failed"]
    assert "became nan in step 1" in jobs_of(folder)[1]["error"]
    done = (folder / jobs_of(folder)[0]["name"] / "DONE").stat().st_mtime_ns
    again = run_command(*words(world, folder, "1e-4,1e30", SHORT), cwd=tmp_path)
    assert again.code == 2
    assert "1 of them finished" in again.err
    assert (folder / jobs_of(folder)[0]["name"] / "DONE").stat().st_mtime_ns == done


def test_a_partition_that_is_not_there(submitit, world, tmp_path):
    others = [word for word in words(world, tmp_path / "sweep", "1e-4,1e-3", SHORT) if "sweep.slurm" not in word]
    outcome = run_command(*others, "+sweep.slurm={slurm_partition:there-is-no-such}", cwd=tmp_path)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert " ".join(outcome.err.split()).count("does not take the job") == 1


def begun(world, folder):
    """The waiting command, and what it says."""
    log = folder.with_suffix(".log").open("ab")
    start = [str(Path(sys.executable).with_name("mmunlearn")), *map(str, words(world, folder, "1e-4,1e-3", ENDLESS))]
    return subprocess.Popen(start, stderr=log, stdout=log, cwd=folder.parent, env=command_environment())


def trains(folder):
    files = [folder / job["name"] / "metrics.jsonl" for job in jobs_of(folder)] if (folder / "sweep.json").exists() else []
    return bool(files) and any(file.exists() and file.read_text().count("\n") > 3 for file in files)


def test_nothing_runs_twice_and_nothing_is_lost(submitit, world, tmp_path):
    """The waiting command is killed, then repeated; a job is put back into the queue; then the command is told to stop."""
    folder = tmp_path / "killed"
    waiting = begun(world, folder)
    until(lambda: trains(folder))
    before = in_queue("killed")
    assert len(before) == 2
    waiting.kill()
    waiting.wait()
    again = begun(world, folder)
    try:
        until(lambda: folder.with_suffix(".log").read_text().count("is in the queue already") == 2)
        assert set(in_queue("killed")) == set(before)
        one = next(number for number, state in in_queue("killed").items() if state == "RUNNING")
        subprocess.check_call(["scontrol", "requeue", one])
        until(lambda: in_queue("killed").get(one) == "PENDING")
        time.sleep(12)
        assert [job["state"] for job in jobs_of(folder)] == ["running", "running"]
    finally:
        again.send_signal(signal.SIGTERM)
        code = again.wait(FEW)
    assert code == 143
    assert not in_queue("killed")
    assert [job["state"] for job in jobs_of(folder)] == ["interrupted", "interrupted"]
    assert list(folder.glob("*/checkpoints/step-*"))
