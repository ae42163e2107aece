"""Composing a configuration directly gives what `hydra.main` gives."""

import json
import re
import shutil
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
    with pytest.raises(ConfigError) as caught:
        handed_over("~nonsense")
    assert str(caught.value) == "Could not delete from config. 'nonsense' does not exist."


def swept(*words, folder, verb):
    """A sweep over two seeds in this process; its exit code, and how each job ended."""
    code = launch.launch("unlearn", verb, "default", ("run", "trainer"), ["-m", *words, f"run.dir={folder}"])
    return code, [job["state"] for job in json.loads((folder / "sweep.json").read_text())["jobs"]]


@pytest.mark.parametrize("error", [RuntimeError("ours"), SystemExit(3), ConfigError("theirs")], ids=["ours", "exit", "theirs"])
def test_a_job_that_fails_does_not_stop_the_others(error, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mmunlearn"])

    def verb(config):
        if config.run.seed == 1:
            raise error

    code, states = swept("run.seed=1,2", folder=tmp_path / "sweep", verb=verb)
    assert code != 0
    assert states == ["failed", "finished"]
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, RuntimeError)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trainer=grad_diff,nonsense,npo", "trainer=nonsense: there is no such preset"),
        ("trainer=glob(*)", "presets are not looked for"),
        ("run.seed=interval(1,3)", "an interval has no end of values"),
        ("trainer=[npo]", "there is no such preset"),
        ("trainer={npo: 1}", "there is no such preset"),
    ],
)
def test_what_no_job_can_be_made_of_is_told_before_the_first(word, said, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mmunlearn"])
    with pytest.raises(ConfigError, match=re.escape(said)):
        swept(word, folder=tmp_path / "sweep", verb=lambda config: None)
    assert not (tmp_path / "sweep").exists()


def test_a_preset_that_goes_away_fails_its_own_job(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mmunlearn"])
    configs = tmp_path / "configs"
    shutil.copytree(launch.configs_folder(), configs)
    monkeypatch.setattr(launch, "configs_folder", lambda: configs)
    words = ("trainer=grad_diff,npo,kl_min",)
    code, states = swept(*words, folder=tmp_path / "sweep", verb=lambda config: (configs / "trainer/npo.yaml").unlink(True))
    assert code == 2
    assert states == ["finished", "failed", "finished"]
    said = capsys.readouterr().err
    assert "there is no such preset" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("typed", "found"), [("true", True), ("on", True), ("1", True), ("off", False), ("selective", "selective")]
)
def test_truth_values_beside_a_word(typed, found, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mmunlearn"])
    monkeypatch.setenv("RECOMPUTE", typed)
    for value in (typed, "'${oc.env:RECOMPUTE}'"):
        config = launch.checked(handed_over(f"trainer.args.gradient_checkpointing={value}", "run.dir=somewhere"))
        assert config.trainer.args.gradient_checkpointing == found
        assert type(config.trainer.args.gradient_checkpointing) is type(found)


def test_another_word_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mmunlearn"])
    with pytest.raises(ConfigError, match="gradient_checkpointing=seletive: must be true, false or selective"):
        launch.checked(handed_over("trainer.args.gradient_checkpointing=seletive", "run.dir=somewhere"))
