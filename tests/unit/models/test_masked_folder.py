import copy
import json
import shutil

import pytest
import torch
from masked_cases import (
    AT_ONCE,
    BELOW,
    CARD,
    SETTINGS,
    away,
    edited,
    logits,
    random_mask,
    shaken,
)
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_cases import LORA
from transformers import AutoModelForImageTextToText

from mmunlearn.config import ModelConfig, PartTuning, Tune
from mmunlearn.config_enums import Mode
from mmunlearn.errors import ConfigError
from mmunlearn.models.families import LLAVA
from mmunlearn.models.load import load, save
from mmunlearn.models.masked_lora import adapter_mask, mask_adapter
from mmunlearn.models.saliency_mask import SaliencyMask, load_mask, save_mask
from mmunlearn.models.tuning import apply_tuning


@pytest.fixture
def plain(pristine):
    """The model without any adapter."""
    return copy.deepcopy(pristine[0]).eval()


@pytest.fixture(scope="module")
def saved(pristine, tmp_path_factory):
    """Folders `base` and `masked`, and the logits of the masked one."""
    root = tmp_path_factory.mktemp("masked")
    base, processor = copy.deepcopy(pristine)
    save(base, processor, root / "base")
    expected = next_adapter(root, "base", "masked", processor)
    return root, expected


def next_adapter(root, below, name, processor, *, seed=0, mask=True):
    """Train an adapter (or pretend to) on a saved model, save it, and return its logits."""
    opened = load(ModelConfig(path=str(root / below)))
    tuned = shaken(apply_tuning(opened.model, LLAVA, LORA, SETTINGS).eval(), seed)
    if mask:
        mask_adapter(tuned, random_mask(tuned, seed))
    save(tuned, processor, root / name, {"role": "unlearned"})
    return logits(tuned, processor)


@pytest.fixture
def folder(saved, tmp_path):
    """A saved masked adapter that the test may damage."""
    return shutil.copytree(saved[0] / "masked", tmp_path / "masked")


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "beside"])
def test_there_and_back(merge, saved, processor):
    root, expected = saved
    loaded = load(ModelConfig(path=str(root / "masked")), merge=merge)
    found = logits(loaded.model, processor)
    assert torch.equal(found, expected) or merge
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    carried = adapter_mask(loaded.model)
    assert (carried is None) == merge
    assert not loaded.model.training
    if carried:
        assert carried.card == CARD
        assert all(torch.equal(carried.bits[name], bits) for name, bits in random_mask(loaded.model).bits.items())
        assert not [name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    "first", [True, pytest.param(False, marks=pytest.mark.thorough)], ids=["on a masked one", "on a plain one"]
)
@pytest.mark.parametrize("second", [True, pytest.param(False, marks=pytest.mark.thorough)], ids=["masked", "plain"])
def test_an_adapter_on_an_adapter_keeps_both(first, second, saved, tmp_path, processor):
    shutil.copytree(saved[0] / "base", tmp_path / "base")
    next_adapter(tmp_path, "base", "first", processor, seed=1, mask=first)
    expected = next_adapter(tmp_path, "first", "second", processor, seed=2, mask=second)
    for merge in (True, False):
        again = load(ModelConfig(path=str(tmp_path / "second")), merge=merge)
        torch.testing.assert_close(logits(again.model, processor), expected, rtol=0, atol=3e-5)


def test_half_precision_follows_the_rule_of_plain_adapters(saved, processor):
    root, expected = saved
    merged = load(ModelConfig(path=str(root / "masked"), dtype="bfloat16"))
    beside = load(ModelConfig(path=str(root / "masked"), dtype="bfloat16"), merge=False)
    assert {parameter.dtype for parameter in merged.model.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(merged.model, processor), expected, rtol=0, atol=2e-5)
    types = {"lora_" in name: parameter.dtype for name, parameter in beside.model.named_parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    assert adapter_mask(beside.model) is not None
    assert away(logits(beside.model, processor), expected) < 0.05


def test_a_part_tuned_fully_beside_a_masked_adapter_is_saved_too(saved, tmp_path, processor):
    opened = load(ModelConfig(path=str(saved[0] / "base")))
    tune = Tune(projector=PartTuning(mode=Mode.full), language=PartTuning(mode=Mode.lora))
    tuned = shaken(apply_tuning(opened.model, LLAVA, tune, SETTINGS).eval())
    mask_adapter(tuned, random_mask(tuned))
    with torch.no_grad():
        tuned.get_parameter(f"base_model.model.{AT_ONCE}").add_(0.1)
    save(tuned, processor, tmp_path / "tuned")
    for merge in (True, False):
        again = load(ModelConfig(path=str(tmp_path / "tuned")), merge=merge)
        torch.testing.assert_close(logits(again.model, processor), logits(tuned, processor), rtol=0, atol=2e-5)


def test_other_loaders_fail_instead_of_leaving_the_mask_out(folder, plain):
    assert {file.name for file in folder.iterdir()} >= {"adapter_config.json", "mask.safetensors"}
    with pytest.raises((OSError, ValueError)):
        PeftModel.from_pretrained(plain, folder)
    with pytest.raises((OSError, ValueError)):
        AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)


