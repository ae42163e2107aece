"""What tests of whole commands share: people and a model on disk, and a few finished runs."""

import sys

import pytest
from command_cases import FEW_QUESTIONS, FULL, REPOSITORY, SIZE, TWO_STEPS, World, run_command

from mmunlearn.benchmarks.people_files import write_people
from mmunlearn.models.load import save
from mmunlearn.models.tiny import build_tiny


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """20 people, 3 of them to be forgotten, and the model; not to be changed."""
    root = tmp_path_factory.mktemp("world")
    write_people(
        root / "people", seed=0, num_people=20, num_public_figures=4, num_holdout=2, num_general_faces=4, image_size=32
    )
    world = World(root / "people", root / "untrained")
    texts = [text for example in world.benchmark().splits().full for text in (example.question, example.answer)]
    save(*build_tiny(texts, seed=0, size=SIZE), world.model, {"role": "vanilla", "method": "none"})
    return world


@pytest.fixture(scope="session")
def lora_run(world, tmp_path_factory):
    """`python train.py --config-name default`, started in the repository; its folder and what it printed."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    words = ("--config-name", "default", *world.settings, f"run.dir={folder}", *TWO_STEPS)
    return folder, run_command(*words, cwd=REPOSITORY, script=(sys.executable, "train.py"))


@pytest.fixture(scope="session")
def full_run(world, tmp_path_factory):
    """`mmunlearn unlearn trainer=grad_diff`, all parts tuned in full; its folder and what it printed."""
    folder = tmp_path_factory.mktemp("full") / "run"
    words = ("unlearn", *world.settings, "trainer=grad_diff", f"run.dir={folder}", *TWO_STEPS, *FULL)
    return folder, run_command(*words, cwd=folder.parent)


@pytest.fixture(scope="session")
def evaluation(world, lora_run, tmp_path_factory):
    """`mmunlearn evaluate` of the LoRA run; its folder and what it printed."""
    folder = tmp_path_factory.mktemp("evaluation") / "run"
    words = ("evaluate", *world.data, f"model.path={lora_run[0] / 'model'}", f"run.dir={folder}", *FEW_QUESTIONS)
    return folder, run_command(*words, cwd=folder.parent)
