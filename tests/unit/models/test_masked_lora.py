import copy

import pytest
import torch
from masked_cases import (
    BELOW,
    CARD,
    adapted_shapes,
    away,
    bare,
    edited,
    factors,
    logits,
    random_mask,
    shaken,
    tuned_model,
    written_out,
)
from peft import LoraConfig, get_peft_model
from tiny_cases import LORA, batch_of, make_examples
from torch.func import functional_call

from mmunlearn.config import Lora
from mmunlearn.errors import ConfigError
from mmunlearn.models.checkpointing import checkpoint_activations
from mmunlearn.models.families import LLAVA
from mmunlearn.models.load import model_fingerprint
from mmunlearn.models.masked_lora import adapter_mask, mask_adapter
from mmunlearn.models.tuning import apply_tuning


@pytest.fixture
def plain(pristine):
    """The model without any adapter."""
    return copy.deepcopy(pristine[0]).eval()


@pytest.fixture
def masked(model):
    """The same model with a masked adapter that changes the answers."""
    tuned = tuned_model(model)
    mask_adapter(tuned, random_mask(tuned))
    return tuned


# --- what it computes ------------------------------------------------------------------------------------------------


def test_logits_are_those_of_a_model_with_the_masked_weights(plain, masked, processor):
    mask = adapter_mask(masked)
    expected = copy.deepcopy(plain)
    with torch.no_grad():
        for name, weight in written_out(plain, masked, mask, factors(masked)).items():
            expected.get_parameter(name).copy_(weight)
    assert (logits(masked, processor) - logits(plain, processor)).abs().max() > 0.1
    torch.testing.assert_close(logits(masked, processor), logits(expected, processor), rtol=0, atol=2e-5)


def test_gradients_of_the_adapter_are_those_of_the_formula(plain, masked, processor):
    """The whole model in float64, with torch's own gradient through W + m * s * B A."""
    masked, plain = masked.double(), plain.double().requires_grad_(False)
    batch = batch_of(processor, *make_examples("check", 4))
    inputs = batch.inputs | {"pixel_values": batch.inputs["pixel_values"].double()}
    masked(**inputs).logits.square().mean().backward()
    pairs = {name: [tensor.detach().clone().requires_grad_() for tensor in pair] for name, pair in factors(masked).items()}
    weights = written_out(plain, masked, adapter_mask(masked), pairs)
    functional_call(plain, weights, kwargs=inputs).logits.square().mean().backward()
    for name, pair in factors(masked).items():
        for found, expected in zip(pair, pairs[name], strict=True):
            assert expected.grad.abs().max() > 0, name
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-14)
    assert not [n for n, p in masked.named_parameters() if p.requires_grad and "lora_" not in n]


def test_another_mask_and_no_mask_give_other_answers(model, processor):
    tuned = tuned_model(model)
    unmasked = logits(tuned, processor)
    found = [unmasked]
    for seed in (0, 1):
        mask_adapter(tuned, random_mask(tuned, seed))
        assert all((logits(tuned, processor) - other).abs().max() > 0.05 for other in found)
        found.append(logits(tuned, processor))


def test_without_the_adapter_it_is_the_model_below_bit_for_bit(plain, masked, processor):
    with masked.disable_adapter():
        assert torch.equal(logits(masked, processor), logits(plain, processor))
    assert not torch.equal(logits(masked, processor), logits(plain, processor))


