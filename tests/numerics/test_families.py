"""What every family must keep to, on a small random model of each: the matrix of families.

Nothing here knows how a family's inputs look; what must not matter (what a question is batched with, on which side it is
padded) and what must (the picture) is asked of the model's numbers.
"""

import copy
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from family_cases import each_family
from tiny_cases import (
    FULL,
    LORA,
    QUESTIONS,
    Setup,
    encoder_for,
    flat,
    make_examples,
    other_pictures,
    picture,
    tiny_family,
    training_of,
)

from mmunlearn.config import Lora, ModelConfig, PartTuning, Tune
from mmunlearn.config_enums import Mode
from mmunlearn.data.batch import IGNORE, collate
from mmunlearn.data.example import Shot
from mmunlearn.methods.base import Masked, TrainingData
from mmunlearn.methods.finetune import FineTune
from mmunlearn.methods.grad_ascent import GradAscent
from mmunlearn.methods.grad_diff import GradDiff
from mmunlearn.methods.kl_min import KLMin
from mmunlearn.methods.mmunlearner import MMUnlearner
from mmunlearn.methods.npo import NPO
from mmunlearn.models import checkpointing
from mmunlearn.models.checkpointing import checkpoint_activations
from mmunlearn.models.families import FAMILIES, Part, bare_name, part_of
from mmunlearn.models.likelihood import answer_log_probs, sequence_sums
from mmunlearn.models.load import load, save
from mmunlearn.models.saliency_mask import mask_of
from mmunlearn.models.tuning import apply_tuning, trainable
from mmunlearn.training.optimizer import build_optimizer

ENDS = {
    "llava": "</s>",
    "llava_next": "</s>",
    "mllama": "<|eot_id|>",
    "smolvlm": "<end_of_utterance>",
    "idefics3": "<end_of_utterance>",
    "gemma3": "<end_of_turn>",
}
"""The end of an answer in the published templates; of the others <|im_end|>."""
EXAMPLES = make_examples("case", 6)
BARE_PROJECTOR = {"gemma3"}
"""Families whose projector no adapter can be put on."""


@pytest.fixture(scope="module", params=each_family())
def pristine_family(request):
    return request.param, *tiny_family(request.param)


@pytest.fixture
def case(pristine_family):
    """Family name, model and processor; the test's own."""
    return tuple(copy.deepcopy(each) for each in pristine_family)


def lora_for(name):
    return replace(LORA, projector=PartTuning(mode=Mode.full)) if name in BARE_PROJECTOR else LORA


def batch_of(encoder, examples):
    return collate([encoder(example) for example in examples], pad_token_id=encoder.pad_token_id)


def losses(model, encoder, examples):
    """[B], of each example, as one batch."""
    batch = batch_of(encoder, examples)
    with torch.no_grad():
        return -sequence_sums(answer_log_probs(model, batch), batch)


def shaken(model, seed=1):
    """Random adapters that act."""
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=dice))
    return model


# --- what is supervised and seen --------------------------------------------------------------------------------------


def test_the_answer_and_its_end_are_supervised_and_nothing_else(case):
    name, _, processor = case
    encoder = encoder_for(processor)
    for example in EXAMPLES:
        encoded = encoder(example)
        supervised = encoded.labels != IGNORE
        ids = encoded.inputs["input_ids"][0]
        assert torch.equal(encoded.labels[supervised], ids[supervised])
        text = processor.tokenizer.decode(ids[supervised])
        assert text.strip() == example.answer + ENDS.get(name, "<|im_end|>")
        assert bool(supervised[-1]), "nothing stands behind the end"
        assert len(supervised.nonzero()) == len(supervised) - int(supervised.nonzero()[0]), "the answer is one stretch"


def test_a_text_begins_but_once(case):
    _, _, processor = case
    begin = processor.tokenizer.bos_token_id
    for example in EXAMPLES:
        ids = encoder_for(processor)(example).inputs["input_ids"][0]
        assert begin is None or (ids == begin).nonzero().flatten().tolist() == [0]


