from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_cases import SIZE, batch_of
from transformers import LlavaForConditionalGeneration

from mmunlearn.errors import ConfigError
from mmunlearn.methods.base import Prepared
from mmunlearn.methods.losses import answer_nll
from mmunlearn.models.families import FAMILIES, LLAVA, Part, family_of, part_of

PARTS_OF_NAMES = {
    "model.vision_tower.embeddings.class_embedding": Part.vision,
    "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight": Part.vision,
    "model.multi_modal_projector.linear_1.bias": Part.projector,
    "model.language_model.embed_tokens.weight": Part.language,
    "model.language_model.layers.1.mlp.up_proj.weight": Part.language,
    "lm_head.weight": Part.language,
}


@pytest.mark.parametrize(("name", "part"), PARTS_OF_NAMES.items())
def test_part_of_a_name(name, part):
    assert part_of(name, LLAVA) is part
    assert part_of(f"base_model.model.{name}", LLAVA) is part
    adapted = "base_model.model." + name.replace(".weight", ".lora_A.default.weight")
    assert part_of(adapted, LLAVA) is part


def test_every_weight_belongs_to_exactly_one_part(model):
    names = [name for name, _ in model.named_parameters()]
    assert {part_of(name, LLAVA) for name in names} == set(Part)
    for name in names:
        assert sum(name.startswith(prefixes) for prefixes in LLAVA.prefixes.values()) == 1, name


def test_a_name_of_no_part_is_refused():
    with pytest.raises(ConfigError, match=r"model\.audio_tower\.weight.*llava"):
        part_of("model.audio_tower.weight", LLAVA)


def test_family_by_model_type(model):
    assert family_of(model.config) is LLAVA
    with pytest.raises(ConfigError, match=r"llava_nxt.*families\.py.*Did you mean 'llava'"):
        family_of(SimpleNamespace(model_type="llava_nxt"))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
def test_adapters_find_linear_layers_in_every_part(family, model):
    import re

    kinds = {name: type(module) for name, module in model.named_modules()}
    for part in Part:
        found = [name for name in kinds if re.fullmatch(family.lora_modules[part], name)]
        assert found
        assert {kinds[name] for name in found} == {torch.nn.Linear}
        assert {part_of(f"{name}.weight", family) for name in found} == {part}


@pytest.mark.parametrize("layer", [-1, -2, -3, 1, 3, [-2, -3], [1, -2]], ids=str)
def test_unused_weights_are_just_those_without_gradient(layer, model, processor, examples):
    config = model.config
    config.vision_feature_layer = layer
    torch.manual_seed(0)
    other = LlavaForConditionalGeneration(config)
    answer_nll(other, batch_of(processor, *examples), Prepared()).backward()
    unused = family_of(config).unused(config)
    without = {name for name, parameter in other.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in other.named_parameters() if name.startswith(unused)}
    for name, parameter in other.named_parameters():
        if parameter.grad is not None and not name.endswith("k_proj.bias"):  # softmax ignores what all keys share
            assert parameter.grad.abs().max() > 1e-12, name


def test_a_text_without_picture_reaches_the_language_part_only(model, processor, examples):
    answer_nll(model, batch_of(processor, *[replace(example, image=None) for example in examples]), Prepared()).backward()
    reached = {part_of(name, LLAVA) for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {Part.language}


def test_the_size_of_the_test_model_leaves_layers_unused():
    """Otherwise the tests above would pass with nothing to find."""
    assert SIZE.vision_layers > 2
