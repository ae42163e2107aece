import errno
import json
import shutil

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_cases import LORA, SIZE, batch_of, make_examples, tiny_model

from mmunlearn.config import Lora, ModelConfig, PartTuning, Tune
from mmunlearn.config_enums import Mode
from mmunlearn.errors import ConfigError, RunError
from mmunlearn.models.families import LLAVA
from mmunlearn.models.load import load, load_max_length, load_processor, model_fingerprint, read_card, save
from mmunlearn.models.tuning import apply_tuning

CARD = {"role": "vanilla", "method": "FineTune", "seed": 3}


def logits(model, processor):
    with torch.no_grad():
        return model(**batch_of(processor, *make_examples("check", 4)).inputs).logits


@pytest.fixture(scope="session")
def saved_once(pristine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save(*pristine, folder, CARD)
    return folder


@pytest.fixture
def folder(saved_once, tmp_path):
    """A saved model that the test may damage."""
    return shutil.copytree(saved_once, tmp_path / "model")


@pytest.fixture
def adapter(saved_once, processor, tmp_path):
    """A saved adapter on that model, with weights that change the answers, and the logits that it should give."""
    loaded = load(ModelConfig(path=str(saved_once)))
    tuned = apply_tuning(loaded.model, LLAVA, LORA, Lora(r=4, alpha=8, dropout=0.1)).eval()
    plain = logits(tuned, processor)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted = logits(tuned, processor)
    assert (adapted - plain).abs().max() > 0.1
    save(tuned, processor, tmp_path / "adapter", {"role": "unlearned"})
    return tmp_path / "adapter", adapted


def edit_weights(folder, edit, name="model.safetensors"):
    weights = load_file(folder / name)
    edit(weights)
    save_file(weights, folder / name, metadata={"format": "pt"})


# --- there and back --------------------------------------------------------------------------------------------------


def test_a_saved_model_gives_bit_equal_logits(folder, model, processor):
    loaded = load(ModelConfig(path=str(folder)))
    assert torch.equal(logits(loaded.model, loaded.processor), logits(model, processor))
    assert model_fingerprint(loaded.model) == model_fingerprint(model)
    assert loaded.max_length == load_max_length(ModelConfig(path=str(folder))) == SIZE.max_length
    assert loaded.family is LLAVA
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_a_saved_processor_encodes_alike(folder, processor, examples):
    before = batch_of(processor, *examples)
    after = batch_of(load_processor(ModelConfig(path=str(folder))), *examples)
    assert torch.equal(before.labels, after.labels)
    assert before.inputs.keys() == after.inputs.keys()
    for key, value in before.inputs.items():
        assert torch.equal(value, after.inputs[key]), key


def test_the_card_is_kept(folder, tmp_path):
    assert read_card(str(folder)) == CARD
    assert read_card(str(tmp_path / "nowhere")) == {}


def test_dtype(folder):
    loaded = load(ModelConfig(path=str(folder), dtype="bfloat16"))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    with pytest.raises(ConfigError, match=r"model\.dtype.*'float99'"):
        load(ModelConfig(path=str(folder), dtype="float99"))


def test_weights_without_processor_take_it_from_elsewhere(folder, saved_once, processor):
    for file in folder.iterdir():
        if file.name not in ("model.safetensors", "config.json", "generation_config.json"):
            file.unlink()
    with pytest.raises(ConfigError, match=r"(?i)processor"):
        load(ModelConfig(path=str(folder)))
    loaded = load(ModelConfig(path=str(folder), processor=str(saved_once)))
    assert loaded.processor.chat_template == processor.chat_template


# --- adapters --------------------------------------------------------------------------------------------------------


def test_an_adapter_folder_loads_merged(adapter, processor):
    path, expected = adapter
    loaded = load(ModelConfig(path=str(path)))
    torch.testing.assert_close(logits(loaded.model, processor), expected, rtol=0, atol=1e-5)
    assert not [name for name, _ in loaded.model.named_parameters() if "lora" in name]
    assert type(loaded.model).__name__ == "LlavaForConditionalGeneration"
    assert loaded.max_length == load_max_length(ModelConfig(path=str(path))) == SIZE.max_length


def test_a_merged_adapter_can_be_adapted_again(adapter, processor):
    path, expected = adapter
    loaded = load(ModelConfig(path=str(path)))
    again = apply_tuning(loaded.model, loaded.family, LORA, Lora(r=2)).eval()
    torch.testing.assert_close(logits(again, processor), expected, rtol=0, atol=3e-5)  # merged: W + BA is rounded


def test_an_adapter_with_a_missing_weight_is_refused(adapter):
    path, _ = adapter
    edit_weights(path, lambda weights: weights.pop(next(iter(weights))), "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"adapter does not fit"):
        load(ModelConfig(path=str(path)))


def test_an_adapter_for_other_names_is_refused(adapter):
    path, _ = adapter

    def rename(weights):
        weights["base_model.model.transformer.h.0.attn.lora_A.weight"] = weights.pop(next(iter(weights)))

    edit_weights(path, rename, "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"adapter does not fit"):
        load(ModelConfig(path=str(path)))


def test_an_adapter_whose_model_is_gone_is_refused(adapter):
    path, _ = adapter
    settings = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "/no/such/model"}))
    with pytest.raises(ConfigError, match="/no/such/model"):
        load(ModelConfig(path=str(path)))


