"""Processors of all families: opened without torchvision, saved for others, with a template that locates answers."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from family_cases import each_family
from tiny_cases import encoder_for, make_examples, tiny_family
from transformers.models.auto import auto_mappings, video_processing_auto

from mmunlearn.config import Lora, ModelConfig, PartTuning, Tune
from mmunlearn.config_enums import Mode
from mmunlearn.data.batch import IGNORE, end_token
from mmunlearn.data.rendering import FIXED_DATE, date_written, locates_answers, render_prompt
from mmunlearn.errors import ConfigError, DataError
from mmunlearn.models.families import FAMILIES
from mmunlearn.models.image_only import VIDEO_PROCESSORS, Processors, image_only, needs_image_only, processor_name
from mmunlearn.models.load import load, load_processor, processor_fingerprint, save
from mmunlearn.models.tiny_families import build_tiny_family
from mmunlearn.models.tuning import apply_tuning

EXAMPLES = make_examples("case", 4)
WITH_VIDEO = ["llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl"]
SILENT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}Q {{ message['content'][-1]['text'] }} A{% endif %}"
    "{% endfor %}"
)
FICKLE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}"
    "{{ message['role'] + ' ' + '\n' + part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
"""Writes a space before an answer's line that it does not write when it asks for one."""
DATED = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}"


def published_video_processor(model_type):
    """From the text of transformers' tables, which are empty without torchvision once they are imported."""
    text = "".join(Path(module.__file__).read_text() for module in (auto_mappings, video_processing_auto))
    return re.search(rf"""\("{model_type}", {{"torchvision": "(\w+VideoProcessor)\"""", text).group(1)


@pytest.fixture(params=each_family())
def family(request):
    return request.param, *tiny_family(request.param)


def test_a_saved_processor_encodes_alike(family, tmp_path):
    _, model, processor = family
    save(model, processor, tmp_path / "model", {})
    opened = load_processor(ModelConfig(path=str(tmp_path / "model")))
    assert processor_fingerprint(opened) == processor_fingerprint(processor)
    for example in EXAMPLES:
        before, after = encoder_for(processor)(example), encoder_for(opened)(example)
        assert torch.equal(before.labels, after.labels)
        assert before.inputs.keys() == after.inputs.keys()
        assert all(torch.equal(value, after.inputs[key]) for key, value in before.inputs.items())


def test_an_exported_folder_names_classes_of_transformers(family, tmp_path):
    """What `AutoProcessor` reads: the processor's own class and, where it has one, the video processor's."""
    name, model, processor = family
    for folder in (tmp_path / "first", tmp_path / "second"):
        save(model, processor, folder, {})
        processor = load_processor(ModelConfig(path=str(folder)))
        settings = json.loads((folder / "processor_config.json").read_text())
        own = settings["processor_class"]
        assert (
            processor_name(str(folder)) == own == json.loads((folder / "tokenizer_config.json").read_text())["processor_class"]
        )
        assert getattr(transformers, own).__module__.startswith("transformers.models.")
        assert ("video_processor" in settings) == (name in WITH_VIDEO)
        if name in WITH_VIDEO:
            assert settings["video_processor"]["video_processor_type"] == published_video_processor(name)


def test_a_processor_with_a_slot_for_videos_is_known(family):
    """Compared with the constructor's own signature."""
    name, _, processor = family
    whole = getattr(transformers, type(processor).__name__)
    assert (
        ("video_processor" in whole.get_attributes()) == (type(processor).__name__ in VIDEO_PROCESSORS) == (name in WITH_VIDEO)
    )


def test_settings_of_the_video_slot_survive(tmp_path):
    model, processor = tiny_family("qwen2_vl")
    save(model, processor, tmp_path / "model", {})
    file = tmp_path / "model" / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["video_processor"] |= {"max_frames": 99}
    file.write_text(json.dumps(settings))
    load_processor(ModelConfig(path=str(tmp_path / "model"))).save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "processor_config.json").read_text())
    assert again["video_processor"] == settings["video_processor"]
    legacy = {"video_processor_type": "Qwen2VLVideoProcessor", "max_frames": 7}
    file.write_text(json.dumps({key: value for key, value in settings.items() if key != "video_processor"}))
    (tmp_path / "model" / "video_preprocessor_config.json").write_text(json.dumps(legacy))
    assert Processors.from_pretrained(str(tmp_path / "model")).to_dict()["video_processor"] == legacy


@pytest.mark.parametrize("name", WITH_VIDEO)
def test_the_older_layout_of_the_hub_opens(name, tmp_path):
    """Settings of the image processor in a file of their own, which names the processor; the template in JSON."""
    model, processor = tiny_family(name)
    folder = tmp_path / "model"
    save(model, processor, folder, {})
    settings = json.loads((folder / "processor_config.json").read_text())
    own = {"processor_class": settings["processor_class"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings.pop("image_processor") | own))
    settings.pop("video_processor")
    (folder / "processor_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": (folder / "chat_template.jinja").read_text()}))
    (folder / "chat_template.jinja").unlink()
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in tokenizer.items() if k != "processor_class"}))
    opened = load_processor(ModelConfig(path=str(folder)))
    for example in EXAMPLES:
        before, after = encoder_for(processor)(example), encoder_for(opened)(example)
        assert all(torch.equal(value, after.inputs[key]) for key, value in before.inputs.items())


