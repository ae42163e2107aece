"""What a step must not depend on (how it is split, where it was interrupted) and what it must depend on (the image)."""

import copy
import math
import re
from dataclasses import dataclass, replace

import pytest
import torch
from method_rows import EACH_ROW, FINE_TUNE, GRAD_DIFF, ROWS, Case, expected_gradients, relabelled
from tiny_cases import (
    FULL,
    LORA,
    GradientCatcher,
    Setup,
    batch_of,
    flat,
    make_examples,
    other_pictures,
    random_mask,
    relative_difference,
    step_gradients,
    tiny_model,
    training_of,
)

from mmunlearn.config import Lora, PartTuning, Tune
from mmunlearn.config_enums import Mode, Schedule
from mmunlearn.data.batch import IGNORE
from mmunlearn.errors import RunError
from mmunlearn.methods.base import Prepared, Side, Term, TrainingData, divisible
from mmunlearn.methods.finetune import FineTune
from mmunlearn.methods.grad_ascent import GradAscent
from mmunlearn.methods.grad_diff import GradDiff
from mmunlearn.methods.kl_min import KLMin, Positions
from mmunlearn.methods.losses import answer_nll
from mmunlearn.methods.npo import NPO, Unit
from mmunlearn.models.checkpointing import checkpoint_activations
from mmunlearn.models.families import LLAVA
from mmunlearn.models.tuning import apply_tuning
from mmunlearn.run import read_json_lines
from mmunlearn.training.checkpoint import load_checkpoint, save_checkpoint
from mmunlearn.training.loop import Windows
from mmunlearn.training.optimizer import build_optimizer

SPLITS = ((8, 1), (2, 4), (1, 8))
TOLERANCE = 1e-6

each_row = pytest.mark.parametrize("row", EACH_ROW, ids=str)


@pytest.fixture(scope="module")
def other_model():
    """A reference that is not the model in training, or its divergence and its ratio would be 0 in the first step."""
    return tiny_model(seed=1)[0].eval().requires_grad_(False)


@pytest.fixture(scope="module")
def mask(pristine):
    return random_mask(pristine[0])


@pytest.fixture
def setup(pristine, tmp_path, other_model, mask):
    """One run of a row on a fresh copy of the model."""

    def make(row, data, folder=tmp_path, **settings):
        rest = {"schedule": row.schedule, "reference": other_model, "mask": mask, **settings}
        return Setup(row.method, row.data(data), copy.deepcopy(pristine[0]), pristine[1], folder, **rest)

    return make


@pytest.fixture
def gradient(pristine, tmp_path):
    """The gradient of the first step of a fresh copy of the model."""

    def compute(method, data, **settings):
        return step_gradients(Setup(method, data, copy.deepcopy(pristine[0]), pristine[1], tmp_path, **settings), 1)[0]

    return compute


@pytest.fixture
def gradients(setup):
    """The gradients of a row's first steps, as `{step}/{parameter}`."""

    def compute(row, data, **settings):
        caught = step_gradients(setup(row, data, **settings), len(row.steps))
        return {f"{number}/{name}": value for number, step in enumerate(caught) for name, value in step.items()}

    return compute


# --- one step, split in different ways -------------------------------------------------------------------------------


@each_row
@pytest.mark.parametrize(
    ("items", "retain_per_forget"),
    [pytest.param(8, 1, id="full-step"), pytest.param(5, 2, id="incomplete-step", marks=pytest.mark.thorough)],
)
def test_splitting_a_step_does_not_change_its_gradient(row, items, retain_per_forget, data, gradients):
    if row.schedule is Schedule.alternating:
        retain_per_forget = 1  # other values are refused
    chosen = replace(data, forget=data.forget[:items])
    whole, *others = (
        gradients(row, chosen, batch_size=batch_size, accumulation=accumulation, retain_per_forget=retain_per_forget)
        for batch_size, accumulation in SPLITS
    )
    assert flat(whole).norm() > 0.1
    for other in others:
        assert relative_difference(other, whole) < TOLERANCE


@each_row
def test_computing_questions_with_a_picture_and_without_apart_changes_no_gradient(row, data, gradients):
    together = gradients(row, data, by_modality=False)
    assert flat(together).norm() > 0.1
    assert relative_difference(gradients(row, data, by_modality=True), together) < TOLERANCE