def test_an_adapter_of_another_shape_is_refused(adapter):
    path, _ = adapter
    edit_weights(
        path,
        lambda weights: weights.update({name: w[:2] for name, w in weights.items() if "lora_A" in name}),
        "adapter_model.safetensors",
    )
    with pytest.raises(ConfigError, match=rf"{path}.*adapter"):
        load(ModelConfig(path=str(path)))


def test_a_cut_off_adapter_is_refused(adapter):
    path, _ = adapter
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=rf"{path}.*adapter"):
        load(ModelConfig(path=str(path)))


# --- what is refused -------------------------------------------------------------------------------------------------


def test_missing_weights_are_refused_and_not_made_up(folder):
    edit_weights(folder, lambda weights: weights.pop(next(name for name in weights if "projector" in name)))
    with pytest.raises(ConfigError, match=r"missing keys: .*projector"):
        load(ModelConfig(path=str(folder)))


def test_unexpected_weights_are_refused(folder):
    edit_weights(folder, lambda weights: weights.update(surplus=torch.zeros(2)))
    with pytest.raises(ConfigError, match="unexpected keys: surplus"):
        load(ModelConfig(path=str(folder)))


def test_weights_of_another_shape_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] += 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"mismatched keys: .*mlp"):
        load(ModelConfig(path=str(folder)))


def test_a_cut_off_weight_file_is_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=str(folder)):
        load(ModelConfig(path=str(folder)))


def test_a_damaged_configuration_is_refused(folder):
    (folder / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(ConfigError, match=str(folder)):
        load(ModelConfig(path=str(folder)))


def test_another_architecture_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config["text_config"]))
    with pytest.raises(ConfigError):
        load(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("read", [load, load_processor, load_max_length], ids=lambda read: read.__name__)
@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "outputs/never-trained/model"])
def test_a_folder_that_does_not_exist_is_refused(path, read):
    with pytest.raises(ConfigError, match=rf"{path} does not exist"):
        read(ModelConfig(path=path))


@pytest.mark.parametrize("read", [load, load_processor], ids=lambda read: read.__name__)
def test_a_hub_id_out_of_reach_says_how_to_go_on(read):
    """Tests run with HF_HUB_OFFLINE=1, so this asks no network."""
    with pytest.raises(ConfigError, match=r"no-such/model-here.*model\.path=.*mmunlearn demo"):
        read(ModelConfig(name="no-such/model-here"))


def test_no_model_named(folder):
    with pytest.raises(ConfigError, match=r"model\.path is empty"):
        load(ModelConfig())


def test_a_path_wins_over_a_name(folder):
    assert load_max_length(ModelConfig(name="no-such/model-here", path=str(folder))) == SIZE.max_length


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load(ModelConfig(path=str(tmp_path)))


def test_a_processor_without_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"chat template.*model\.processor"):
        load_processor(ModelConfig(path=str(folder)))


