"""Weights in 4 bits are trained replicated only, and that is said before anything is opened."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mmunlearn.config_check import checked
from mmunlearn.errors import ConfigError
from mmunlearn.methods.finetune import FineTune
from mmunlearn.methods.grad_diff import GradDiff
from mmunlearn.training import engines
from mmunlearn.training.checks import check_settings
from mmunlearn.training.job import train

CONFIGS = Path(__file__).parents[3] / "configs/deepspeed"


def settings(tmp_path, quantise, **args):
    return checked(
        OmegaConf.create(
            {
                "run": {"dir": str(tmp_path / "run")},
                "model": {"path": "/nowhere/at/all", "quantise": quantise},
                "data": {"_target_": "mmunlearn.benchmarks.mllmu.MLLMUBench", "root": "/nowhere/either", "forget_ratio": "5"},
                "trainer": {"method": {"_target_": "mmunlearn.methods.grad_diff.GradDiff"}, "args": args},
            }
        )
    )


@pytest.mark.parametrize("file", ["zero2.json", "zero3.json"])
@pytest.mark.parametrize("method", [GradDiff(), FineTune()], ids=["unlearning", "fine-tuning"])
def test_deepspeed_takes_no_weights_in_four_bits(file, method, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_missing", list)  # as on a machine with a GPU and DeepSpeed
    file = str(CONFIGS / file)
    with pytest.raises(ConfigError, match=rf"quantise=nf4 with trainer.args.deepspeed={file}.*Set trainer.args.deepspeed=null"):
        check_settings(settings(tmp_path, "nf4", deepspeed=file), method)
    check_settings(settings(tmp_path, "nf4", deepspeed=None), method)
    check_settings(settings(tmp_path, "none", deepspeed=file), method)


def test_a_deepspeed_file_that_is_not_used_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_missing", lambda: ["no GPU"])
    check_settings(settings(tmp_path, "nf4", deepspeed=str(CONFIGS / "zero3.json")), GradDiff())


def test_shards_take_no_weights_in_four_bits(tmp_path):
    with pytest.raises(ConfigError, match="weights in 4 bits are not sharded"):
        check_settings(settings(tmp_path, "nf4", fsdp=True, deepspeed=None), GradDiff())
    check_settings(settings(tmp_path, "none", fsdp=True, deepspeed=None), GradDiff())


def test_it_is_refused_before_data_or_weights_are_looked_for(tmp_path, monkeypatch):
    """Neither is where the settings say, and no message is about that."""
    monkeypatch.setattr(engines, "_missing", list)
    with pytest.raises(ConfigError, match="bitsandbytes packs two weights into a byte"):
        train(settings(tmp_path, "nf4", deepspeed=str(CONFIGS / "zero3.json")))
    assert not (tmp_path / "run" / "config.yaml").exists()