def test_pictures_and_texts_are_computed_apart_and_each_example_once(data, setup):
    training = training_of(setup(GRAD_DIFF, data, batch_size=4, accumulation=2, retain_per_forget=2))
    window = Windows(training.plan, training.data, training.encoder)[0]
    assert len(window) > 2, "two micro-batches, both with and without a picture"
    for pair in window:
        pictured = {name: example.image is not None for name, example in by_id(training.data).items()}
        assert len({pictured[name] for side in pair.sides() for name in side.ids}) == 1
        assert all(("pixel_values" in side.inputs) == pictured[side.ids[0]] for side in pair.sides())
    forget = sorted(name for pair in window if pair.forget for name in pair.forget.ids)
    assert forget == sorted(example.id for example in data.forget)
    assert sum(len(pair.retain.ids) for pair in window if pair.retain) == 2 * len(forget)


def by_id(data):
    return {example.id: example for example in (*data.forget, *data.retain)}


def test_a_loss_that_depends_on_the_whole_batch_is_not_computed_apart():
    @dataclass(frozen=True)
    class OnPairs(GradAscent):
        def terms(self):
            return (Term(name="both", on=Side.pair, weight=1.0, loss=answer_nll),)

    whole = (KLMin(positions=Positions.everywhere), NPO(unit=Unit.batch), OnPairs())
    assert not any(map(divisible, whole))
    assert all(divisible(row.method) for row in ROWS)


@pytest.mark.thorough
@pytest.mark.parametrize("row", [row for row in ROWS if row.lora], ids=str)
def test_splitting_a_step_does_not_change_the_gradient_of_adapters(row, data, gradients):
    settings = {"tune": LORA, "lora": Lora(r=4, alpha=8, dropout=0.0)}
    torch.manual_seed(1)
    whole = gradients(row, data, **settings)
    assert flat(whole).norm() > 0.1
    torch.manual_seed(1)
    assert relative_difference(gradients(row, data, batch_size=2, accumulation=4, **settings), whole) < TOLERANCE


@each_row
def test_gradient_equals_that_of_the_objective_written_with_transformers_own_loss(
    row, data, gradients, model, processor, other_model, mask
):
    found = gradients(row, data, batch_size=2, accumulation=4)
    case = Case(model, other_model, processor, relabelled(row, row.data(data)))
    expected = expected_gradients(row, case, mask)
    assert relative_difference(found, {name: expected[name] for name in found}) < 2 * TOLERANCE


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in ("GradDiff", "KLMin", "MMUnlearner-official")], ids=str)
def test_a_micro_batch_without_a_picture_adds_nothing_where_only_the_vision_side_is_tuned(row, data, gradients):
    """No trained weight takes part in it. The text examples still count in the step's totals.

    What reaches the vision side has passed the whole language part, so rounding has twice the room that it has elsewhere.
    """
    tune = Tune(vision=PartTuning(mode=Mode.full), projector=PartTuning(mode=Mode.full), language=PartTuning(mode=Mode.freeze))
    whole = gradients(row, data, tune=tune)
    assert flat(whole).norm() > 0.1
    assert relative_difference(gradients(row, data, tune=tune, batch_size=1, accumulation=8), whole) < 2 * TOLERANCE


def test_a_mean_of_micro_batch_means_would_be_seen(data, gradient):
    """The tolerance above has teeth: the published scripts' normalisation is far outside of it."""

    @dataclass(frozen=True, kw_only=True)
    class MeanOfMeans:
        def prepare(self, model, reference, data):
            return Prepared()

        def terms(self):
            def loss(model, batch, prepared):
                return model(**batch.inputs, labels=batch.labels).loss * len(batch.ids) / batch.step_sequences

            return (Term(name="forget", on=Side.forget, weight=-1.0, loss=loss),)

    whole = gradient(MeanOfMeans(), data)
    assert relative_difference(gradient(MeanOfMeans(), data, batch_size=1, accumulation=8), whole) > 0.05


