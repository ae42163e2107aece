"""Adapters on weights in bfloat16, against float64 numbers and against PEFT's own branch in float32."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_cases import LORA, batch_of
from torch import nn

from mmunlearn.config import Lora, ModelConfig
from mmunlearn.models.bfloat_lora import BfloatLora, multiply_in_bfloat16
from mmunlearn.models.checkpointing import checkpoint_activations
from mmunlearn.models.families import LLAVA
from mmunlearn.models.likelihood import answer_log_probs
from mmunlearn.models.load import load, save
from mmunlearn.models.tuning import apply_tuning

TOKENS, INNER, OUTER, RANK = 48, 64, 96, 4


class One(nn.Module):
    """A model of one layer."""

    def __init__(self, dtype):
        super().__init__()
        self.layer = nn.Linear(INNER, OUTER, bias=False, dtype=dtype)

    def forward(self, x):
        return self.layer(x)


def one_layer(dtype=torch.bfloat16, *, ours=True):
    torch.manual_seed(0)
    settings = LoraConfig(r=RANK, lora_alpha=12, lora_dropout=0.0, target_modules=["layer"])
    model = get_peft_model(One(dtype), settings)
    nn.init.normal_(model.base_model.model.layer.lora_B["default"].weight, std=0.3)
    if ours:
        multiply_in_bfloat16(model)
    return model, model.base_model.model.layer


def run(model, layer, x, upstream):
    x = x.clone().requires_grad_()
    model.zero_grad()
    out = model(x)
    (out * upstream).sum().backward()
    return out.detach(), x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad


def relative(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def inputs():
    dice = torch.Generator().manual_seed(1)
    return torch.randn(TOKENS, INNER, generator=dice).bfloat16(), torch.randn(TOKENS, OUTER, generator=dice).bfloat16()


def test_outputs_and_gradients_are_those_of_the_formula_up_to_rounding():
    """x W^T + s x A^T B^T and its derivatives, in float64, from the same numbers."""
    model, layer = one_layer()
    x, upstream = inputs()
    found = run(model, layer, x, upstream)
    w, a, b = (
        weight.detach().double() for weight in (layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    )
    s, wide, g = 12 / RANK, x.double(), upstream.double()
    expected = (
        wide @ w.T + s * wide @ a.T @ b.T,
        g @ w + s * g @ b @ a,
        s * (g @ b).T @ wide,
        s * g.T @ (wide @ a.T),
    )
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert relative(one, other) < 6e-3, number
    assert all(gradient.dtype is torch.float32 for gradient in found[2:])


def kept_bytes(model, x):
    """Bytes of the tensors that the backward pass keeps, each storage once, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor.dtype, storage.nbytes(), tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return [(dtype, size) for dtype, size, _ in kept.values()]


def test_the_input_is_not_kept_a_second_time():
    x = inputs()[0].requires_grad_()
    (ours, _), (theirs, _) = one_layer(), one_layer(ours=False)
    assert (torch.float32, 4 * TOKENS * INNER) in kept_bytes(theirs, x)  # what PEFT does by itself
    wide = [size for dtype, size in kept_bytes(ours, x) if dtype is torch.float32]
    assert all(size < 4 * TOKENS * INNER for size in wide)
    assert sum(size for _, size in kept_bytes(ours, x)) < 0.7 * sum(size for _, size in kept_bytes(theirs, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_other_precisions_are_left_to_peft(dtype):
    _, layer = one_layer(dtype)
    assert not layer.lora_variant
    assert layer.cast_input_dtype_enabled


@pytest.mark.parametrize("how", [{"use_dora": True}, {"lora_bias": True}], ids=str)
def test_other_kinds_of_lora_are_left_to_peft(how):
    torch.manual_seed(0)
    model = get_peft_model(One(torch.bfloat16), LoraConfig(r=RANK, lora_alpha=64, target_modules=["layer"], **how))
    layer = model.base_model.model.layer
    for parameter in layer.lora_B["default"].parameters():
        nn.init.normal_(parameter, std=0.3)
    x, before = inputs()[0], dict(layer.lora_variant)
    with torch.no_grad():
        expected = model.eval()(x)
        multiply_in_bfloat16(model)
        assert torch.equal(model(x), expected)
    assert layer.lora_variant == before


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_draws_the_same_with_recomputed_activations(checkpointing, model, processor, examples):
    """Against the branch in float32, drawn with the same seed: gradients of adapters agree but for rounding."""

    def gradients(*, ours):
        torch.manual_seed(0)
        own = copy.deepcopy(model).bfloat16()
        tuned = apply_tuning(own, LLAVA, LORA, Lora(r=4, dropout=0.1)).train()
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05)
        if not ours:
            for layer in tuned.modules():
                if getattr(layer, "lora_variant", None):
                    layer.lora_variant.clear()
                    layer.cast_input_dtype_enabled = True
        if checkpointing:
            checkpoint_activations(tuned)
        torch.manual_seed(1)
        (-answer_log_probs(tuned, batch_of(processor, *examples)).mean()).backward()
        return torch.cat([p.grad.flatten() for p in tuned.parameters() if p.requires_grad])

    found, expected = gradients(ours=True), gradients(ours=False)
    assert found.dtype is torch.float32
    assert relative(found, expected) < 0.05


def test_merging_is_that_of_peft():
    (ours, own), (theirs, other) = one_layer(), one_layer(ours=False)
    ours.merge_adapter()
    theirs.merge_adapter()
    assert torch.equal(own.get_base_layer().weight, other.get_base_layer().weight)
    before = own.get_base_layer().weight.clone()
    ours.unmerge_adapter()
    theirs.unmerge_adapter()
    assert torch.equal(own.get_base_layer().weight, other.get_base_layer().weight)
    assert not torch.equal(own.get_base_layer().weight, before)
    ours.merge_adapter(safe_merge=True)
    assert relative(own.get_base_layer().weight, other.get_base_layer().weight + own.get_delta_weight("default")) < 6e-3


def adapted(model):
    """A model in bfloat16 with adapters that do something."""
    torch.manual_seed(0)
    tuned = apply_tuning(model, LLAVA, LORA, Lora(r=4, dropout=0.0))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return tuned.eval()


def test_a_whole_model_answers_as_with_branches_in_float32(model, processor, examples):
    tuned = adapted(model.bfloat16())
    layers = [module for module in tuned.modules() if getattr(module, "lora_variant", None)]
    assert layers
    assert all(isinstance(variant, BfloatLora) for layer in layers for variant in layer.lora_variant.values())
    batch = batch_of(processor, *examples)
    with torch.no_grad():
        ours = answer_log_probs(tuned, batch)
        with tuned.disable_adapter():
            without = answer_log_probs(tuned, batch)
        for layer in layers:
            layer.lora_variant.clear()
            layer.cast_input_dtype_enabled = True
        theirs = answer_log_probs(tuned, batch)
    effect = (theirs - without).norm()
    assert effect > 0.1
    assert (ours - theirs).norm() < 0.05 * effect


def test_an_adapter_that_was_saved_acts_with_the_same_bits(model, processor, examples, tmp_path):
    save(model.bfloat16(), processor, tmp_path / "base")
    base = load(ModelConfig(path=str(tmp_path / "base")))
    tuned = adapted(base.model)
    save(tuned, processor, tmp_path / "adapter")
    again = load(ModelConfig(path=str(tmp_path / "adapter")), merge=False)
    batch = batch_of(processor, *examples)
    with torch.no_grad():
        assert torch.equal(answer_log_probs(again.model, batch), answer_log_probs(tuned, batch))
