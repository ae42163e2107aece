"""Which engine is taken, and what each refuses before anything is opened."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from mmunlearn.config import TrainerArgs
from mmunlearn.errors import ConfigError
from mmunlearn.methods.grad_diff import GradDiff
from mmunlearn.methods.kl_min import KLMin, Positions
from mmunlearn.methods.mmunlearner import MMUnlearner
from mmunlearn.methods.salun import SalUn
from mmunlearn.training import engines
from mmunlearn.training.deepspeed_engine import PASSES, completed, freeze, read_settings
from mmunlearn.training.engines import Kind, check_engine, check_launcher, deepspeed_notice, kind_of

CONFIGS = Path(__file__).parents[3] / "configs/deepspeed"
ZERO2, ZERO3 = str(CONFIGS / "zero2.json"), str(CONFIGS / "zero3.json")
TWO_RANKS = SimpleNamespace(num_processes=2)


@pytest.fixture
def connected(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)


def test_an_engine_is_taken_where_it_can_be_had(monkeypatch, capsys):
    monkeypatch.setattr(engines, "_missing", list)
    assert kind_of(TrainerArgs()) is Kind.replicated
    assert kind_of(TrainerArgs(fsdp=True)) is Kind.fsdp
    assert kind_of(TrainerArgs(deepspeed=ZERO3)) is Kind.deepspeed
    deepspeed_notice(Console(), TrainerArgs(deepspeed=ZERO3))
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(engines, "_missing", lambda: ["no GPU"])
    assert kind_of(TrainerArgs(deepspeed=ZERO3)) is Kind.replicated
    deepspeed_notice(Console(), TrainerArgs(deepspeed=ZERO3))
    assert capsys.readouterr().out == f"trainer.args.deepspeed={ZERO3} is not used: no GPU. The run goes on plainly.\n"


def test_two_engines_at_once_are_refused():
    with pytest.raises(ConfigError, match=r"deepspeed=null or trainer.args.fsdp=false"):
        kind_of(TrainerArgs(fsdp=True, deepspeed=ZERO3))


@pytest.mark.parametrize("kind", [Kind.fsdp, Kind.deepspeed])
@pytest.mark.parametrize("method", [MMUnlearner(mask="mask.safetensors"), SalUn(mask="mask.safetensors")], ids=["mmu", "salun"])
def test_masks_need_whole_gradients(kind, method, connected):
    args = TrainerArgs(deepspeed=ZERO3)
    with pytest.raises(ConfigError, match=rf"trainer.args.{kind}.*saliency mask.*Set trainer.args.{kind}="):
        check_engine(kind, args, method, TWO_RANKS)
    check_engine(Kind.replicated, args, method, TWO_RANKS)
    check_engine(kind, args, GradDiff(), TWO_RANKS)


def test_losses_on_padding_are_refused_on_several_ranks(connected):
    method = KLMin(positions=Positions.everywhere)
    with pytest.raises(ConfigError, match="padding"):
        check_engine(Kind.fsdp, TrainerArgs(), method, TWO_RANKS)
    check_engine(Kind.fsdp, TrainerArgs(), method, SimpleNamespace(num_processes=1))
    check_engine(Kind.fsdp, TrainerArgs(), KLMin(), TWO_RANKS)


def test_selective_checkpointing_is_refused_where_weights_are_gathered_anew(connected):
    selective = {"gradient_checkpointing": "selective"}
    with pytest.raises(ConfigError, match=r"selective: with .*zero3.json .* Set it to true"):
        check_engine(Kind.deepspeed, TrainerArgs(deepspeed=ZERO3, **selective), GradDiff(), TWO_RANKS)
    check_engine(Kind.deepspeed, TrainerArgs(deepspeed=ZERO3, gradient_checkpointing=True), GradDiff(), TWO_RANKS)
    check_engine(Kind.deepspeed, TrainerArgs(deepspeed=ZERO3.replace("zero3", "zero2"), **selective), GradDiff(), TWO_RANKS)
    check_engine(Kind.fsdp, TrainerArgs(**selective), GradDiff(), TWO_RANKS)


def test_fsdp_needs_a_launcher(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    with pytest.raises(ConfigError, match="torchrun"):
        check_engine(Kind.fsdp, TrainerArgs(), GradDiff(), SimpleNamespace(num_processes=1))


@pytest.mark.parametrize("setting", ["fsdp", "deepspeed"])
def test_what_accelerate_was_told_must_be_set_here_too(setting, monkeypatch):
    check_launcher(TrainerArgs())
    monkeypatch.setenv(f"ACCELERATE_USE_{setting.upper()}", "true")
    with pytest.raises(ConfigError, match=rf"Set trainer.args.{setting}"):
        check_launcher(TrainerArgs())
    check_launcher(TrainerArgs(fsdp=True) if setting == "fsdp" else TrainerArgs(deepspeed=ZERO2))


@pytest.mark.parametrize("file", [ZERO2, ZERO3])
def test_every_auto_is_filled_from_our_settings(file):
    args = TrainerArgs(per_device_train_batch_size=3, gradient_accumulation_steps=5, max_grad_norm=0.7)
    found = completed(file, args, ranks=2, width=100, half=False)
    assert '"auto"' not in json.dumps(found)
    assert found["train_micro_batch_size_per_gpu"] == 3
    assert found["gradient_clipping"] == 0.7
    assert found["bf16"] == {"enabled": False}
    assert found["zero_optimization"]["reduce_bucket_size"] == 10_000
    # DeepSpeed insists on this product.
    assert found["train_batch_size"] == 3 * found["gradient_accumulation_steps"] * 2 == 3 * PASSES * 2
    assert completed(file, args, ranks=2, width=100, half=True)["bf16"] == {"enabled": True}
    assert completed(file, TrainerArgs(bf16=True), ranks=2, width=100, half=False)["bf16"] == {"enabled": True}


def written(tmp_path, **changes):
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({**json.loads(Path(ZERO2).read_text()), **changes}))
    return str(file)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_micro_batch_size_per_gpu", 8),
        ("gradient_accumulation_steps", 2),
        ("gradient_clipping", 0.1),
        ("train_batch_size", 4),
    ],
)
def test_a_file_that_contradicts_the_settings_is_refused(name, value, tmp_path):
    with pytest.raises(ConfigError, match=rf"{name} is {value}"):
        completed(written(tmp_path, **{name: value}), TrainerArgs(), ranks=2, width=8, half=False)


@pytest.mark.parametrize(
    "zero", [{"stage": 0}, {}, {"stage": 3, "offload_param": {"device": "nvme"}}, None], ids=["stage", "none", "nvme", "null"]
)
def test_a_file_that_cannot_be_used_is_refused(zero, tmp_path):
    with pytest.raises(ConfigError, match=r"trainer.args.deepspeed=.*zero.json"):
        read_settings(written(tmp_path, zero_optimization=zero))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"zero2.json or zero3.json"):
        read_settings(str(tmp_path / "none.json"))


def test_zero_3_keeps_no_copy_of_fully_tuned_parts():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="ZeRO-3"):
        freeze(ZERO3, model)
    assert freeze(ZERO2, model) is not None
    assert freeze(ZERO3, model.requires_grad_(False)) is not None
