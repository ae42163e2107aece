"""Weights rounded to 8 and 4 bits: which, how far, and that everything else works as it does on unrounded ones."""

import copy
import importlib.util
import json
from dataclasses import replace
from unittest import mock

import pytest
import torch
from family_cases import each_family
from tiny_cases import CORPUS, FULL, LORA, SIZE, batch_of, make_examples, tiny_family
from torch import nn

from mmunlearn.config import Lora, ModelConfig, PartTuning, Tune
from mmunlearn.config_enums import Mode, Quantise
from mmunlearn.errors import ConfigError
from mmunlearn.models import quantise as quantise_module
from mmunlearn.models.families import LLAVA, Part, part_of
from mmunlearn.models.likelihood import answer_log_probs, answer_logits
from mmunlearn.models.load import deployable, load, model_fingerprint, read_card, save
from mmunlearn.models.quantise import GROUP, num_weights, quantisation_of, quantise, stored_as
from mmunlearn.models.tiny import build_tiny
from mmunlearn.models.tuning import apply_tuning, summarise

EXAMPLES = make_examples("case", 4)
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is an extra")
needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is an extra")
BITS = {Quantise.int8: 8, Quantise.int4: 4}
both = pytest.mark.parametrize("how", BITS)


def logits(model, processor):
    with torch.no_grad():
        return answer_logits(model, batch_of(processor, *EXAMPLES))


def by_hand(weight, how):
    """Round to nearest on a symmetric grid, written anew from its definition; and where a weight lies between two steps."""
    width, half = weight.shape[1], 2 ** (BITS[how] - 1)
    group = GROUP if how is Quantise.int4 and width % GROUP == 0 else width
    found, tie = torch.empty_like(weight), torch.zeros_like(weight, dtype=torch.bool)
    for row in range(len(weight)):
        for place in range(0, width, group):
            own = weight[row, place : place + group]
            step = own.abs().max() / (half - 0.5)
            found[row, place : place + group] = torch.clamp(torch.round(own / step), -half, half - 1) * step
            tie[row, place : place + group] = ((own / step).abs() % 1 - 0.5).abs() < 1e-4
    return found, tie


@pytest.fixture
def saved(model, processor, tmp_path):
    folder = tmp_path / "base"
    save(model, processor, folder, {"role": "vanilla"})
    return folder


@pytest.fixture
def adapter(saved, tmp_path):
    """The folder of an adapter that acts."""
    opened = load(ModelConfig(path=str(saved)))
    tuned = apply_tuning(opened.model, opened.family, LORA, Lora(r=2, dropout=0.0)).eval()
    dice = torch.Generator().manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=dice)
    save(tuned, opened.processor, tmp_path / "adapter", {"role": "unlearned", "method": "NPO"})
    return tmp_path / "adapter"


# --- int8 and int4 ---------------------------------------------------------------------------------------------------


@needs_torchao
@both
def test_linear_layers_are_rounded_to_the_nearest_and_nothing_else_changes(model, how):
    before = copy.deepcopy(model)
    quantise(model, how)
    head, widths = model.get_output_embeddings(), set()
    for name, module in before.named_modules():
        after = model.get_submodule(name)
        if isinstance(module, nn.Linear) and after is not head:
            widths.add(module.in_features % GROUP == 0)
            rounded = after.weight.dequantize()
            expected, tie = by_hand(module.weight.data, how)
            torch.testing.assert_close(rounded[~tie], expected[~tie], rtol=0, atol=1e-6)
            assert tie.float().mean() < 0.1
            assert not torch.equal(rounded, module.weight)
        for own, parameter in module.named_parameters(recurse=False):
            if own != "weight" or not isinstance(module, nn.Linear) or after is head:
                assert torch.equal(getattr(after, own), parameter), f"{name}.{own}"
    assert widths == {True, False}  # whole groups, and a row that is no multiple


@needs_torchao
@both
def test_what_is_rounded_when_opened_is_what_was_rounded_when_saved(how, saved, tmp_path):
    opened = load(ModelConfig(path=str(saved), quantise=how), merge=False)
    assert quantisation_of(opened.model) == how
    opened.model.save_pretrained(tmp_path / "rounded")
    opened.processor.save_pretrained(tmp_path / "rounded")
    again = load(ModelConfig(path=str(tmp_path / "rounded")), merge=False)
    assert quantisation_of(again.model) == stored_as(again.model.config) == how
    assert torch.equal(logits(again.model, again.processor), logits(opened.model, opened.processor))
    assert model_fingerprint(again.model) == model_fingerprint(opened.model)
    with pytest.raises(ConfigError, match="quantised already"):
        load(ModelConfig(path=str(tmp_path / "rounded"), quantise=how), merge=False)
    with pytest.raises(ConfigError, match="evaluated but not trained"):
        load(ModelConfig(path=str(tmp_path / "rounded")))


@needs_torchao
def test_every_way_of_rounding_is_another_model(saved):
    ways = [Quantise.none, Quantise.int8, Quantise.int4]
    models = [load(ModelConfig(path=str(saved), quantise=how), merge=False) for how in ways]
    assert len({model_fingerprint(opened.model) for opened in models}) == 3
    exact, eight, four = (logits(opened.model, opened.processor) for opened in models)
    assert 0 < (eight - exact).norm() < (four - exact).norm() / 5


