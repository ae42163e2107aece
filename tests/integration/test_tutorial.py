"""The tutorial "Your own method in 20 lines" does what it says, typed exactly as it stands there."""

import json
import re
import shlex
import sys

import pytest
import torch
from command_cases import FULL, REPOSITORY, TWO_STEPS, run_command, run_here

import mmunlearn
from mmunlearn.config import ModelConfig, TrainerArgs
from mmunlearn.models.load import load
from mmunlearn.training.job import Settings

PAGE = (REPOSITORY / "docs" / "your-own-method.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The reader's folder with `my_method.py`."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "my_method.py").write_text(blocks("python")[0], encoding="utf-8")
    return folder


@pytest.fixture
def method_class(written, monkeypatch):
    monkeypatch.syspath_prepend(str(written))
    yield __import__("my_method").WeightedAscent
    sys.modules.pop("my_method", None)


def test_it_has_no_more_lines_than_promised():
    code = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(code) <= 20


@pytest.mark.thorough
def test_the_command_runs_and_trains_both_terms(world, written):
    words = shlex.split(blocks("bash")[0])
    assert words[:2] == ["PYTHONPATH=.", "mmunlearn"]
    replaced = [word for word in words[2:] if not word.startswith(("run.dir=", "model=", "data="))]
    outcome = run_command(*replaced, *world.settings, *FULL, *TWO_STEPS, "run.dir=mine", cwd=written, PYTHONPATH=".")
    assert outcome.code == 0, outcome.err
    steps = [json.loads(line) for line in (written / "mine" / "metrics.jsonl").read_text().splitlines()]
    for step in steps:
        assert step["terms"]["forget"]["weighted"] == -step["terms"]["forget"]["raw"] < 0
        assert step["terms"]["retain"]["weighted"] == pytest.approx(2 * step["terms"]["retain"]["raw"])
    card = json.loads((written / "mine" / "model" / "mmunlearn.json").read_text())
    assert (card["method"], card["role"]) == ("WeightedAscent", "unlearned")


def test_a_misspelt_setting_of_it_is_seen(world, method_class, tmp_path):
    words = ("unlearn", *world.settings, "~trainer.method", "+trainer.method._target_=my_method.WeightedAscent")
    outcome = run_here(*words, "+trainer.method.retain_wait=2", f"run.dir={tmp_path}")
    assert outcome.code == 2
    assert "trainer.method.retain_wait" in outcome.err
    assert "retain_weight" in outcome.err


def test_it_works_from_python_and_changes_the_adapter_alone(world, method_class):
    opened = load(ModelConfig(path=str(world.model)))
    splits = world.benchmark().splits()
    before = {name: value.clone() for name, value in opened.model.state_dict().items()}
    settings = Settings(args=TrainerArgs(max_steps=1, logging_steps=1))
    after = mmunlearn.unlearn(
        opened.model,
        opened.processor,
        forget=splits.forget[:4],
        retain=splits.retain[:4],
        method=method_class(),
        settings=settings,
    )
    changed = {name for name, value in after.state_dict().items() if "lora_B" in name and value.abs().sum() > 0}
    assert changed
    assert all(torch.equal(value, after.state_dict().get(f"base_model.model.{name}", value)) for name, value in before.items())
