"""What tests of whole commands share: people and a model on disk, and a few finished runs.

The processes in which tests run beside each other share them too: whoever needs one first makes it, the others wait.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from command_cases import FEW_QUESTIONS, FULL, REPOSITORY, SIZE, TWO_STEPS, Outcome, World, run_command, run_here
from filelock import FileLock

from mmunlearn.benchmarks.people_files import write_people
from mmunlearn.models.load import save
from mmunlearn.models.tiny import build_tiny


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """`shared(name, make)`: a folder and what `make(folder)` returned, in whichever process that was; not to be changed."""
    beside_others = "PYTEST_XDIST_WORKER" in os.environ
    root = tmp_path_factory.getbasetemp().parent if beside_others else tmp_path_factory.getbasetemp()

    def once(name: str, make: Callable[[Path], Outcome]) -> tuple[Path, Outcome]:
        folder, record = root / f"shared-{name}", root / f"shared-{name}.json"
        with FileLock(root / f"shared-{name}.lock"):
            if not record.is_file():
                folder.mkdir()
                record.write_text(json.dumps(asdict(make(folder))))
            return folder, Outcome(**json.loads(record.read_text()))

    return once


@pytest.fixture(scope="session")
def world(shared):
    """20 people, 3 of them to be forgotten, and the model; not to be changed."""

    def make(root: Path) -> Outcome:
        write_people(
            root / "people", seed=0, num_people=20, num_public_figures=4, num_holdout=2, num_general_faces=4, image_size=32
        )
        made = World(root / "people", root / "untrained")
        texts = [text for example in made.benchmark().splits().full for text in (example.question, example.answer)]
        save(*build_tiny(texts, seed=0, size=SIZE), made.model, {"role": "vanilla", "method": "none"})
        return Outcome(0, "", "")

    root, _ = shared("world", make)
    return World(root / "people", root / "untrained")


@pytest.fixture(scope="session")
def lora_run(world, shared):
    """`python train.py --config-name default`, started in the repository; its folder and what it printed."""

    def make(root: Path) -> Outcome:
        words = ("--config-name", "default", *world.settings, f"run.dir={root / 'run'}", *TWO_STEPS)
        return run_command(*words, cwd=REPOSITORY, script=(sys.executable, "train.py"))

    root, outcome = shared("lora", make)
    return root / "run", outcome


@pytest.fixture(scope="session")
def full_run(world, shared):
    """`mmunlearn unlearn trainer=grad_diff`, all parts tuned in full; its folder and what it printed."""

    def make(root: Path) -> Outcome:
        words = ("unlearn", *world.settings, "trainer=grad_diff", f"run.dir={root / 'run'}", *TWO_STEPS, *FULL)
        return run_here(*words)

    root, outcome = shared("full", make)
    return root / "run", outcome


@pytest.fixture(scope="session")
def evaluation(world, lora_run, shared):
    """`mmunlearn evaluate` of the LoRA run; its folder and what it printed."""

    def make(root: Path) -> Outcome:
        model = f"model.path={lora_run[0] / 'model'}"
        return run_here("evaluate", *world.data, model, f"run.dir={root / 'run'}", *FEW_QUESTIONS)

    root, outcome = shared("evaluation", make)
    return root / "run", outcome