@pytest.mark.parametrize("tune", [FULL, LORA], ids=["full", "lora"])
def test_recomputing_activations_changes_nothing(tune, data, model, processor):
    tuned = apply_tuning(model, LLAVA, tune, Lora(dropout=0.0)).train()
    batch = batch_of(processor, *data.retain[:4])
    found = []
    for recompute in (False, True):
        if recompute:
            checkpoint_activations(tuned)
            assert tuned.is_gradient_checkpointing
        tuned.zero_grad(set_to_none=True)
        answer_nll(tuned, batch, Prepared()).backward()
        found.append({name: p.grad.clone() for name, p in tuned.named_parameters() if p.grad is not None})
    assert relative_difference(found[1], found[0]) < TOLERANCE


def test_worker_processes_change_nothing(data, gradient):
    expected = gradient(GRAD_DIFF.method, data, batch_size=4, accumulation=2)
    found = gradient(GRAD_DIFF.method, data, batch_size=4, accumulation=2, args={"dataloader_num_workers": 1})
    assert torch.equal(flat(found), flat(expected))


# --- relations between methods ---------------------------------------------------------------------------------------


def test_ascent_is_exactly_minus_fine_tuning_on_one_example(data, gradient):
    up = gradient(GradAscent(), TrainingData(forget=data.forget[:1]))
    down = gradient(FineTune(), TrainingData(retain=data.forget[:1]))
    assert torch.equal(flat(up), -flat(down))


def test_ascent_is_minus_fine_tuning_on_many_examples(data, gradient):
    up = gradient(GradAscent(), TrainingData(forget=data.forget))
    down = gradient(FineTune(), TrainingData(retain=data.forget))
    assert relative_difference(up, {name: -value for name, value in down.items()}) < TOLERANCE


def test_gradient_difference_is_the_weighted_sum_of_its_sides(data, gradient):
    forget = gradient(FineTune(), TrainingData(retain=data.forget))
    retain = gradient(FineTune(), TrainingData(retain=data.retain))
    both = gradient(GradDiff(forget_weight=0.7, retain_weight=1.3), data, batch_size=4, accumulation=2)
    expected = {name: -0.7 * forget[name].double() + 1.3 * retain[name].double() for name in both}
    assert relative_difference(both, expected) < TOLERANCE


@each_row
def test_another_image_changes_every_term(row, data, setup, tmp_path):
    def terms(chosen, folder):
        step_gradients(setup(row, chosen, tmp_path / folder), len(row.steps))
        lines = read_json_lines(tmp_path / folder / "metrics.jsonl")
        return {name: found["raw"] for line in lines for name, found in line["terms"].items()}

    shown = terms(data, "shown")
    again = terms(data, "again")
    other = terms(TrainingData(forget=other_pictures(data.forget), retain=other_pictures(data.retain)), "other")
    assert shown == again
    assert shown.keys() == {term.name for term in row.method.terms()}
    for name, value in shown.items():
        assert abs(value - other[name]) > 1e-4, f"{name}: {value} with any picture"


# --- the loss itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(4))
def test_loss_of_one_example_is_that_of_transformers(position, examples, model, processor):
    batch = batch_of(processor, examples[position])
    expected = model(**batch.inputs, labels=batch.labels).loss.item()
    assert answer_nll(model, batch, Prepared()).item() == pytest.approx(expected, rel=1e-6)
    share = replace(batch, step_tokens=4 * batch.step_tokens)
    assert answer_nll(model, share, Prepared()).item() == pytest.approx(expected / 4, rel=1e-6)


def test_loss_of_a_batch_is_the_sum_over_tokens_of_full_logits(examples, model, processor):
    batch = batch_of(processor, *examples)
    with torch.no_grad():
        logits = model(**batch.inputs).logits.double()
        found = answer_nll(model, batch, Prepared()).item()
    total, count = 0.0, 0
    for row, labels in zip(logits, batch.labels, strict=True):
        for position in range(1, len(labels)):
            if labels[position] != IGNORE:
                scores = row[position - 1].tolist()
                total -= scores[labels[position]] - math.log(sum(map(math.exp, scores)))
                count += 1
    assert count == batch.step_tokens
    assert found == pytest.approx(total / count, rel=1e-5)