# --- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # What safetensors really raises; it is no OSError.
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "safetensors"],
)
def test_a_full_disk_leaves_the_earlier_model(failure, folder, model, processor, monkeypatch):
    def full_disk(path, **settings):
        (path / "model.safetensors").write_bytes(b"half")
        raise failure

    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(model, "save_pretrained", full_disk)
    with pytest.raises(RunError, match="no space left"):
        save(model, processor, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"], "no litter"


def test_saving_replaces_the_whole_folder(folder, model, processor):
    (folder / "leftover.bin").write_bytes(b"old")
    save(model, processor, folder)
    assert not (folder / "leftover.bin").exists()
    assert read_card(str(folder)) == {}


# --- fingerprints ----------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_every_weight(model):
    before = model_fingerprint(model)
    assert before == model_fingerprint(tiny_model()[0])
    for name in ("lm_head.weight", "model.vision_tower.embeddings.class_embedding", "model.language_model.norm.weight"):
        with torch.no_grad():
            weight = model.get_parameter(name)
            kept = weight.clone()
            weight.view(-1)[-1] += 1e-3
            assert model_fingerprint(model) != before, name
            weight.copy_(kept)
    assert model_fingerprint(model) == before


def test_the_fingerprint_follows_names_shapes_and_order():
    """The bytes alone are the same everywhere here."""
    numbers = torch.arange(6.0)
    contents = [{"a": numbers}, {"b": numbers}, {"a": numbers.view(2, 3)}, {"a": numbers.view(3, 2)}]
    contents += [{"a": numbers[:3], "b": numbers[3:]}, {"a": numbers.view(torch.int32)}]
    modules = [torch.nn.Module() for _ in contents]
    for module, tensors in zip(modules, contents, strict=True):
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
    assert len({model_fingerprint(module) for module in modules}) == len(contents)


def test_the_fingerprint_follows_places_and_types(model):
    before = model_fingerprint(model)
    with torch.no_grad():
        projector = model.model.multi_modal_projector
        projector.linear_1.weight.fill_(0.5), projector.linear_2.weight.fill_(0.25)
        first = model_fingerprint(model)
        projector.linear_1.weight.fill_(0.25), projector.linear_2.weight.fill_(0.5)
        assert len({before, first, model_fingerprint(model)}) == 3
    assert model_fingerprint(model.to(torch.bfloat16)) != before
    assert len(before) == 16
    int(before, 16)


# --- adapters ------------------------------------------------------


def test_a_part_tuned_fully_beside_an_adapter_is_saved_too(tmp_path, model, processor):
    save(model, processor, tmp_path / "base")
    opened = load(ModelConfig(path=str(tmp_path / "base")))
    tune = Tune(projector=PartTuning(mode=Mode.full), language=PartTuning(mode=Mode.lora))
    tuned = apply_tuning(opened.model, opened.family, tune, Lora(dropout=0.0)).eval()
    shake(tuned)
    expected = logits(tuned, processor)
    save(tuned, processor, tmp_path / "tuned")
    for merge in (True, False):
        again = load(ModelConfig(path=str(tmp_path / "tuned")), merge=merge)
        torch.testing.assert_close(logits(again.model, processor), expected, rtol=0, atol=2e-5)


def test_an_adapter_on_an_adapter_keeps_both(tmp_path, model, processor):
    save(model, processor, tmp_path / "base")
    below = "base"
    for name in ("vanilla", "unlearned"):
        opened = load(ModelConfig(path=str(tmp_path / below)))
        tuned = apply_tuning(opened.model, opened.family, Tune(), Lora(dropout=0.0)).eval()
        shake(tuned)
        expected = logits(tuned, processor)
        save(tuned, processor, tmp_path / name)
        below = name
    for merge in (True, False):
        again = load(ModelConfig(path=str(tmp_path / "unlearned")), merge=merge)
        torch.testing.assert_close(logits(again.model, processor), expected, rtol=0, atol=2e-5)


def test_merging_in_half_precision_is_done_in_float32(tmp_path, model, processor):
    save(model, processor, tmp_path / "base")
    opened = load(ModelConfig(path=str(tmp_path / "base"), dtype="bfloat16"))
    save(apply_tuning(opened.model, opened.family, Tune(), Lora()), processor, tmp_path / "adapter")
    merged = load(ModelConfig(path=str(tmp_path / "adapter"), dtype="bfloat16"))
    beside = load(ModelConfig(path=str(tmp_path / "adapter"), dtype="bfloat16"), merge=False)
    assert {parameter.dtype for parameter in merged.model.parameters()} == {torch.float32}
    assert torch.bfloat16 in {parameter.dtype for parameter in beside.model.parameters()}


def shake(model):
    """Give every weight that is tuned another value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