def test_recomputed_activations_give_the_same_gradient(masked, processor):
    batch = batch_of(processor, *make_examples("check", 4))

    def gradients():
        masked.zero_grad()
        masked.train()(**batch.inputs).logits.square().mean().backward()
        return [tensor.grad.clone() for pair in factors(masked).values() for tensor in pair]

    before = gradients()
    checkpoint_activations(masked)
    for found, expected in zip(gradients(), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_dropout_acts_on_the_adapter_alone_and_follows_the_seed(model, processor, plain):
    tuned = apply_tuning(model, LLAVA, LORA, Lora(r=4, alpha=10, dropout=0.5)).train()
    mask_adapter(tuned, random_mask(tuned))
    torch.testing.assert_close(logits(tuned, processor), logits(plain, processor), rtol=0, atol=0)  # B = 0
    shaken(tuned)

    def drawn(seed):
        torch.manual_seed(seed)
        return logits(tuned, processor)

    assert torch.equal(drawn(1), drawn(1))
    assert (drawn(1) - drawn(2)).abs().max() > 0.01
    assert (drawn(1) - logits(tuned.eval(), processor)).abs().max() > 0.01
    assert torch.equal(drawn(1), drawn(2)), "no dropout outside training"


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_half_precision(how, model, processor):
    """bfloat16 has 8 bits: logits and gradients agree with float32 to a few per cent."""
    tuned = tuned_model(model)
    mask_adapter(tuned, random_mask(tuned))
    batch = batch_of(processor, *make_examples("check", 4))

    def run(other):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast" and other is not tuned):
            result = other(**batch.inputs).logits.float()
        result.square().mean().backward()
        return [result.detach(), *(tensor.grad for pair in factors(other).values() for tensor in pair)]

    half = copy.deepcopy(tuned)
    if how == "weights":
        for name, parameter in half.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.bfloat16()
    for number, (found, expected) in enumerate(zip(run(half), run(tuned), strict=True)):
        assert found.dtype is torch.float32
        assert away(found, expected) < (0.05 if number == 0 else 0.15)


# --- merging ---------------------------------------------------------------------------------------------------------


def bits_of(tensor):
    return tensor.detach().contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


@pytest.mark.parametrize("safe", [True, False], ids=["safe", "in place"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_merging_moves_no_weight_outside_the_mask_by_one_bit(safe, dtype, model, processor):
    with torch.no_grad():
        model.get_parameter(BELOW).view(-1)[::3] = -0.0
    plain = copy.deepcopy(model).to(dtype).eval()
    tuned = tuned_model(model.to(dtype))
    mask = random_mask(tuned)
    mask_adapter(tuned, mask)
    expected, targets = logits(tuned, processor), written_out(plain.float(), tuned, mask, factors(tuned))
    merged = tuned.merge_and_unload(safe_merge=safe)
    own = dict(merged.named_parameters())
    for name, before in plain.to(dtype).named_parameters():
        if name not in mask.bits:
            assert torch.equal(bits_of(own[name]), bits_of(before)), name
            continue
        inside = mask.tensor(name)
        assert torch.equal(bits_of(own[name][~inside]), bits_of(before[~inside])), name
        assert (own[name][inside] != before[inside]).float().mean() > 0.9
        torch.testing.assert_close(
            own[name], targets[name].to(dtype), rtol=1e-2 if dtype is torch.bfloat16 else 1e-6, atol=1e-7
        )
    if dtype is torch.float32:
        torch.testing.assert_close(logits(merged, processor), expected, rtol=0, atol=2e-5)
    else:  # two ways of rounding
        assert away(logits(merged, processor), expected) < 0.05
    assert adapter_mask(merged) is None


def test_merging_in_half_precision_sums_in_float32(model):
    """Each merged weight is the bfloat16 number nearest to W + m * s * B A, but for a few that lie in the middle of two."""
    plain = copy.deepcopy(model).bfloat16()
    tuned = tuned_model(model.bfloat16())
    mask = random_mask(tuned)
    mask_adapter(tuned, mask)
    pairs = {name: [tensor.double() for tensor in pair] for name, pair in factors(tuned).items()}
    exact = written_out(plain.double(), tuned, mask, pairs)
    merged = tuned.merge_and_unload()
    for name, target in exact.items():
        assert (merged.get_parameter(name) == target.bfloat16()).float().mean() > 0.998, name


def test_unmerging_restores_the_weights(masked, plain, processor):
    expected = logits(masked, processor)
    masked.merge_adapter()
    torch.testing.assert_close(logits(masked, processor), expected, rtol=0, atol=2e-5)
    masked.unmerge_adapter()
    torch.testing.assert_close(logits(masked, processor), expected, rtol=0, atol=2e-5)
    mask, own = adapter_mask(masked), {bare(name): parameter for name, parameter in masked.named_parameters()}
    for name in mask.bits:
        before = plain.get_parameter(name)
        torch.testing.assert_close(own[name], before, rtol=0, atol=1e-6)
        outside = ~mask.tensor(name)
        assert torch.equal(own[name][outside], before[outside])


# --- the mask on the model -------------------------------------------------------------------------------------------


def test_the_model_gives_back_its_mask(model):
    tuned = tuned_model(model)
    assert adapter_mask(tuned) is None
    mask = random_mask(tuned, extra={"lm_head.weight": tuple(model.lm_head.weight.shape)})
    mask_adapter(tuned, mask)
    found = adapter_mask(tuned)
    assert found.shapes == adapted_shapes(tuned)
    assert found.card == CARD
    assert all(torch.equal(found.bits[name], mask.bits[name]) for name in found.bits)
    copied = adapter_mask(copy.deepcopy(tuned))
    assert all(torch.equal(copied.bits[name], mask.bits[name]) for name in found.bits)


def test_the_mask_is_packed_moves_with_the_model_and_stays_out_of_the_state(masked):
    layer = masked.base_model.model.model.language_model.layers[0].mlp.up_proj
    (buffer,) = (buffer for name, buffer in layer.named_buffers() if "bits" in name)
    assert buffer.dtype is torch.uint8
    assert buffer.numel() == -(-layer.base_layer.weight.numel() // 8)
    assert not [name for name in masked.state_dict() if "bits" in name]
    masked.bfloat16().to("meta")
    (moved,) = (buffer for name, buffer in layer.named_buffers() if "bits" in name)
    assert (moved.device.type, moved.dtype) == ("meta", torch.uint8)


def test_the_fingerprint_follows_the_mask(model):
    tuned = tuned_model(model)
    found = [model_fingerprint(tuned)]
    for seed in (0, 1):
        mask_adapter(tuned, random_mask(tuned, seed))
        found.append(model_fingerprint(tuned))
    assert len(set(found)) == 3
    mask_adapter(tuned, random_mask(tuned, 0))
    assert model_fingerprint(tuned) == found[1]


# --- what is refused -------------------------------------------------------------------------------------------------


def fill(value, part):
    return lambda tensors: [tensor.fill_(value) for name, tensor in tensors.items() if part in name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fill(True, "multi_modal_projector"), r"every weight of the projector part.*linear_1\.weight, .*linear_2\.weight"),
        (fill(False, "language_model"), r"no weight of the language part.*q_proj|no weight of the language part.*down_proj"),
        (lambda tensors: tensors.pop(BELOW), rf"says nothing about {BELOW}"),
        (lambda tensors: tensors.update({BELOW: tensors[BELOW][1:]}), rf"{BELOW} is not in it or of another shape"),
        (lambda tensors: tensors.update({BELOW: tensors[BELOW].T.contiguous()}), rf"{BELOW} is not in it or of another shape"),
        (lambda tensors: tensors.update({"h.0.c.weight": torch.ones(2, 2).bool()}), r"h\.0\.c\.weight is not in it"),
    ],
    ids=["all true", "all false", "uncovered", "shorter", "transposed", "unknown name"],
)
def test_a_mask_that_does_not_fit_is_refused_and_nothing_changes(change, message, model, processor):
    tuned = tuned_model(model)
    before = logits(tuned, processor)
    with pytest.raises(ConfigError, match=message):
        mask_adapter(tuned, edited(random_mask(tuned), change))
    assert adapter_mask(tuned) is None
    assert torch.equal(logits(tuned, processor), before)


def peft_model(model, **settings):
    return get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": r".*language_model.*\.up_proj", **settings}))


def with_two_adapters(model):
    tuned = peft_model(model)
    tuned.add_adapter("second", LoraConfig(r=2, target_modules=r".*language_model.*\.up_proj"))
    return tuned


def merged_in(model):
    tuned = peft_model(model)
    tuned.merge_adapter()
    return tuned


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: peft_model(model, target_modules=r".*embed_tokens"), r"embed_tokens cannot be masked.*Embedding"),
        (lambda model: peft_model(model, target_modules=r".*patch_embedding"), r"patch_embedding cannot be masked.*Conv2d"),
        (lambda model: peft_model(model, target_modules=r".*fc1", lora_bias=True), r"fc1 cannot be masked.*bias"),
        (lambda model: peft_model(model, use_dora=True), r"up_proj cannot be masked.*Dora"),
        (with_two_adapters, r"up_proj cannot be masked.*2 adapters \(default, second\)"),
        (merged_in, r"up_proj cannot be masked.*merged"),
        (lambda model: model, r"the model has none.*mode=lora"),
    ],
    ids=["embedding", "convolution", "bias", "variant", "two", "merged", "none"],
)
def test_an_adapter_that_cannot_be_masked_is_refused(make, message, model):
    tuned = make(model)
    with pytest.raises(ConfigError, match=message):
        mask_adapter(tuned, random_mask(tuned))
    assert adapter_mask(tuned) is None