def test_the_record_holds_the_loss_of_the_whole_step(data, pristine, tmp_path):
    model, processor = copy.deepcopy(pristine)
    with torch.no_grad():
        expected = {side: Case(model, model, processor, data).nll(side).item() for side in ("forget", "retain")}
    step_gradients(Setup(GRAD_DIFF.method, data, model, processor, tmp_path, batch_size=2, accumulation=4), 1)
    (line,) = read_json_lines(tmp_path / "metrics.jsonl")
    assert line["terms"]["forget"]["raw"] == pytest.approx(expected["forget"], rel=1e-5)
    assert line["terms"]["forget"]["weighted"] == pytest.approx(-0.7 * expected["forget"], rel=1e-5)
    assert line["terms"]["retain"]["weighted"] == pytest.approx(1.3 * expected["retain"], rel=1e-5)
    assert line["retain_loss"] == pytest.approx(expected["retain"], rel=1e-5)  # nothing moved: the optimizer only watches


# --- stop and resume -------------------------------------------------------------------------------------------------

STEPS = 4


class KilledError(Exception):
    """Stands for a kill right after a checkpoint was written."""


def start(row, folder, *, mode, save_steps=0, adapter_seed=5):
    """A run of four steps of AdamW from the same initial weights, as `training/job.py` puts it together."""
    torch.manual_seed(adapter_seed)
    model, processor = tiny_model()
    data = row.data(TrainingData(forget=make_examples("forget", 7), retain=make_examples("retain", 5)))

    def save(step):
        save_checkpoint(folder / "checkpoints", step=step, key="k", model=training.model, optimizer=training.optimizer, keep=1)
        raise KilledError

    args = {
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0 if row.strict else 0.01,
        "warmup_steps": 1,
        "save_steps": save_steps,
    }
    setup = Setup(row.method, data, model, processor, folder, batch_size=2, accumulation=1, save=save, args=args)
    setup.tune = {"full": FULL, "lora-with-dropout": LORA}[mode]
    setup.lora = Lora(r=4, alpha=8, dropout=0.1)
    setup.optimizer, setup.schedule, setup.mask = build_optimizer, row.schedule, random_mask(model)
    training = training_of(setup)
    return training


