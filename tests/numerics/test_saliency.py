"""Saliency masks of a real LLaVA against the plain way: one backward pass of transformers' own loss for each example."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_cases import encoder_for, make_examples, other_pictures

from mmunlearn.config import SaliencyConfig
from mmunlearn.config_enums import Modules, Per, Reduction, Rule
from mmunlearn.data.batch import collate
from mmunlearn.errors import ConfigError, RunError
from mmunlearn.models.families import LLAVA, Part, part_of
from mmunlearn.models.image_features import ImageFeatures
from mmunlearn.saliency import estimate, per_layer
from mmunlearn.saliency import gradients as gradients_module
from mmunlearn.saliency.estimate import SaliencyData, saliency_mask
from mmunlearn.saliency.gradients import Sums

FORGET = make_examples("forget", 7, images="all")
RETAIN = make_examples("retain", 5, images="all")
TEXT = make_examples("text", 8, images="none")
DATA = SaliencyData(forget=FORGET, preserve_language=(*TEXT, *RETAIN), preserve_vision=RETAIN)
BOTH = SaliencyConfig(modules=Modules.both)
TIE = 1e-4
"""Ratios nearer to the threshold than that may fall on either side."""


@pytest.fixture(scope="module")
def lively(pristine):
    """The tiny model with larger weights and with biases and norms that are not all alike, for every test to copy."""
    model = copy.deepcopy(pristine[0])
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    return model


@pytest.fixture
def model(lively):
    return copy.deepcopy(lively)


@pytest.fixture
def make(model, processor):
    """A mask: `make(settings, data)`; what was remarked is in `make.said`."""

    def run(settings=BOTH, data=DATA, on=None, answer_only=True, **more):
        encoder = encoder_for(processor, answer_only=answer_only)
        run.said = []
        return saliency_mask(on or model, LLAVA, encoder, data, settings, say=run.said.append, **more)

    return run


def gradients(model, processor, examples, *, batch_size=1, reduction="mean", answer_only=True):
    """The gradient of each batch in turn, by transformers' own loss; float64."""
    encoder = encoder_for(processor, answer_only=answer_only)
    for start in range(0, len(examples), batch_size):
        encoded = [encoder(example) for example in examples[start : start + batch_size]]
        batch = collate(encoded, pad_token_id=encoder.pad_token_id)
        model.zero_grad()
        loss = model(**batch.inputs, labels=batch.labels).loss
        (loss * batch.num_tokens if reduction == "sum" else loss).backward()
        yield {
            name: torch.zeros_like(p, dtype=torch.float64) if p.grad is None else p.grad.double()
            for name, p in model.named_parameters()
        }
    model.zero_grad()


def fisher(model, processor, *parts, **settings):
    """Mean squared gradient over the batches of several lists of examples."""
    found = [gradient for examples in parts for gradient in gradients(model, processor, examples, **settings)]
    return {name: sum(gradient[name] ** 2 for gradient in found) / len(found) for name in found[0]}


def assert_mask(mask, forget, language, vision, *, threshold=1.0, epsilon=0.0, tie=TIE):
    """A mask is what the definition says, but for ties and for gradients that are 0 by symmetry."""
    typical = torch.cat([value.flatten() for value in forget.values()]).mean()
    checked = 0
    for name in mask.bits:
        preserve = language[name] if part_of(name, LLAVA) is Part.language else vision[name]
        left, right = forget[name] + epsilon, threshold * (preserve + epsilon)
        expected = left >= right
        if epsilon == 0:
            expected &= forget[name] > 0
        rounding = (forget[name] + preserve < 1e-10 * typical) & (forget[name] + preserve > 0)
        assert not rounding.any() or name.endswith("k_proj.bias"), name
        clear = ((left - right).abs() > tie * right) | (left + right == 0) | ((preserve == 0) & (forget[name] == 0))
        clear &= ~rounding
        wrong = (mask.tensor(name) != expected) & clear
        assert not wrong.any(), f"{name}: {int(wrong.sum())} of {wrong.numel()}"
        checked += int(clear.sum())
    assert checked > 0.97 * sum(mask.size(name) for name in mask.bits)


@pytest.fixture(scope="module")
def by_example(lively, pristine):
    """F of forget, of what language preserves and of what vision preserves."""
    model = copy.deepcopy(lively)
    return [fisher(model, pristine[1], examples) for examples in (FORGET, (*TEXT, *RETAIN), RETAIN)]