def test_generation_marks_mark_what_the_prefix_finds(case):
    """The chat template's own marks, read by transformers, against the labels."""
    _, _, processor = case
    for example in EXAMPLES:
        content = [{"type": "image", "image": example.image.open()}] if example.image else []
        turns = [
            {"role": "user", "content": [*content, {"type": "text", "text": example.question}]},
            {"role": "assistant", "content": [{"type": "text", "text": example.answer}]},
        ]
        settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "return_assistant_tokens_mask": True}
        marked = processor.apply_chat_template(turns, **settings)
        encoded = encoder_for(processor)(example)
        length = len(encoded.labels)
        assert torch.equal(marked["input_ids"][0, :length], encoded.inputs["input_ids"][0])
        assert torch.equal(torch.as_tensor(marked["assistant_masks"])[0, :length].bool(), encoded.labels != IGNORE)


def test_the_whole_text_but_no_image_token_can_be_supervised(case):
    _, _, processor = case
    encoded = encoder_for(processor, answer_only=False)(EXAMPLES[0])
    text = processor.tokenizer.decode(encoded.labels[encoded.labels != IGNORE])
    assert EXAMPLES[0].question in text
    assert not re.search(r"(?i)<[^>]*(image|img|vision|row_)[^>]*>", text), text


def test_another_picture_changes_the_loss(case):
    _, model, processor = case
    encoder = encoder_for(processor)
    before, after = (losses(model, encoder, examples) for examples in (EXAMPLES, other_pictures(EXAMPLES)))
    seen = torch.tensor([example.image is not None for example in EXAMPLES])
    assert bool(((before - after).abs() > 1e-4)[seen].all()), before - after
    assert torch.equal(before[~seen], after[~seen])


# --- what a question is batched with does not matter ------------------------------------------------------------------


def varied_examples():
    """With and without pictures, the pictures of several shapes, and with solved questions before, with pictures too."""
    wide, tall = picture(1, shape=(64, 32)), picture(2, shape=(30, 70))
    shaped = [replace(example, image=image) for example, image in zip(EXAMPLES[:2], (wide, tall), strict=True)]
    shown = Shot(question="Where?", answer="Oslo", image=picture(4, shape=(32, 60)))
    taught = replace(EXAMPLES[0], id="taught", shots=(shown,)), replace(EXAMPLES[1], id="taught-text", shots=(shown,))
    return [*(replace(example, id=f"shaped-{example.id}") for example in shaped), *EXAMPLES, *taught]


def test_a_batch_gives_each_example_the_loss_that_it_has_alone(case):
    _, model, processor = case
    encoder, examples = encoder_for(processor), varied_examples()
    together = losses(model, encoder, examples)
    alone = torch.cat([losses(model, encoder, [example]) for example in examples])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    backwards = losses(model, encoder, examples[::-1])
    torch.testing.assert_close(backwards.flip(0), alone, rtol=1e-5, atol=1e-5)


def test_tiles_of_one_image_do_not_matter_to_another(case):
    """Processors that cut an image into tiles, told to do so where the tiny one does not."""
    name, model, processor = case
    switches = {"smolvlm": "do_image_splitting", "idefics3": "do_image_splitting", "gemma3": "do_pan_and_scan"}
    if name not in switches:
        pytest.skip("it cuts images anyway, or never")
    setattr(processor.image_processor, switches[name], True)
    if name == "gemma3":
        processor.image_processor.pan_and_scan_min_crop_size = 16
        processor.image_processor.pan_and_scan_max_num_crops = 4
        processor.image_processor.pan_and_scan_min_ratio_to_activate = 1.2
    encoder, examples = encoder_for(processor, max_length=1000), varied_examples()
    tokens = {len(encoder(example).labels) for example in examples}
    assert len(tokens) > 3, "images of several numbers of tiles"
    alone = torch.cat([losses(model, encoder, [example]) for example in examples])
    torch.testing.assert_close(losses(model, encoder, examples), alone, rtol=1e-5, atol=1e-5)


def test_left_padded_generation_equals_single_generation(case):
    _, model, processor = case
    encoder, examples = encoder_for(processor), varied_examples()

    def generate(group):
        batch = collate([encoder.prompt(example) for example in group], pad_token_id=encoder.pad_token_id, left=True)
        with torch.inference_mode():
            found = model.generate(
                **batch.inputs,
                max_new_tokens=6,
                min_new_tokens=6,
                do_sample=False,
                pad_token_id=encoder.pad_token_id,
                return_dict_in_generate=True,
                output_logits=True,
            )
        return found.sequences[:, batch.labels.shape[1] :], torch.stack(found.logits, dim=1)

    ids, logits = generate(examples)
    for row, example in enumerate(examples):
        own_ids, own_logits = generate([example])
        torch.testing.assert_close(logits[row, 0], own_logits[0, 0], rtol=1e-4, atol=1e-5)
        # A tie between two tokens may go either way; what follows it is then about another text.
        gap = own_logits[0].topk(2).values.diff().abs().flatten()
        certain = int((gap < 1e-4).nonzero()[0]) if bool((gap < 1e-4).any()) else len(gap)
        assert torch.equal(ids[row, :certain], own_ids[0, :certain])


