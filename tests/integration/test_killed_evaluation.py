"""An evaluation that is killed again and again ends with the answers of one that nobody disturbed.

KILLS=3 in the environment kills less often than the usual ten times. Killed once, it is in `test_evaluation_processes.py`.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from command_cases import run_command

SCRIPT = Path(__file__).with_name("killing.py")
KILLS = int(os.environ.get("KILLS", "10"))
ASKED = ("model.dtype=float32", "evaluation.splits=[forget,retain]", "evaluation.limit=10", "evaluation.batch_size=1")


def answers(folder):
    """By file and question, what was stored; each question once."""
    files = sorted((folder / "predictions").iterdir())
    assert not [path.name for path in files if ".part-" in path.name or path.name.startswith(".")]
    found = {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in files}
    by_id = {name: {row["id"]: row for row in rows} for name, rows in found.items()}
    assert {name: len(rows) for name, rows in found.items()} == {name: len(rows) for name, rows in by_id.items()}
    return by_id


def alike(one, other):
    """The same, but for the last bits of numbers: a request that several questions share is computed with the one that asks
    for it first, so that what it is added up with depends on when the evaluation was killed."""
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, rel=1e-5, abs=1e-5)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": [1.0, "x"]}, {"a": [1.0 + 1e-7, "x"]}, True),
        ({"a": [1.0, "x"]}, {"a": [1.01, "x"]}, False),
        ({"a": [1.0, "x"]}, {"a": [1.0, "y"]}, False),
        ({"a": [1.0]}, {"a": [1.0, 2.0]}, False),
        ({"a": 1.0}, {"b": 1.0}, False),
        ({"a": None}, {"a": 0.0}, False),
    ],
)
def test_differences_are_seen(one, other, expected):
    assert alike(one, other) is expected


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    outcome = run_command(0, 0, root / "run", *world.settings, *ASKED, cwd=root, script=(sys.executable, SCRIPT))
    assert outcome.code == 0, outcome.err
    found = answers(root / "run")
    assert len(found) == 12
    assert {len(rows) for rows in found.values()} == {6, 10}, "as many as there are, at most ten"
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
    assert alike(answers(tmp_path / "run"), undisturbed)
