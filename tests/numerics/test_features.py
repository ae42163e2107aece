"""Pictures encoded once: the same numbers as from pixels, for every family, and refused wherever that could not be so."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from family_cases import each_family
from tiny_cases import (
    Setup,
    encoder_for,
    make_examples,
    other_pictures,
    relative_difference,
    tiny_family,
    tiny_model,
    training_of,
)

from mmunlearn.config import Lora, PartTuning, TrainerArgs, Tune
from mmunlearn.config_enums import Mode
from mmunlearn.data.batch import collate
from mmunlearn.errors import DataError, RunError
from mmunlearn.methods.base import Prepared, TrainingData
from mmunlearn.methods.grad_diff import GradDiff
from mmunlearn.methods.kl_min import KLMin
from mmunlearn.methods.npo import NPO
from mmunlearn.models.families import FAMILIES, LLAVA
from mmunlearn.models.image_features import FEATURES, PIXELS, ImageFeatures, why_not, with_pictures
from mmunlearn.models.likelihood import answer_logits
from mmunlearn.models.reference import Reference
from mmunlearn.models.tuning import apply_tuning
from mmunlearn.training.checkpoint import load_checkpoint, save_checkpoint
from mmunlearn.training.features import as_it_is, features_of, for_training
from mmunlearn.training.optimizer import build_optimizer

CPU = torch.device("cpu")
BLIND = {"mllama"}
"""Families that take no features in place of pixels."""
EXAMPLES = make_examples("case", 6)
DATA = TrainingData(forget=make_examples("forget", 4), retain=make_examples("retain", 4))
TOLERANCE = 1e-5
"""Relative, of losses and gradients: pictures are encoded one by one instead of together."""


def tune(vision=Mode.freeze, projector=Mode.freeze, language=Mode.full):
    return Tune(vision=PartTuning(mode=vision), projector=PartTuning(mode=projector), language=PartTuning(mode=language))


def features(model, family, processor, *sides, **settings):
    return ImageFeatures(
        model=model,
        family=family,
        encoder=encoder_for(processor),
        examples=with_pictures(*(sides or (EXAMPLES,))),
        device=CPU,
        **settings,
    )


def batch_of(processor, examples):
    encoder = encoder_for(processor)
    return collate([encoder(example) for example in examples], pad_token_id=encoder.pad_token_id)


@pytest.fixture(scope="module")
def llava():
    model, processor = tiny_model()
    return apply_tuning(model, LLAVA, tune(), Lora()), processor


@pytest.mark.parametrize("language", [Mode.full, Mode.lora])
@pytest.mark.parametrize("name", each_family(*BLIND))
def test_features_give_the_logits_and_gradients_of_the_pixels(name, language):
    model, processor = tiny_family(name)
    model = apply_tuning(model, FAMILIES[name], tune(language=language), Lora(r=2, dropout=0.0)).train()
    put_in = features(model, FAMILIES[name], processor)

    def found(batch):
        model.zero_grad()
        logits = answer_logits(model, batch)
        logits.square().sum().backward()
        return {"logits": logits.detach()}, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    for examples in (EXAMPLES, EXAMPLES[:1], EXAMPLES[1:2]):  # both kinds, one picture, none
        pixels = batch_of(processor, examples)
        given = put_in(pixels)
        assert not set(PIXELS) & given.inputs.keys()
        assert (FEATURES in given.inputs) == any(example.image is not None for example in examples)
        for one, other in zip(found(given), found(pixels), strict=True):
            assert relative_difference(one, other) < TOLERANCE
    assert put_in.encoded == sum(example.image is not None for example in EXAMPLES)


def test_every_family_is_looked_at():
    assert {name for name, family in FAMILIES.items() if not family.image_inputs} == BLIND


def test_another_picture_has_other_features(llava):
    model, processor = llava
    others = other_pictures(EXAMPLES)
    one, other = (features(model, LLAVA, processor, side)(batch_of(processor, side)) for side in (EXAMPLES, others))
    assert float((answer_logits(model, one) - answer_logits(model, other)).abs().max()) > 1e-4


def test_what_shares_a_batch_changes_no_bit_of_the_features(llava):
    model, processor = llava
    shown = tuple(example for example in EXAMPLES if example.image is not None)
    together = features(model, LLAVA, processor)(batch_of(processor, shown)).inputs[FEATURES]["image"].pooler_output
    for number, example in enumerate(shown):
        alone = features(model, LLAVA, processor)(batch_of(processor, [example])).inputs[FEATURES]["image"].pooler_output
        assert torch.equal(alone[0], together[number])


def test_a_full_memory_changes_nothing_but_the_work(llava):
    model, processor = llava
    batch, pictures = batch_of(processor, EXAMPLES), sum(example.image is not None for example in EXAMPLES)
    one_picture = features(model, LLAVA, processor)
    one_picture(batch_of(processor, EXAMPLES[:1]))
    expected = answer_logits(model, features(model, LLAVA, processor)(batch))
    for most, work in ((0, 3 * pictures), (one_picture.used, 3 * pictures - 2)):
        small = features(model, LLAVA, processor, most_bytes=most)
        for _ in range(3):
            assert torch.equal(answer_logits(model, small(batch)), expected)
        assert small.encoded == work
        assert small.used <= most


def test_features_of_another_precision_are_not_mixed_up(llava):
    model, processor = llava
    put_in, batch = features(model, LLAVA, processor), batch_of(processor, EXAMPLES)
    plain = put_in(batch).inputs[FEATURES]["image"].pooler_output[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = put_in(batch).inputs[FEATURES]["image"].pooler_output[0]
    assert torch.equal(put_in(batch).inputs[FEATURES]["image"].pooler_output[0], plain)
    assert not torch.equal(mixed.float(), plain)


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        (tune(vision=Mode.full), "vision is tuned"),
        (tune(projector=Mode.full), "projector is tuned"),
        (tune(projector=Mode.lora, language=Mode.lora), "projector is tuned"),
        (tune(vision=Mode.lora, projector=Mode.full), "projector and vision are tuned"),
    ],
)
def test_tuned_eyes_are_refused(chosen, named, tmp_path):
    model, processor = tiny_model()
    model = apply_tuning(model, LLAVA, chosen, Lora())
    assert why_not(model, LLAVA) == named
    with pytest.raises(RunError, match=named):
        features(model, LLAVA, processor)
    given, line = features_of(model, LLAVA, DATA, encoder_for(processor), TrainerArgs(), CPU, sharded=False)
    assert given is as_it_is
    assert named in line


def test_what_else_keeps_pictures_from_being_encoded_once(llava):
    model, processor = llava

    def line(*, data=DATA, family=LLAVA, model=model, sharded=False, **args):
        given, said = features_of(model, family, data, encoder_for(processor), TrainerArgs(**args), CPU, sharded=sharded)
        assert isinstance(given, ImageFeatures) == ("each encoded once" in said)
        return said

    assert "4, each encoded once" in line()
    assert "image_cache=off" in line(image_cache="off")
    assert "share the weights" in line(sharded=True)
    assert "mllama" in line(family=FAMILIES["mllama"])
    assert line(data=TrainingData(retain=make_examples("retain", 2, images="none"))) == "pictures: none"
    dropping = copy.deepcopy(model)
    dropping.config.vision_config.attention_dropout = 0.1
    assert "attention_dropout" in line(model=dropping)


def test_another_reference_that_sees_gets_the_pixels(llava):
    model, processor = llava
    put_in = features(model, LLAVA, processor)
    asked = Prepared(reference=Reference(model=model, encoder=encoder_for(processor)))
    assert for_training(put_in, "kept", asked, other_reference=False) == (put_in, "kept")
    assert for_training(put_in, "kept", Prepared(), other_reference=True) == (put_in, "kept")  # asked beforehand
    given, line = for_training(put_in, "kept", asked, other_reference=True)
    assert given is as_it_is
    assert "another model" in line


def test_one_id_for_two_pictures_is_an_error():
    with pytest.raises(DataError, match="case-0"):
        with_pictures(EXAMPLES, other_pictures(EXAMPLES))


STEPS = 5
METHODS = {"grad_diff": GradDiff(), "npo": NPO(retain_weight=1.0), "kl_min": KLMin()}


def training(method, folder, *, cached=True, save=lambda step: None, **settings):
    """Five steps of AdamW: more than one epoch of two steps."""
    torch.manual_seed(0)
    model, processor = tiny_model()
    args = {"max_steps": STEPS, "learning_rate": 1e-3, **settings.pop("args", {})}
    setup = Setup(
        METHODS[method], DATA, model, processor, folder, args=args, tune=tune(), save=save, **{"batch_size": 2, **settings}
    )
    setup.optimizer = build_optimizer
    made = training_of(setup)
    return replace(made, prepare_batch=features(made.model, LLAVA, processor, DATA.forget, DATA.retain)) if cached else made


def weights(made):
    return {name: p.detach().clone() for name, p in made.model.named_parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_the_same_as_with_pixels_and_encodes_each_picture_once(method, tmp_path):
    runs = [training(method, tmp_path / str(cached), cached=cached) for cached in (True, False)]
    before = weights(runs[0])
    for made in runs:
        made.run()
    assert runs[0].prepare_batch.encoded == 4
    ends = [{name: value - before[name] for name, value in weights(made).items()} for made in runs]
    assert relative_difference(*ends) < 1e-3  # AdamW divides by the size of a gradient, which enlarges rounding errors
    assert any(bool(value.abs().max() > 1e-4) for value in ends[0].values())


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    whole = training("kl_min", tmp_path / "whole")
    whole.run()

    def save(step):
        save_checkpoint(tmp_path / "kept", step=step, key="k", model=first.model, optimizer=first.optimizer, keep=1)
        raise KeyboardInterrupt

    first = training("kl_min", tmp_path / "cut", save=save, args={"save_steps": 3})
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = training("kl_min", tmp_path / "cut")
    assert load_checkpoint(tmp_path / "kept", key="k", model=second.model, optimizer=second.optimizer) == 3
    second.run(first_step=3)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(second).items())


def test_how_a_step_is_split_does_not_matter(tmp_path):
    ends = []
    for number, (size, accumulation) in enumerate(((4, 1), (2, 2), (1, 4))):
        made = training("grad_diff", tmp_path / str(number), batch_size=size, accumulation=accumulation, args={"max_steps": 1})
        before = weights(made)
        made.run()
        ends.append({name: value - before[name] for name, value in weights(made).items()})
    assert all(relative_difference(one, other) < 1e-3 for one, other in pairwise(ends))


def test_the_reference_reads_the_features_too(llava):
    model, processor = llava
    put_in = features(model, LLAVA, processor)
    asked = Reference(model=model, encoder=encoder_for(processor), prepare_batch=put_in)
    plain = Reference(model=model, encoder=encoder_for(processor))
    assert asked.log_likelihoods(EXAMPLES) == pytest.approx(plain.log_likelihoods(EXAMPLES), rel=1e-5)
    assert put_in.encoded == 3