def test_generation_says_what_the_likelihood_says(case):
    """The first generated token is the arg-max of the logits of a plain forward pass, also for text behind an image."""
    _, model, processor = case
    encoder = encoder_for(processor)
    for example in (EXAMPLES[0], EXAMPLES[1]):
        inputs = encoder.prompt(example).inputs
        with torch.inference_mode():
            said = model.generate(**inputs, max_new_tokens=1, do_sample=False, pad_token_id=0)[0, -1]
            assert int(said) == int(model(**inputs).logits[0, -1].argmax())


# --- parts ------------------------------------------------------------------------------------------------------------


def gradients(model, encoder, examples=EXAMPLES):
    batch = batch_of(encoder, examples)
    (-answer_log_probs(model, batch).sum()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("part", list(Part))
def test_each_part_can_be_tuned_alone(part, case):
    name, model, processor = case
    family = FAMILIES[name]
    tune = replace(Tune(language=PartTuning()), **{part: PartTuning(mode=Mode.full)})
    tuned = apply_tuning(model, family, tune, Lora()).train()
    assert list(trainable(tuned, family)) == [part]
    found = gradients(tuned, encoder_for(processor))
    assert all(part_of(name, family) is part for name in found)
    # Softmax ignores what all keys share.
    idle = [n for n, grad in found.items() if grad is None or (float(grad.abs().max()) == 0 and not n.endswith("k_proj.bias"))]
    assert not [n for n in idle if found[n] is None], idle
    assert len(idle) < 0.1 * len(found), idle


def test_no_gradient_reaches_what_is_called_unused_and_one_reaches_all_else(case):
    name, model, processor = case
    gradients(model, encoder_for(processor))
    unused = FAMILIES[name].unused(model.config)
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in model.named_parameters() if name.startswith(unused)}


@pytest.mark.parametrize("part", list(Part))
def test_adapters_stay_in_their_part(part, case):
    name, model, processor = case
    family = FAMILIES[name]
    if part is Part.projector and name in BARE_PROJECTOR:
        pytest.skip("its projector has no linear layer; refused in tests/unit/models/test_tuning.py")
    linear = {
        path
        for path, module in model.named_modules()
        if type(module) is torch.nn.Linear and part_of(f"{path}.weight", family) is part and path != "lm_head"
    }
    linear -= {path for path in linear if f"{path}.".startswith(family.unused(model.config))}
    tune = replace(Tune(language=PartTuning()), **{part: PartTuning(mode=Mode.lora)})
    tuned = shaken(apply_tuning(model, family, tune, Lora(r=2, dropout=0.0)))
    adapted = {bare_name(name).split(".lora_")[0] for name, p in tuned.named_parameters() if p.requires_grad}
    assert adapted == linear, "every linear layer of the part, and none besides"
    found = gradients(tuned, encoder_for(processor))
    assert all("lora_" in name and grad is not None and float(grad.abs().max()) > 0 for name, grad in found.items())


@pytest.mark.parametrize("selective", [False, True], ids=["all", "selective"])
def test_recomputed_activations_give_the_same_gradient(selective, case, monkeypatch):
    monkeypatch.setattr(checkpointing, "THIN", 8)  # or no layer of these models would be large
    name, model, processor = case
    tuned = shaken(apply_tuning(model, FAMILIES[name], lora_for(name), Lora(r=2, dropout=0.0))).train()
    encoder = encoder_for(processor)
    plain = {own: grad.clone() for own, grad in gradients(tuned, encoder).items() if grad is not None}
    tuned.zero_grad()
    checkpoint_activations(tuned, selective=selective)
    again = gradients(tuned, encoder)
    assert plain.keys() == {own for own, grad in again.items() if grad is not None}
    for own, grad in plain.items():
        torch.testing.assert_close(again[own], grad, rtol=1e-4, atol=1e-6)


# --- training, saving, loading ----------------------------------------------------------------------------------------


