"""What is watched without being trained on, and the early end at a bound."""

import math
from dataclasses import replace

import pytest
import torch

from mmunlearn.methods.base import TrainingData
from mmunlearn.methods.grad_ascent import GradAscent
from mmunlearn.run import read_json_lines
from mmunlearn.training.optimizer import build_optimizer
from mmunlearn.training.watching import WATCHED_EXAMPLES, watch, watched_loss

UP = {"max_steps": 30, "learning_rate": 3e-3, "lr_scheduler_type": "constant"}


@pytest.fixture
def ascent(make_training):
    """Gradient ascent with a real optimizer, and a bound."""

    def make(bound, **more):
        args = {**UP, "stop_forget_loss": bound, **more}
        return make_training(GradAscent(), args=args, optimizer=build_optimizer)

    return make


def test_the_run_ends_at_the_first_record_above_the_bound(ascent, tmp_path):
    first = ascent(0.0)
    assert first.run() == 30, "without a bound it goes to the end"
    assert all("forget_loss" not in line for line in read_json_lines(tmp_path / "metrics.jsonl"))


def test_a_bound_ends_it(ascent, tmp_path):
    training = ascent(1e9)
    start = watched_loss(training.model, _forget_batches(training))
    training = ascent(start + 0.2)
    (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
    done = training.run()
    losses = [line["forget_loss"] for line in read_json_lines(tmp_path / "metrics.jsonl")]
    assert 1 <= done < 30
    assert len(losses) == done
    assert losses[-1] > start + 0.2
    assert all(loss <= start + 0.2 for loss in losses[:-1])


def test_it_is_looked_at_when_a_record_is_written(ascent):
    """Steps between two records are not looked at: with one at the first step and every 7 steps, it ends at one of those."""
    start = watched_loss(ascent(1e9).model, _forget_batches(ascent(1e9)))
    assert ascent(start + 0.05, logging_steps=7).run() in (1, 7, 14, 21, 28)


def test_the_loss_is_the_mean_over_all_answer_tokens(ascent):
    """However they are cut into batches."""
    training = ascent(1.0)
    batches = _forget_batches(training)
    assert len(batches) == 1
    small = replace(training.plan.args, per_device_train_batch_size=3)
    apart = watch(training.data, training.encoder, small, torch.device("cpu"), lambda batch: batch).batches["forget"]
    assert len(apart) == 3
    assert watched_loss(training.model, apart) == pytest.approx(watched_loss(training.model, batches), rel=1e-6)


def test_examples_are_spread_over_the_side(ascent, data):
    training = ascent(1.0)
    many = TrainingData(forget=data.forget, retain=tuple(replace(data.retain[0], id=f"r{n}") for n in range(64)))
    found = watch(many, training.encoder, training.plan.args, torch.device("cpu"), lambda batch: batch).batches["retain"]
    ids = [name for batch in found for name in batch.ids]
    assert ids == [f"r{n}" for n in range(0, 64, 64 // WATCHED_EXAMPLES)]


def test_nothing_to_watch(ascent):
    assert watched_loss(ascent(0.0).model, []) is None


def _forget_batches(training):
    found = watch(training.data, training.encoder, training.plan.args, torch.device("cpu"), lambda batch: batch)
    assert found.bound > 0
    assert not math.isnan(found.bound)
    return found.batches["forget"]
