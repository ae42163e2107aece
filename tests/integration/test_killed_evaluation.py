"""An evaluation that is killed again and again ends with the answers of one that nobody disturbed.

KILLS=3 in the environment kills less often than the usual ten times. Killed once, it is in `test_evaluation_processes.py`.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from command_cases import run_command

SCRIPT = Path(__file__).with_name("killing.py")
KILLS = int(os.environ.get("KILLS", "10"))
ASKED = ("model.dtype=float32", "evaluation.splits=[forget,retain]", "evaluation.limit=10", "evaluation.batch_size=1")
"""Alone in its batch, a question is answered with the same bits whatever was answered before."""


def answers(folder):
    """Every line of every file, as often as it is there."""
    files = sorted((folder / "predictions").iterdir())
    assert not [path.name for path in files if ".part-" in path.name or path.name.startswith(".")]
    return {path.name: Counter(path.read_text().splitlines()) for path in files}


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    outcome = run_command(0, 0, root / "run", *world.settings, *ASKED, cwd=root, script=(sys.executable, SCRIPT))
    assert outcome.code == 0, outcome.err
    found = answers(root / "run")
    assert len(found) == 12
    assert {sum(lines.values()) for lines in found.values()} == {6, 10}, "as many as there are, at most ten"
    return found


@pytest.mark.slow
@pytest.mark.timeout(600 + 100 * KILLS)
@pytest.mark.parametrize("devices", [(), ("evaluation.devices=[cpu,cpu]",)], ids=["alone", "two processes"])
def test_killed_evaluation_ends_like_an_undisturbed_one(world, undisturbed, devices, tmp_path):
    words = (KILLS, 7, tmp_path / "run", *world.settings, *ASKED, *devices)
    outcome = run_command(*words, cwd=tmp_path, script=(sys.executable, SCRIPT))
    assert outcome.code == 0, outcome.err
    print(outcome.out)  # noqa: T201
    done = json.loads(outcome.out.splitlines()[-1])
    assert done["kills"] == KILLS, "the run ended before it was killed so often"
    assert done["after_answers"] >= 1
    assert answers(tmp_path / "run") == undisturbed
