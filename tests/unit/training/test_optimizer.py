import math

import pytest
import torch
from tiny_cases import FULL

from mmunlearn.config import Lora, PartTuning, TrainerArgs, Tune
from mmunlearn.config_enums import Mode, Scheduler
from mmunlearn.models.families import LLAVA, part_of
from mmunlearn.models.tuning import apply_tuning
from mmunlearn.training.optimizer import build_optimizer, rate_factor, set_learning_rates, warmup_steps


def factors(scheduler, total, warmup):
    return [rate_factor(step, total=total, warmup=warmup, scheduler=scheduler) for step in range(total)]


@pytest.mark.parametrize(
    ("scheduler", "warmup", "expected"),
    [
        (Scheduler.constant, 0, [1, 1, 1, 1]),
        (Scheduler.constant, 3, [1 / 4, 2 / 4, 3 / 4, 1]),
        (Scheduler.linear, 0, [1, 3 / 4, 2 / 4, 1 / 4]),
        (Scheduler.linear, 1, [1 / 2, 1, 2 / 3, 1 / 3]),
        (Scheduler.linear, 4, [1 / 5, 2 / 5, 3 / 5, 4 / 5]),
        (Scheduler.cosine, 0, [1, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.5 - math.sqrt(0.5) / 2]),
        (Scheduler.cosine, 2, [1 / 3, 2 / 3, 1, 0.5]),
    ],
)
def test_rate_over_four_steps(scheduler, warmup, expected):
    assert factors(scheduler, 4, warmup) == pytest.approx(expected)


@pytest.mark.parametrize("scheduler", list(Scheduler))
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (2, 5), (100, 10), (100, 0)])
def test_the_rate_is_never_zero_negative_or_above_the_peak(scheduler, total, warmup):
    found = factors(scheduler, total, warmup)
    assert all(0 < factor <= 1 for factor in found), "a step with rate 0 would be wasted"
    peak = found.index(max(found))
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


@pytest.mark.parametrize("scheduler", list(Scheduler))
def test_transformers_schedules_agree_once_warm(scheduler):
    """An independent implementation; ours starts its warm-up at a rate above 0, so only what follows is compared."""
    from transformers import get_scheduler

    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if scheduler is Scheduler.constant else str(scheduler)
    schedule = get_scheduler(name, other, num_warmup_steps=5, num_training_steps=20)
    expected = []
    for _ in range(20):
        expected.append(schedule.get_last_lr()[0])
        other.step(), schedule.step()
    assert factors(scheduler, 20, 5)[5:] == pytest.approx(expected[5:])


@pytest.mark.parametrize(
    ("given", "total", "expected"), [(0, 100, 0), (0.1, 100, 10), (0.1, 15, 2), (0.03, 10, 1), (1, 100, 1), (7, 100, 7)]
)
def test_warm_up_in_steps_or_as_a_fraction(given, total, expected):
    assert warmup_steps(TrainerArgs(warmup_steps=given), total) == expected


def test_each_part_has_its_own_rate(model):
    tune = Tune(
        vision=PartTuning(mode=Mode.full, learning_rate=1e-6),
        projector=PartTuning(mode=Mode.full, learning_rate=0.0),
        language=PartTuning(mode=Mode.full),
    )
    tuned = apply_tuning(model, LLAVA, tune, Lora())
    optimizer = build_optimizer(tuned, LLAVA, tune, TrainerArgs(learning_rate=1e-4))
    assert set_learning_rates(optimizer, 0.5) == {"vision": 5e-7, "projector": 0.0, "language": 5e-5}
    assert set_learning_rates(optimizer, 0.5) == {"vision": 5e-7, "projector": 0.0, "language": 5e-5}, "not compounded"
    names = {id(parameter): name for name, parameter in tuned.named_parameters()}
    rates = {"vision": 5e-7, "projector": 0.0, "language": 5e-5}
    seen = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["lr"] == rates[part_of(names[id(parameter)], LLAVA)]
            seen += 1
    assert seen == sum(parameter.requires_grad for parameter in tuned.parameters())


def test_frozen_parts_are_not_in_the_optimizer(model):
    tune = Tune(projector=PartTuning(mode=Mode.full), language=PartTuning(mode=Mode.freeze))
    optimizer = build_optimizer(apply_tuning(model, LLAVA, tune, Lora()), LLAVA, tune, TrainerArgs())
    assert [group["part"] for group in optimizer.param_groups] == ["projector"]


def test_two_steps_equal_adam_with_decoupled_decay_written_out(model):
    """Loshchilov and Hutter 2019, algorithm 2, in plain arithmetic on one weight."""
    args = TrainerArgs(learning_rate=0.1, weight_decay=0.05, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-3)
    tuned = apply_tuning(model, LLAVA, FULL, Lora())
    optimizer = build_optimizer(tuned, LLAVA, FULL, args)
    weight = tuned.lm_head.weight
    value, first, second = float(weight[0, 0]), 0.0, 0.0
    for step, gradient in enumerate((0.3, -2.0), 1):
        set_learning_rates(optimizer, 1.0)
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        first = 0.8 * first + 0.2 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        value -= 0.1 * 0.05 * value
        value -= 0.1 * (first / (1 - 0.8**step)) / (math.sqrt(second / (1 - 0.95**step)) + 1e-3)
        assert float(weight[0, 0].detach()) == pytest.approx(value, rel=1e-5)
