"""Models that are not in the table: parts worked out from the model, or refused."""

import copy

import pytest
import torch
from family_cases import each_family
from tiny_cases import LORA, make_examples, tiny_family
from torch import nn

from mmunlearn.config import Lora, ModelConfig
from mmunlearn.errors import ConfigError
from mmunlearn.models import generic
from mmunlearn.models.families import FAMILIES, Part, part_of
from mmunlearn.models.generic import find_family, recognise
from mmunlearn.models.load import load, save
from mmunlearn.models.tuning import apply_tuning

BARE = {"gemma3"}


@pytest.fixture(params=each_family())
def known(request):
    return request.param, tiny_family(request.param)[0]


@pytest.fixture
def unlisted(monkeypatch):
    """As if the table were empty."""
    monkeypatch.setattr(generic, "FAMILIES", {})


def test_a_family_in_the_table_is_taken_from_it(known):
    name, model = known
    assert find_family(model) is FAMILIES[name]
    assert recognise(model) is FAMILIES[name]


def test_what_is_worked_out_equals_the_table(known, unlisted):
    """For every family that is in the table, the general way leads to the same parts and the same adapted layers."""
    name, model = known
    found, listed = recognise(model), FAMILIES[name]
    for own, _ in model.named_parameters():
        assert part_of(own, found) is part_of(own, listed), own
    assert found.lora_modules.keys() == listed.lora_modules.keys()
    both = [{own for own, p in adapted(model, family).named_parameters() if p.requires_grad} for family in (found, listed)]
    unused = {own for own in both[0] if own.removeprefix("base_model.model.").startswith(listed.unused(model.config))}
    assert both[0] - unused == both[1]
    (note,) = found.notes
    assert name in note
    assert "Not determined" in note


def adapted(model, family):
    part = "projector"
    tune = copy.deepcopy(LORA)
    if Part.projector not in family.lora_modules:
        getattr(tune, part).mode = "freeze"
    return apply_tuning(copy.deepcopy(model), family, tune, Lora(r=2))


def test_an_adapted_model_is_recognised_too(known, unlisted):
    _, model = known
    assert recognise(adapted(model, find_family(model))).prefixes == find_family(model).prefixes


def test_a_model_without_projector_is_refused(unlisted):
    model, _ = tiny_family("llava")
    model.model.bridge = model.model.multi_modal_projector
    del model.model.multi_modal_projector
    with pytest.raises(ConfigError, match=r"'llava', which is not in the table.*its projector cannot be found"):
        recognise(model)


def test_a_model_with_further_weights_is_refused(unlisted):
    model, _ = tiny_family("llava")
    model.model.audio = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"2 weights .*model\.audio\.weight \(none\)"):
        recognise(model)


def test_opening_an_unlisted_model_says_what_is_not_known(unlisted, tmp_path, capsys):
    save(*tiny_family("internvl"), tmp_path / "model", {})
    loaded = load(ModelConfig(path=str(tmp_path / "model")))
    said = " ".join(capsys.readouterr().err.split())
    assert "internvl is not in the table of families" in said
    assert "vision = model.vision_tower.embeddings" in said
    assert loaded.family.model_type == "internvl"


def test_text_rows_are_mended_once():
    model, _ = tiny_family("mllama")
    recognise(model), recognise(model)
    assert len(model.model._forward_pre_hooks) == 1


def test_without_mending_a_text_row_sees_a_neighbours_slot():
    """What `text_rows.py` says of transformers: if this fails, transformers has changed and the mending can go."""
    from tiny_cases import batch_of

    model, processor = tiny_family("mllama")
    examples = make_examples("case", 2)
    assert [example.image is None for example in examples] == [False, True]
    together, alone = batch_of(processor, *examples), batch_of(processor, examples[1])
    length = alone.labels.shape[1]

    def of_text_row():
        with torch.no_grad():
            return model(**together.inputs).logits[1, :length], model(**alone.inputs).logits[0]

    torch.testing.assert_close(*of_text_row(), rtol=1e-5, atol=1e-5)
    model.model._forward_pre_hooks.clear(), model.model._forward_pre_hooks_with_kwargs.clear()
    found, expected = of_text_row()
    assert float((found - expected).abs().max()) > 1e-3
