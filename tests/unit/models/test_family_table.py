import re
from dataclasses import replace

import pytest
import torch
from family_cases import each_family
from tiny_cases import SIZE, batch_of, tiny_family
from transformers import LlavaForConditionalGeneration

from mmunlearn.errors import ConfigError
from mmunlearn.methods.base import Prepared
from mmunlearn.methods.losses import answer_nll
from mmunlearn.models.families import FAMILIES, LLAVA, Part, check_parts, part_of
from mmunlearn.models.generic import find_family

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
    assert find_family(model) is LLAVA


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_find_linear_layers_in_every_part(name):
    family, (model, _) = FAMILIES[name], tiny_family(name)
    kinds = {path: type(module) for path, module in model.named_modules()}
    for part in Part:
        if part not in family.lora_modules:
            continue
        found = [path for path in kinds if re.fullmatch(family.lora_modules[part], path)]
        assert found
        assert {kinds[path] for path in found} == {torch.nn.Linear}
        assert {part_of(f"{path}.weight", family) for path in found} == {part}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_of_every_family_belongs_to_exactly_one_part(name):
    family, (model, _) = FAMILIES[name], tiny_family(name)
    names = [name for name, _ in model.named_parameters()]
    assert {part_of(name, family) for name in names} == set(Part)
    check_parts(names, family)
    check_parts([f"base_model.model.{name}" for name in names], family)


@pytest.mark.parametrize("name", FAMILIES)
def test_vision_and_language_are_what_transformers_takes_for_them(name):
    """`get_encoder` and `get_decoder` are transformers' own; Qwen's projector is a module inside its vision module."""
    family, (model, _) = FAMILIES[name], tiny_family(name)
    paths = {id(module): path for path, module in model.named_modules()}
    seeing, saying = paths[id(model.get_encoder("image"))], paths[id(model.get_decoder())]
    for own, _ in model.named_parameters():
        part = part_of(own, family)
        if part is Part.vision:
            assert own.startswith(f"{seeing}.")
        assert (part is Part.language) == own.startswith((f"{saying}.", "lm_head."))


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_is_what_the_model_class_declares(name):
    kind = type(tiny_family(name)[0])
    declared = {"eager": True, "sdpa": kind._supports_sdpa, "flash_attention_2": kind._supports_flash_attn}
    declared["flex_attention"] = kind._supports_flex_attn
    assert {mode for mode, works in declared.items() if works} == set(FAMILIES[name].attention)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", each_family())
def test_attention_runs_and_changes_nothing(attention, name, examples):
    model, processor = tiny_family(name)
    batch = batch_of(processor, *examples)
    with torch.no_grad():
        before = answer_nll(model, batch, Prepared())
        model.set_attn_implementation(attention)
        torch.testing.assert_close(answer_nll(model, batch, Prepared()), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", each_family())
def test_half_precision_runs(name, examples):
    model, processor = tiny_family(name)
    batch = batch_of(processor, *examples)
    with torch.no_grad():
        exact, half = answer_nll(model, batch, Prepared()), answer_nll(model.to(torch.bfloat16), batch, Prepared())
    torch.testing.assert_close(half, exact, rtol=0.02, atol=0.02)


def test_weights_of_no_part_or_of_two_are_refused():
    with pytest.raises(ConfigError, match=r"1 weights .*'qwen2_vl'.*model\.audio\.weight \(none\)"):
        check_parts(["model.audio.weight", "lm_head.weight"], FAMILIES["qwen2_vl"])
    torn = replace(LLAVA, prefixes={**LLAVA.prefixes, Part.projector: ("model.vision_tower.embeddings.",)})
    with pytest.raises(ConfigError, match=r"vision and projector"):
        check_parts(["model.vision_tower.embeddings.class_embedding"], torn)


@pytest.mark.parametrize("layer", [-1, -2, -3, 1, 3, [-2, -3], [1, -2]], ids=str)
def test_unused_weights_are_just_those_without_gradient(layer, model, processor, examples):
    config = model.config
    config.vision_feature_layer = layer
    torch.manual_seed(0)
    other = LlavaForConditionalGeneration(config)
    answer_nll(other, batch_of(processor, *examples), Prepared()).backward()
    unused = find_family(other).unused(config)
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