@needs_torchao
def test_the_steps_of_the_grid_are_part_of_the_fingerprint(model):
    twice = copy.deepcopy(model)
    with torch.no_grad():
        twice.model.multi_modal_projector.linear_1.weight.mul_(2)  # the same integers, steps of twice the size
    for one in (model, twice):
        quantise(one, Quantise.int8)
    one, other = (each.model.multi_modal_projector.linear_1.weight for each in (model, twice))
    assert torch.equal(one.qdata, other.qdata)
    assert model_fingerprint(model) != model_fingerprint(twice)


@needs_torchao
def test_an_adapter_is_merged_before_it_is_rounded(adapter):
    merged = load(ModelConfig(path=str(adapter)))
    quantise(merged.model, Quantise.int8)
    rounded = load(ModelConfig(path=str(adapter), quantise=Quantise.int8), merge=False)
    assert model_fingerprint(rounded.model) == model_fingerprint(merged.model)
    assert not any("lora" in name for name, _ in rounded.model.named_parameters())


@needs_torchao
@pytest.mark.parametrize("name", each_family())
def test_every_family_is_stored_in_four_bits_and_opened_again(name, tmp_path):
    model, processor = tiny_family(name)
    batch = batch_of(processor, *EXAMPLES[:2])
    quantise(model, Quantise.int4)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = load(ModelConfig(path=str(tmp_path)), merge=False).model
    with torch.no_grad():
        assert torch.equal(answer_log_probs(again, batch), answer_log_probs(model, batch))


@both
def test_rounded_weights_are_not_trained(how, saved):
    with (
        mock.patch("importlib.util.find_spec", return_value=object()),
        pytest.raises(ConfigError, match=r"is for evaluation.*model.quantise=nf4"),
    ):
        load(ModelConfig(path=str(saved), quantise=how))


@pytest.mark.parametrize(("how", "extra"), [("int8", "quantise"), ("int4", "quantise"), ("nf4", "qlora")])
def test_a_missing_library_is_said_before_anything_is_loaded(how, extra):
    with (
        mock.patch("importlib.util.find_spec", return_value=None),
        pytest.raises(ConfigError, match=rf"model.quantise: {how} needs .* pip install 'mmunlearn\[{extra}\]'"),
    ):
        load(ModelConfig(path="outputs/not/there", quantise=how), merge=False)


@needs_torchao
def test_a_folder_that_is_stored_rounded_asks_for_the_library(model, processor, tmp_path):
    quantise(model, Quantise.int8)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with (
        mock.patch("mmunlearn.models.quantise.importlib.util.find_spec", return_value=None),
        pytest.raises(ConfigError, match="is stored quantised: int8 needs torchao"),
    ):
        load(ModelConfig(path=str(tmp_path)), merge=False)


def test_half_precision_is_rounded_once_after_merging(saved, adapter):
    settings = json.loads((saved / "config.json").read_text())
    assert settings["dtype"] == "float32"
    exact = load(ModelConfig(path=str(adapter))).model
    half = deployable(ModelConfig(path=str(adapter), dtype="bfloat16"))
    assert half.dtype is torch.bfloat16
    for (name, expected), (_, found) in zip(exact.named_parameters(), half.named_parameters(), strict=True):
        assert torch.equal(found, expected.bfloat16()), name
    for name, buffer in half.named_buffers():
        assert not buffer.is_floating_point() or buffer.dtype is torch.float32, name  # positions would lose their digits


# --- QLoRA -----------------------------------------------------------------------------------------------------------


