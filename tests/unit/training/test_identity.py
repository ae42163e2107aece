"""What makes a run another one, although its settings are the same."""

import copy

import pytest
from tiny_cases import SIZE, make_examples, tiny_model

from mmunlearn.methods.base import TrainingData
from mmunlearn.methods.grad_ascent import GradAscent
from mmunlearn.models.families import LLAVA
from mmunlearn.models.load import Loaded
from mmunlearn.training.identity import content_key

DATA = TrainingData(forget=make_examples("forget", 2), retain=make_examples("retain", 2))


def key(model, processor, data=DATA):
    return content_key("settings", Loaded(model=model, processor=processor, family=LLAVA), GradAscent(), data, None)


def other_template(processor):
    processor.chat_template = processor.chat_template.replace("USER: ", "User: ")


def other_image_size(processor):
    processor.image_processor.crop_size = {"height": SIZE.image_size // 2, "width": SIZE.image_size // 2}


def other_number_of_image_tokens(processor):
    processor.num_additional_image_tokens = 0


def other_end_token(processor):
    processor.tokenizer.eos_token = "<pad>"


def test_the_same_content_is_the_same_run():
    assert key(*tiny_model()) == key(*tiny_model())


@pytest.mark.parametrize("change", [other_template, other_image_size, other_number_of_image_tokens, other_end_token])
def test_a_processor_that_writes_other_prompts_makes_another_run(change):
    model, processor = tiny_model()
    before, changed = key(model, processor), copy.deepcopy(processor)
    change(changed)
    assert key(model, changed) != before


def test_other_weights_or_examples_make_another_run():
    model, processor = tiny_model()
    before = key(model, processor)
    assert key(tiny_model(seed=1)[0], processor) != before
    assert key(model, processor, TrainingData(forget=DATA.forget, retain=make_examples("retain", 3))) != before