# --- against the plain way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "parts"),
    [
        (Modules.language, {Part.language}),
        (Modules.vision, {Part.vision, Part.projector}),
        (Modules.both, set(Part)),
    ],
)
@pytest.mark.parametrize("threshold", [1.0, pytest.param(2.0, marks=pytest.mark.thorough)])
def test_every_covered_tensor_per_example(make, model, by_example, modules, parts, threshold):
    mask = make(SaliencyConfig(modules=modules, threshold=threshold))
    assert make.said == []
    assert mask.bits.keys() == {name for name, _ in model.named_parameters() if part_of(name, LLAVA) in parts}
    assert_mask(mask, *by_example, threshold=threshold)


@pytest.mark.parametrize("epsilon", [0.0, 1e-15])
def test_per_batch(make, model, processor, epsilon):
    mask = make(SaliencyConfig(modules=Modules.both, per=Per.batch, batch_size=3, epsilon=epsilon))
    settings = {"batch_size": 3}
    forget = fisher(model, processor, FORGET, **settings)
    language = fisher(model, processor, RETAIN, TEXT, **settings)
    assert_mask(mask, forget, language, fisher(model, processor, RETAIN, **settings), epsilon=epsilon)


@pytest.mark.parametrize(("reduction", "answer_only"), [("sum", True), ("mean", False)])
def test_token_sum_and_supervised_questions(make, model, processor, by_example, reduction, answer_only):
    mask = make(SaliencyConfig(modules=Modules.both, loss=Reduction(reduction)), answer_only=answer_only)
    settings = {"reduction": reduction, "answer_only": answer_only}
    found = [fisher(model, processor, examples, **settings) for examples in (FORGET, (*TEXT, *RETAIN), RETAIN)]
    assert_mask(mask, *found)
    with pytest.raises(AssertionError):
        assert_mask(mask, *by_example)


def test_per_example_and_per_batch_differ(make, by_example):
    mask = make(SaliencyConfig(modules=Modules.both, per=Per.batch, batch_size=4))
    with pytest.raises(AssertionError):
        assert_mask(mask, *by_example)


def test_batches_of_one_are_examples(make, by_example):
    assert_mask(make(SaliencyConfig(modules=Modules.both, per=Per.batch, batch_size=1)), *by_example)


@pytest.mark.parametrize("density", [0.1, 0.5])
@pytest.mark.parametrize("max_bytes", [0, 120_000])
def test_largest_sums_of_forget_gradients(make, model, processor, density, max_bytes):
    mask = make(SaliencyConfig(rule=Rule.forget_gradient, modules=Modules.both, density=density, max_bytes=max_bytes))
    found = list(gradients(model, processor, FORGET))
    sizes = {name: sum(gradient[name] for gradient in found).abs() for name in mask.bits}
    everything = torch.cat([size.flatten() for size in sizes.values()])
    count = round(density * everything.numel())
    assert sum(map(mask.selected, mask.bits)) == count
    limit = everything.sort(descending=True).values[count - 1]
    for name, size in sizes.items():
        clear = (size - limit).abs() > TIE * limit
        assert torch.equal(mask.tensor(name)[clear], (size >= limit)[clear]), name


# --- half precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", [Per.example, Per.batch])
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.thorough)])
def test_half_precision_gives_the_mask_of_the_rounded_weights(make, model, per, dtype):
    half = copy.deepcopy(model).to(dtype)
    settings = SaliencyConfig(modules=Modules.both, per=per)
    found, expected = make(settings, on=half), make(settings, on=copy.deepcopy(half).float())
    assert make.said == []
    noisy = [name for name in found.bits if name.endswith("k_proj.bias")]
    names = [name for name in found.bits if name not in noisy]
    size = sum(map(found.size, names))
    differ = sum(int((found.tensor(name) != expected.tensor(name)).sum()) for name in names)
    assert differ / size < {torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    for part, row in found.card["parts"].items():
        # What is 0/0 is so by construction, and no gradient may be lost to underflow.
        assert row["zero_over_zero"] == pytest.approx(
            expected.card["parts"][part]["zero_over_zero"], abs=0.002 * row["covered"]
        )


def test_small_gradients_survive_float16(make, model):
    """Squares of gradients below 2e-4 are 0 in float16, and gradients below 6e-8 themselves."""
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-3)
    half = copy.deepcopy(model).half()
    settings = SaliencyConfig(modules=Modules.language, per=Per.batch)
    parts = [make(settings, on=on).card["parts"]["language"] for on in (half, copy.deepcopy(half).float())]
    assert parts[0]["zero_over_zero"] == pytest.approx(parts[1]["zero_over_zero"], rel=0.05)
    assert parts[0]["selected"] == pytest.approx(parts[1]["selected"], rel=0.1)


# --- what must not matter ---------------------------------------------------------------------------------------------


