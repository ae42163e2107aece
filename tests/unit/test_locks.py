"""One command at a time in a run's folder: in other processes, after kills, in forked workers."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest
from omegaconf import OmegaConf

from mmunlearn import locks
from mmunlearn.errors import RunError
from mmunlearn.locks import is_locked, locked
from mmunlearn.run import Run, write_text
from mmunlearn.training.folder import chosen_folder, training_key

HOLD = """
import os, sys, time
from pathlib import Path
from mmunlearn.locks import locked
from mmunlearn.run import Run
with locked(Run(Path(sys.argv[1]))):
    if sys.argv[2:] == ["fork"]:
        child = os.fork()
        if child == 0:
            time.sleep(60)
        print(child, flush=True)
    else:
        print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(folder, *words):
    """Another process holds a folder meanwhile; yields it and what it said."""
    command = [sys.executable, "-c", HOLD, str(folder), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(10)


def test_a_second_command_is_told_who_is_there(tmp_path):
    run = Run(tmp_path / "run")
    with held(run.root) as (process, _):
        assert is_locked(run)
        with pytest.raises(RunError) as told, locked(run):
            pass
        who = json.loads(run.lock.read_text())
        assert (who["pid"], who["host"]) == (process.pid, socket.gethostname())
        assert f"in use by process {process.pid} on {socket.gethostname()} since {who['started']}" in str(told.value)
        assert "another run.dir" in str(told.value)
        with locked(run, main=False), locked(Run(tmp_path / "other")):
            assert json.loads(run.lock.read_text()) == who
    assert not is_locked(run)
    with locked(run):
        assert json.loads(run.lock.read_text())["pid"] == os.getpid()


def test_nothing_stays_behind_but_what_was_written(tmp_path):
    run = Run(tmp_path / "made" / "too" / "run")
    with locked(run):
        assert run.lock.is_file()
    assert list(tmp_path.iterdir()) == []
    with suppress(ZeroDivisionError), locked(run):
        write_text(run.config, "a: 1")
        raise ZeroDivisionError
    assert [path.name for path in run.root.iterdir()] == ["config.yaml"]
    before = Run(tmp_path / "before")
    before.root.mkdir()
    with locked(before):
        pass
    assert before.root.is_dir(), "a folder that was there stays"


def test_nested_calls_are_one_lock(tmp_path):
    run = Run(tmp_path / "run")
    with locked(run):
        with locked(Run(tmp_path / "x" / ".." / "run")):
            pass
        assert run.lock.is_file()
        assert not is_locked(run), "not by another"
        assert subprocess.run([sys.executable, "-c", HOLD, str(run.root)], capture_output=True, check=False).returncode == 1
    assert not run.lock.exists()


def test_a_killed_command_holds_nothing(tmp_path):
    run = Run(tmp_path / "run")
    with held(run.root) as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert run.lock.is_file(), "nobody was there to take it away"
        assert not is_locked(run)
        with locked(run):
            assert json.loads(run.lock.read_text())["pid"] == os.getpid()
    assert not run.lock.exists()


def test_a_worker_that_outlives_a_killed_command_holds_nothing(tmp_path):
    run = Run(tmp_path / "run")
    with held(run.root, "fork") as (process, child):
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        try:
            assert not is_locked(run)
            os.kill(int(child), 0)  # it is still there
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_whoever_waited_for_a_file_that_is_gone_takes_the_new_one(tmp_path, monkeypatch):
    """Between opening the file and locking it, its holder may have ended and taken it away."""
    run = Run(tmp_path)
    real, calls = locks.flock, []

    def late(file, how):
        if not calls:
            run.lock.unlink()
        calls.append(how)
        real(file, how)

    monkeypatch.setattr(locks, "flock", late)
    with locked(run):
        assert len(calls) == 2
        monkeypatch.undo()
        assert subprocess.run([sys.executable, "-c", HOLD, str(run.root)], capture_output=True, check=False).returncode == 1


def test_overwriting_leaves_the_lock_where_it_is(tmp_path):
    run = Run(tmp_path)
    with locked(run):
        write_text(run.config, "a: 1")
        run.check_clearable()
        inode = run.lock.stat().st_ino
        run.clear()
        assert run.lock.stat().st_ino == inode
        assert not run.config.exists()


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "flock", refuse)
    with locked(Run(tmp_path)):
        assert not is_locked(Run(tmp_path))
    assert "file system without locks" in capsys.readouterr().err


def test_the_latest_run_is_not_one_that_is_running(tmp_path):
    config = OmegaConf.create(
        {
            "run": {"dir": str(tmp_path / "new"), "resume": "latest", "seed": 0, "goal": None},
            "model": {}, "data": {}, "trainer": {"args": {}},
        }
    )  # fmt: skip
    key = training_key(config)
    for at, name in enumerate(("older", "newer")):
        write_text(Run(tmp_path / name).config, OmegaConf.to_yaml(config))
        os.utime(Run(tmp_path / name).config, (at, at))
    assert chosen_folder(config, key) == tmp_path / "newer"
    with held(tmp_path / "newer"):
        assert chosen_folder(config, key) == tmp_path / "older"
        with held(tmp_path / "older"):
            assert chosen_folder(config, key) == tmp_path / "new"
    assert chosen_folder(config, key) == tmp_path / "newer"