def refusal(folder, merge=True):
    with pytest.raises(ConfigError) as caught:
        load(ModelConfig(path=str(folder)), merge=merge)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("merge", [True, False])
def test_without_its_mask_the_adapter_is_refused(merge, folder):
    (folder / "mask.safetensors").unlink()
    message = refusal(folder, merge)
    assert "mask.safetensors is missing" in message
    assert "Copy the whole folder again, or repeat the unlearning" in message


def test_plain_weights_beside_a_mask_are_refused(folder):
    """Someone renamed the file so that other programs find it."""
    (folder / "masked_adapter_model.safetensors").rename(folder / "adapter_model.safetensors")
    assert "stands beside the files of a masked one" in refusal(folder)


def test_a_mask_without_weights_is_refused(folder):
    (folder / "masked_adapter_model.safetensors").unlink()
    assert "masked_adapter_model.safetensors is missing" in refusal(folder)


@pytest.mark.parametrize("name", ["mask.safetensors", "masked_adapter_model.safetensors"])
def test_a_cut_off_file_is_refused(name, folder):
    file = folder / name
    file.write_bytes(file.read_bytes()[:-100])
    assert "Copy the whole folder again" in refusal(folder) or name != "mask.safetensors"


def change_mask(folder, change):
    file = folder / "mask.safetensors"
    save_mask(edited(load_mask(file), change), file)


def test_damaged_bits_are_refused_by_name(folder):
    mask = load_mask(folder / "mask.safetensors")
    broken = SaliencyMask(bits={**mask.bits, BELOW: mask.bits[BELOW][1:]}, shapes=mask.shapes, card=mask.card)
    save_mask(broken, folder / "mask.safetensors")
    assert f"bits of {BELOW} are damaged" in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [lambda tensors: tensors.update({BELOW: tensors[BELOW][1:]}), lambda tensors: tensors.pop(BELOW)],
    ids=["shape", "missing"],
)
def test_a_mask_of_another_model_is_refused_by_name(change, folder):
    change_mask(folder, change)
    message = refusal(folder)
    assert BELOW in message
    assert "is not the mask of this adapter. Copy the whole folder again" in message


def test_a_mask_of_the_same_shapes_that_was_not_trained_with_is_refused(folder):
    def flip_one(tensors):
        tensors[BELOW][0, 0] = ~tensors[BELOW][0, 0]

    change_mask(folder, flip_one)
    assert "is not the mask that masked_adapter_model.safetensors was trained with" in refusal(folder)


def edit_weights(folder, edit):
    file = folder / "masked_adapter_model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file)


@pytest.mark.parametrize(
    "edit",
    [
        lambda weights: weights.pop(next(iter(weights))),
        lambda weights: weights.update({"base_model.model.h.0.attn.lora_A.weight": weights.pop(next(iter(weights)))}),
        lambda weights: weights.update({"base_model.model.h.0.attn.lora_A.weight": torch.zeros(2, 2)}),
        lambda weights: weights.update({name: w[:2].clone() for name, w in weights.items() if "lora_A" in name}),
    ],
    ids=["missing", "other name", "unexpected", "shape"],
)
def test_weights_that_do_not_fit_are_refused(edit, folder):
    edit_weights(folder, edit)
    assert "adapter" in refusal(folder)


def test_the_model_below_is_found_by_the_settings(folder):
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "/no/such/model"}))
    with pytest.raises(ConfigError, match="/no/such/model"):
        load(ModelConfig(path=str(folder)))


def test_another_model_of_the_same_shape_below_is_refused(saved, folder, tmp_path):
    """Outside the mask it is another model, which the strict promise is about."""
    root, _ = saved
    other = load(ModelConfig(path=str(root / "base")))
    with torch.no_grad():
        own = dict(other.model.named_parameters())
        own[BELOW][0, 0] += 1e-3
    save(other.model, other.processor, tmp_path / "other")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(tmp_path / "other")}))
    with pytest.raises(ConfigError, match="not the one that it was trained on"):
        load(ModelConfig(path=str(folder)))