WIDE = replace(SIZE, width=192, vision_width=64)
"""All rows are multiples of 64 long, which bitsandbytes reads rightly everywhere."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    save(*build_tiny(CORPUS, seed=0, size=WIDE), folder, {"role": "vanilla"})
    return folder


@needs_bitsandbytes
def test_weights_are_read_as_they_were_stored(wide):
    plain = load(ModelConfig(path=str(wide))).model
    rounded = load(nf4(wide)).model
    layers = {name: module for name, module in rounded.named_modules() if type(module).__name__ == "Linear4bit"}
    assert len(layers) > 20
    for name, module in layers.items():
        weight = plain.get_submodule(name).weight
        column = torch.eye(weight.shape[1])
        with torch.no_grad():
            found = module(column) - (module.bias if module.bias is not None else 0)
        assert 0.05 < float((found.T - weight).norm() / weight.norm()) < 0.15, name


@needs_bitsandbytes
def test_weights_that_are_read_otherwise_are_refused(wide, monkeypatch):
    """As bitsandbytes 0.50 does with rows of 416 numbers on some processors."""
    read = quantise_module._unpacked
    monkeypatch.setattr(quantise_module, "_unpacked", lambda weight, state: read(weight, state).roll(1))
    with pytest.raises(ConfigError, match=r"does not read the weights of .*_proj.* as it stored them"):
        load(nf4(wide))


def nf4(path, **settings):
    return ModelConfig(path=str(path), quantise=Quantise.nf4, **settings)


def steps(model, processor, count=3):
    """A few steps of plain training; the losses."""
    batch = batch_of(processor, *EXAMPLES)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(count):
        loss = -answer_log_probs(model, batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@needs_bitsandbytes
def test_an_adapter_is_trained_on_four_bits_and_opens_on_them_again(wide, tmp_path):
    opened = load(nf4(wide))
    assert quantisation_of(opened.model) == "nf4"
    frozen = {name: p.detach().clone() for name, p in opened.model.named_parameters() if "lora" not in name}
    tuned = apply_tuning(opened.model, LLAVA, LORA, Lora(r=4, dropout=0.0))
    losses = steps(tuned, opened.processor)
    assert losses[-1] < losses[0]
    after = {name: p for name, p in tuned.get_base_model().named_parameters() if "lora" not in name}
    assert {name.replace(".base_layer", "") for name in after} == frozen.keys()
    assert all(torch.equal(frozen[name.replace(".base_layer", "")], p) for name, p in after.items())
    save(tuned.eval(), opened.processor, tmp_path / "adapter", {"role": "unlearned"})
    assert read_card(str(tmp_path / "adapter")) == {"role": "unlearned", "base_quantised": "nf4", "base_dtype": "float32"}
    expected = logits(tuned, opened.processor)
    beside = load(ModelConfig(path=str(tmp_path / "adapter")), merge=False)  # nobody has to say nf4 again
    assert quantisation_of(beside.model) == "nf4"
    torch.testing.assert_close(logits(beside.model, opened.processor), expected, rtol=1e-5, atol=1e-5)
    whole = load(ModelConfig(path=str(tmp_path / "adapter")))
    assert quantisation_of(whole.model) == ""
    assert whole.model.dtype is torch.float32
    torch.testing.assert_close(logits(whole.model, opened.processor), expected, rtol=1e-4, atol=1e-4)


@needs_bitsandbytes
@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16"])
def test_the_base_is_rounded_from_the_format_in_which_the_adapter_was_trained(wide, tmp_path, asked):
    """The file is in float32: rounded from there, one weight in a hundred has another step, and all logits move."""
    opened = load(nf4(wide, dtype="bfloat16"))
    steps_of_base = {name: p.detach().clone() for name, p in opened.model.named_parameters() if p.dtype is torch.uint8}
    assert steps_of_base
    tuned = apply_tuning(opened.model, LLAVA, LORA, Lora(r=4, dropout=0.0))
    steps(tuned, opened.processor)
    save(tuned.eval(), opened.processor, tmp_path / "adapter", {"role": "unlearned"})
    expected = logits(tuned, opened.processor)
    beside = load(ModelConfig(path=str(tmp_path / "adapter"), dtype=asked), merge=False).model
    if asked == "float32":
        assert quantisation_of(beside) == "", "the same weights, written out"
    else:
        found = {name: p for name, p in beside.get_base_model().named_parameters() if p.dtype is torch.uint8}
        assert {name.replace(".base_layer", "") for name in found} == steps_of_base.keys()
        assert all(torch.equal(p, steps_of_base[name.replace(".base_layer", "")]) for name, p in found.items())
        assert torch.equal(logits(beside, opened.processor), expected)
    merged = load(ModelConfig(path=str(tmp_path / "adapter"), dtype=asked)).model
    assert merged.dtype is torch.float32
    for model in (beside, merged):
        off = (logits(model, opened.processor) - expected).norm() / expected.norm()
        assert float(off) < 0.03, "bfloat16's rounding alone"


@needs_bitsandbytes
def test_a_part_that_is_tuned_fully_stays_unrounded_and_the_table_counts_weights(wide):
    tune = Tune(projector=PartTuning(mode=Mode.full), language=PartTuning(mode=Mode.lora))
    opened = load(nf4(wide, tune=tune))
    kinds = {part: set() for part in Part}
    for name, module in opened.model.named_modules():
        if isinstance(module, nn.Linear):
            kinds[part_of(f"{name}.weight", LLAVA)].add(type(module).__name__)
    assert kinds == {Part.vision: {"Linear4bit"}, Part.projector: {"Linear"}, Part.language: {"Linear4bit", "Linear"}}
    plain = load(ModelConfig(path=str(wide))).model
    totals = [row.total for row in summarise(plain, LLAVA, tune)]
    assert [row.total for row in summarise(opened.model, LLAVA, tune)] == totals
    assert sum(map(num_weights, opened.model.parameters())) == sum(p.numel() for p in plain.parameters())
    apply_tuning(opened.model, LLAVA, tune, Lora(r=2))  # accepts the mixture


@needs_bitsandbytes
def test_all_parts_full_rounds_nothing_and_an_adapter_must_be_exported_first(saved, adapter):
    opened = load(nf4(saved, tune=FULL))
    assert not [module for module in opened.model.modules() if type(module).__name__ == "Linear4bit"]
    with pytest.raises(ConfigError, match=r"holds an adapter.*mmunlearn export"):
        load(nf4(adapter))
