"""Composing a configuration directly gives what `hydra.main` gives."""

import sys

import hydra
import pytest
from omegaconf import OmegaConf

from mmunlearn import launch
from mmunlearn.errors import ConfigError


def handed_over(*words, config_name="default", prepare=lambda config: config):
    """What a verb's job gets, before the check."""
    flags, overrides = launch._split(words)
    found = []
    launch._with_hydra(lambda config: found.append(prepare(config)), config_name, flags, launch._parsed(overrides))
    return found[0]


@pytest.mark.parametrize(
    ("config_name", "words"),
    [
        ("default", []),
        ("default", ["trainer=npo", "model=tiny", "data=people", "trainer.args.learning_rate=1e-3", "trainer.nonsense=3"]),
        ("default", ["~trainer.args", "+run.label='a, b=c'", "model.tune.language.mode=full"]),
        ("default", ["--config-name", "finetune"]),
        ("default", ["-cn", "saliency.yaml", "saliency.threshold=2"]),
        ("evaluate", ["evaluation.splits=[forget,retain]", "run.dir=somewhere"]),
    ],
)
def test_both_ways_hand_over_the_same(config_name, words, monkeypatch):
    words = [*words, *(["run.dir=somewhere"] if "run.dir=somewhere" not in words else [])]  # else it has the time of day
    monkeypatch.setattr(sys, "argv", ["mmunlearn"])
    called = []
    main = hydra.main
    monkeypatch.setattr(hydra, "main", lambda **how: called.append(1) or main(**how))
    directly = handed_over(*words, config_name=config_name)
    assert not called
    by_hydra = handed_over(*words, "hydra.verbose=false", config_name=config_name)
    assert called
    assert OmegaConf.to_container(directly) == OmegaConf.to_container(by_hydra)
    assert list(directly) == list(by_hydra)


def test_what_only_hydra_knows_is_left_to_hydra(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mmunlearn"])
    config = handed_over("run.dir='a/${hydra:runtime.choices.trainer}'", "trainer=npo", prepare=launch.checked)
    assert config.run.dir == "a/npo"


def test_what_cannot_be_composed_is_one_message():
    with pytest.raises(ConfigError, match="'nonsense' does not exist") as caught:
        handed_over("~nonsense")
    assert "Traceback" not in str(caught.value)
