"""Questions of a micro-batch read together: the same losses and gradients as one row a question, and refused where not so."""

import copy
from dataclasses import replace

import pytest
import torch
from method_rows import EACH_ROW, GRAD_DIFF
from tiny_cases import (
    FULL,
    LORA,
    Setup,
    encoder_for,
    flat,
    make_examples,
    picture,
    random_mask,
    relative_difference,
    step_gradients,
    tiny_family,
    tiny_model,
    training_of,
)

from mmunlearn.config import Lora, PartTuning, TrainerArgs, Tune
from mmunlearn.config_enums import Mode
from mmunlearn.data.batch import collate
from mmunlearn.methods.base import TrainingData, divisible
from mmunlearn.methods.grad_diff import GradDiff
from mmunlearn.models.checkpointing import checkpoint_activations
from mmunlearn.models.families import FAMILIES, LLAVA
from mmunlearn.models.image_features import PIXELS
from mmunlearn.models.likelihood import all_logits, answer_log_probs, answer_tokens, sequence_counts
from mmunlearn.models.tuning import apply_tuning
from mmunlearn.training.features import features_of
from mmunlearn.training.loop import Windows
from mmunlearn.training.packing import packer_for

SHARING = [name for name, family in FAMILIES.items() if family.shares_prefix]
EACH = [pytest.param(name, marks=() if name == "llava" else pytest.mark.thorough) for name in SHARING]
TOLERANCE = 1e-6


def about_few(side):
    """Eight questions: three about one picture, two about another, one about a third, two without."""
    seed = sum(map(ord, side))
    shown = [None, picture(seed), picture(seed + 1), picture(seed), picture(seed), picture(seed + 1), picture(seed + 2), None]
    return tuple(replace(example, image=image) for example, image in zip(make_examples(side, 8), shown, strict=True))


DATA = TrainingData(forget=about_few("forget"), retain=about_few("retain"))


@pytest.fixture(scope="module")
def other_model():
    """A reference that is not the model in training, or its divergence and its ratio would be 0 in the first step."""
    return tiny_model(seed=1)[0].eval().requires_grad_(False)


def packed_batches(training, step=0):
    window = Windows(training.plan, training.data, training.encoder)[step]
    return [batch for pair in window for batch in pair.sides() if batch.packing is not None]


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", EACH_ROW, ids=str)
@pytest.mark.parametrize(("batch_size", "accumulation"), [pytest.param(8, 1, marks=pytest.mark.thorough), (4, 2)])
def test_packs_give_the_gradients_of_rows(row, batch_size, accumulation, pristine, other_model, tmp_path):
    def gradients(*, pack):
        model, processor = copy.deepcopy(pristine[0]), pristine[1]
        rest = {"schedule": row.schedule, "reference": other_model, "mask": random_mask(model)}
        size = {"batch_size": batch_size, "accumulation": accumulation, "group": True}
        setup = Setup(row.method, row.data(DATA), model, processor, tmp_path, pack=pack, **rest, **size)
        assert bool(packed_batches(training_of(replace(setup, model=copy.deepcopy(model))))) == (pack and divisible(row.method))
        caught = step_gradients(setup, len(row.steps))
        return {f"{number}/{name}": value for number, step in enumerate(caught) for name, value in step.items()}

    expected = gradients(pack=False)
    assert flat(expected).norm() > 0.1
    assert relative_difference(gradients(pack=True), expected) < TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tune", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("model_type", EACH)
def test_every_family_that_shares_gives_the_gradients_of_rows(model_type, tune, attention, tmp_path):
    pristine, processor = tiny_family(model_type)
    pristine.set_attn_implementation(attention)

    def gradient(*, pack):
        lora = Lora(r=2, dropout=0.0)
        setup = Setup(GRAD_DIFF.method, DATA, copy.deepcopy(pristine), processor, tmp_path, tune=tune, lora=lora, pack=pack)
        return step_gradients(setup, 1)[0]

    expected = gradient(pack=False)
    assert flat(expected).norm() > 0.01
    assert relative_difference(gradient(pack=True), expected) < TOLERANCE


def test_gradient_checkpointing_changes_nothing(pristine, tmp_path):
    def gradient(*, checkpointing):
        model = copy.deepcopy(pristine[0])
        if checkpointing:
            checkpoint_activations(model, selective=False)
        return step_gradients(Setup(GRAD_DIFF.method, DATA, model, pristine[1], tmp_path, pack=True), 1)[0]

    assert relative_difference(gradient(checkpointing=True), gradient(checkpointing=False)) < TOLERANCE


# --- one batch -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava():
    frozen = PartTuning(mode=Mode.freeze)
    model, processor = tiny_model()
    return apply_tuning(
        model, LLAVA, Tune(vision=frozen, projector=frozen, language=PartTuning(mode=Mode.full)), Lora()
    ), processor


def batches(llava, examples, **settings):
    """The same questions packed and in rows."""
    model, processor = llava
    encoder = encoder_for(processor, **settings)
    packer, _ = packer_for(model, LLAVA, encoder, divides=True, other_reference=False)
    encoded = [encoder(example) for example in examples]
    return packer.batch(examples, encoded), collate(encoded, pad_token_id=encoder.pad_token_id)


@pytest.mark.parametrize("answer_only", [True, False])
def test_each_token_has_the_likelihood_that_it_has_in_a_row(llava, answer_only):
    packed, rows = batches(llava, DATA.forget, answer_only=answer_only)
    assert packed.inputs["input_ids"].numel() < rows.inputs["input_ids"].numel()
    assert len(packed.inputs["pixel_values"]) == 3, "three pictures, each once"
    assert torch.equal(answer_tokens(packed), answer_tokens(rows))
    assert torch.equal(sequence_counts(packed), sequence_counts(rows))
    assert (packed.ids, packed.num_tokens, packed.step_tokens) == (rows.ids, rows.num_tokens, rows.step_tokens)
    found, expected = (answer_log_probs(llava[0], batch) for batch in (packed, rows))
    assert float((found - expected).abs().max()) < 1e-5


