"""An adapter that acts otherwise than when it was saved is refused, though every name and shape fits."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_cases import LORA, tiny_family

from mmunlearn.config import Lora, ModelConfig, PartTuning, Tune
from mmunlearn.config_enums import Mode
from mmunlearn.errors import ConfigError
from mmunlearn.models.adapter_probe import PROBE_FILE
from mmunlearn.models.load import load, save
from mmunlearn.models.tuning import apply_tuning

OTHER = r"says other things than when the adapter was saved.*delete .*probe\.json"


OTHERS = [pytest.param(name, marks=pytest.mark.thorough) for name in ("qwen2_vl", "mllama", "gemma3")]


@pytest.fixture(params=["llava", *OTHERS])
def folders(request, tmp_path):
    """A saved model and an adapter on it that acts."""
    save(*tiny_family(request.param), tmp_path / "base", {})
    loaded = load(ModelConfig(path=str(tmp_path / "base")))
    tune = Tune(vision=PartTuning(mode=Mode.lora), language=PartTuning(mode=Mode.lora))
    tuned = apply_tuning(loaded.model, loaded.family, tune, Lora(r=4, dropout=0.5)).train()
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=dice))
    save(tuned, loaded.processor, tmp_path / "adapter", {})
    assert tuned.training, "saving leaves the mode alone"
    return tmp_path / "base", tmp_path / "adapter"


def edit(file, change):
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("merge", [True, False])
def test_an_untouched_adapter_opens(merge, dtype, folders):
    load(ModelConfig(path=str(folders[1]), dtype=dtype), merge=merge)


def test_an_adapter_that_does_nothing_is_refused(folders):
    def switch_off(weights):
        for name, weight in weights.items():
            if "lora_B" in name:
                weight.zero_()

    edit(folders[1] / "adapter_model.safetensors", switch_off)
    with pytest.raises(ConfigError, match=OTHER):
        load(ModelConfig(path=str(folders[1])))


def test_a_model_below_that_was_trained_again_is_noticed(folders):
    # Not a mere factor: Gemma 3 normalises what comes out of these layers.
    edit(folders[0] / "model.safetensors", lambda w: [x.copy_(x.flip(0)) for n, x in w.items() if "up_proj.weight" in n])
    with pytest.raises(ConfigError, match=OTHER):
        load(ModelConfig(path=str(folders[1])))
    (folders[1] / PROBE_FILE).unlink()
    load(ModelConfig(path=str(folders[1])))


def test_a_probe_under_its_former_name_is_read(folders):
    (folders[1] / PROBE_FILE).rename(folders[1] / "probe.json")
    load(ModelConfig(path=str(folders[1])))
    edit(folders[0] / "model.safetensors", lambda w: [x.copy_(x.flip(0)) for n, x in w.items() if "up_proj.weight" in n])
    with pytest.raises(ConfigError, match=OTHER):
        load(ModelConfig(path=str(folders[1])))


def test_an_adapter_applied_at_another_strength_is_refused(folders):
    file = folders[1] / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"lora_alpha": 4 * settings["lora_alpha"]}))
    with pytest.raises(ConfigError, match=OTHER):
        load(ModelConfig(path=str(folders[1])))


@pytest.mark.parametrize("content", ["{", '{"with": [1.0]}', '{"with": "a", "without": "b", "dtype": 1}', "[]"])
def test_a_damaged_probe_is_named(content, folders):
    (folders[1] / PROBE_FILE).write_text(content)
    with pytest.raises(ConfigError, match=r"adapter_probe\.json is damaged"):
        load(ModelConfig(path=str(folders[1])))


def test_an_adapter_that_has_learned_nothing_opens(tmp_path):
    save(*tiny_family("llava"), tmp_path / "base", {})
    loaded = load(ModelConfig(path=str(tmp_path / "base")))
    save(apply_tuning(loaded.model, loaded.family, LORA, Lora(r=2)), loaded.processor, tmp_path / "adapter", {})
    record = json.loads((tmp_path / "adapter" / PROBE_FILE).read_text())
    assert record["with"] == record["without"]
    load(ModelConfig(path=str(tmp_path / "adapter")), merge=False)