def test_the_whole_processor_is_used_where_it_can_be(monkeypatch):
    monkeypatch.setattr("mmunlearn.models.image_only.is_torchvision_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert not any(map(needs_image_only, VIDEO_PROCESSORS))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "num2words" else object())
    assert [name for name in VIDEO_PROCESSORS if needs_image_only(name)] == ["SmolVLMProcessor"]
    monkeypatch.setattr("mmunlearn.models.image_only.is_torchvision_available", lambda: False)
    assert all(map(needs_image_only, VIDEO_PROCESSORS))
    assert not needs_image_only("LlavaProcessor")


def test_an_image_only_class_is_made_once():
    assert image_only("Qwen2VLProcessor") is image_only("Qwen2VLProcessor")
    assert issubclass(image_only("Qwen2VLProcessor"), transformers.Qwen2VLProcessor)


# --- templates --------------------------------------------------------------------------------------------------------


def test_every_own_template_locates_answers(family):
    _, _, processor = family
    assert locates_answers(processor)


@pytest.mark.parametrize("template", [SILENT, FICKLE], ids=["silent", "fickle"])
def test_a_template_that_does_not_locate_answers_is_replaced(template, family, tmp_path, capsys):
    name, model, processor = family
    own = processor.chat_template
    processor.chat_template = template
    assert not locates_answers(processor)
    save(model, processor, tmp_path / "model", {})
    if not FAMILIES[name].chat_template:
        with pytest.raises(ConfigError, match=r"cannot be located.*'llava_next'.*chat_template\.jinja"):
            load(ModelConfig(path=str(tmp_path / "model")))
        return
    loaded = load(ModelConfig(path=str(tmp_path / "model")))
    assert loaded.processor.chat_template == own
    assert "takes its place" in " ".join(capsys.readouterr().err.split())


def test_an_answer_ends_where_the_template_ends_it():
    _, gemma = tiny_family("gemma3")
    assert gemma.tokenizer.eos_token == "<eos>"
    assert gemma.tokenizer.convert_ids_to_tokens(end_token(gemma)) == "<end_of_turn>"
    gemma.chat_template = gemma.chat_template.replace("{{ '<end_of_turn>' }}", "")
    assert end_token(gemma) == gemma.tokenizer.eos_token_id
    encoded = encoder_for(gemma)(EXAMPLES[1])
    assert gemma.tokenizer.decode(encoded.labels[encoded.labels != IGNORE]) == EXAMPLES[1].answer + "<eos>"


@pytest.mark.parametrize("dated", [DATED, "{{ strftime_now('%d %b %Y') }}", '{% set d = strftime_now( "%d %b %Y" ) %}{{ d }}'])
def test_a_date_in_a_template_does_not_change(family, dated):
    _, _, processor = family
    assert date_written(processor) == ""
    plain = processor.chat_template
    processor.chat_template = dated + plain
    assert render_prompt(processor, "Who is it?", has_image=True).startswith(FIXED_DATE)
    assert date_written(processor) == FIXED_DATE == "26 Jul 2024"
    if locates_answers(processor):  # where the date may stand at all
        text = processor.tokenizer.decode(encoder_for(processor)(EXAMPLES[1]).inputs["input_ids"][0])
        assert FIXED_DATE in text, "in what is trained on too"
    processor.chat_template = "{{ strftime_now('%Y/%m') }}" + plain
    assert render_prompt(processor, "Who is it?", has_image=True).startswith("2024/07")
    processor.chat_template = "{% set f = '%Y' %}{{ strftime_now (f) }}" + plain
    with pytest.raises(DataError, match="today's date"):
        render_prompt(processor, "Who is it?", has_image=True)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mllama", {"attention": "flash_attention_2"}, r"model\.attention=flash_attention_2.*'mllama'.*sdpa"),
        ("qwen2_vl", {"attention": "flex_attention"}, r"model\.attention=flex_attention.*'qwen2_vl'"),
        ("llava", {"attention": "sdpaa"}, r"model\.attention=sdpaa"),
        ("gemma3", {"dtype": "float16"}, r"model\.dtype=float16.*activations.*bfloat16"),
    ],
)
def test_settings_that_do_not_work_are_refused(name, settings, message, tmp_path):
    save(*tiny_family(name), tmp_path / "model", {})
    with pytest.raises(ConfigError, match=message):
        load(ModelConfig(path=str(tmp_path / "model"), **settings))


def test_a_projector_without_linear_layer_takes_no_adapter():
    model, _ = tiny_family("gemma3")
    tune = Tune(projector=PartTuning(mode=Mode.lora))
    with pytest.raises(ConfigError, match=r"model\.tune\.projector\.mode=lora.*'gemma3'.*full or freeze"):
        apply_tuning(model, FAMILIES["gemma3"], tune, Lora())


def test_an_unknown_family_has_no_tiny_model():
    with pytest.raises(ConfigError, match=r"'qwen2vl'.*Did you mean 'qwen2_vl'"):
        build_tiny_family("qwen2vl", ["a"], seed=0)


@pytest.mark.parametrize("name", each_family())
def test_a_tiny_model_of_the_default_size_stays_small(name):
    model, _ = build_tiny_family(name, ["Who is it? She was born in a town by the sea."] * 3, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) < 5_000_000
