"""Gradient checkpointing: same bits, fewer kept bytes, and which operations are done twice."""

import copy
from collections import Counter

import pytest
import torch
from masked_cases import random_mask
from tiny_cases import FULL, LORA, batch_of
from torch.utils._python_dispatch import TorchDispatchMode

from mmunlearn.config import Lora
from mmunlearn.models import checkpointing
from mmunlearn.models.checkpointing import checkpoint_activations
from mmunlearn.models.families import LLAVA
from mmunlearn.models.likelihood import answer_log_probs
from mmunlearn.models.masked_lora import mask_adapter
from mmunlearn.models.tuning import apply_tuning

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default}


class Counting(TorchDispatchMode):
    """Counts operations."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.calls[operation] += 1
        return operation(*args, **(kwargs or {}))

    def total(self, operations):
        return sum(self.calls[operation] for operation in operations)


@pytest.fixture
def narrow(monkeypatch):
    """The tiny model's layers count as large, its adapters, of rank 4, as thin."""
    monkeypatch.setattr(checkpointing, "THIN", 8)


@pytest.fixture
def step(model, processor, examples):
    """Gradients of one pass and the operations of it, with and without checkpointing."""

    def run(how, tune, *, dtype=torch.float32, autocast=False, prepare=lambda tuned: None):
        torch.manual_seed(0)
        tuned = apply_tuning(copy.deepcopy(model).to(dtype), LLAVA, tune, Lora(r=4, dropout=0.1)).train()
        prepare(tuned)
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        if how != "kept":
            checkpoint_activations(tuned, selective=how == "selective")
        torch.manual_seed(1)
        with Counting() as counting:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = -answer_log_probs(tuned, batch_of(processor, *examples)).mean()
            loss.backward()
        gradients = {name: parameter.grad for name, parameter in tuned.named_parameters() if parameter.grad is not None}
        assert all(bool(gradient.any()) for name, gradient in gradients.items() if "lora_B" in name)
        return gradients, counting

    return run


@pytest.mark.parametrize("how", ["all", "selective"])
@pytest.mark.parametrize("tune", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.thorough), "autocast"])
def test_gradients_have_the_same_bits(how, precision, tune, step, narrow):
    """Dropout included: what is done again draws the same random numbers."""
    if tune is FULL and precision == "bfloat16":
        pytest.skip("weights in half precision are not tuned fully")
    settings = {"dtype": torch.bfloat16 if precision == "bfloat16" else torch.float32, "autocast": precision == "autocast"}
    expected, found = (step(each, tune, **settings)[0] for each in ("kept", how))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_gradients_of_masked_adapters_have_the_same_bits(step, narrow):
    expected, found = (
        step(each, LORA, prepare=lambda tuned: mask_adapter(tuned, random_mask(tuned)))[0] for each in ("kept", "selective")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_products_and_attention_are_not_done_again(step, narrow):
    """Without adapters, so without thin products: all of them again with `all`, none with `selective`."""
    kept, whole, selective = (step(how, FULL)[1] for how in ("kept", "all", "selective"))
    for operations in (PRODUCTS, ATTENTION):
        assert selective.total(operations) == kept.total(operations) < whole.total(operations)
    norms = {torch.ops.aten.rsqrt.default}
    assert selective.total(norms) > kept.total(norms)


def test_thin_products_of_adapters_are_done_again(step, narrow):
    kept, selective, whole = (step(how, LORA)[1].total(PRODUCTS) for how in ("kept", "selective", "all"))
    assert kept < selective < whole


def test_small_layers_are_done_again_altogether(step):
    """Without the fixture above: 256 is more than any side of this model's layers."""
    whole, selective = (step(how, LORA)[1].total(PRODUCTS) for how in ("all", "selective"))
    assert selective == whole