def differing(first, second):
    """The weights, key biases aside, on which two masks differ."""
    names = [name for name in first.bits if not name.endswith("k_proj.bias")]
    return sum(int((first.tensor(name) != second.tensor(name)).sum()) for name in names)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 3},
        {"max_bytes": 102_000},
        pytest.param({"batch_size": 1}, marks=pytest.mark.thorough),
        pytest.param({"max_bytes": 120_000}, marks=pytest.mark.thorough),
    ],
)
def test_computing_batch_and_grouping_do_not_matter(make, monkeypatch, settings):
    expected = make(BOTH)
    monkeypatch.setattr(estimate, "SMALL_MODEL", 0)
    assert differing(make(replace(BOTH, **settings)), expected) <= 2  # ties


@pytest.mark.parametrize("modules", [Modules.language, pytest.param(Modules.both, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("long", [0, 18, 1000])
def test_long_examples_by_themselves_give_the_same_mask(make, by_example, monkeypatch, modules, long):
    """All of them, those with a picture, or none."""
    passes = []
    adding = gradients_module.Estimator._adding

    def count(self, *args, **settings):
        passes.append(settings["fast"])
        return adding(self, *args, **settings)

    monkeypatch.setattr(gradients_module.Estimator, "_adding", count)
    monkeypatch.setattr(gradients_module, "LONG", long)
    assert_mask(make(SaliencyConfig(modules=modules)), *by_example)
    assert make.said == []
    assert any(passes) == (long > 0)


def test_each_picture_is_encoded_once_for_the_language_part(make, monkeypatch):
    seen = []
    encode = ImageFeatures._encode
    monkeypatch.setattr(ImageFeatures, "_encode", lambda self, example: seen.append(example.image.key) or encode(self, example))
    again = tuple(replace(example, id=f"{example.id} again", question="Who is it?") for example in FORGET)
    data = replace(DATA, forget=(*FORGET, *again))
    make(SaliencyConfig(modules=Modules.language), data)
    assert sorted(seen) == sorted({example.image.key for example in (*FORGET, *RETAIN)})
    seen.clear()
    make(BOTH, data)
    assert not seen, "the vision part is looked at itself"


def test_grouping_changes_nothing_per_batch(make):
    settings = replace(BOTH, per=Per.batch, epsilon=1e-15)
    assert differing(make(replace(settings, max_bytes=120_000)), make(settings)) <= 2


def test_buffers_stay_within_the_memory_allowed(make, monkeypatch):
    live, peak = [], []

    class Counting(Sums):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            live.append(self)
            peak.append(sum(sums.num_bytes for sums in live))

    monkeypatch.setattr(estimate, "Sums", Counting)
    limit = 110_000
    mask = make(replace(BOTH, max_bytes=limit))
    covered = sum(map(mask.size, mask.bits))
    assert len(live) > 4 * covered / limit
    assert 0.5 * limit < max(peak) <= limit
    assert any("groups" in remark for remark in make.said)
    live.clear()
    peak.clear()
    make(BOTH)
    assert max(peak) == 4 * covered


def test_a_tensor_that_does_not_fit_is_named(make):
    with pytest.raises(ConfigError, match=r"max_bytes=50000: model\.\S+ alone needs \d+ bytes"):
        make(replace(BOTH, max_bytes=50_000))


def test_the_model_is_left_as_it_was(make, model):
    model.train()
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    make(BOTH)  # transformers installs hooks of its own at the first pass
    hooks = [len(module._forward_hooks) for module in model.modules()]
    for per in Per:
        make(replace(BOTH, per=per))
        assert model.training
        assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["lm_head.weight"]
        assert all(parameter.grad is None for parameter in model.parameters())
        assert [len(module._forward_hooks) for module in model.modules()] == hooks
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dropout_is_off(make, model, by_example):
    model.train()
    model.model.language_model.layers[0].self_attn.attention_dropout = 0.5
    assert_mask(make(), *by_example)


# --- what must matter -------------------------------------------------------------------------------------------------


def changed_parts(first, second):
    names = [name for name in first.bits if not torch.equal(first.bits[name], second.bits[name])]
    return {part_of(name, LLAVA) for name in names if not name.endswith("k_proj.bias")}


def test_each_part_has_its_own_preserve_set(make):
    expected = make()
    other_text = make_examples("other", 8, images="none")
    found = make(data=replace(DATA, preserve_language=(*other_text, *RETAIN)))
    assert changed_parts(expected, found) == {Part.language}
    pictures = other_pictures(RETAIN)
    found = make(data=replace(DATA, preserve_language=(*TEXT, *pictures), preserve_vision=pictures))
    assert changed_parts(expected, found) == set(Part)
    found = make(data=replace(DATA, forget=other_pictures(FORGET)))
    assert changed_parts(expected, found) == set(Part)
    found = make(data=replace(DATA, preserve_vision=pictures))
    assert changed_parts(expected, found) == {Part.vision, Part.projector}


def test_both_is_the_union_of_the_two(make):
    both = make()
    for modules in (Modules.language, Modules.vision):
        single = make(SaliencyConfig(modules=modules))
        assert set(single.bits) < set(both.bits)
        assert differing(single, both) <= 2


def test_weights_without_a_gradient_are_not_selected(make, model, by_example):
    mask = make()
    unused = [name for name in mask.bits if name.startswith(LLAVA.unused(model.config))]
    assert len(unused) == 18
    assert all(mask.selected(name) == 0 for name in unused)
    zero = {part: 0 for part in Part}
    for name in mask.bits:
        preserve = by_example[1 if part_of(name, LLAVA) is Part.language else 2]
        zero[part_of(name, LLAVA)] += int(((by_example[0][name] == 0) & (preserve[name] == 0)).sum())
    assert {part: row["zero_over_zero"] for part, row in mask.card["parts"].items()} == zero
    assert zero[Part.vision] > 0
    official = make(replace(BOTH, epsilon=1e-15))
    assert all(official.selected(name) == official.size(name) for name in unused)


# --- one example at a time where layers do not tell them apart ----------------------------------------------------------


def test_weights_shared_by_two_layers(make, model, processor):
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    mask = make()
    assert len(make.said) == 1
    assert "one at a time" in make.said[0]
    assert "same weights" in make.said[0]
    assert_mask(mask, *(fisher(model, processor, examples) for examples in (FORGET, (*TEXT, *RETAIN), RETAIN)))


def test_a_layer_that_is_used_twice(make, model, processor):
    layers = model.model.language_model.layers
    layers[1].mlp.forward = layers[0].mlp.forward
    mask = make()
    assert "is used twice" in make.said[0]
    assert_mask(mask, *(fisher(model, processor, examples) for examples in (FORGET, (*TEXT, *RETAIN), RETAIN)))


def test_a_wrong_layer_rule_is_found_out(make, by_example, monkeypatch):
    def wrong(call):
        rule(replace(call, gradient=call.gradient * 1.01))

    rule = per_layer._RULES[torch.nn.LayerNorm]
    monkeypatch.setitem(per_layer._RULES, torch.nn.LayerNorm, wrong)
    mask = make()
    assert len(make.said) == 1
    assert "other gradients" in make.said[0]
    assert_mask(mask, *by_example)


@pytest.mark.parametrize("kind", [torch.nn.Linear, torch.nn.LayerNorm, torch.nn.Conv2d])
def test_layers_of_unknown_kind_are_run_once_more(make, by_example, monkeypatch, kind):
    """Without a rule of its own a layer is differentiated by itself; only the head, on supervised positions, cannot be."""
    monkeypatch.delitem(per_layer._RULES, kind)
    mask = make(SaliencyConfig(modules=Modules.vision))
    assert make.said == []
    assert_mask(mask, *by_example)


def test_a_module_that_mixes_rows_takes_one_example_at_a_time(make, model, by_example):
    model.model.multi_modal_projector.forward = partial(flat_rows, model.model.multi_modal_projector)
    mask = make()
    assert "does not fall apart" in make.said[0]
    assert_mask(mask, *by_example)


def flat_rows(projector, features):
    rows = features.reshape(-1, features.shape[-1])
    return projector.linear_2(projector.act(projector.linear_1(rows))).view(*features.shape[:-1], -1)


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", list(Per))
def test_a_gradient_that_is_not_finite_names_its_examples(make, model, processor, per):
    """A token that only one question has gets an infinite embedding."""
    ids = {example.id: set(encoder_for(processor)(example).inputs["input_ids"][0].tolist()) for example in FORGET}
    lone = next(
        (name, token) for name, own in ids.items() for token in own if sum(token in other for other in ids.values()) == 1
    )
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight[lone[1]] = float("nan")
    with pytest.raises(RunError, match=f"gradients of {lone[0]} are"):
        make(replace(BOTH, per=per))


def test_a_uniform_part_is_refused(make):
    with pytest.raises(RunError, match=r"none of the .* weights of the vision part"):
        make(SaliencyConfig(modules=Modules.vision, threshold=1e9))
    with pytest.raises(RunError, match=r"saliency\.density=0\.95"):
        make(SaliencyConfig(rule=Rule.forget_gradient, modules=Modules.both, density=0.95))