def weights(training):
    return {name: value.clone() for name, value in training.model.state_dict().items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Final weights of runs that nothing interrupts, by method and mode; each is trained once."""
    found = {}

    def get(row, mode):
        key = (row.name, mode)
        if key not in found:
            training = start(row, tmp_path_factory.mktemp("undisturbed"), mode=mode)
            before = weights(training)
            training.run()
            found[key] = weights(training)
            assert any(not torch.equal(before[name], value) for name, value in found[key].items())
        return found[key]

    return get


RESUMED = [(row, "full") for row in ROWS] + [(row, "lora-with-dropout") for row in ROWS if row.lora]


@pytest.mark.parametrize(
    ("row", "mode"),
    [
        pytest.param(*each, marks=() if each[0] is GRAD_DIFF else pytest.mark.thorough, id=f"{each[0]}-{each[1]}")
        for each in RESUMED
    ],
)
@pytest.mark.parametrize("stopped_after", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_resumed_run_ends_with_bit_equal_weights(row, mode, stopped_after, undisturbed, tmp_path):
    killed = start(row, tmp_path, mode=mode, save_steps=stopped_after)
    with pytest.raises(KilledError):
        killed.run()
    # Neither fresh adapters nor what the global generator happens to hold may matter.
    resumed = start(row, tmp_path, mode=mode, adapter_seed=987)
    first = load_checkpoint(tmp_path / "checkpoints", key="k", model=resumed.model, optimizer=resumed.optimizer)
    assert first == stopped_after
    resumed.log.forget_after(first)
    resumed.run(first_step=first)
    expected = undisturbed(row, mode)
    for name, value in weights(resumed).items():
        assert torch.equal(value, expected[name]), name
    assert [line["step"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == list(range(1, STEPS + 1))


def test_dropout_is_on_and_differs_between_steps_and_seeds(data, pristine, tmp_path):
    def losses(seed, dropout):
        torch.manual_seed(3)
        setup = Setup(
            FINE_TUNE.method, TrainingData(retain=data.retain), *copy.deepcopy(pristine), tmp_path / f"{seed}-{dropout}"
        )
        setup.tune, setup.seed, setup.args = LORA, seed, {"max_steps": 3}
        setup.lora = Lora(r=4, alpha=64, dropout=dropout)
        training = training_of(setup)
        with torch.no_grad():  # adapters start as zero, which hides their dropout
            for name, parameter in training.model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.05)
        training.run()
        return [line["terms"]["finetune"]["raw"] for line in read_json_lines(setup.folder / "metrics.jsonl")]

    assert len(set(losses(0, 0.5))) == 3
    assert losses(1, 0.5) != losses(0, 0.5)
    without = losses(0, 0.0)  # the optimizer changes nothing and every step holds the same eight examples
    assert without == pytest.approx([without[0]] * 3, rel=1e-5)


# --- clipping, frozen weights, failures ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.25, 4.0], ids=["clipped", "not-clipped"])
def test_clipping_scales_the_whole_gradient(share, data, pristine, tmp_path, gradient):
    plain = gradient(GRAD_DIFF.method, data)
    whole = float(flat(plain).norm())
    clipped = gradient(GRAD_DIFF.method, data, args={"max_grad_norm": share * whole})
    expected = {name: value * min(1.0, share) for name, value in plain.items()}
    assert relative_difference(clipped, expected) < TOLERANCE
    norms = read_json_lines(tmp_path / "metrics.jsonl")[-1]["gradient_norm"]
    for part, prefix in (("vision", "model.vision_tower"), ("projector", "model.multi_modal_projector")):
        own = {name: value for name, value in plain.items() if name.startswith(prefix)}
        assert norms[part] == pytest.approx(float(flat(own).norm()), rel=1e-5), "norms are those before clipping, by part"
    assert math.hypot(*norms.values()) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("frozen", ["vision", "projector", "language"])
def test_a_frozen_part_does_not_move_by_one_bit(frozen, data, make_training, model, pristine):
    tune = replace(FULL, **{frozen: PartTuning(mode=Mode.freeze)})
    args = {"max_steps": 2, "learning_rate": 1e-2, "weight_decay": 0.1}
    training = make_training(GRAD_DIFF.method, tune=tune, batch_size=4, optimizer=build_optimizer, args=args)
    training.run()
    before = dict(pristine[0].named_parameters())
    marks = {"vision": ("vision_tower",), "projector": ("projector",), "language": ("language_model", "lm_head")}[frozen]
    moved = {name for name, value in training.model.named_parameters() if not torch.equal(value, before[name])}
    held = {name for name in before if any(mark in name for mark in marks)}
    unused = {name for name in before if "post_layernorm" in name or "vision_tower.encoder.layers.2." in name}
    assert held
    assert moved == before.keys() - held - unused


def test_parts_learn_at_their_own_rate(data, make_training, pristine):
    """The first step of Adam moves every weight by its learning rate, whatever the gradient."""
    tune = Tune(
        vision=PartTuning(mode=Mode.freeze),
        projector=PartTuning(mode=Mode.full, learning_rate=3e-3),
        language=PartTuning(mode=Mode.full),
    )
    args = {"max_steps": 1, "learning_rate": 1e-3, "adam_epsilon": 1e-12, "lr_scheduler_type": "constant"}
    training = make_training(FINE_TUNE.method, tune=tune, optimizer=build_optimizer, args=args)
    training.run()
    before = dict(pristine[0].named_parameters())
    after = dict(training.model.named_parameters())
    for name, rate in (("model.multi_modal_projector.linear_2.weight", 3e-3), ("lm_head.weight", 1e-3)):
        assert (after[name] - before[name]).abs().median().item() == pytest.approx(rate, rel=1e-2)


def test_the_learning_rate_follows_its_schedule_step_by_step(make_training):
    args = {"max_steps": 4, "learning_rate": 0.6, "warmup_steps": 1, "lr_scheduler_type": "linear"}
    training = make_training(GRAD_DIFF.method, optimizer=build_optimizer, args=args)
    training.run()
    lines = read_json_lines(training.log.path)
    assert [line["learning_rate"]["vision"] for line in lines] == pytest.approx([0.3, 0.6, 0.4, 0.2])
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]


def test_checkpoints_are_due_every_so_many_steps_but_not_at_the_end(make_training):
    saved = []
    training = make_training(GRAD_DIFF.method, args={"max_steps": 6, "save_steps": 2}, save=saved.append)
    training.run()
    assert saved == [2, 4], "the end is saved as a model"


def test_the_record_has_the_first_the_last_and_every_so_many_steps(make_training):
    training = make_training(GRAD_DIFF.method, args={"max_steps": 8, "logging_steps": 3})
    training.run()
    assert [line["step"] for line in read_json_lines(training.log.path)] == [1, 3, 6, 8]


def test_the_retain_loss_is_watched_where_no_term_needs_it(data, make_training, model, processor):
    with torch.no_grad():
        expected = Case(model, model, processor, data).nll("retain").item()
    training = make_training(GradAscent(), args={"max_steps": 1})
    training.run()
    assert read_json_lines(training.log.path)[0]["retain_loss"] == pytest.approx(expected, rel=1e-5)
    alone = make_training(GradAscent(), data=TrainingData(forget=data.forget), args={"max_steps": 1})
    alone.run()
    assert read_json_lines(alone.log.path)[-1]["retain_loss"] is None


@each_row
def test_a_term_that_is_not_finite_names_itself_and_the_examples(row, data, setup):
    chosen = setup(row, data, batch_size=1, accumulation=8, args={"max_steps": 1})
    with torch.no_grad():
        chosen.model.model.multi_modal_projector.linear_1.weight[0, 0] = math.nan  # met by examples with a picture only
    training = training_of(chosen)
    with pytest.raises(RunError) as caught:
        training.run()
    message = str(caught.value)
    named = [
        example
        for example in (*training.data.forget, *training.data.retain)
        if re.search(rf"(?<![\w-]){example.id}(?![\w-])", message)  # the micro-batch holds one example
    ]
    assert [example.image is not None for example in named] == [True]
    (term,) = (term for term in row.method.terms() if f"{term.name!r}" in message)
    assert named[0] in getattr(training.data, term.on)
    assert "nan" in message
    assert "learning_rate" in message


def test_a_failed_step_leaves_the_weights_alone(data, make_training, model):
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight[0, 0] = math.nan
    before = copy.deepcopy(model.lm_head.weight)
    training = make_training(
        GRAD_DIFF.method, batch_size=1, accumulation=8, optimizer=build_optimizer, args={"learning_rate": 1.0}
    )
    with pytest.raises(RunError):
        training.run()
    assert torch.equal(model.lm_head.weight, before)


def test_what_a_failed_run_left_in_a_model_does_not_reach_the_next(make_training, gradient, data):
    """`mmunlearn.unlearn` may be tried again on the same open model."""
    training = make_training(GradAscent(), args={"max_steps": 1})
    for parameter in training.model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan) if parameter.requires_grad else None
    training.run()
    assert relative_difference(training.optimizer.caught[0], gradient(GradAscent(), data)) < TOLERANCE


@dataclass(frozen=True)
class OneNumberInARow:
    """A method whose author has kept a dimension."""

    def prepare(self, model, reference, data):
        return Prepared()

    def terms(self):
        def loss(model, batch, prepared):
            return answer_nll(model, batch, prepared).reshape(1)

        return (Term(name="forget", on=Side.forget, weight=-1.0, loss=loss),)


def test_a_loss_may_have_one_dimension(data, gradient):
    assert relative_difference(gradient(OneNumberInARow(), data), gradient(GradAscent(), data)) < TOLERANCE


def test_number_of_steps(data, make_training):
    def steps(**args):
        return make_training(GRAD_DIFF.method, batch_size=2, accumulation=2, args=args).plan.total_steps

    assert steps(num_train_epochs=1) == 2
    assert steps(num_train_epochs=2.5) == 5
    assert steps(num_train_epochs=0.01) == 1
    assert steps(num_train_epochs=9, max_steps=3) == 3


def test_the_catcher_sees_what_the_loop_computes(make_training):
    """The test's own instrument: SGD with rate 1 moves the weights by exactly minus the caught gradient."""
    training = make_training(GRAD_DIFF.method, args={"max_steps": 1})
    assert isinstance(training.optimizer, GradientCatcher)
    before = {name: parameter.detach().clone() for name, parameter in training.model.named_parameters()}
    training.run()
    assert all(torch.equal(before[name], value) for name, value in training.model.named_parameters())
    moved = make_training(
        GRAD_DIFF.method,
        args={"max_steps": 1},
        optimizer=lambda model, family, tune, args: torch.optim.SGD(
            [{"params": [p for p in model.parameters() if p.requires_grad], "lr": 1.0, "peak": 1.0, "part": "language"}]
        ),
    )
    moved.run()
    caught = training.optimizer.caught[0]
    for name, value in moved.model.named_parameters():
        if name in caught:
            torch.testing.assert_close(before[name] - value, caught[name], rtol=1e-3, atol=1e-5)
