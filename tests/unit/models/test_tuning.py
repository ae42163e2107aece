import math
import re
from dataclasses import replace

import pytest
import torch
from tiny_cases import FULL, LORA, batch_of, encoder_for

from mmunlearn.config import Lora, PartTuning, Tune
from mmunlearn.config_enums import Mode
from mmunlearn.data.batch import collate
from mmunlearn.errors import ConfigError
from mmunlearn.methods.base import Prepared
from mmunlearn.methods.losses import answer_nll
from mmunlearn.models.checkpointing import checkpoint_activations
from mmunlearn.models.families import LLAVA, Part
from mmunlearn.models.tuning import apply_tuning, modes, summarise, trainable

NONE = Tune(language=PartTuning(mode=Mode.freeze))
MARKS = {
    Part.vision: ("vision_tower",),
    Part.projector: ("multi_modal_projector",),
    Part.language: ("language_model", "lm_head"),
}
UNUSED = ("vision_tower.post_layernorm", "vision_tower.encoder.layers.2.")


def tune(**modes_by_part):
    return replace(NONE, **{part: PartTuning(mode=Mode(mode)) for part, mode in modes_by_part.items()})


def free(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("part", list(Part))
def test_full_tuning_frees_one_part_but_for_what_no_gradient_reaches(part, model):
    names = {name for name, _ in model.named_parameters()}
    tuned = apply_tuning(model, LLAVA, tune(**{part: "full"}), Lora())
    assert tuned is model
    assert free(tuned) == {name for name in names if any(m in name for m in MARKS[part]) and not any(u in name for u in UNUSED)}


@pytest.mark.parametrize("part", list(Part))
def test_adapters_go_into_one_part_and_nothing_else_is_free(part, model):
    tuned = apply_tuning(model, LLAVA, tune(**{part: "lora"}), Lora(r=3))
    found = free(tuned)
    assert found
    assert all("lora_" in name and any(mark in name for mark in MARKS[part]) for name in found)
    assert not any(unused in name for name in found for unused in UNUSED)
    layers = {"vision": 2 * 6, "projector": 2, "language": 2 * 7}[part]
    assert len(found) == 2 * layers
    for name, parameter in tuned.named_parameters():
        if "lora_A" in name:
            assert parameter.shape[0] == 3


def test_parts_may_differ_in_mode(model):
    tuned = apply_tuning(model, LLAVA, tune(projector="full", language="lora"), Lora())
    assert {name for name in free(tuned) if "lora_" not in name} == {
        f"base_model.model.model.multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")
    }
    assert [name for name in free(tuned) if "lora_" in name and "language_model" in name]
    assert modes(tune(projector="full", language="lora")) == {
        Part.vision: Mode.freeze,
        Part.projector: Mode.full,
        Part.language: Mode.lora,
    }


def test_fresh_adapters_change_no_answer(model, processor, examples):
    batch = batch_of(processor, *examples)
    with torch.no_grad():
        before = answer_nll(model, batch, Prepared())
        after = answer_nll(apply_tuning(model, LLAVA, LORA, Lora()).eval(), batch, Prepared())
    assert torch.equal(before, after)


def test_adapter_settings_reach_the_layers(model):
    """One layer's output equals W x + alpha / r * B A x, written out."""
    tuned = apply_tuning(model, LLAVA, tune(language="lora"), Lora(r=4, alpha=10, dropout=0.25)).eval()
    layer = tuned.base_model.model.model.language_model.layers[0].mlp.up_proj
    assert {type(module).__name__: getattr(module, "p", None) for module in layer.lora_dropout.values()} == {"Dropout": 0.25}
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        x = torch.randn(5, 32)
        delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        expected = x @ layer.base_layer.weight.T + 10 / 4 * x @ delta.T
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("chosen", [FULL, LORA, tune(vision="full", language="lora"), tune(projector="full")], ids=range(4))
def test_the_table_counts_every_weight(chosen, model):
    tuned = apply_tuning(model, LLAVA, chosen, Lora(r=2))
    rows = {row.part: row for row in summarise(tuned, LLAVA, chosen)}
    assert sum(row.total for row in rows.values()) == sum(parameter.numel() for parameter in tuned.parameters())
    for part, row in rows.items():
        own = [parameter for name, parameter in tuned.named_parameters() if any(mark in name for mark in MARKS[part])]
        assert row.mode is Mode(getattr(chosen, part).mode)
        assert row.total == sum(math.prod(parameter.shape) for parameter in own)
        assert row.trainable == sum(math.prod(parameter.shape) for parameter in own if parameter.requires_grad)
        assert row.tensors == sum(parameter.requires_grad for parameter in own)
        assert (row.tensors == 0) == (row.mode is Mode.freeze)


def test_trainable_weights_by_part(model):
    tuned = apply_tuning(model, LLAVA, tune(vision="full", language="lora"), Lora())
    found = trainable(tuned, LLAVA)
    assert list(found) == [Part.vision, Part.language]
    assert {name for own in found.values() for name, _ in own} == free(tuned)


def test_a_part_in_which_nothing_would_be_trained_is_refused(model):
    """As when a family's table of names does not fit: here, every projector module is called unused."""
    broken = replace(LLAVA, unused=lambda config: ("model.multi_modal_projector.",))
    with pytest.raises(ConfigError, match=r"model\.tune\.projector\.mode=full.*freeze"):
        apply_tuning(model, broken, tune(projector="full", language="full"), Lora())


def test_adapters_without_a_layer_to_adapt_are_refused(model):
    broken = replace(LLAVA, lora_modules={**LLAVA.lora_modules, Part.vision: r"model\.no_such_tower\..*"})
    with pytest.raises(ConfigError, match=r"model\.tune\.vision\.mode=lora"):
        apply_tuning(model, broken, LORA, Lora())


@pytest.mark.parametrize("chosen", [FULL, tune(language="lora"), tune(vision="lora")], ids=["full", "language", "vision"])
def test_recomputed_activations_give_the_same_gradient(chosen, model, processor, examples):
    """Also where a frozen embedding asks for no gradient, which cuts recomputed blocks off if nobody cares."""
    encoder = encoder_for(processor)
    batch = collate([encoder(example) for example in examples], pad_token_id=encoder.pad_token_id)
    tuned = apply_tuning(model, LLAVA, chosen, Lora(r=2, dropout=0.0)).train()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)

    def gradients():
        tuned.zero_grad()
        answer_nll(tuned, batch, Prepared()).backward()
        return {name: parameter.grad.clone() for name, parameter in tuned.named_parameters() if parameter.requires_grad}

    plain = gradients()
    checkpoint_activations(tuned)
    calls = []
    handle = next(
        m for n, m in tuned.named_modules() if re.search(r"language_model\.layers\.0\.input_layernorm$", n)
    ).register_forward_pre_hook(lambda *args: calls.append(1))
    recomputed = gradients()
    handle.remove()
    assert len(calls) == 2, "the block ran forward twice"
    for name, value in plain.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-5, atol=1e-7)
        assert value.abs().max() > 0 or name.endswith("k_proj.bias")
