"""Runs that are writing, folders that may not be read or written, and the exit codes."""

import os
import shutil
from fcntl import LOCK_EX, flock
from pathlib import Path
from tempfile import mkdtemp

import pytest
from omegaconf import OmegaConf
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
    training,
    whys,
)
from rich.console import Console

from mmunlearn.config import PurgeConfig
from mmunlearn.purge.job import _carry_out, run_purge
from mmunlearn.purge.people import People
from mmunlearn.purge.plan import make_plan
from mmunlearn.purge.scan import scan
from mmunlearn.run import write_text

# --- what may not or must not be changed now --------------------------------------------------------------------------


def test_a_folder_in_which_a_run_is_writing_is_not_touched(tmp_path):
    ids = {f"clear/forget05+tofu/image/caption/{n}": (ADA if n < 2 else BO) for n in range(4)}
    settings = {"target": CLEAR, "root": "gone"}
    scored = evaluation(tmp_path / "scored", ids, settings=settings)
    run = evaluation(tmp_path / "run", ids, scored=False, settings=settings)
    with run.lock.open("w") as file:
        flock(file, LOCK_EX)
        before = contents(run.root)
        rest = whys(done(tmp_path))
        assert contents(run.root) == before
        assert "writing" in rest[run.root]
        assert "tells whom" in rest[scored.scores("forget_text_generation")]
        assert len(line_ids(scored.predictions("forget_text_generation"))) == 2
    assert done(tmp_path).rest == []
    assert len(line_ids(run.predictions("forget_text_generation"))) == 2


def test_a_run_that_begins_meanwhile_stops_the_purge(tmp_path, capsys):
    run = evaluation(tmp_path / "run", both())
    plan = make_plan(scan([str(tmp_path)]), People([ADA]))
    with run.lock.open("w") as file:
        flock(file, LOCK_EX)
        _carry_out(plan, PurgeConfig(subjects=[ADA], folders=[str(tmp_path)], yes=True), People([ADA]), Console())
    assert "Stopped after 0" in capsys.readouterr().out
    assert [rest.path for rest in plan.rest] == [run.root]
    assert run.results.exists()


@pytest.fixture
def as_nobody():
    """A folder of a user who is not root: root may write everywhere."""
    folder = Path(mkdtemp(prefix="mmunlearn-purge-"))
    if os.geteuid():
        yield folder
    else:
        folder.chmod(0o755)
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(0)
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def test_read_only_folders_are_listed_and_all_else_is_cleaned(as_nobody):
    run = training(as_nobody / "taught", examples_about(ADA))
    (run.checkpoints / "step-1").mkdir(parents=True)
    state = run.checkpoints / "step-1" / "optimizer.safetensors"
    state.write_bytes(b"moments")
    state.parent.chmod(0o555)
    asked = evaluation(as_nobody / "asked", both())
    rest = whys(done(as_nobody))
    assert "read-only" in rest[state]
    assert state.exists()
    assert line_ids(asked.predictions("forget_text_generation")) == ids_of(BO)
    assert line_ids(asked.scores("forget_text_generation")) == [*ids_of(ADA), *ids_of(BO)]
    state.parent.chmod(0o755)
    assert set(whys(done(as_nobody))) == {run.model}
    assert line_ids(asked.scores("forget_text_generation")) == ids_of(BO)


def test_files_and_folders_that_may_not_be_read_are_listed(as_nobody):
    asked = evaluation(as_nobody / "asked", both())
    path = asked.judged("forget_text_generation")
    (as_nobody / "closed").mkdir()
    (as_nobody / "secret.txt").write_text("x")
    write_text(as_nobody / "listed" / "a.txt", ADA)
    (as_nobody / "listed").chmod(0o400)
    for each in (path, as_nobody / "closed", as_nobody / "secret.txt", asked.config):
        each.chmod(0)
    rest = whys(done(as_nobody))
    assert rest.pop(as_nobody / "listed" / "a.txt").startswith("cannot be read")
    assert set(rest) == {path, as_nobody / "closed", as_nobody / "secret.txt", asked.config}
    assert line_ids(asked.predictions("forget_text_generation")) == ids_of(BO)


# --- exit codes -------------------------------------------------------------------------------------------------------


def exit_code(folder, *, yes):
    try:
        run_purge(OmegaConf.create({"purge": {"subjects": [ADA], "folders": [str(folder)], "yes": yes}}))
    except SystemExit as stop:
        return stop.code
    return 0


def test_exit_codes(tmp_path):
    """0 only if nothing is left and everything was read."""
    evaluation(tmp_path / "runs", both())
    assert [exit_code(tmp_path / "runs", yes=yes) for yes in (False, True, False, True)] == [3, 0, 0, 0]
    for name, content in (("portrait.png", b"\x89PNG"), ("named.txt", ADA.encode()), ("adaexample.txt", b"x")):
        (tmp_path / "other").mkdir()
        assert exit_code(tmp_path / "other", yes=True) == 0
        (tmp_path / "other" / name).write_bytes(content)
        assert exit_code(tmp_path / "other", yes=True) == 3, name
        shutil.rmtree(tmp_path / "other")