def test_the_same_question_twice_and_an_answer_that_goes_on_are_told_apart(llava):
    first = replace(DATA.forget[1], answer="Paris")
    questions = (first, replace(first, id="again"), replace(first, id="longer", answer="Paris in France"), DATA.forget[0])
    packed, rows = batches(llava, questions)
    found, expected = (answer_log_probs(llava[0], batch) for batch in (packed, rows))
    assert float((found - expected).abs().max()) < 1e-5


def test_another_picture_changes_the_loss_of_its_questions_and_of_no_other(llava):
    keys = DATA.forget[1].image.key
    asked = tuple(replace(e, image=picture(99)) if e.image and e.image.key == keys else e for e in DATA.forget)
    before, after = (answer_log_probs(llava[0], batches(llava, each)[0]) for each in (DATA.forget, asked))
    counts = sequence_counts(batches(llava, DATA.forget)[0]).tolist()
    for one, other, example in zip(before.split(counts), after.split(counts), DATA.forget, strict=True):
        moved = float((one - other).abs().max())
        assert moved > 1e-4 if example.image and example.image.key == keys else moved < 1e-5


def test_features_stand_for_each_picture_once(llava):
    model, processor = llava
    encoder = encoder_for(processor)
    prepare, line = features_of(model, LLAVA, DATA, encoder, TrainerArgs(), torch.device("cpu"), sharded=False)
    assert "each encoded once" in line
    packed, rows = batches(llava, DATA.forget)
    given = prepare(packed)
    assert not set(PIXELS) & given.inputs.keys()
    found, expected = (answer_log_probs(model, batch) for batch in (given, rows))
    assert float((found - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("model_type", ["qwen2_vl", pytest.param("qwen2_5_vl", marks=pytest.mark.thorough), "qwen3_vl"])
def test_features_stand_in_packs_where_positions_have_rows_and_columns(model_type):
    family, frozen = FAMILIES[model_type], PartTuning(mode=Mode.freeze)
    tune = Tune(vision=frozen, projector=frozen, language=PartTuning(mode=Mode.full))
    pristine, processor = tiny_family(model_type)
    model, encoder = apply_tuning(pristine, family, tune, Lora()), encoder_for(processor)
    prepare, line = features_of(model, family, DATA, encoder, TrainerArgs(), torch.device("cpu"), sharded=False)
    assert "each encoded once" in line
    encoded = [encoder(example) for example in DATA.forget]
    packed = packer_for(model, family, encoder, divides=True, other_reference=False)[0].batch(DATA.forget, encoded)
    rows = collate(encoded, pad_token_id=encoder.pad_token_id)
    found, expected = (answer_log_probs(model, batch) for batch in (prepare(packed), rows))
    assert float((found - expected).abs().max()) < 1e-5


def test_rows_are_kept_where_nothing_is_shared(llava):
    alone = tuple(replace(DATA.forget[1], id=str(number), image=picture(number)) for number in range(3))
    assert batches(llava, alone)[0] is None
    assert batches(llava, alone[:1])[0] is None


def test_logits_of_all_positions_are_not_asked_of_a_pack(llava):
    with pytest.raises(ValueError, match="one row a sequence"):
        all_logits(llava[0], batches(llava, DATA.forget)[0])


# --- where it is not done --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "lora", "settings", "reason"),
    [
        ("llava", None, {"divides": False, "other_reference": False}, "micro-batches whole"),
        ("llava", None, {"divides": True, "other_reference": True}, "another model"),
        ("llava", Lora(r=2, dropout=0.1), {"divides": True, "other_reference": False}, "model.peft.dropout=0"),
        ("gemma3", None, {"divides": True, "other_reference": False}, "depends on more"),
    ],
)
def test_the_reason_is_told(model_type, lora, settings, reason):
    model, processor = tiny_family(model_type)
    family = FAMILIES[model_type]
    model = apply_tuning(model, family, LORA if lora else FULL, lora or Lora())
    packer, line = packer_for(model, family, encoder_for(processor), **settings)
    assert packer is None
    assert reason in line


def test_a_language_part_that_drops_is_not_packed(pristine):
    model, processor = copy.deepcopy(pristine[0]), pristine[1]
    model.config.text_config.attention_dropout = 0.1
    assert packer_for(model, LLAVA, encoder_for(processor), divides=True, other_reference=False)[0] is None


def test_a_run_over_several_epochs_ends_with_the_weights_of_rows(pristine, tmp_path):
    def trained(*, pack):
        model = copy.deepcopy(pristine[0])
        settings = {"batch_size": 4, "group": True, "pack": pack, "args": {"num_train_epochs": 3}}
        sgd = {"optimizer": lambda model, family, tune, args: Steps(model)}
        training = training_of(Setup(GradDiff(), DATA, model, pristine[1], tmp_path, **settings, **sgd))
        training.run()
        return {name: value.detach().clone() for name, value in model.named_parameters()}

    before = dict(pristine[0].named_parameters())
    rows, packs = trained(pack=False), trained(pack=True)
    moved = {name: rows[name] - before[name].detach() for name in rows}
    assert relative_difference({name: packs[name] - before[name].detach() for name in packs}, moved) < 1e-5


class Steps(torch.optim.SGD):
    """Plain steps: Adam would blow the rounding of tiny gradients up."""

    def __init__(self, model):
        rate = 0.05
        super().__init__([{"params": list(model.parameters()), "lr": rate, "peak": rate, "part": "language"}])
