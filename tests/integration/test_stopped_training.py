"""Runs that are killed or told to stop, and go on: they end with the same bits as one that nobody disturbed.

KILLS says how often a run is killed in `test_a_run_killed_over_and_over…`; `make test-slow` does it twenty times.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_cases import FULL, REPOSITORY

from mmunlearn.run import Run

pytestmark = pytest.mark.thorough

STEPS = 40
WAIT_SECONDS = 120


def words(world, folder):
    return [
        "unlearn", *world.settings, *FULL, "trainer=grad_diff", "trainer.args.deepspeed=null", f"run.dir={folder}",
        f"trainer.args.max_steps={STEPS}", "trainer.args.save_steps=1", "trainer.args.save_total_limit=2",
        "trainer.args.logging_steps=1", "trainer.args.per_device_train_batch_size=2", "trainer.args.learning_rate=1e-3",
    ]  # fmt: skip


def start(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [Path(sys.executable).with_name("mmunlearn"), *arguments]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def steps_recorded(folder):
    file = Run(folder).metrics
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def wait_for_steps(process, folder, number):
    """Until so many steps are recorded, or the process has ended."""
    end = time.monotonic() + WAIT_SECONDS
    while process.poll() is None and steps_recorded(folder) < number:
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.002)


def weights(folder):
    return (Run(folder).model / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(words(world, folder))
    _, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, err
    return folder


def killed_over_and_over(world, folder, kills, seed):
    """Kill a run at random moments and resume it, then let it end; returns the steps after which it was killed."""
    dice = random.Random(seed)
    moments = []
    for number in range(kills + 1):
        process = start([*words(world, folder), *(["run.resume=true"] if number else [])])
        if number < kills:
            wait_for_steps(process, folder, steps_recorded(folder) + 1)
            time.sleep(dice.uniform(0, 0.05))  # somewhere inside a step, or while its checkpoint is written
            process.send_signal(signal.SIGKILL)
            moments.append(steps_recorded(folder))
        _, err = process.communicate(timeout=WAIT_SECONDS)
        if Run(folder).is_done:
            break
        assert process.returncode == -signal.SIGKILL, err
    return moments


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_over_and_over_ends_with_the_same_bits(world, undisturbed, tmp_path):
    """Killed once, at a chosen step, it is in `test_commands.py`."""
    kills = int(os.environ.get("KILLS", "20"))
    moments = killed_over_and_over(world, tmp_path / "run", kills, seed=kills)
    assert Run(tmp_path / "run").is_done
    assert len(moments) == kills, moments
    assert weights(tmp_path / "run") == weights(undisturbed)


def test_told_to_stop_a_run_saves_and_goes_on_to_the_same_bits(world, undisturbed, tmp_path):
    folder = tmp_path / "stopped-run"
    arguments = [*words(world, folder), "trainer.args.save_steps=0"]  # no checkpoint but the one that the signal asks for
    process = start(arguments)
    wait_for_steps(process, folder, 3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 143
    assert "told to stop" in err
    assert "run.resume=true" in err
    assert "Traceback" not in err
    assert not Run(folder).is_done
    again = start([*arguments[:-1], "trainer.args.save_steps=0", "run.resume=true"])
    _, err = again.communicate(timeout=WAIT_SECONDS)
    assert again.returncode == 0, err
    assert "Going on from step" in err
    assert weights(folder) == weights(undisturbed)


@pytest.mark.slow
def test_the_newest_interrupted_run_of_the_same_settings_is_found(world, tmp_path):
    interrupted, other = tmp_path / "one", tmp_path / "two"
    for folder, more in ((interrupted, []), (other, ["run.seed=1"])):
        process = start([*words(world, folder), *more])
        wait_for_steps(process, folder, 2)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAIT_SECONDS)
    again = start([*words(world, tmp_path / "three"), "run.resume=latest"])
    _, err = again.communicate(timeout=WAIT_SECONDS)
    assert again.returncode == 0, err
    assert "Going on from step" in err
    assert Run(interrupted).is_done
    assert not Run(other).is_done
    assert not (tmp_path / "three").exists()
