"""Commands that write into a run's folder stop before anything where another one is writing."""

import subprocess
import sys

import pytest
from command_cases import run_here

HOLD = """
import sys
from pathlib import Path
from mmunlearn.locks import locked
from mmunlearn.run import Run
with locked(Run(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""
WRITERS = ("finetune", "unlearn", "saliency", "evaluate", "predict", "probe")


@pytest.fixture(scope="module")
def in_use(tmp_path_factory):
    """A folder that another process holds."""
    folder = tmp_path_factory.mktemp("in-use")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        yield folder
        process.stdin.close()


@pytest.mark.thorough
@pytest.mark.parametrize("verb", WRITERS)
def test_every_command_that_writes_asks_first(in_use, verb):
    """The model is nowhere, so it was not looked for."""
    outcome = run_here(verb, f"run.dir={in_use}", "model.path=/nowhere", "run.device=cpu")
    assert outcome.code == 2
    assert "is in use by process" in " ".join(outcome.err.split())
    assert [path.name for path in in_use.iterdir()] == ["lock"]