def trained(name, model, processor, tune, method, folder, **settings):
    """One optimizer step."""
    data = TrainingData(forget=make_examples("forget", 4), retain=make_examples("retain", 4, first=1))
    if isinstance(method, FineTune):
        data = TrainingData(forget=(), retain=data.retain)
    if isinstance(method, Masked):
        dice = torch.Generator().manual_seed(0)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        settings["mask"] = mask_of(
            {n: torch.rand(shape, generator=dice) < 0.5 for n, shape in shapes.items()}, {"rule": "random"}
        )
    setup = Setup(method, data, model, processor, folder, batch_size=4, tune=tune, optimizer=build_optimizer, **settings)
    setup.args = {"max_steps": 1, "learning_rate": 1e-2}
    training = training_of(setup)
    before = {name: parameter.detach().clone() for name, parameter in training.model.named_parameters()}
    training.run()
    moved = {name for name, parameter in training.model.named_parameters() if not torch.equal(parameter, before[name])}
    return training.model.eval(), moved


METHODS = {
    "finetune": (FineTune(), FineTune()),
    "grad_ascent": (GradAscent(), GradAscent()),
    "grad_diff": (GradDiff(), GradDiff()),
    "kl_min": (KLMin(), KLMin()),
    "npo": (NPO(), NPO()),
    "mmunlearner": (MMUnlearner(), MMUnlearner(scope="update")),
}
"""Settings for full tuning and for LoRA."""


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_one_step_of_every_method(method, mode, case, tmp_path):
    name, model, processor = case
    tune = FULL if mode == "full" else lora_for(name)
    chosen = METHODS[method][mode == "lora"]
    tuned, moved = trained(name, model, processor, tune, chosen, tmp_path)
    assert {part_of(own, FAMILIES[name]) for own in moved} == set(Part)
    assert moved <= {own for own, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert bool(torch.isfinite(flat({name: p.detach() for name, p in tuned.named_parameters()})).all())


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_tuned_model_is_the_same_after_saving_and_loading(mode, case, tmp_path):
    name, model, processor = case
    save(model, processor, tmp_path / "base", {})
    model = load(ModelConfig(path=str(tmp_path / "base"))).model
    tune = FULL if mode == "full" else lora_for(name)
    tuned, _ = trained(name, model, processor, tune, FineTune(), tmp_path)
    shaken(tuned)
    save(tuned, processor, tmp_path / "tuned", {})
    expected = losses(tuned, encoder_for(processor), EXAMPLES)
    for merge in (True, False):
        opened = load(ModelConfig(path=str(tmp_path / "tuned")), merge=merge)
        assert opened.family is FAMILIES[name]
        found = losses(opened.model, encoder_for(opened.processor), EXAMPLES)
        if mode == "lora" and merge:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        else:
            assert torch.equal(found, expected)


FRESH = """
import json, sys
import torch
sys.path.insert(0, sys.argv[2])
torch.set_num_threads(1)
from test_families import EXAMPLES, losses
from tiny_cases import encoder_for
from mmunlearn.config import ModelConfig
from mmunlearn.models.load import load
opened = load(ModelConfig(path=sys.argv[1]), merge=False)
print(json.dumps(losses(opened.model, encoder_for(opened.processor), EXAMPLES).tolist()))
"""


@pytest.mark.slow
@pytest.mark.thorough
def test_a_fresh_process_opens_the_same_model(tmp_path):
    """Nothing of what this process has registered or mended is needed."""
    model, processor = tiny_family("mllama")
    save(model, processor, tmp_path / "base", {})
    opened = load(ModelConfig(path=str(tmp_path / "base")))
    tuned = shaken(apply_tuning(opened.model, opened.family, LORA, Lora(r=2, dropout=0.0))).eval()
    save(tuned, processor, tmp_path / "tuned", {})
    here = Path(__file__).parent
    words = [sys.executable, "-c", FRESH, str(tmp_path / "tuned"), str(here)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    torch.testing.assert_close(
        torch.tensor(json.loads(done.stdout.splitlines()[-1])), losses(tuned, encoder_for(processor), EXAMPLES), rtol=0, atol=0
    )


def test_the_examples_are_of_both_kinds():
    """Otherwise much of the above would pass with nothing to see."""
    assert {example.image is None for example in EXAMPLES} == {True, False}
    assert len({len(question) for question in QUESTIONS}) == len(QUESTIONS)
